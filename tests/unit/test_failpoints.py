"""Named places where tests end a process; nothing where nobody asks."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from alast_tune import failpoints
from alast_tune.failpoints import VARIABLE, failpoint


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What would have been sent to whom, in a process that has passed no place yet."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(failpoints, "_passed", Counter())
    monkeypatch.delenv(VARIABLE, raising=False)
    return sent


@pytest.mark.parametrize("value", [None, "", ",", "elsewhere", "elsewhere:1,here-not"])
def test_a_place_that_nobody_named_does_nothing(
    kills: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    for _ in range(3):
        failpoint("here")
    assert kills == []


@pytest.mark.parametrize(
    ("value", "passages"),
    [("here", 1), ("here:1", 1), ("here:3", 3), ("elsewhere,here:2", 2), ("here:2,elsewhere:1", 2)],
)
def test_the_process_is_killed_at_that_passage_alone(
    kills: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, value: str, passages: int
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    fatal = []
    for passage in range(1, 6):
        failpoint("there")  # counted by itself
        failpoint("here")
        fatal += [passage] * (len(kills) - len(fatal))
    assert fatal == [passages]
    assert kills == [(os.getpid(), signal.SIGKILL)]


def test_of_several_places_each_ends_it(kills: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "here,there:2")
    for _ in range(2):
        failpoint("there")
    failpoint("here")
    assert len(kills) == 2


def test_the_process_is_gone_at_once() -> None:
    """Without leaving the ``with`` blocks and ``finally`` clauses that it is in."""
    program = f"import runpy, sys; failpoint = runpy.run_path({failpoints.__file__!r})['failpoint']\n"
    program += (
        "try:\n    failpoint('here'); print('before', flush=True); failpoint('here')\nfinally:\n    print('after')"
    )
    environment = os.environ | {VARIABLE: "here:2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "before\n")
