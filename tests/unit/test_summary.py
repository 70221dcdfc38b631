"""From trials to front.json: who may be a member, and what is said of the others."""

from pathlib import Path
from typing import Any

import pytest

from alast_tune.config import TrialConfig
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise

REFERENCE = (0.0, 4.0, 8.0)


def result(
    number: int, state: Any = "complete", values: tuple[float, ...] | None = None, epochs: int = 3
) -> TrialResult:
    return TrialResult(number, state, TrialConfig(), {}, values, epochs)


def test_only_complete_trials_are_members_cheapest_first() -> None:
    front = summarise(
        "s",
        [
            result(0, values=(0.9, 3.0, 4.0)),
            result(1, values=(0.5, 1.0, 2.0)),
            result(2, values=(0.4, 2.0, 2.0)),
            result(3, "pruned", epochs=1),
            result(4, "failed"),
            result(5, "running"),
        ],
        REFERENCE,
        {0: 0.8},
    )
    assert [member.trial_id for member in front.front] == ["0001", "0000"]
    assert [member.test_accuracy for member in front.front] == [None, 0.8]
    assert front.trials.model_dump() == {"total": 6, "complete": 3, "pruned": 1, "failed": 1}
    # Two boxes, 0.9 x 1 x 4 and 0.5 x 3 x 6, that share 0.5 x 1 x 4.
    assert front.hypervolume == pytest.approx(3.6 + 9.0 - 2.0)
    assert front.hypervolume_share == pytest.approx(10.6 / 32)
    assert front.knee in {"0000", "0001"}


def test_no_complete_trial_is_an_empty_front(tmp_path: Path) -> None:
    front = summarise("s", [result(0, "failed")], REFERENCE)
    assert (front.front, front.hypervolume, front.hypervolume_share, front.knee) == ((), 0.0, 0.0, None)
    front.write(tmp_path / "front.json")
    assert FrontFile.read(tmp_path / "front.json") == front
    assert [path.name for path in tmp_path.iterdir()] == ["front.json"]
