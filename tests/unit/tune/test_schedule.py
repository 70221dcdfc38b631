"""Multi-objective successive halving: who goes on from a rung, and what is stopped whatever the rung says."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from alast_tune.config import SweepConfig
from alast_tune.results import DIRECTIONS
from alast_tune.tune import schedule as module
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.schedule import MoAsha, Rungs, place_by_front, place_in_region


def sweep(**options: Any) -> SweepConfig:
    values = {
        "trial": {"train": {"epochs": 8}},
        "grace_epochs": 1,
        "space": {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}},
    }
    return SweepConfig.model_validate(values | options)


def study() -> optuna.Study:
    return optuna.create_study(directions=list(DIRECTIONS))


def decide(
    scheduler: MoAsha, number: int, epoch: int, values: tuple[float, float, float], baseline: str | None = None
) -> str:
    trial = SimpleNamespace(config={"number": number, "baseline": baseline})
    metrics = dict(zip(("accuracy", "train_flops", "peak_bytes"), values, strict=True)) | {"epoch": epoch}
    result = {f"report/{name}": value for name, value in metrics.items()}
    return scheduler.on_trial_result(None, cast("TuneTrial", trial), result)


CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_rungs_lie_at_powers_below_the_last_epoch() -> None:
    rungs = Rungs(8)
    good, bad = (0.9, 1.0, 1.0), (0.1, 2.0, 2.0)
    for epoch in range(1, 9):
        assert rungs.report(0, epoch, good)
        assert rungs.report(1, epoch, good)
        assert rungs.report(2, epoch, bad) == (epoch not in {1, 2, 4})


def test_unless_told_otherwise_the_first_half_is_let_pass() -> None:
    scheduler = MoAsha(sweep(grace_epochs=None), study())
    for epoch in range(1, 8):
        assert decide(scheduler, 0, epoch, (0.9, 1.0, 1.0)) == CONTINUE
        assert decide(scheduler, 1, epoch, (0.1, 2.0, 2.0)) == (STOP if epoch == 4 else CONTINUE)


def test_whoever_is_not_dominated_goes_on_however_many_they_are() -> None:
    rungs = Rungs(4)
    assert all(rungs.report(n, 1, (0.5 + n / 100, 1.0 + n, 1.0)) for n in range(10))


def test_of_the_dominated_those_in_the_better_half_go_on() -> None:
    rungs = Rungs(4)
    assert rungs.report(0, 1, (0.9, 1.0, 1.0))
    assert not rungs.report(1, 1, (0.7, 1.0, 1.0))  # second of two
    assert rungs.report(2, 1, (0.8, 1.0, 1.0))  # second of three
    assert not rungs.report(3, 1, (0.75, 1.0, 1.0))  # third of four
    assert not rungs.report(4, 1, (0.6, 1.0, 1.0))


def test_within_a_front_who_adds_more_stands_first() -> None:
    ideal = [(1.0, 0.0, 0.0)]
    front = [(0.9, 2.0, 1.0), (0.5, 1.0, 1.0), (0.51, 1.01, 1.0), (0.7, 1.5, 1.0)]  # two of them almost the same
    places = {row: place_by_front([*ideal, *front], row) for row in range(5)}
    assert places[0] == (0, 0)
    assert {rank for _, rank in places.values()} == {0, 1}
    assert sorted(place for place, _ in places.values()) == [0, 1, 2, 3, 4]
    assert {places[2][0], places[3][0]} & {4}


def test_equal_trials_stand_equal() -> None:
    assert place_by_front([(0.5, 1.0, 1.0)] * 3, 1) == place_by_front([(0.5, 1.0, 1.0)] * 3, 2) == (0, 0)


def test_a_rung_remembers_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    rungs = Rungs(4)
    rungs.record(0, 1, (0.9, 1.0, 1.0))
    for number in (1, 2, 3):
        rungs.record(number, 1, (0.1, 5.0, 5.0))
    assert rungs.report(4, 1, (0.2, 4.0, 4.0))  # the one that dominates it is forgotten


def test_baselines_are_never_stopped_and_are_compared_with() -> None:
    scheduler = MoAsha(sweep(), study())
    assert decide(scheduler, 0, 1, (0.9, 1.0, 1.0)) == CONTINUE
    assert decide(scheduler, 1, 1, (0.1, 2.0, 2.0), baseline="full") == CONTINUE
    assert decide(scheduler, 2, 1, (0.05, 3.0, 3.0)) == STOP
    alone = MoAsha(sweep(), study())
    assert decide(alone, 1, 1, (0.9, 1.0, 1.0), baseline="full") == CONTINUE
    assert decide(alone, 2, 1, (0.05, 3.0, 3.0)) == STOP


@pytest.mark.parametrize("values", [(math.nan, 1.0, 1.0), (0.5, math.inf, 1.0)])
def test_what_is_not_a_number_is_stopped(values: tuple[float, float, float]) -> None:
    scheduler = MoAsha(sweep(scheduler="none"), study())
    assert decide(scheduler, 0, 3, values, baseline="full") == STOP


def test_a_cost_that_has_broken_its_limit_is_stopped_but_a_low_accuracy_may_rise() -> None:
    config = sweep(scheduler="none", max_flops=10.0, max_memory=100, min_accuracy=0.9)
    scheduler = MoAsha(config, study())
    assert decide(scheduler, 0, 3, (0.1, 10.0, 100.0)) == CONTINUE
    assert decide(scheduler, 0, 4, (0.95, 11.0, 100.0)) == STOP
    assert decide(scheduler, 1, 1, (0.95, 1.0, 101.0)) == STOP


def test_none_stops_nobody_and_few_epochs_mean_none() -> None:
    for options in ({"scheduler": "none"}, {"trial": {"train": {"epochs": 3}}}):
        config = sweep(**options)
        scheduler = MoAsha(config, study())
        assert decide(scheduler, 0, 1, (0.9, 1.0, 1.0)) == CONTINUE
        assert decide(scheduler, 1, 1, (0.1, 2.0, 2.0)) == CONTINUE
    few = sweep(scheduler="moasha", trial={"train": {"epochs": 3}})
    scheduler = MoAsha(few, study())
    assert decide(scheduler, 0, 1, (0.9, 1.0, 1.0)) == CONTINUE
    assert decide(scheduler, 1, 1, (0.1, 2.0, 2.0)) == STOP


def test_a_resumed_sweep_compares_with_trials_of_the_driver_before() -> None:
    before = study()
    earlier = before.ask({"method/trainable_blocks": optuna.distributions.IntDistribution(1, 12)})
    earlier.set_user_attr("curve", [[0.9, 1.0, 1.0], [0.95, 2.0, 1.0]])
    before.tell(earlier, state=optuna.trial.TrialState.PRUNED)
    scheduler = MoAsha(sweep(), before)
    assert decide(scheduler, 1, 1, (0.5, 1.5, 1.5)) == STOP
    assert decide(scheduler, 2, 2, (0.96, 1.9, 1.0)) == CONTINUE


@pytest.mark.parametrize(
    ("state", "goes_on"), [(optuna.trial.TrialState.PRUNED, False), (optuna.trial.TrialState.FAIL, True)]
)
def test_a_failed_trial_is_compared_with_nobody(state: optuna.trial.TrialState, goes_on: bool) -> None:
    before = study()
    before.add_trial(optuna.trial.create_trial(state=state, user_attrs={"curve": [[0.9, 1.0, 1.0]]}))
    scheduler = MoAsha(sweep(), before)
    assert decide(scheduler, 1, 1, (0.5, 1.5, 1.5)) == (CONTINUE if goes_on else STOP)
    nobody = MoAsha(sweep(scheduler="none"), before)
    assert decide(nobody, 1, 1, (0.5, 1.5, 1.5)) == CONTINUE


def test_why_a_trial_is_stopped_at_a_rung_is_handed_on() -> None:
    told: list[tuple[int, str]] = []
    scheduler = MoAsha(sweep(), study(), outdone=lambda *why: told.append(why))
    for number, accuracy in enumerate((0.9, 0.8, 0.7, 0.6, 0.5)):
        decide(scheduler, number, 1, (accuracy, 1.0 + number, 1.0))
    assert told == [
        (1, "place 2 of 2 there, dominated by 0000"),
        (2, "place 3 of 3 there, dominated by 0000, 0001"),
        (3, "place 4 of 4 there, dominated by 0000, 0001, 0002"),
        (4, "place 5 of 5 there, dominated by 0000, 0001, 0002 and 1 more"),
    ]
    decide(scheduler, 5, 1, (math.nan, 1.0, 1.0))
    assert len(told) == 4  # no rung has stopped it


def test_why_a_trial_has_failed_is_handed_on(tmp_path: Path) -> None:
    told: list[tuple[int, str, bool]] = []
    scheduler = MoAsha(sweep(), study(), lambda *why: told.append(why))
    texts = {
        "Traceback\n  File x\nRuntimeError: mat1 and mat2 shapes cannot be multiplied\n\n": (
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
            False,
        ),
        "ray.exceptions.OutOfMemoryError: Task was killed\nRefer to ... how to address the out of memory issue: x": (
            "out of memory: Ray's memory monitor has killed the worker, as the machine had little left",
            True,
        ),
        # Full, but none of the sweep's disks:
        "RuntimeError: unable to write to file </torch_12_3>: No space left on device (28)": (
            "RuntimeError: unable to write to file </torch_12_3>: No space left on device (28)",
            False,
        ),
        "OSError: [Errno 28] No space left on device: '/elsewhere/.cache/huggingface/x'": (
            "OSError: [Errno 28] No space left on device: '/elsewhere/.cache/huggingface/x'",
            False,
        ),
    }
    for number, text in enumerate(texts):
        scheduler.on_trial_error(None, failed(tmp_path, number, text))
    scheduler.on_trial_error(None, cast("TuneTrial", SimpleNamespace(error_file=None, config={"number": 9})))
    assert told == [*((number, *why) for number, why in enumerate(texts.values())), (9, "worker lost", False)]


@pytest.mark.parametrize("file", ["", ": '{storage}/sweep/tune/driver-00/0001/checkpoint_000000/state.pt'"])
def test_a_full_disk_of_the_sweep_ends_it(tmp_path: Path, file: str) -> None:
    scheduler = MoAsha(sweep(storage=tmp_path), study())
    text = f"OSError: [Errno 28] No space left on device{file.format(storage=tmp_path)}"
    with pytest.raises(OSError, match=r"^No space left on device$"):
        scheduler.on_trial_error(None, failed(tmp_path, 0, text))


def failed(folder: Path, number: int, text: str) -> TuneTrial:
    file = folder / f"error-{number}.txt"
    file.write_text(text)
    return cast("TuneTrial", SimpleNamespace(error_file=str(file), config={"number": number}))


def test_at_a_rung_those_in_the_region_come_first_and_the_others_by_accuracy() -> None:
    # Accuracy, FLOPs, bytes: 0 and 1 are a front, 2 is dominated by 1; 3 and 4 are cheapest, so that nobody dominates
    # them, but lie below.
    values = [(0.9, 3.0, 3.0), (0.8, 2.0, 2.0), (0.75, 2.5, 2.5), (0.2, 1.0, 2.0), (0.3, 1.0, 1.5)]
    places = [place_in_region(values, row, 0.7) for row in range(5)]
    assert {places[0], places[1]} == {(0, 0), (1, 0)} and places[2:] == [(2, 1), (4, None), (3, None)]
    assert [place_in_region(values, row) for row in range(5)] == [place_by_front(values, row) for row in range(5)]
    assert place_by_front(values, 4)[1] == 0  # it was spared
    assert place_in_region([(0.7, 1.0, 1.0), (0.9, 1.0, 1.0)], 0, 0.1 + 0.6)[1] == 1  # 0.7000000000000001 in binary


def test_cheap_trials_that_lie_too_far_below_full_fine_tuning_are_not_spared() -> None:
    told: list[tuple[int, str]] = []
    scheduler = MoAsha(sweep(within=0.1), study(), outdone=lambda *why: told.append(why))
    assert decide(scheduler, 0, 1, (0.6, 9.0, 9.0), baseline="full") == CONTINUE
    assert decide(scheduler, 1, 1, (0.5, 1.0, 1.0)) == CONTINUE  # as far below as it may be
    assert decide(scheduler, 2, 1, (0.55, 0.9, 0.9)) == CONTINUE
    assert decide(scheduler, 3, 1, (0.4, 0.1, 0.1)) == STOP
    assert decide(scheduler, 4, 1, (0.45, 0.2, 0.2)) == STOP  # fourth of five: the others are in the region
    assert told[-1] == (4, "place 4 of 5 there: accuracy 0.4500 is below 0.5000, from which it counts there")
    for number in range(5, 9):
        decide(scheduler, number, 1, (0.3, 0.1, 0.1))
    assert decide(scheduler, 9, 1, (0.45, 0.2, 0.2)) == CONTINUE  # fourth of ten, in the better half
    assert decide(scheduler, 1, 2, (0.1, 0.1, 0.1)) == CONTINUE
    assert decide(scheduler, 2, 2, (0.05, 0.05, 0.05)) == CONTINUE  # where full fine-tuning has not been yet


def test_everything_counts_where_nothing_else_is_said_and_in_sweeps_of_before() -> None:
    for within in (1.0, None):
        scheduler = MoAsha(sweep(within=within), study())
        decide(scheduler, 0, 1, (0.6, 9.0, 9.0), baseline="full")
        assert decide(scheduler, 1, 1, (0.4, 0.1, 0.1)) == CONTINUE
        assert decide(scheduler, 2, 1, (0.3, 0.09, 0.1)) == CONTINUE


def test_a_least_accuracy_sets_the_distance_once_full_fine_tuning_has_ended() -> None:
    scheduler = MoAsha(sweep(min_accuracy=0.7), study())
    decide(scheduler, 0, 1, (0.6, 9.0, 9.0), baseline="full")
    assert decide(scheduler, 1, 1, (0.1, 0.1, 0.1)) == CONTINUE
    result = {"report/accuracy": 0.9, "report/train_flops": 80.0, "report/peak_bytes": 9.0, "report/epoch": 8}
    trial = cast("TuneTrial", SimpleNamespace(config={"number": 0, "baseline": "full"}))
    scheduler.on_trial_complete(None, trial, result)
    assert decide(scheduler, 2, 1, (0.45, 1.0, 1.0)) == CONTINUE  # 0.2 below it may be
    assert decide(scheduler, 3, 1, (0.35, 0.05, 0.05)) == STOP
    strict = MoAsha(sweep(min_accuracy=0.95), study())
    decide(strict, 0, 1, (0.6, 9.0, 9.0), baseline="full")
    strict.on_trial_complete(None, trial, result)
    assert decide(strict, 1, 1, (0.6, 1.0, 1.0)) == CONTINUE  # no better than full fine-tuning is asked for


def test_a_resumed_sweep_knows_full_fine_tuning_of_the_driver_before() -> None:
    before = study()
    attributes = {BASELINE: "full", "curve": [[0.6, 9.0, 9.0]]}
    before.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs=attributes))
    scheduler = MoAsha(sweep(), before)
    assert decide(scheduler, 1, 1, (0.4, 0.1, 0.1)) == STOP


@pytest.mark.parametrize("resumed", [False, True])
def test_full_fine_tuning_that_ends_early_has_its_accuracy_at_later_rungs_too(resumed: bool) -> None:
    """Out of patience after the first of eight epochs."""
    before = study()
    if resumed:
        attributes = {BASELINE: "full", "curve": [[0.6, 9.0, 9.0]]}
        state = optuna.trial.TrialState.COMPLETE
        before.add_trial(optuna.trial.create_trial(state=state, values=[0.6, 9.0, 9.0], user_attrs=attributes))
    for options in ({}, {"min_accuracy": 0.5}):
        scheduler = MoAsha(sweep(within=0.1, **options), before)
        if not resumed:
            result = {"report/accuracy": 0.6, "report/train_flops": 9.0, "report/peak_bytes": 9.0, "report/epoch": 1}
            trial = cast("TuneTrial", SimpleNamespace(config={"number": 0, "baseline": "full"}))
            scheduler.on_trial_complete(None, trial, result)
        assert decide(scheduler, 1, 4, (0.55, 1.0, 1.0)) == CONTINUE
        assert decide(scheduler, 2, 4, (0.3, 0.1, 0.1)) == STOP
