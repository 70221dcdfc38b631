"""A driver that dies, at each window between two writes: the next one loses nothing and repeats nothing."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from alast_tune import failpoints
from alast_tune.config import SweepConfig
from alast_tune.failpoints import failpoint
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise
from alast_tune.tune.attributes import DUPLICATE_OF
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trainable import AlastTrainable
from alast_tune.tune.trials import curve_of, enqueue_first, results
from tests.unit.tune.test_search import Recorder, everywhere, forecast, opened, report, sweep

Die = Callable[[str], None]


class Killed(BaseException):
    """Instead of SIGKILL."""


@pytest.fixture
def die(monkeypatch: pytest.MonkeyPatch) -> Die:
    """Let this process die at a failpoint, or at none any more."""

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGKILL)
        raise Killed

    def at(places: str) -> None:
        monkeypatch.setattr(failpoints, "_passed", Counter())
        monkeypatch.setenv(failpoints.VARIABLE, places)

    monkeypatch.setattr(failpoints, "os", SimpleNamespace(environ=os.environ, getpid=os.getpid, kill=kill))
    return at


class Driver:
    """A driver that trains one trial after the other, and what came of it."""

    def __init__(self, folder: Path, config: SweepConfig, baselines: bool = False, start: tuple[int, ...] = ()) -> None:
        self.observer = Recorder()
        self.trained: list[int] = []
        self.config = config
        self.study = opened(config, folder)
        if baselines:
            enqueue_first(self.study, config)
        for blocks in start:
            self.study.enqueue_trial({"method/trainable_blocks": blocks})
        self.search = StudySearcher(
            self.study, config, self.observer, everywhere(config), forecast, lambda number: [f"checkpoint of {number}"]
        )

    def run(self) -> list[dict[str, Any]]:
        handed = []
        while isinstance(suggestion := self.search.suggest(key := str(len(handed))), dict):
            handed.append(suggestion)
            for epoch in (1, 2):
                self.search.on_trial_result(key, report(epoch))
            self.trained.append(suggestion["number"])
            self.search.on_trial_complete(key, report(3, accuracy=0.5 + suggestion["number"] / 10))
        assert suggestion == StudySearcher.FINISHED
        return handed


BLOCKS = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}}
GRID = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 6}}
SEARCH = sweep(study="sqlite", trials=2), 2
COMBINATIONS = sweep(sampler="grid", space=GRID), 0


@pytest.mark.parametrize("place", ["before-ask:1", "before-ask:3", "after-ask:1", "after-ask:3", "after-tell:2"])
@pytest.mark.parametrize(("config", "baselines"), [SEARCH, COMBINATIONS], ids=["search", "grid"])
def test_the_next_driver_loses_nothing_and_repeats_nothing(
    tmp_path: Path, die: Die, place: str, config: SweepConfig, baselines: int
) -> None:
    die(place)
    everything = baselines + config.trials
    first = Driver(tmp_path, config, baselines=baselines > 0)
    with pytest.raises(Killed):
        first.run()
    known = len(first.trained)
    assert known == int(place[-1]) - (0 if place.startswith("after-tell") else 1)
    states = [trial.state for trial in first.study.trials if trial.state != TrialState.WAITING]
    assert states == [TrialState.COMPLETE] * known + [TrialState.RUNNING] * place.startswith("after-ask")

    die("")
    second = Driver(tmp_path, config, baselines=baselines > 0)
    assert second.search.remaining == everything - known
    handed = second.run()
    assert first.trained + second.trained == list(range(everything))
    begun = second.trained[: int(place.startswith("after-ask"))]
    assert [trial["resume_from"] for trial in handed if trial["resume_from"]] == [[f"checkpoint of {n}"] for n in begun]
    ended = results(second.study, config)
    assert [result.state for result in ended] == ["complete"] * everything
    assert [result.values for result in ended] == [(0.5 + n / 10, 1e12, 1e8) for n in range(everything)]
    assert [result.metrics["accuracy"] for result in ended] == [0.5 + n / 10 for n in range(everything)]
    assert len({tuple(result.params.values()) for result in ended if result.baseline is None}) == config.trials
    assert [result.baseline for result in ended[:3]] == (["full", "paper", None] if baselines else [None] * 3)
    assert [len(curve_of(trial.user_attrs)) for trial in second.study.trials] == [3] * everything
    # What was told to the study and to nobody else, is there to be read.
    told = [end.number for driver in (first, second) for end in driver.observer.ends]
    assert sorted({*range(everything)} - {*told}) == ([1] if place == "after-tell:2" else [])
    assert len(told) == len(set(told))


def test_trials_that_were_out_are_handed_out_again_with_what_they_had(tmp_path: Path, die: Die) -> None:
    config = sweep(concurrent=2)
    die("after-ask:3")
    first = Driver(tmp_path, config)
    begun = [first.search.suggest(key) for key in "ab"]
    first.search.on_trial_result("a", report(1, accuracy=0.2))
    first.search.on_trial_complete("b", report())
    with pytest.raises(Killed):
        first.search.suggest("c")
    die("")
    second = Driver(tmp_path, config)
    again = [second.search.suggest(key) for key in "xy"]
    assert isinstance(begun[0], dict) and isinstance(again[0], dict) and isinstance(again[1], dict)
    assert again[0] == begun[0] | {"resume_from": ["checkpoint of 0"]} and again[1]["number"] == 2
    second.search.on_trial_complete("x", report(3))
    assert [values[0] for values in curve_of(second.study.trials[0].user_attrs)] == [0.2]  # no second epoch: none kept
    assert second.search.remaining == 3


def test_a_driver_that_dies_again_and_again_comes_to_the_same_end(tmp_path: Path, die: Die) -> None:
    config, trained = sweep(), list[int]()
    for place in ("after-ask:1", "after-ask:2", "before-ask:1", "after-tell:1", "after-tell:2", ""):
        die(place)
        driver = Driver(tmp_path, config)
        if place:
            with pytest.raises(Killed):
                driver.run()
        else:
            driver.run()
        trained += driver.trained
    assert trained == list(range(6))


@pytest.mark.parametrize(("window", "study"), [("asked", "journal"), ("asked", "sqlite"), ("marked", "journal")])
def test_a_draw_that_repeats_another_is_not_run_by_the_next_driver_either(
    tmp_path: Path, die: Die, window: str, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(study=study, trials=3, space=BLOCKS)
    first = Driver(tmp_path, config, start=(4, 4, 5, 6))
    if window == "asked":
        die("after-ask:2")
    else:  # as a repetition, and not yet told so
        tell = first.study.tell

        def killed(trial: Any, *values: Any, **options: Any) -> Any:
            if values:
                return tell(trial, *values, **options)
            raise Killed

        monkeypatch.setattr(first.study, "tell", killed)
    with pytest.raises(Killed):
        first.run()
    assert [trial.state for trial in first.study.trials[:2]] == [TrialState.COMPLETE, TrialState.RUNNING]
    die("")
    second = Driver(tmp_path, config)
    second.run()
    assert first.trained + second.trained == [0, 2, 3]
    assert second.study.trials[1].state == TrialState.PRUNED and second.study.trials[1].user_attrs[DUPLICATE_OF] == 0
    ended = results(second.study, config)
    assert [(result.number, result.params["method/trainable_blocks"]) for result in ended] == [(0, 4), (2, 5), (3, 6)]
    third = Driver(tmp_path, config)
    assert third.search.remaining == 0 and third.run() == []


@pytest.mark.parametrize("window", ["half", "whole"])
def test_a_front_that_dies_while_it_is_written_leaves_the_old_one(
    tmp_path: Path, die: Die, window: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "front.json"
    fronts = [
        summarise("s", [TrialResult(0, "complete", sweep().trial, {}, (accuracy, 1.0, 1.0), 3)], (0.0, 2.0, 2.0))
        for accuracy in (0.5, 0.9)
    ]
    fronts[0].write(file)
    with monkeypatch.context() as patch:
        if window == "whole":
            die("while-front-is-written")
        else:
            write = Path.write_text

            def half(path: Path, text: str) -> int:
                write(path, text[: len(text) // 2])
                raise Killed

            patch.setattr(Path, "write_text", half)
        with pytest.raises(Killed):
            fronts[1].write(file)
    assert FrontFile.read(file) == fronts[0]
    die("")
    fronts[1].write(file)
    assert FrontFile.read(file) == fronts[1]
    assert [path.name for path in tmp_path.iterdir()] == ["front.json"]


def test_a_worker_that_dies_after_saving_has_saved(tmp_path: Path, die: Die) -> None:
    trainable = AlastTrainable.__new__(AlastTrainable)
    trainable._run = SimpleNamespace(save=lambda folder: (folder / "run.pt").write_text("all"))  # type: ignore[assignment]
    die("after-save")
    trainable._trouble = {"trouble": "out of memory"}
    trainable.save_checkpoint(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    trainable._trouble = {}
    with pytest.raises(Killed):
        trainable.save_checkpoint(str(tmp_path))
    assert (tmp_path / "run.pt").read_text() == "all"


def test_failpoints_are_passed_until_their_time(die: Die) -> None:
    die("mid-epoch:2,after-save")
    for name in ("mid-epoch", "after-ask", "mid-epoc"):
        failpoint(name)
    with pytest.raises(Killed):
        failpoint("after-save")
    failpoint("after-save")  # it was the first time that was meant
    with pytest.raises(Killed):
        failpoint("mid-epoch")
    die("")
    failpoint("mid-epoch")
