"""Refuse settings that have no effect: the person who gives one expects it to have some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from alast_tune.config.space import Distribution, Variants
from alast_tune.config.sweep import SweepConfig
from alast_tune.config.trial import TrialConfig
from alast_tune.errors import ConfigError


def check_effects(trial: TrialConfig, space: Mapping[str, Distribution] | None = None) -> None:
    """Refuse a setting without effect, where something new begins; what is stored is gone on with as it is.

    Args:
        trial: with all that is given; a value that is the default says nothing.
        space: of a sweep; of a group (``method``) in which it sets anything, nothing is refused.

    Raises:
        ConfigError: the first such setting.
    """
    space = space or {}
    variants = [
        settings for item in space.values() if isinstance(item, Variants) for settings in item.variants.values()
    ]
    varied = {path.partition("/")[0] for paths in (space, *variants) for path in paths}
    for group, name, why in _rules(trial):
        record = getattr(trial, group)
        value = getattr(record, name)
        if group not in varied and value != type(record).model_fields[name].default:
            raise ConfigError(f"{group}.{name}", value, why)


def check_sweep_effects(sweep: SweepConfig) -> None:
    """Refuse settings without effect in a new sweep: in its base trial, and epochs of grace where nobody is stopped.

    Raises:
        ConfigError: the first such setting.
    """
    grace, epochs = sweep.grace_epochs, sweep.trial.train.epochs
    if grace is not None and not sweep.stops_early:
        raise ConfigError("grace_epochs", grace, "no trial is stopped early; leave it out, or give --scheduler moasha")
    if grace is not None and grace >= epochs:
        raise ConfigError("grace_epochs", grace, f"a trial has {epochs} epochs, and would never be stopped; give fewer")
    check_effects(sweep.trial, sweep.space)


def _rules(trial: TrialConfig) -> Iterator[tuple[str, str, str]]:
    """List settings that count for nothing in a trial, given or not: group, name and why, with the remedy."""
    method, train = trial.method, trial.train
    if trial.data.dataset == "digits":
        yield "data", "root", "digits come with scikit-learn; leave it out, or set data.dataset to what lies there"
    if isinstance(train.accumulate, int) and train.accumulate > train.batch_size:
        why = f"a batch has train.batch_size = {train.batch_size} images to split; give {train.batch_size} at most"
        yield "train", "accumulate", why
    if method.name in {"top_k", "bsr"} and getattr(method, "blocks", None) is not None:
        for name in ("count", "probe_steps"):
            yield "method", name, "is for blocks that are still to be found, and method.blocks names them; leave it out"
    if method.name == "tome" and getattr(method, "merge_once_in", None) is None:
        yield "method", "merge_share", "is what method.merge_once_in merges, which is not set; leave it out"
    if method.name == "alast" and getattr(method, "initial_budget", None) != "calibrate":
        yield "method", "target_budget", "is what method.initial_budget: calibrate aims at; set that, or leave it out"
