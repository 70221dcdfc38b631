"""One setting of ALaST after the other: table 4, figure 8, and what the paper leaves open."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console

from alast_tune.plots import Mark, ablation_png, short
from alast_tune.reports.paper import MEASURES as PAPER_MEASURES
from alast_tune.reports.paper import read_paper
from alast_tune.reports.plan import FULL, Ablation, Ablations, check_none_empty, select, trials
from alast_tune.reports.tables import MEASURES, NOTES, Row, csv_text, made_by, markdown_table, numbers, ratio
from alast_tune.results import TrialResult

NEAR = 0.02
"""With one seed, what is less accurate than the best by no more counts as good as it."""

_TABLE_4 = ("DeiT-S", "Food-101")


@dataclass(frozen=True)
class Answer:
    """The rows of one ablation."""

    name: str
    plan: Ablation
    rows: dict[tuple[str, ...], Row]
    """By what varied, written as people read it; settings without a complete trial left out."""

    @classmethod
    def of(cls, name: str, plan: Ablation, ended: Sequence[TrialResult]) -> Self:
        """Gather the seeds of each setting, in the order of the sweep."""
        runs: dict[tuple[str, ...], list[TrialResult]] = {}
        for trial in sorted(ended, key=lambda trial: trial.number):
            runs.setdefault(tuple(short(trial.params[path]) for path in plan.vary), []).append(trial)
        return cls(name, plan, {names: Row.of(" / ".join(names), several) for names, several in runs.items()})

    def printed(self, names: Sequence[str]) -> dict[str, float]:
        """Look up what table 4 has of this K, in proportion to full fine-tuning."""
        return (read_paper().ratios(*_TABLE_4, f"K {names[0]}") or {}) if self.plan.paper else {}


def ablate(
    plan: Ablations, name: str, storage: Path, only: Sequence[str], run: bool, command: str, console: Console
) -> Path:
    """Run what is missing of the ablations, and write their report.

    Args:
        plan: the preset.
        name: of the folder under ``storage`` that gets the report; its sweeps' names begin with it.
        storage: where sweeps are.
        only: names of ablations; empty: all.
        run: False writes the report of what there is.
        command: what the report says it was made by.
        console: hears of progress.

    Returns:
        report.md, beside which lie report.csv and a picture of each ablation.

    Raises:
        ConfigError: no such ablation, or a sweep that cannot work or was started with other settings.
        NothingCompleteError: a sweep has ended without a complete trial; the report is written.
    """
    chosen = select(plan.ablations, only)
    sweeps = dict(plan.sweeps(name, storage, chosen))
    ended = {question: trials(sweep, run, console) for question, sweep in sweeps.items()}
    full = Row.of(FULL, ended[FULL]) if ended[FULL] else None
    answers = [Answer.of(question, plan.ablations[question], ended[question]) for question in chosen]
    folder = storage / name
    folder.mkdir(parents=True, exist_ok=True)
    for answer in answers:
        (folder / f"{answer.name}.png").write_bytes(_picture(answer, full))
    (folder / "report.csv").write_text(csv_text([record for answer in answers for record in _records(answer, full)]))
    parts = [f"# {name}", made_by(command, plan.seeds), NOTES, _full_line(full)]
    parts += [part for answer in answers for part in _section(answer, full)]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n")
    if run:
        check_none_empty({sweeps[question].name: found for question, found in ended.items()}, report)
    return report


def near_best(rows: dict[tuple[str, ...], Row]) -> str:
    """Say which settings cannot be told from the best, and which are worse.

    Apart are means that differ by more than two standard errors of a difference, the deviation between seeds being
    pooled over the settings; with one seed by more than :data:`NEAR`.
    """
    best = max(rows, key=lambda names: rows[names].means["accuracy"])
    top = rows[best].means["accuracy"]
    variances = [row.spread**2 for row in rows.values() if row.spread is not None]
    margin = 2 * math.sqrt(2 * statistics.mean(variances) / rows[best].seeds) if variances else NEAR
    near = [" / ".join(names) for names, row in rows.items() if row.means["accuracy"] >= top - margin]
    far = [" / ".join(names) for names in rows if " / ".join(names) not in near]
    line = f"Best: {' / '.join(best)}, {top:.3f}. Not told apart from it (within {margin:.2g}): {', '.join(near)}"
    return f"{line}; worse: {', '.join(far)}." if far else f"{line}, which is all."


def _picture(answer: Answer, full: Row | None) -> bytes:
    first, *second = [path.split("/")[-1].replace("_", " ") for path in answer.plan.vary]
    marks = [
        Mark(
            names[0],
            f"{second[0]} {names[1]}" if second else "",
            row.means["accuracy"],
            row.spread or 0.0,
            row.ratios(full).get("train_flops", math.nan),
        )
        for names, row in answer.rows.items()
    ]
    return ablation_png(answer.plan.title, first, marks, full.means["accuracy"] if full else None, answer.plan.log)


def _records(answer: Answer, full: Row | None) -> list[dict[str, object]]:
    return [
        {"ablation": answer.name, "setting": row.name}
        | numbers(row, full)
        | {f"paper_{name}_ratio": value for name, value in answer.printed(names).items()}
        for names, row in answer.rows.items()
    ]


def _full_line(full: Row | None) -> str:
    if full is None:
        return "There is no complete trial of full fine-tuning yet, so nothing is put in proportion to it."
    validation, test = full.accuracies()
    return f"Full fine-tuning: validation {validation}, test {test}. Costs are in proportion to its own."


def _section(answer: Answer, full: Row | None) -> list[str]:
    if not answer.rows:
        return [f"## {answer.name}", f"{answer.plan.title}: no complete trial yet."]
    head = [*answer.plan.vary, "seeds", "compute", "memory", "steady memory", "time", "validation", "test"]
    head += [f"paper's {name}" for name in PAPER_MEASURES] if answer.plan.paper else []
    table = []
    for names, row in answer.rows.items():
        ratios, printed = row.ratios(full), answer.printed(names)
        costs = [ratio(ratios.get(measure)) for measure in MEASURES if measure != "accuracy"]
        beside = [ratio(printed.get(name)) for name in PAPER_MEASURES] if answer.plan.paper else []
        table.append([*names, str(row.seeds), *costs, *row.accuracies(), *beside])
    parts = [f"## {answer.name}", f"What varies: {answer.plan.title}.", markdown_table(head, table)]
    if answer.plan.paper:
        place = " on ".join(_TABLE_4)
        parts.append(f"The paper's: table 4 ({place}), all in proportion to full fine-tuning in table 2.")
    return [*parts, near_best(answer.rows), f"![{answer.plan.title}]({answer.name}.png)"]
