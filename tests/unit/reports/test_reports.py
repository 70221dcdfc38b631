"""Rows, ratios and reports from made-up trials whose figures can be worked out by hand."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import SettingsError
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig, parse, read_mapping
from alast_tune.errors import ConfigError, NothingCompleteError
from alast_tune.reports import Ablations, Comparison, ablate, arguments
from alast_tune.reports.ablate import near_best
from alast_tune.reports.compare import best_rates, paper_ratios
from alast_tune.reports.paper import read_paper
from alast_tune.reports.plan import variant
from alast_tune.reports.tables import Row, csv_text, markdown_table, numbers, with_spread
from alast_tune.results import TrialResult
from tests.unit.plots.figures import Pictures
from tests.unit.tune.test_search import report, searcher

PAPER = read_paper()
SWEEPS = Path(__file__).parents[3] / "sweeps"
PLAN: dict[str, Any] = {
    "seeds": 3,
    "learning_rates": [1e-3, 3e-3],
    "methods": {
        "full": {"paper": "FT full", "set": {"method": {"name": "full"}}},
        "lora": {"paper": "LoRA", "set": {"method": {"name": "lora"}}, "learning_rates": [1e-2]},
        "apla": {"set": {"method": {"name": "apla"}}},
    },
    "pairs": {"digits": {}, "food": {"paper": ["DeiT-S", "Food-101"], "set": {"train/epochs": 20}}},
}


def trial(accuracy: float, flops: float = 2e12, test: float | None = None, **params: Any) -> TrialResult:
    metrics = {
        "accuracy": accuracy,
        "train_flops": flops,
        "peak_bytes": 1e8,
        "steady_peak_bytes": 8e7,
        "train_seconds": 60,
    }
    config = TrialConfig.model_validate({"train": {"learning_rate": 3e-3}})
    return TrialResult(0, "complete", config, params, (accuracy, flops, 1e8), 3, metrics=metrics, test_accuracy=test)


def test_a_row_is_the_mean_over_seeds_with_its_sample_deviation() -> None:
    row = Row.of("full", [trial(0.9, test=0.8), trial(0.94, flops=4e12, test=0.84)])
    assert (row.seeds, row.learning_rate) == (2, 3e-3)
    assert row.means["train_flops"] == 3e12
    assert row.means["accuracy"] == pytest.approx(0.92)
    assert row.spread == pytest.approx(0.04 / 2**0.5)
    assert row.accuracies() == ["0.920 ± 0.028", "0.820 ± 0.028"]
    single = Row.of("full", [trial(0.9)])
    assert (single.spread, single.test_accuracy, single.accuracies()) == (None, None, ["0.900", "-"])


def test_ratios_are_to_the_row_of_full_fine_tuning() -> None:
    full, half = Row.of("full", [trial(0.8, flops=4e12)]), Row.of("half", [trial(0.6, flops=2e12)])
    ratios = half.ratios(full)
    assert ratios == pytest.approx(
        {"train_flops": 0.5, "peak_bytes": 1, "steady_peak_bytes": 1, "train_seconds": 1, "accuracy": 0.75}
    )
    assert half.ratios(None) == {}
    assert numbers(half, full)["train_flops_ratio"] == 0.5


def test_tables_survive_odd_names_and_missing_columns() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]).splitlines() == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]
    text = csv_text([{"name": 'K 6, "fast"', "x": 1}, {"name": "b", "y": 2}])
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"name": 'K 6, "fast"', "x": "1", "y": ""},
        {"name": "b", "x": "", "y": "2"},
    ]
    assert (with_spread(0.5, None), with_spread(0.5, 0.01)) == ("0.500", "0.500 ± 0.010")


def test_a_comparison_is_two_grids_a_pair() -> None:
    plan = parse(Comparison, PLAN)
    first = plan.first("compare-x-food", Path("runs"), "food")
    assert (first.name, first.sampler, first.trials, first.trial.train.epochs) == ("compare-x-food", "grid", 5, 20)
    assert [point["method"] for point in first.combinations()] == [
        "full at 0.001", "full at 0.003", "lora at 0.01", "apla at 0.001", "apla at 0.003",
    ]  # fmt: skip
    others = plan.others("compare-x-food", Path("runs"), "food", {"full": 3e-3, "lora": 1e-2})
    assert (others.name, others.trials) == ("compare-x-food-seeds", 4)
    assert [tuple(point.values()) for point in others.combinations()] == [
        ("full at 0.003", 1), ("full at 0.003", 2), ("lora at 0.01", 1), ("lora at 0.01", 2),
    ]  # fmt: skip
    settings = others.settings({"method": "lora at 0.01", "train/seed": 2})
    assert settings == {"method": {"name": "lora"}, "train/learning_rate": 1e-2, "train/seed": 2}


def test_the_best_learning_rate_is_chosen_among_complete_trials_and_of_equal_ones_the_first() -> None:
    plan = parse(Comparison, PLAN)
    ended = [trial(0.8, method=variant("full", 1e-3)), trial(0.9, method=variant("full", 3e-3))]
    ended += [trial(0.7, method=variant("apla", 3e-3)), trial(0.7, method=variant("apla", 1e-3))]
    assert best_rates(plan, ended) == {"full": 3e-3, "apla": 1e-3}
    assert best_rates(plan, []) == {}


def test_tables_are_of_accuracy_whatever_else_a_sweep_may_maximize(tmp_path: Path) -> None:
    plan = parse(Comparison, PLAN | {"trial": {"train": {"score": "macro_f1"}}})
    with pytest.raises(ConfigError, match=r"^train.score = macro_f1: the tables of reports are of accuracy, as"):
        plan.first("name", tmp_path, next(iter(plan.pairs)))


def test_beside_a_pair_stands_what_the_paper_has_of_it_else_the_median() -> None:
    plan = parse(Comparison, PLAN)
    food, digits = paper_ratios(plan, "food"), paper_ratios(plan, "digits")
    assert set(food) == set(digits) == {"full", "lora"}
    assert food["lora"]["compute"] == pytest.approx(22.5 / 30.2)
    # Of nine ratios the fifth: LoRA's memory is 0.91 of full fine-tuning's on ViT-B, thrice, and 0.70 on DeiT-S, twice.
    assert digits["lora"]["memory"] == pytest.approx(2643 / 3267)
    assert digits["full"] == dict.fromkeys(("compute", "memory", "time", "accuracy"), 1.0)


def test_what_breaks_accuracy_is_said() -> None:
    rows = {(name,): Row.of(name, [trial(accuracy)]) for name, accuracy in (("0.1", 0.5), ("0.5", 0.89), ("1", 0.9))}
    assert near_best(rows) == "Best: 1, 0.900. Not told apart from it (within 0.02): 0.5, 1; worse: 0.1."
    assert near_best({("1",): rows["1",]}) == "Best: 1, 0.900. Not told apart from it (within 0.02): 1, which is all."
    # Two seeds: standard deviations 0.1 sqrt(2) and 0, pooled 0.1, so that means 0.2 apart may be alike.
    noisy = {("a",): Row.of("a", [trial(0.7), trial(0.9)]), ("b",): Row.of("b", [trial(0.61), trial(0.61)])}
    assert near_best(noisy) == "Best: a, 0.800. Not told apart from it (within 0.2): a, b, which is all."


@pytest.mark.parametrize("kind", [Comparison, Ablations], ids=["compare", "ablate"])
def test_every_preset_makes_valid_sweeps(kind: Any) -> None:
    script = "compare" if kind is Comparison else "ablate"
    files = sorted((SWEEPS / "presets" / script).glob("*.yaml"))
    assert [file.stem for file in files] == ["embedded", "paper"]
    for file in files:
        assert file.read_text().startswith("# ")
        plan = parse(kind, read_mapping(file))
        if isinstance(plan, Comparison):
            for pair in plan.pairs:
                plan.first(f"compare-{pair}", Path("runs"), pair)
                plan.others(f"compare-{pair}", Path("runs"), pair, dict.fromkeys(plan.methods, 0.001))
                assert set(paper_ratios(plan, pair)) >= {"full", "head", "top-3", "ToMe", "BSR", "LoRA", "ALaST, fast"}
        else:
            sweeps = dict(plan.sweeps("ablate", Path("runs")))
            assert set(sweeps) == {"full", "blocks", "alpha", "tokens", "readings", "frozen", "initial"}
            assert {point["method/alpha"] for point in sweeps["alpha"].combinations()} == {0.01, 0.1, 0.5, 1.0}


def test_the_command_line_is_read_and_refused_in_one_line(tmp_path: Path) -> None:
    script = SWEEPS / "compare.py"
    given = arguments(["--preset", "embedded", "--storage", str(tmp_path), "--report-only"], script, Comparison, "")
    assert (given.name, given.storage, given.only, given.run) == ("compare-embedded", tmp_path, (), False)
    assert given.command == "python sweeps/compare.py --preset embedded"
    with pytest.raises(ConfigError, match=r"^preset = nope: not a file and none of embedded, paper$"):
        arguments(["--preset", "nope"], script, Comparison, "")
    with pytest.raises(SettingsError, match="unrecognized arguments: --nonsense"):
        arguments(["--preset", "embedded", "--nonsense"], script, Comparison, "")
    bad = tmp_path / "bad.yaml"
    bad.write_text("learning_rates: [0.1]\npairs: {digits: {}}\nmethods: {lora: {set: {method: {name: lora}}}}\n")
    with pytest.raises(ConfigError, match="methods = lora: needs full"):
        arguments(["--preset", str(bad)], script, Comparison, "")
    for change, line in (
        (
            {"methods": {"full": {"paper": "FT", "set": {}}}},
            "methods.full.paper = FT: the paper's tables have: FT head, FT",
        ),
        (
            {"pairs": {"a": {"paper": ["DeiT-S", "MNIST"]}}},
            "pairs.a.paper = DeiT-S, MNIST: the paper's tables have: DeiT",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            parse(Comparison, PLAN | change)
        assert str(error.value).startswith(line)


def finish(sweep: SweepConfig, flops: Callable[[TrialConfig], float]) -> None:
    """Leave a study as a sweep does whose trials are as accurate as their K, and worse by 0.02 with the second seed."""
    sweep = sweep.model_copy(update={"study": "journal"})
    folder = sweep.storage / sweep.name
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(sweep.given_values()))
    search, _, _ = searcher(folder, sweep)
    while isinstance(suggestion := search.suggest("a"), dict):
        config = TrialConfig.model_validate(suggestion["trial"])
        accuracy = getattr(config.method, "trainable_blocks", 9) / 10 - 0.02 * config.train.seed
        costs = {"train_flops": flops(config), "steady_peak_bytes": 5e7, "train_seconds": 30.0}
        search.on_trial_complete("a", report(config.train.epochs, accuracy=accuracy, **costs))


def test_an_ablation_is_reported_from_its_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(monkeypatch)
    plan = parse(
        Ablations,
        {
            "seeds": 2,
            "full": {"method": {"name": "full"}},
            "ablations": {
                "blocks": {"title": "K", "paper": 4, "vary": {"method/trainable_blocks": [1, 8]}},
                "later": {"title": "not run yet", "vary": {"method/reading": ["paper", "fast"]}},
            },
        },
    )
    sweeps = dict(plan.sweeps("ablate-x", tmp_path))
    finish(sweeps["full"], lambda config: 4e12)
    finish(sweeps["blocks"], lambda config: 1e12 * (1 + config.method.trainable_blocks / 8))  # type: ignore[union-attr]
    written = ablate(plan, "ablate-x", tmp_path, [], False, "python sweeps/ablate.py --preset x", Console())
    text = written.read_text()
    k1, k8 = (PAPER.ratios("DeiT-S", "Food-101", f"K {k}") for k in (1, 8))
    assert k1 and k8
    printed = [" | ".join(f"{row[name]:.2f}" for name in ("compute", "memory", "time", "accuracy")) for row in (k1, k8)]
    assert f"| 1 | 2 | 0.28 | 1.00 | 1.00 | 1.00 | 0.090 ± 0.014 | - | {printed[0]} |" in text
    assert f"| 8 | 2 | 0.50 | 1.00 | 1.00 | 1.00 | 0.790 ± 0.014 | - | {printed[1]} |" in text
    assert "Best: 8, 0.790. Not told apart from it (within 0.028): 8; worse: 1." in text
    assert "Full fine-tuning: validation 0.890 ± 0.014, test -." in text
    assert "not run yet: no complete trial yet." in text
    assert sorted(file.name for file in written.parent.iterdir()) == [
        "blocks.png", "later.png", "report.csv", "report.md",
    ]  # fmt: skip
    drawn, nothing = pictures
    accuracies, flops = ([bars.lines[0].get_xydata().tolist() for bars in axes.containers] for axes in drawn.axes)
    assert accuracies == [[[1.0, pytest.approx(0.09)], [8.0, pytest.approx(0.79)]]]
    assert flops == [[[pytest.approx(0.28125), pytest.approx(0.09)], [0.5, pytest.approx(0.79)]]]
    assert drawn.axes[0].get_xlabel() == "trainable blocks" and not nothing.axes
    with (written.parent / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["ablation"], row["setting"], row["train_flops_ratio"]) for row in rows] == [
        ("blocks", "1", "0.28125"),
        ("blocks", "8", "0.5"),
    ]
    written.unlink()
    monkeypatch.setattr("alast_tune.reports.plan.run_sweep", lambda sweep, **options: [])  # all have failed, say
    with pytest.raises(
        NothingCompleteError, match=r"no complete trial in sweeps ablate-x-full, ablate-x-later; \S+ is"
    ):
        ablate(plan, "ablate-x", tmp_path, ["later"], True, "", Console())
    assert written.exists()
    with pytest.raises(ConfigError, match="only = K: there are: blocks, later"):
        ablate(plan, "ablate-x", tmp_path, ["K"], False, "", Console())
