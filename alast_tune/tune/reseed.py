"""Run the members of a front again with other seeds: what of it was luck."""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from alast_tune.config import PLACES, Limits, SweepConfig, TrialConfig, parse, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import fingerprints, read_fingerprints
from alast_tune.lease import exclusive_driver
from alast_tune.near_full import members_that_count
from alast_tune.other_seeds import lacks_full, reseeded
from alast_tune.results import OBJECTIVES, RESEEDED, FrontFile, FrontMember, Reseeded, SeedRun
from alast_tune.run import load_trial
from alast_tune.summary import member_of
from alast_tune.terminal import printer
from alast_tune.tracking import log_reseeded
from alast_tune.tune.conclude import report
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trials import open_study, results


def reseed(folder: Path, runs: int, console: Console) -> Reseeded:
    """Run what counts on a finished sweep's front with other seeds; leave ``reseeded.json``, and the page with it.

    That is the members in the sweep's region, and full fine-tuning, from which the region is measured. The runs are a
    sweep of their own, ``<name>-seeds``: a grid of members and seeds, with all that a sweep has; run again the same
    goes on where it was.

    Args:
        folder: of a sweep that has ended.
        runs: of each member, 2 or more, or there is no spread; their seeds follow that of the sweep's trial.
        console: for progress.

    Raises:
        ConfigError: an empty front, other images or starting weights, or no member that ends with every seed.
    """
    sweep = stored_sweep(folder).model_copy(update={"storage": folder.parent.absolute()})
    front = FrontFile.read(folder / "front.json")
    if not front.front:
        raise ConfigError("reseed", runs, f"the front of {sweep.name} is empty: there is nobody to run again")
    members = _repeated(front, sweep, folder)
    again, begun = _free_name(_seeds_of(sweep, members, runs))
    _, splits = load_trial(sweep.trial)
    before = read_fingerprints(folder)
    here = fingerprints(splits, sweep.trial.model)
    if before and (differences := before.differences(here)):
        remedy = before.remedy(here)
        raise ConfigError("reseed", runs, f"{sweep.name} was run otherwise: here are {differences}; {remedy}")
    found: dict[str, list[SeedRun]] = defaultdict(list)
    for result in run_sweep(again, resume=begun, console=console):
        if result.values is not None:
            objectives = {o.name: value for o, value in zip(OBJECTIVES, result.values, strict=True)}
            run = SeedRun(seed=result.params["train/seed"], objectives=objectives, test_accuracy=result.test_accuracy)
            found[result.params["member"]].append(run)
    whole = {member: ran for member, ran in found.items() if len(ran) == runs}
    for member in members:
        if member.trial_id not in whole:
            done = len(found.get(member.trial_id, []))
            printer(console)(f"trial {member.trial_id}: {done} of {runs} runs were completed; left out")
    if not whole:
        raise ConfigError("reseed", runs, f"no member was completed with every seed; see sweep {again.name}")
    summary = reseeded(members, sweep.name, whole)
    with exclusive_driver(folder):
        summary.write(folder / RESEEDED)
        log_reseeded(summary, folder)
    report(folder, console)  # its page tells of the seeds from now on
    return summary


def _repeated(front: FrontFile, sweep: SweepConfig, folder: Path) -> tuple[FrontMember, ...]:
    """Members that count, and full fine-tuning if it is complete but none of them, the dearest last."""
    members = members_that_count(front)
    if front.full and lacks_full(members):
        study = open_study(sweep, folder, must_exist=True)
        members += [member_of(one) for one in results(study, sweep) if one.baseline == "full" and one.values]
    return tuple(members)


def _seeds_of(sweep: SweepConfig, members: tuple[FrontMember, ...], runs: int) -> SweepConfig:
    """Make a grid of members and seeds."""
    first = sweep.trial.train.seed + 1
    values = sweep.given_values() | {
        "name": f"{sweep.name}-seeds",
        "sampler": "grid",
        "scheduler": "none",
        "warm_start": None,
        "space": {
            "member": {"type": "variants", "variants": {m.trial_id: _settings_of(m.config) for m in members}},
            "train/seed": {"type": "categorical", "choices": list(range(first, first + runs))},
        },
    }
    # A limit that a member breaks with another seed is no reason to leave that run out; budgets have been heeded.
    left_out = {"trials", "reseed", "time_budget", "flops_budget", "min_gain", "begin_with", *Limits.model_fields}
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
