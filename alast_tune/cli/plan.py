"""What ``alast-tune sweep`` says before it starts: what was chosen, what is forecast, and which YAML that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alast_tune.config import SweepConfig, flops_of, write_yaml
from alast_tune.data import load_splits
from alast_tune.models import input_spec, outline
from alast_tune.plots import human_bytes, human_flops
from alast_tune.text import one_line
from alast_tune.tune.preview import Preview, hours_of, pace, preview, without_cache


def plan_of(sweep: SweepConfig, chosen: Sequence[str]) -> Iterator[str]:
    """Say, a line each, what was chosen for a sweep and what it is predicted to come to; times a few steps of training.

    Args:
        sweep: to be run here.
        chosen: a line for each choice; none of a preset.

    Raises:
        ConfigError: model or data that cannot be loaded.
    """
    if chosen:
        yield f"{sweep.name}: settings chosen for {sweep.trial.data.root}; give your own to replace them"
        yield from (f"  {line}" for line in chosen)
    seen = preview(sweep)
    yield f"{sweep.name}: forecast"
    for name, value in (
        ("at a time", _places(sweep, seen)),
        ("FLOPs", f"{human_flops(seen.full.train_flops)} full fine-tuning; {_range(seen, 'train_flops')}"),
        ("peak memory", f"{human_bytes(seen.full.peak_bytes)} full fine-tuning; {_range(seen, 'peak_bytes')}"),
        *_broken(sweep, seen),
    ):
        yield f"  {name:14}{value}"
    yield f"  {'time':14}{_time(sweep, seen)}"
    if sweep.reseed:
        within = ", within the budget" if sweep.time_budget or sweep.flops_budget else ""
        yield f"  {'other seeds':14}then {sweep.reseed} more runs of each member in the region, and of full{within}"


def yaml_of(sweep: SweepConfig) -> str:
    """Write a sweep as a preset: what differs from the defaults, and all that was given of the trial.

    Read again it is the same sweep.
    """
    values = sweep.given_values()
    defaults = {name: field.default for name, field in SweepConfig.model_fields.items()}
    defaults["storage"] = str(defaults["storage"])
    kept = {name: value for name, value in values.items() if name in {"name", "trial", "space"}}
    return write_yaml(
        {name: value for name, value in values.items() if name in kept or value != defaults[name]}, compact=True
    )


def _places(sweep: SweepConfig, seen: Preview) -> str:
    of = f"of {seen.trials} trials, {seen.baselines} baseline{'s' * (seen.baselines != 1)} among them"
    if seen.at_a_time is None:
        return f"as many as fit on the cluster, {of}"
    return f"{seen.at_a_time} {of}"


def _broken(sweep: SweepConfig, seen: Preview) -> Iterator[tuple[str, str]]:
    """Say that full fine-tuning, which all is compared with, breaks a limit."""
    for limit, cost in (("max_memory", "peak_bytes"), ("max_flops", "train_flops")):
        if sweep.excess(**{cost: float(getattr(seen.full, cost))}).get(limit, 0) > 0:
            yield "note", f"full fine-tuning is above --{limit.replace('_', '-')}, and is not run to be compared with"


def _range(seen: Preview, cost: str) -> str:
    low, high = seen.range_of(cost)
    return f"{100 * low:.0f} to {100 * high:.0f}% of that over the search"


def _time(sweep: SweepConfig, seen: Preview) -> str:
    ends = [_duration(sweep.time_budget)] if sweep.time_budget else []
    if sweep.flops_budget:
        ends.append(human_flops(flops_of(sweep.flops_budget, seen.full.train_flops)))
    if sweep.min_gain:
        ends.append(f"an expected gain below {sweep.min_gain:g}")
    limit = f"; none starts after {' or '.join(ends)}" if ends else ""
    if seen.at_a_time is None:
        return f"said once the first trial has ended: the cluster's machines are not this one{limit}"
    if not seen.at_a_time:
        return "none: not one trial fits into this machine's memory; give a smaller --trial.train.batch-size"
    splits = load_splits(without_cache(sweep.trial).data, input_spec(outline(sweep.trial.model)), verify=False)
    images = {"train": len(splits.train), "validation": len(splits.validation)}
    try:
        one, whole = hours_of(seen, pace(sweep), images, sweep.trial.train.epochs)
    except RuntimeError as error:  # memory that others have, say: the trials will tell
        return f"said once the first trial has ended; a step could not be timed here ({one_line(error)}){limit}"
    return (
        f"{_duration(3600 * one)} full fine-tuning, timed here; {_duration(3600 * whole)} all trials, by FLOPs{limit}"
    )


def _duration(seconds: float) -> str:
    """Write seconds as no more exact than a forecast is."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
