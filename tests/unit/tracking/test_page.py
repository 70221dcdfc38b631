"""What is put onto the parent run: its description, its files, and what becomes of them when a picture fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from alast_tune.config import FloatRange, SweepConfig, TrialConfig
from alast_tune.other_seeds import reseeded
from alast_tune.plots import SearchReport
from alast_tune.results import FrontFile, SeedRun, TrialResult
from alast_tune.summary import summarise
from alast_tune.tracking.page import describe_front, fill_run_ids, write_pages
from alast_tune.tune.space import trial_config
from tests.unit.plots.figures import Pictures

REFERENCE = (0.0, 4.4e12, 8.8e8)


@pytest.fixture(autouse=True)
def drawn_small(monkeypatch: pytest.MonkeyPatch) -> None:
    Pictures(monkeypatch)


SWEEP = SweepConfig(space={"method/alpha": FloatRange(low=0.1, high=1.0)})


def sweep(**baselines: tuple[float, float, float]) -> tuple[FrontFile, list[TrialResult]]:
    """Three trials of their own, and baselines."""
    results = []
    for number, (baseline, values) in enumerate(
        [*baselines.items(), *((None, v) for v in ((0.9, 2e12, 4e8), (0.5, 1e12, 2e8), (0.4, 3e12, 3e8)))]
    ):
        params = {"method/alpha": 0.1}
        config = trial_config(SWEEP, params, baseline)
        results.append(TrialResult(number, "complete", config, params, values, 2, baseline=baseline))
    return summarise("s", results, REFERENCE), results


def test_knee_is_explained_beside_full_fine_tuning() -> None:
    front, results = sweep(full=(0.95, 4e12, 8e8))
    text = describe_front(front, results)
    assert f"**Knee**: trial {front.knee} has 95% of the best accuracy (0.9000 of 0.9500) for 50% of" in text
    assert "and 50% of the peak memory of full fine-tuning" in text
    assert "alast-tune promote s --pick knee -o config.yaml" in text
    assert "| 0000 | 0.9500 | - | 4.00 TFLOP | 763 MiB | full fine-tuning |" in text
    assert "| 0001 | 0.9000 | - | 2.00 TFLOP | 381 MiB | **knee** |" in text


def test_full_fine_tuning_measures_the_knee_even_when_it_is_dominated() -> None:
    front, results = sweep(full=(0.3, 4e12, 8e8))
    assert "of the peak memory of full fine-tuning" in describe_front(front, results)


def test_without_full_fine_tuning_the_most_accurate_member_measures_the_knee() -> None:
    front, results = sweep()
    assert "of trial 0000, the most accurate" in describe_front(front, results)


def test_without_a_member_there_is_nothing_to_promote() -> None:
    text = describe_front(summarise("s", [], REFERENCE), [])
    assert "0 of 0 complete trials" in text
    assert "promote" not in text and "Knee" not in text


def test_a_description_of_a_long_front_keeps_its_last_lines() -> None:
    """MLflow cuts it off after 8,000 characters, where the way on stands."""
    results = [
        TrialResult(n, "complete", TrialConfig(), {}, (0.5 + n / 1000, (1 + n) * 1e11, 2e8), 2) for n in range(300)
    ]
    front = summarise("s", results, REFERENCE)
    text = describe_front(front, results, ["report.html", "front.json"])
    rows = [line for line in text.splitlines() if line.startswith("| 0")]
    assert len(front.front) == 300 and 20 < len(rows) <= 30
    assert f"{300 - len(rows)} more in front_table.json." in text
    assert rows[0].startswith("| 0000 ") and rows[-1].startswith("| 0299 ")
    assert any(row.startswith(f"| {front.knee} ") for row in rows)
    assert len(text) < 8000 and "alast-tune promote s" in text


def test_an_accuracy_of_zero_is_described() -> None:
    results = [TrialResult(0, "complete", TrialConfig(), {}, (0.0, 1e12, 2e8), 2)]
    assert "has 100% of the best accuracy" in describe_front(summarise("s", results, REFERENCE), results)


def test_description_lists_the_artifacts_that_there_are() -> None:
    front, results = sweep()
    assert "report.html" not in describe_front(front, results, ["front.png", "front.json"])
    assert "| report.html |" in describe_front(front, results, ["front.png", "report.html"])


def test_what_cannot_be_drawn_is_said_in_a_line_and_the_rest_is_written(tmp_path: Path) -> None:
    front, results = sweep()
    search = SearchReport(space={}, importances={}, curves={})
    broken: Any = None  # no report at all
    folder = tmp_path / "front"
    (tmp_path / "report.html").write_text("of an earlier ending")
    folder.mkdir()
    (folder / "search.html").write_text("of an earlier version")
    lines: list[str] = []
    written = write_pages(front, results, search, {int(front.knee or 0): broken}, folder, lines.append)
    assert {path.name for path in folder.iterdir()} == set(written)
    assert "front.png" in written and "search-space.png" in written
    assert not (tmp_path / "report.html").exists()
    assert [line.split(" (")[0] for line in lines] == ["report.html cannot be drawn", "blocks-knee.png cannot be drawn"]
    assert all("\n" not in line for line in lines)
    assert FrontFile.read(folder / "front.json") == front


def test_the_page_lies_in_the_sweeps_folder_and_its_command_finds_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, results = sweep()
    runs = {
        member.trial_id: [
            SeedRun(seed=seed, objectives=member.objectives | {"accuracy": accuracy}, test_accuracy=None)
            for seed, accuracy in enumerate((0.1, 0.9))
        ]
        for member in front.front
    }
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    reseeded(front.front, front.sweep, runs).write(folder / "reseeded.json")
    assert "report.html" in write_pages(front, results, None, {}, folder / "front", print)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"alast-tune promote s --storage {folder.parent} --pick {front.knee} -o best.yaml" in page
    assert "Seeds differ more than members" in page
    monkeypatch.chdir(tmp_path)  # where a command looks in runs
    write_pages(front, results, None, {}, folder / "front", print)
    assert f"alast-tune promote s --pick {front.knee}" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_is_not_taken_for_a_picture_that_fails(tmp_path: Path) -> None:
    front, results = sweep()
    (tmp_path / "front.png").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match=r"front\.png"):
        write_pages(front, results, None, {}, tmp_path, print)


def test_run_ids_reach_front_and_table(tmp_path: Path) -> None:
    front, results = sweep()
    write_pages(front, results, None, {}, tmp_path, print)
    fill_run_ids(tmp_path, {"sweep": "parent", "0000": "a", "0001": "b", "0002": "c"})
    assert [member.mlflow_run_id for member in FrontFile.read(tmp_path / "front.json").front] == ["b", "a"]
    table = json.loads((tmp_path / "front_table.json").read_text())
    assert [row[-1] for row in table["data"]] == ["b", "a"]
