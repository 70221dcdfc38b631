"""The front as MLflow shows it: a description, a table, pictures, the page, the file itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alast_tune.blocks import BlockReport
from alast_tune.near_full import hypervolume_words, knee_words
from alast_tune.plots import (
    SearchReport,
    block_title,
    blocks_png,
    convergence_png,
    drawn,
    front_png,
    human_bytes,
    human_flops,
    importances_png,
    report_html,
    space_png,
)
from alast_tune.results import BASELINES, FrontFile, FrontMember, Reseeded, TrialResult
from alast_tune.storage import words_for
from alast_tune.summary import trial_id

FOLDER = "front"
"""In the sweep's folder: what is uploaded to the parent run."""
REPORT = "report.html"
"""In the sweep's folder, uploaded too: all that is known of the sweep, on one page."""

_SHOWN = {
    "report.html": "all of it on one page, which opens offline: answer, health, front, search, memory, blocks",
    "front.png": "accuracy, FLOPs and memory of every complete trial",
    "search-space.png": "the searched settings in parallel coordinates; search-importances.png, search-convergence.png",
    "blocks-knee.png": "the knee block by block: training, tokens, budgets, magnitude, attention; blocks-paper.png",
    "front.json": "the front with every member's whole configuration; front_table.json: as a table",
}


_ROWS = 30
"""So many members at most the description shows: MLflow cuts it off at 8,000 characters."""


def write_pages(
    front: FrontFile,
    results: Sequence[TrialResult],
    search: SearchReport | None,
    blocks: Mapping[int, BlockReport],
    folder: Path,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write everything that shows the front into a folder; says in a line which page or picture cannot be drawn.

    Args:
        front: of the sweep.
        results: of all its trials.
        search: what the study tells about the search; without it, its figures are left out.
        blocks: of the trials whose blocks are shown, by number.
        folder: :data:`FOLDER` in the sweep's, made if it is not there. :data:`REPORT` goes beside it, where
            ``reseeded.json`` may be.
        say: prints a line.
        check: is called before each page, and may raise.

    Returns:
        Names of the files.

    Raises:
        OSError: a full disk, say.
    """
    folder.mkdir(exist_ok=True)
    every, results = results, drawn(front, results)
    sweep = folder.parent
    reseeded = Reseeded.find(sweep)
    words = [sweep.absolute().name, *words_for(sweep.parent)]
    front.write(folder / "front.json")
    (folder / "front_table.json").write_text(json.dumps(_table(front, results)), encoding="utf-8")
    pages: dict[str, Callable[[], str | bytes]] = {
        REPORT: lambda: report_html(front, every, search, blocks, reseeded, words),
        "front.png": lambda: front_png(front, results),
    }
    if search:
        pages |= {
            "search-space.png": lambda: space_png(front, results, search),
            "search-importances.png": lambda: importances_png(front, search),
            "search-convergence.png": lambda: convergence_png(front, results, search),
        }
    for number, report in blocks.items():
        name = "knee" if trial_id(number) == front.knee else "paper"
        pages[f"blocks-{name}.png"] = partial(blocks_png, block_title(front, results, number), report)
    for old in ("front.html", "search.html", "blocks.html", "blocks-knee.png"):  # of older versions, of another knee
        (folder / old).unlink(missing_ok=True)
    written = ["front.json", "front_table.json"]
    for name, draw in pages.items():
        check()
        file = (sweep if name == REPORT else folder) / name
        file.unlink(missing_ok=True)  # of an earlier ending
        try:
            page = draw()
        except Exception as error:  # a sweep that is finished does not fail for a picture
            say(f"{name} cannot be drawn ({type(error).__name__}: {error})")
            continue
        file.write_bytes(page.encode() if isinstance(page, str) else page)
        written.append(name)
    return written


def with_run_ids(front: FrontFile, runs: Mapping[str, str | None]) -> FrontFile:
    """Fill in the members' MLflow runs, by trial id; members that are not in ``runs`` keep what they have."""
    members = tuple(
        member.model_copy(update={"mlflow_run_id": runs.get(member.trial_id) or member.mlflow_run_id})
        for member in front.front
    )
    return front.model_copy(update={"front": members})


def fill_run_ids(folder: Path, runs: Mapping[str, str]) -> None:
    """Fill in the MLflow runs where they were not known yet when a folder's front and table were written."""
    file = folder / "front.json"
    if file.exists():
        with_run_ids(FrontFile.read(file), runs).write(file)
    file = folder / "front_table.json"
    if file.exists():
        table = json.loads(file.read_text(encoding="utf-8"))
        table["data"] = [[*row[:-1], runs.get(row[0], row[-1])] for row in table["data"]]
        file.write_text(json.dumps(table), encoding="utf-8")


def describe_front(front: FrontFile, results: Sequence[TrialResult], pages: Collection[str] = ()) -> str:
    """Write the front as Markdown, for the parent's description: table, knee, what to do with it, where to look.

    ``pages`` names the artifacts that there are.
    """
    lead = (
        f"**{front.sweep}**: {len(front.front)} of {front.candidates} are on the front "
        f"({front.trials.pruned} pruned, {front.trials.infeasible} infeasible, {front.trials.failed} failed); "
        f"{hypervolume_words(front)}, in the box between 1.1 times full fine-tuning's cost and the ideal."
    )
    lines = [
        lead,
        "",
        f"| trial | {front.score_label} | test | training | peak memory | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shown = _described(front)
    for m in shown:
        test = "-" if m.test_accuracy is None else f"{m.test_accuracy:.4f}"
        notes = (["**knee**"] if m.trial_id == front.knee else []) + ([BASELINES[m.baseline]] if m.baseline else [])
        flops, peak = human_flops(m.objectives["train_flops"]), human_bytes(m.objectives["peak_bytes"])
        lines.append(
            f"| {m.trial_id} | {m.objectives['accuracy']:.4f} | {test} | {flops} | {peak} | {', '.join(notes)} |"
        )
    if len(shown) < len(front.front):
        lines += ["", f"{len(front.front) - len(shown)} more in front_table.json."]
    if front.knee:
        lines += [
            "",
            _why_knee(front, results),
            "",
            "Take it from here:",
            "",
            f"    alast-tune promote {front.sweep} --pick knee -o config.yaml",
        ]
    return "\n".join([*lines, "", *_where(pages)])


def _described(front: FrontFile) -> list[FrontMember]:
    """Choose members for a table that people read, evenly over the front; the ends, knee and baselines among them."""
    if len(front.front) <= _ROWS:
        return list(front.front)
    places = {round(place * (len(front.front) - 1) / (_ROWS - 4)) for place in range(_ROWS - 3)}
    return [m for n, m in enumerate(front.front) if n in places or m.baseline or m.trial_id == front.knee]


def _where(pages: Collection[str]) -> list[str]:
    """List what can be looked at, and how to filter."""
    rows = [f"| {name} | {what} |" for name, what in _SHOWN.items() if name in pages]
    filters = "`tags.pareto = 'true'` filters the runs to the front, `'false'` to those that were on it once."
    return ["| artifact | shows |", "| --- | --- |", *rows, "", filters]


def _why_knee(front: FrontFile, results: Sequence[TrialResult]) -> str:
    """Say in figures what the knee gives and takes, beside full fine-tuning or else the most accurate member."""
    knee = next(member.objectives for member in front.front if member.trial_id == front.knee)
    best = max(front.front, key=lambda member: member.objectives["accuracy"])
    full = next((result for result in results if result.baseline == "full" and result.values), None)
    measure, name = (full.values, BASELINES["full"]) if full else (None, f"trial {best.trial_id}, the most accurate")
    _, flops, peak = measure or tuple(best.objectives.values())
    share = knee["accuracy"] / best.objectives["accuracy"] if best.objectives["accuracy"] else 1.0
    return (
        f"**Knee**: trial {front.knee} has {share:.0%} of the best {front.score_label} ({knee['accuracy']:.4f} of "
        f"{best.objectives['accuracy']:.4f}) for {knee['train_flops'] / flops:.0%} of the training FLOPs and "
        f"{knee['peak_bytes'] / peak:.0%} of the peak memory of {name}: it is the best compromise "
        f"{knee_words(front)}: nearest to the best of every objective, each scaled to the span of these members."
    )


def _table(front: FrontFile, results: Sequence[TrialResult]) -> dict[str, list[Any]]:
    """Lay the front out as MLflow reads tables: columns and rows, the settings that were searched included."""
    chosen = {trial_id(result.number): result.searched for result in results}
    searched = list(dict.fromkeys(path for m in front.front for path in chosen.get(m.trial_id, {})))
    names = [objective.name for objective in front.objectives]
    named = [front.score, *names[1:]]
    rows = [
        [
            m.trial_id,
            *(m.objectives[name] for name in names),
            m.test_accuracy,
            *(chosen.get(m.trial_id, {}).get(path) for path in searched),
            m.mlflow_run_id,
        ]
        for m in front.front
    ]
    return {"columns": ["trial", *named, f"test_{front.score}", *searched, "run"], "data": rows}
