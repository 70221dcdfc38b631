"""sweeps/compare.py as a person runs it: killed, run again, and read."""

import csv
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from alast_tune.config import TrialConfig
from alast_tune.tune.observer import SweepObserver
from tests.integration.harness import Pareto
from tests.integration.test_sweep import runs_in, trial_states

TINY = """\
seeds: 2
concurrent: 1
learning_rates: [1.0e-3]
trial:
  data: {{dataset: folder, root: {root}}}
  model: {{image_size: 16}}
  train: {{epochs: 1, batch_size: 16, device: cpu}}
methods:
  full: {{paper: FT full, set: {{method: {{name: full}}}}}}
  head: {{paper: FT head, set: {{method: {{name: head}}}}}}
pairs:
  digits: {{}}
"""


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_and_runs_nothing_twice(
    ray_here: Cluster, storage: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, preset = Pareto(storage.parent, two_classes, "compare.py"), storage.parent / "tiny.yaml"
    preset.write_text(TINY.format(root=two_classes))
    first, seeds = (storage / name for name in ("compare-tiny-digits", "compare-tiny-digits-seeds"))
    started = SweepObserver.started

    def interrupt(
        observer: SweepObserver, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None
    ) -> None:
        started(observer, number, config, params, baseline)
        if params.get("train/seed"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SweepObserver, "started", interrupt)
        script.here("--preset", str(preset), expect=130)
    assert (trial_states(first), trial_states(seeds)) == (["COMPLETE"] * 2, ["RUNNING"])
    script.here("--preset", str(preset), "--report-only")
    report = storage / "compare-tiny" / "report.md"
    assert "| full | 0.001 | 1 |" in report.read_text()
    assert trial_states(seeds) == ["RUNNING"]
    script.here("--preset", str(preset))
    assert trial_states(first) == trial_states(seeds) == ["COMPLETE"] * 2
    _, runs = runs_in(storage, "trial")
    assert sorted((run.data.params["method"], run.data.params["train/seed"]) for run in runs) == [
        ("full at 0.001", "0"), ("full at 0.001", "1"), ("head at 0.001", "0"), ("head at 0.001", "1"),
    ]  # fmt: skip
    with (report.parent / "report.csv").open() as file:
        full, head = csv.DictReader(file)
    assert (full["method"], full["seeds"], head["seeds"]) == ("full", "2", "2")
    assert float(full["train_flops_ratio"]) == float(full["peak_bytes_ratio"]) == 1.0
    assert 0.3 < float(head["train_flops_ratio"]) < 0.35  # the forward is a third of it
    with sqlite3.connect(seeds / "study.db") as connection:
        query = "select value_json from study_user_attributes where key = 'test_accuracy'"
        ((tested,),) = connection.execute(query).fetchall()
    assert tested.count(":") == 2  # both trials of the grid, members of its front or not
    assert 0 < float(full["test_accuracy"]) < 1
    assert (report.parent / "figure5.png").read_bytes().startswith(b"\x89PNG")
    assert "Table 7: ALaST on DeiT-T is printed with 0.8 PFLOPs" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: the following arguments are required: --preset; see --help"),
        (["--preset", "nope"], "error: preset = nope: not a file and none of embedded, paper"),
        (["--preset", "embedded", "--only", "mnist"], "error: only = mnist: there are: digits"),
    ],
    ids=["nothing", "preset", "only"],
)
def test_bad_input_is_one_line_and_a_non_zero_exit(tmp_path: Path, arguments: list[str], line: str) -> None:
    assert Pareto(tmp_path, tmp_path, "compare.py").here(*arguments, expect=2).strip() == line
