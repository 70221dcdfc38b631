"""Who hears of a sweep, in which order, and what an error in one of them does."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alast_tune.callbacks import EVENTS, Callbacks, TensorBoard, callback_of
from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import FrontTracker, summarise
from alast_tune.tune.callback_observer import CallbackObserver

SWEEP = SweepConfig.model_validate(
    {"name": "s", "space": {"train/learning_rate": {"type": "float", "low": 1e-4, "high": 1e-3}}}
)


class Written:
    """Hears of everything."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def on_sweep_start(self, config: SweepConfig) -> None:
        self.heard.append(("sweep start", config.name))

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        self.heard.append(("trial start", number))

    def on_epoch_end(self, number: int, record: Mapping[str, float]) -> None:
        self.heard.append(("epoch end", (number, record["epoch"])))

    def on_trial_end(self, result: TrialResult) -> None:
        self.heard.append(("trial end", result.number))

    def on_front_change(self, front: FrontFile) -> None:
        self.heard.append(("front change", [member.trial_id for member in front.front]))

    def on_sweep_end(self, front: FrontFile) -> None:
        self.heard.append(("sweep end", [member.trial_id for member in front.front]))


class Broken:
    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        raise ValueError("no disk\nat all")


class Keeping:
    """What a sweep's own observer is to callbacks: it has the front so far."""

    def __init__(self) -> None:
        self._tracker = FrontTracker("s", (0.0, 4e12, 8e8), SWEEP.limits)

    @property
    def front(self) -> FrontFile:
        return self._tracker.front

    def started(self, *details: object) -> None: ...

    def reported(self, *details: object) -> None: ...

    def ended(self, result: TrialResult) -> None:
        self._tracker.add(result)


def result(number: int, *values: float) -> TrialResult:
    return TrialResult(number, "complete", TrialConfig(), {}, values, epochs=1)


def test_callbacks_hear_of_all_that_happens_and_of_a_front_only_when_it_changes(tmp_path: Path) -> None:
    written, said = Written(), list[str]()
    callbacks = Callbacks([Broken(), written], said.append)
    observer = Keeping()
    told = CallbackObserver(observer, callbacks)  # type: ignore[arg-type]
    callbacks.start(SWEEP, observer.front)
    for number, values in enumerate([(0.8, 2e12, 4e8), (0.7, 3e12, 5e8), (0.9, 1e12, 1e8)]):
        told.started(number, TrialConfig(), {}, None)
        told.reported(number, {"epoch": 1.0})
        told.ended(result(number, *values))
    callbacks.end(tmp_path / "front.json")  # a full disk: there is none
    trial = [[("trial start", n), ("epoch end", (n, 1.0)), ("trial end", n)] for n in range(3)]
    assert written.heard == [
        ("sweep start", "s"),
        *trial[0],
        ("front change", ["0000"]),
        *trial[1],
        *trial[2],
        ("front change", ["0002"]),
        ("sweep end", ["0002"]),
    ]
    assert said == ["callback Broken.on_trial_start failed (ValueError: no disk); the sweep goes on"]  # once


def test_the_end_is_told_with_the_front_that_was_written(tmp_path: Path) -> None:
    written = Written()
    callbacks = Callbacks([written], print)
    callbacks.end(tmp_path / "front.json")
    assert written.heard == []  # what has not begun does not end
    callbacks.start(SWEEP, summarise("s", [], (0.0, 4e12, 8e8)))
    summarise("s", [result(4, 0.8, 2e12, 4e8)], (0.0, 4e12, 8e8)).write(tmp_path / "front.json")
    callbacks.end(tmp_path / "front.json")
    assert written.heard[1:] == [("sweep end", ["0004"])]


def test_every_event_is_documented_and_called() -> None:
    assert EVENTS.keys() == {name for name in dir(Written) if name.startswith("on_")}


class Misspelled:
    def on_trial_ended(self, result: TrialResult) -> None: ...


@pytest.mark.parametrize(
    ("callback", "line"),
    [
        (Written, "callbacks = Written: is a class, and an object of it is needed: Written()"),
        (Misspelled(), "callbacks = Misspelled.on_trial_ended: is never called; there are on_sweep_start, on_tr"),
        (print, "callbacks = builtin_function_or_method: has none of on_sweep_start, on_trial_start"),
    ],
)
def test_what_would_never_be_called_is_refused(callback: object, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Callbacks([callback], print)
    assert str(refused.value).startswith(line)


def test_a_callback_is_named_by_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "mine_for_a_test.py").write_text("class Say:\n    def on_trial_end(self, result): ...\n")
    assert type(callback_of("alast_tune.callbacks:TensorBoard")) is TensorBoard
    assert type(callback_of("mine_for_a_test:Say")).__name__ == "Say"
    for path, line in (
        ("TensorBoard", "give module:Class, as alast_tune.callbacks:TensorBoard"),
        (
            "no_such_module:Say",
            "cannot be made (ModuleNotFoundError: No module named 'no_such_module'); give",
        ),
        ("mine_for_a_test:Sing", "cannot be made (AttributeError: module 'mine_for_a_test' has no attribute 'Sing'"),
    ):
        with pytest.raises(ConfigError) as refused:
            callback_of(path)
        assert str(refused.value).startswith(f"callbacks = {path}: {line}")


def test_ctrl_c_is_not_an_error_of_a_callback() -> None:
    class Stopped:
        def on_trial_start(self, number: int, config: TrialConfig) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([Stopped()], print).tell("on_trial_start", 0, TrialConfig())
