"""Callbacks: objects that a sweep tells what happens in it, and ready ones for TensorBoard and Weights & Biases.

A callback is any object with one or more of the methods that :data:`EVENTS` names. The driver calls them one after
another, between two turns of the search: what takes long holds the sweep up.

    class Print:
        def on_trial_end(self, result):
            print(result.number, result.state, result.values)

    alast_tune.sweep(preset="demo", callbacks=[Print()])
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from alast_tune.callbacks.tensorboard import TensorBoard
from alast_tune.callbacks.wandb import WandB
from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile
from alast_tune.text import one_line

__all__ = ["EVENTS", "Callbacks", "TensorBoard", "WandB", "callback_of"]

EVENTS = {
    "on_sweep_start": "(config: SweepConfig), once its trials are about to start, also when it is resumed",
    "on_trial_start": "(number: int, config: TrialConfig), as the trial is handed to a worker",
    "on_epoch_end": "(number: int, record: Mapping[str, float]), with the metrics of EpochReport.metrics()",
    "on_trial_end": "(result: TrialResult), of each trial that has ended, also of one that was never launched",
    "on_front_change": "(front: FrontFile), when a trial has come onto the front, after its on_trial_end",
    "on_sweep_end": "(front: FrontFile), whatever has ended the sweep",
}
"""What a callback may have: each method's name -> its arguments, and when it is called."""


class Callbacks:
    """Tells callbacks what happens in a sweep; an error in one of them is said in a line, and ends nothing.

    Args:
        callbacks: told in this order.
        say: prints a line.

    Raises:
        ConfigError: an object that none of the events would reach, or that waits for one that there is not.
    """

    def __init__(self, callbacks: Sequence[object], say: Callable[[str], None]) -> None:
        for callback in callbacks:
            _check(callback)
        self._callbacks = tuple(callbacks)
        self._say = say
        self._said: set[str] = set()
        self._front: FrontFile | None = None

    def start(self, config: SweepConfig, front: FrontFile) -> None:
        """The sweep begins, or goes on, with the front of the trials that have ended before."""
        self._front = front
        self.tell("on_sweep_start", config)

    def changed(self, front: FrontFile) -> None:
        """The front is another one."""
        self._front = front
        self.tell("on_front_change", front)

    def end(self, file: Path) -> None:
        """The sweep has ended, well or not; ``file`` is its ``front.json``. Does nothing if it has not begun."""
        if self._front is None:
            return
        with suppress(ConfigError):  # a full disk may have ended it: then the last front that is known
            self._front = FrontFile.read(file)
        self.tell("on_sweep_end", self._front)

    def tell(self, event: str, *details: object) -> None:
        """Call a method of all callbacks that have it."""
        for callback in self._callbacks:
            method = getattr(callback, event, None)
            if method is None:
                continue
            try:
                method(*details)
            except Exception as error:
                line = f"callback {type(callback).__name__}.{event} failed ({one_line(error)}); the sweep goes on"
                if line not in self._said:
                    self._said.add(line)
                    self._say(line)


def callback_of(path: str) -> object:
    """Make the callback that the command line names: ``package.module:Class``, called without arguments.

    Modules in the folder that the command is given in are found too.

    Raises:
        ConfigError: it cannot be imported or made, in one line.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigError("callbacks", path, "give module:Class, as alast_tune.callbacks:TensorBoard")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        made: object = getattr(import_module(module), name)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError("callbacks", path, f"cannot be made ({one_line(error)}); give module:Class") from None
    return made


def _check(callback: object) -> None:
    if isinstance(callback, type):
        name = callback.__name__
        raise ConfigError("callbacks", name, f"is a class, and an object of it is needed: {name}()")
    name = type(callback).__name__
    methods = [method for method in dir(callback) if method.startswith("on_")]
    if unknown := [method for method in methods if method not in EVENTS]:
        raise ConfigError("callbacks", f"{name}.{unknown[0]}", f"is never called; there are {', '.join(EVENTS)}")
    if not methods:
        raise ConfigError("callbacks", name, f"has none of {', '.join(EVENTS)}; give it one")
