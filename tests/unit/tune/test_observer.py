"""What the driver writes of the front while a sweep runs: as much for a trial, however large the front is."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.lease import SweepLease
from alast_tune.results import FrontFile, Region, TrialResult
from alast_tune.tracking import Tracker
from alast_tune.tune.observer import _LONGEST, SweepObserver

SPACE = {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0}}


class Silent:
    """Hears of everything, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **options: values[0] if name == "with_run_ids" else None


def member(number: int) -> TrialResult:
    """A trial that no other dominates."""
    values = (0.1 + number / 2000, 1e9 * (1 + number), 1e8)
    return TrialResult(number, "complete", TrialConfig(), {"method/alpha": 0.1}, values, 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver's time, which stands still."""
    now = SimpleNamespace(seconds=100.0)
    stand_in = SimpleNamespace(monotonic=lambda: now.seconds, time=lambda: now.seconds)
    monkeypatch.setattr("alast_tune.tune.observer.time", stand_in)
    return now


@pytest.fixture
def observer(tmp_path: Path) -> SweepObserver:
    sweep = SweepConfig.model_validate({"name": "s", "storage": str(tmp_path), "space": SPACE})
    (tmp_path / "s").mkdir()
    silent, console = Silent(), Console(file=io.StringIO())
    return SweepObserver(
        sweep, (0.0, 1e13, 1e10), [], cast(Tracker, silent), cast(SweepLease, silent), console, total=200
    )


def test_bytes_written_of_the_front_do_not_grow_with_it(
    observer: SweepObserver, clock: SimpleNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "s" / "front.json"
    written, seen = [], 0
    for number in range(200):
        clock.seconds += 0.25
        observer.ended(member(number))
        if file.exists() and file.stat().st_mtime_ns != seen:
            seen = file.stat().st_mtime_ns
            written.append(file.stat().st_size)
    assert sum(written[1:]) / 200 < 2 * 4096
    assert sum(written[1:]) > 50 * 4096  # it is written all the same
    observer.close()
    assert len(FrontFile.read(file).front) == 200


def test_the_front_is_never_older_than_a_minute(
    observer: SweepObserver, clock: SimpleNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "s" / "front.json"
    for number in range(2):
        observer.ended(member(number))
    assert len(FrontFile.read(file).front) == 1  # the second came at once
    clock.seconds += _LONGEST
    observer.pulse()
    assert len(FrontFile.read(file).front) == 2


def test_hypervolume_is_logged_from_when_its_reference_is_known(tmp_path: Path) -> None:
    logged: list[Any] = []

    class Heard(Silent):
        def log_progress(self, metrics: Any, step: int) -> None:
            logged.append((step, metrics.get("hypervolume")))

    region = Region(source="pending", within=0.05)
    sweep = SweepConfig.model_validate({"name": "s", "storage": str(tmp_path), "space": SPACE})
    (tmp_path / "s").mkdir()
    tracker, lease, console = cast(Tracker, Heard()), cast(SweepLease, Silent()), Console(file=io.StringIO())
    observer = SweepObserver(sweep, (0.0, 1e13, 1e10), [], tracker, lease, console, total=9, region=lambda: region)
    observer.ended(member(1))
    assert observer.front.hypervolume is None
    region = Region(source="full", floor=0.05, within=0.05)
    observer.ended(replace(member(0), baseline="full"))
    assert observer.front.region == region
    observer.ended(member(2))
    observer.close()
    front = FrontFile.read(tmp_path / "s" / "front.json")
    assert front.region == region and front.hypervolume is not None
    (one, early), (two, known), (three, last) = logged
    assert (one, two, three) == (1, 2, 3) and early is None and 0 < known < last == front.hypervolume
