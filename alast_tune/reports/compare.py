"""Tables 2, 3, 5, 6 and 7 of the paper: every method on every pair of model and dataset."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from alast_tune.plots import byte_unit, flop_unit, ratios_png
from alast_tune.reports.paper import MEASURES as PAPER_MEASURES
from alast_tune.reports.paper import read_paper
from alast_tune.reports.plan import FULL, Comparison, check_none_empty, select, trials, variant
from alast_tune.reports.tables import NOTES, Row, csv_text, made_by, markdown_table, numbers, ratio
from alast_tune.results import TrialResult

_BESIDE = {"train_flops": "compute", "peak_bytes": "memory", "train_seconds": "time", "accuracy": "accuracy"}
"""Our measure -> the paper's."""


CHOSEN = """\
Each method has the learning rate, of those that its preset lists, that was most accurate on the validation images with
seed 0, which counts as well; the other seeds were run with that. The test images decided nothing."""


@dataclass(frozen=True)
class PairResult:
    """The rows of one pair."""

    name: str
    title: str
    rows: Mapping[str, Row]
    """By method, those without a complete trial left out."""
    paper: Mapping[str, Mapping[str, float]]
    """Ratios to full fine-tuning that the paper has, by method and by its measures."""

    @property
    def full(self) -> Row | None:
        """Full fine-tuning, if there is a complete trial of it."""
        return self.rows.get(FULL)


def compare(
    plan: Comparison, name: str, storage: Path, only: Sequence[str], run: bool, command: str, console: Console
) -> Path:
    """Run what is missing of a comparison, and write its report.

    Args:
        plan: the preset.
        name: of the folder under ``storage`` that gets the report; its sweeps' names begin with it.
        storage: where sweeps are.
        only: names of pairs; empty: all.
        run: False writes the report of what there is.
        command: what the report says it was made by.
        console: hears of progress.

    Returns:
        report.md, beside which lie report.csv and figure5.png.

    Raises:
        ConfigError: no such pair, or a sweep that cannot work or was started with other settings.
        NothingCompleteError: a sweep has ended without a complete trial; the report is written.
    """
    found: list[PairResult] = []
    complete: dict[str, list[TrialResult]] = {}
    for pair in select(plan.pairs, only):
        sweep = plan.first(f"{name}-{pair}", storage, pair)
        complete[sweep.name] = first = trials(sweep, run, console)
        rates = best_rates(plan, first)
        others = []
        if plan.seeds > 1 and rates:
            sweep = plan.others(f"{name}-{pair}", storage, pair, rates)
            complete[sweep.name] = others = trials(sweep, run, console)
        chosen = {
            method: [trial for trial in first + others if trial.params["method"] == variant(method, rate)]
            for method, rate in rates.items()
        }
        rows = {method: Row.of(method, runs) for method, runs in chosen.items()}
        found.append(PairResult(pair, _title(plan, pair, first), rows, paper_ratios(plan, pair)))
    folder = storage / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figure5.png").write_bytes(ratios_png(*_averages(found)))
    (folder / "report.csv").write_text(csv_text([record for pair in found for record in _records(pair)]))
    report = folder / "report.md"
    report.write_text(_report(plan, name, found, command))
    if run:
        check_none_empty(complete, report)
    return report


def best_rates(plan: Comparison, first: Sequence[TrialResult]) -> dict[str, float]:
    """Find each method's most accurate learning rate on the validation images; of equal ones the first."""
    accuracy = {trial.params["method"]: trial.metrics["accuracy"] for trial in first}
    best = {}
    for method in plan.methods:
        tried = [rate for rate in plan.rates(method) if variant(method, rate) in accuracy]
        if tried:
            best[method] = max(tried, key=lambda rate: accuracy[variant(method, rate)])
    return best


def paper_ratios(plan: Comparison, pair: str) -> dict[str, dict[str, float]]:
    """Look up what the paper has of a pair; of one that it does not have, the median over those it has."""
    paper, found = read_paper(), {}
    own = plan.pairs[pair].paper
    places = [own] if own else paper.pairs
    for method, entry in plan.methods.items():
        printed = [paper.ratios(*place, entry.paper) for place in places] if entry.paper else []
        known = [ratios for ratios in printed if ratios]
        if known:
            found[method] = {name: statistics.median(one[name] for one in known) for name in PAPER_MEASURES}
    return found


def _title(plan: Comparison, pair: str, first: Sequence[TrialResult]) -> str:
    config = first[0].config if first else plan.trial
    return f"{pair}: {config.model.name} on {config.data.dataset}, {config.train.epochs} epochs"


def _averages(found: Sequence[PairResult]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Average the ratios of each method over the pairs: ours, and the paper's."""
    ours: dict[str, list[Mapping[str, float]]] = {}
    paper: dict[str, list[Mapping[str, float]]] = {}
    for pair in found:
        for method, row in pair.rows.items():
            if pair.full and method != FULL:
                ours.setdefault(method, []).append(row.ratios(pair.full))
                if method in pair.paper:
                    paper.setdefault(method, []).append({us: pair.paper[method][it] for us, it in _BESIDE.items()})
    return _mean(ours), _mean(paper)


def _mean(ratios: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        method: {measure: statistics.mean(one[measure] for one in several) for measure in _BESIDE}
        for method, several in ratios.items()
    }


def _records(pair: PairResult) -> list[dict[str, object]]:
    return [
        {"pair": pair.name, "method": method}
        | numbers(row, pair.full)
        | {f"paper_{measure}_ratio": value for measure, value in pair.paper.get(method, {}).items()}
        for method, row in pair.rows.items()
    ]


def _report(plan: Comparison, name: str, found: Sequence[PairResult], command: str) -> str:
    parts = [
        f"# {name}",
        made_by(command, plan.seeds),
        NOTES,
        CHOSEN,
    ]
    for pair in found:
        parts += [f"## {pair.title}", _absolute(pair), _relative(plan, pair)]
        missing = [method for method in plan.methods if method not in pair.rows]
        if missing:
            parts.append(f"Without a complete trial so far: {'; '.join(missing)}.")
    parts += [
        "## Figure 5",
        "![Cost and accuracy relative to full fine-tuning](figure5.png)",
        "## Figures of the paper that cannot be",
        "Found by `alast_tune/reports/paper.py` in the tables as printed; ratios above use them nevertheless.",
        "\n".join(f"- {sentence}" for sentence in read_paper().impossible()),
    ]
    return "\n\n".join(parts) + "\n"


def _absolute(pair: PairResult) -> str:
    flops, flops_name = flop_unit(max((row.means["train_flops"] for row in pair.rows.values()), default=0))
    size, size_name = byte_unit(max((row.means["peak_bytes"] for row in pair.rows.values()), default=0))
    head = ["method", "learning rate", "seeds", f"compute ({flops_name})", f"memory ({size_name})"]
    head += [f"steady memory ({size_name})", "time (min)", "validation", "test"]
    return markdown_table(
        head,
        [
            [
                method,
                f"{row.learning_rate:g}",
                str(row.seeds),
                f"{row.means['train_flops'] / flops:.3g}",
                f"{row.means['peak_bytes'] / size:.4g}",
                f"{row.means['steady_peak_bytes'] / size:.4g}",
                f"{row.means['train_seconds'] / 60:.2f}",
                *row.accuracies(),
            ]
            for method, row in pair.rows.items()
        ],
    )


def _relative(plan: Comparison, pair: PairResult) -> str:
    place = plan.pairs[pair.name].paper
    whose = " on ".join(place) if place else "medians over the pairs that it has"
    lead = f"In proportion to full fine-tuning; in brackets the paper's, {whose}:"
    rows = []
    for method, row in pair.rows.items():
        ratios, paper = row.ratios(pair.full), pair.paper.get(method, {})
        cells = [f"{ratio(ratios.get(us))} ({ratio(paper.get(it))})" for us, it in _BESIDE.items()]
        rows.append([method, *cells[:2], ratio(ratios.get("steady_peak_bytes")), *cells[2:]])
    return f"{lead}\n\n" + markdown_table(["method", "compute", "memory", "steady memory", "time", "accuracy"], rows)
