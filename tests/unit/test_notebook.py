"""How a front is drawn in a notebook, and when it is drawn again."""

from typing import Any

import pytest

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.notebook import PAUSE, NotebookProgress, front_as_html
from alast_tune.results import TrialResult
from alast_tune.summary import summarise


def result(number: int, *values: float, **more: Any) -> TrialResult:
    return TrialResult(number, "complete", TrialConfig(), {}, values, epochs=1, **more)


def test_a_front_is_a_table_with_costs_beside_full_fine_tuning() -> None:
    front = summarise("pets", [result(0, 0.9, 4e12, 8e8, baseline="full"), result(1, 0.8, 1e12, 2e8)], (0.0, 5e12, 1e9))
    page = front_as_html(front.front, front)
    assert (
        "<td>0001</td><td>ALaST, K 9</td><td>0.8000</td><td>-</td><td>1.00 TFLOP (25%)</td><td>191 MiB (25%)</td>"
        in page
    )
    assert "<td>full fine-tuning</td>" in page and "<img" not in page
    assert "(25%)" not in front_as_html(front.front)
    assert "<script" not in page


class Drawn:
    def __init__(self) -> None:
        self.times = 0

    def _repr_html_(self) -> str:
        self.times += 1
        return f"picture {self.times}"


def test_progress_is_shown_in_one_place_and_the_picture_drawn_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, page: Any) -> None:
            shown.append(page.data)

    monkeypatch.setattr("IPython.display.display", lambda *page, display_id: Handle())
    now, drawn = [0.0], Drawn()
    progress = NotebookProgress(drawn, clock=lambda: now[0])
    space = {"train/learning_rate": {"type": "float", "low": 1e-4, "high": 1e-3}}
    progress.on_sweep_start(SweepConfig.model_validate({"name": "s", "space": space, "trials": 3}))
    progress.on_trial_start(0, TrialConfig())
    assert "0 of 3 trials beside the baselines; 0000 ALaST" in shown[-1] and "picture" not in shown[-1]
    progress.on_epoch_end(0, {"epoch": 2.0})
    assert "; 0000 ALaST, epoch 2</p>" in shown[-1]
    progress.on_trial_end(result(0, 0.9, 4e12, 8e8, baseline="full"))
    assert "0 of 3 trials" in shown[-1] and "picture 1" in shown[-1]
    progress.on_trial_end(result(1, 0.8, 1e12, 2e8))
    assert "1 of 3 trials" in shown[-1] and "picture 1" in shown[-1]
    now[0] += PAUSE
    progress.on_trial_end(result(2, 0.8, 1e12, 2e8, launched=False))
    assert "1 of 3 trials" in shown[-1] and "picture 2" in shown[-1]
    progress.on_sweep_end(summarise("s", [], (0.0, 1.0, 1.0)))
    assert "; ended</p>picture 3" in shown[-1]
