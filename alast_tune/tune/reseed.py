"""Run the members of a front again with other seeds: what of it was luck."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from alast_tune.config import PLACES, Limits, SweepConfig, TrialConfig, parse, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import fingerprints, read_fingerprints
from alast_tune.lease import exclusive_driver
from alast_tune.other_seeds import counted, reseeded, with_knee_of_means
from alast_tune.results import OBJECTIVES, RESEEDED, FrontFile, FrontMember, Reseeded, SeedRun
from alast_tune.run import load_trial
from alast_tune.summary import member_of
from alast_tune.terminal import printer
from alast_tune.tracking import log_reseeded
from alast_tune.tune.conclude import report
from alast_tune.tune.members import write_blocks_here
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trials import open_study, results

_RUN = "run"
"""The one parameter of such a sweep: ``0007 seed 1``."""


def reseed(folder: Path, runs: int, console: Console) -> Reseeded:
    """Run what counts on a finished sweep's front with other seeds; leave ``reseeded.json``, and the page with it.

    That is the members in the sweep's region, and full fine-tuning, from which the region is measured; and then the
    members that come into it because full fine-tuning's mean is lower than its first run. What was run before is not
    run again; what has failed is. The runs are a sweep of their own, ``<name>-seeds``, with all that a sweep has:
    interrupted, the same call goes on.

    Args:
        folder: of a sweep that has ended.
        runs: of each member, 2 or more, or there is no spread; their seeds follow those of the sweep's trials.
        console: for progress.

    Raises:
        ConfigError: an empty front, other images or starting weights, or no member that ends with every seed.
    """
    sweep = stored_sweep(folder)
    front = FrontFile.read(folder / "front.json")
    if not front.front:
        raise ConfigError("reseed", runs, f"the front of {sweep.name} is empty: there is nobody to run again")
    _, splits = load_trial(sweep.trial)
    before = read_fingerprints(folder)
    here = fingerprints(splits, sweep.trial.model)
    if before and (differences := before.differences(here)):
        remedy = before.remedy(here)
        raise ConfigError("reseed", runs, f"{sweep.name} was run otherwise: here are {differences}; {remedy}")
    first = 1 + max(sweep.trial.train.seed, *(member.config.train.seed for member in front.front))
    seeds = range(first, first + runs)
    again, asked = Reseeded.find(folder), set[tuple[str, int]]()
    found = {(one.trial_id, run.seed): run for one in (again.members if again else ()) for run in one.runs}
    while True:
        members = _repeated(front, again, sweep, folder)
        wanted = {(member.trial_id, seed): member for member in members for seed in seeds}
        left = {key: member for key, member in wanted.items() if key not in found and key not in asked}
        if again and not left:
            break
        asked |= left.keys()
        found |= _run(_seeds_of(sweep, left), console) if left else {}
        whole = {
            member.trial_id: [found[member.trial_id, seed] for seed in seeds]
            for member in members
            if all((member.trial_id, seed) in found for seed in seeds)
        }
        if not whole:
            raise ConfigError("reseed", runs, f"no member was completed with every seed; see {sweep.name}-seeds")
        again = reseeded(members, sweep.name, whole)
        with exclusive_driver(folder):
            again.write(folder / RESEEDED)
    for member in members:
        done = sum((member.trial_id, seed) in found for seed in seeds)
        if done < runs:
            remedy = f"alast-tune sweep --resume {sweep.name} --reseed {runs} tries the others again"
            printer(console)(f"trial {member.trial_id}: {done} of {runs} runs were completed; {remedy}")
    with exclusive_driver(folder):
        log_reseeded(again, folder)
        ended = results(open_study(sweep, folder, must_exist=True), sweep)
        write_blocks_here(folder, sweep, with_knee_of_means(front, again), ended, printer(console))
    report(folder, console)  # its page tells of the seeds from now on
    return again


def _run(sweep: SweepConfig, console: Console) -> dict[tuple[str, int], SeedRun]:
    """Run a sweep of members and seeds, or go on with it; returns the complete ones."""
    sweep, begun = _free_name(sweep)
    found = {}
    for result in run_sweep(sweep, resume=begun, retry_failed=begun, console=console):
        if result.values is not None:
            member, _, seed = result.params[_RUN].partition(" seed ")
            objectives = {o.name: value for o, value in zip(OBJECTIVES, result.values, strict=True)}
            found[member, int(seed)] = SeedRun(
                seed=int(seed), objectives=objectives, test_accuracy=result.test_accuracy
            )
    return found


def _repeated(front: FrontFile, again: Reseeded | None, sweep: SweepConfig, folder: Path) -> list[FrontMember]:
    """Members that count, and full fine-tuning if it is complete but none of them, the dearest last."""
    members = counted(front, again)
    if front.full and all(member.baseline != "full" for member in members):
        study = open_study(sweep, folder, must_exist=True)
        members += [member_of(one) for one in results(study, sweep) if one.baseline == "full" and one.values]
    return members


def _seeds_of(sweep: SweepConfig, runs: Mapping[tuple[str, int], FrontMember]) -> SweepConfig:
    """Make a list of runs, each a member and a seed, as a grid of one parameter."""
    variants = {
        f"{name} seed {seed}": _settings_of(member.config) | {"train/seed": seed}
        for (name, seed), member in runs.items()
    }
    values = sweep.given_values() | {
        "name": f"{sweep.name}-seeds",
        "sampler": "grid",
        "scheduler": "none",
        "warm_start": None,
        "trial": sweep.with_limit(sweep.trial).given_values(),  # micro-batches that follow from the sweep's limit
        "space": {_RUN: {"type": "variants", "variants": variants}},
    }
    # A limit that a member breaks with another seed is no reason to leave that run out; budgets have been heeded.
    left_out = {"trials", "reseed", "grace_epochs", "time_budget", "flops_budget", "min_gain", "begin_with"}
    left_out |= Limits.model_fields.keys()
    return parse(SweepConfig, {name: value for name, value in values.items() if name not in left_out})


def _settings_of(trial: TrialConfig) -> dict[str, Any]:
    """Give all that makes a trial, but for where things lie and run, as paths and values."""
    plain = trial.model_dump(mode="json")
    whole = {name: plain.pop(name) for name in ("recipe", "method")}
    paths = {f"{group}/{name}": value for group, values in plain.items() for name, value in values.items()}
    return whole | {path: value for path, value in paths.items() if path not in PLACES}


def _free_name(sweep: SweepConfig) -> tuple[SweepConfig, bool]:
    """Find the same sweep, begun before; else a name for it that is free."""
    for number in count(1):
        wish = sweep if number == 1 else sweep.model_copy(update={"name": f"{sweep.name}-{number}"})
        folder = sweep.storage / wish.name
        if not (folder / "sweep.json").exists():
            return wish, False
        if not wish.difference(stored_sweep(folder)):
            return wish, True
    raise AssertionError
