"""``report.html``: the answer of a sweep, how sure it is, and how the sweep came to it, on one page."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alast_tune.config import is_conditional
from alast_tune.health import Note, health_notes
from alast_tune.labels import method_label
from alast_tune.near_full import NEAR, hypervolume_words, points, region_floor, share_of_full, time_share
from alast_tune.other_seeds import in_the_mean
from alast_tune.plots.blocks_figures import block_sections
from alast_tune.plots.cloud import ACCURACY, NOBODY, Cloud, drawn, sampled
from alast_tune.plots.document import Section, document
from alast_tune.plots.front_figure import front_figure
from alast_tune.plots.search import (
    SearchReport,
    brief,
    by_path,
    charted,
    history,
    measured_memory,
    varying,
    ways,
)
from alast_tune.plots.search_figures import (
    convergence_figure,
    history_figure,
    importances_figure,
    memory_figure,
    space_figure,
)
from alast_tune.plots.units import human_bytes, human_flops, short
from alast_tune.results import BASELINES, FrontFile, Reseeded, ReseededMember, TrialResult
from alast_tune.scores import SCORES
from alast_tune.summary import cheapest_within, trial_id

if TYPE_CHECKING:
    from alast_tune.blocks import BlockReport

TOLERANCES = (0.01, NEAR)
"""The answer is the cheapest member within so much of full fine-tuning's accuracy."""
OUTPUT = "-o best.yaml"
"""How the command to promote a trial ends."""
LINES = 12
"""So many trials at most are named with the reason why they stopped at an epoch."""
NOTHING = SearchReport(space={}, importances={}, curves={})


def report_html(
    front: FrontFile,
    results: Sequence[TrialResult],
    search: SearchReport | None = None,
    blocks: Mapping[int, BlockReport] | None = None,
    reseeded: Reseeded | None = None,
    words: Sequence[str] = (),
) -> str:
    """Put all that is known of a sweep onto one page.

    Args:
        front: of the sweep.
        results: of all its trials that have ended.
        search: what the study tells about the search.
        blocks: of the trials whose blocks are shown, by number.
        reseeded: what the front's members come to over seeds, if that is known.
        words: by which a command finds the sweep; its name by default.

    Returns:
        A whole HTML page of about 5 MB, which needs nothing else; a part of which there is nothing to show is left
        out. Without a complete trial a small page that says so, and why trials ended.
    """
    search = search or NOTHING
    title = f"Sweep {front.sweep}"
    shown = drawn(front, results)
    if not shown:
        return document(title, NOBODY, [_ends(results)])
    memory = measured_memory(results, search)
    notes = health_notes(front, results, search.space, memory, reseeded)
    command = shlex.join(["alast-tune", "promote", *(words or [front.sweep]), "--pick"])
    cards = _cards(front, reseeded, command)
    sections = [
        Section("answer", before=f'<div class="cards">{"".join(cards)}</div>'),
        Section("health", heading="Health", before=_notes(notes)),
        _front(front, shown, reseeded, command),
        *_search(front, results, shown, search),
        _ends(results),
    ]
    in_figure = {one.number: memory[one.number] for one in shown if one.number in memory}
    if in_figure:
        text = "What a trial was forecast to need before it was launched, and what it needed. Shaded: within 10%."
        sections.append(Section("memory", memory_figure(in_figure), "Memory, forecast and measured", text))
    sections += block_sections(front, results, blocks or {})
    return document(title, _lead(front), sections)


def _lead(front: FrontFile) -> str:
    counts = front.trials
    return (
        f"{len(front.front)} of {front.candidates} on the front ({counts.pruned} stopped early, {counts.infeasible} "
        f"over a limit, {counts.failed} failed) · {hypervolume_words(front)}"
    )


def _cards(found: FrontFile, reseeded: Reseeded | None, command: str) -> Iterator[str]:
    """Write the answers: the cheapest member near full fine-tuning, and the compromise."""
    asked: list[tuple[str, float | None]] = [
        (f"Cheapest within {points(tolerance)} of full fine-tuning", tolerance)
        for tolerance in (TOLERANCES if found.full else ())
    ]
    for heading, tolerance in [*asked, ("Compromise (the knee)", None)]:
        front, seeds = in_the_mean(found, reseeded, tolerance)
        mean = f", mean of {len(seeds)} other seeds" if seeds else ""
        knee = next((member for member in front.front if member.trial_id == front.knee), None)
        member = knee if tolerance is None else cheapest_within(front, tolerance)
        if member is None or member.baseline == "full":
            words = "Nothing that is cheaper" if member else "Nothing"
            yield f'<div class="card"><h3>{heading}</h3><div class="trial">{words}</div></div>'
            continue
        shares = {
            "FLOPs": share_of_full(front, member, "train_flops"),
            "memory": share_of_full(front, member, "peak_bytes"),
            "time": time_share(front, member),
        }
        bars = "".join(
            f'<div class="share"><span>{share:.0%} of the {name}</span>'
            f'<div><div style="width: {min(1.0, share):.1%}"></div></div></div>'
            for name, share in shares.items()
            if share is not None
        )
        method = method_label(member.config, member.baseline, key=True)
        test = "" if member.test_accuracy is None else f", test {member.test_accuracy:.4f}"
        yield (
            f'<div class="card" data-trial="{html.escape(member.trial_id)}" title="A click copies the command">'
            f"<h3>{heading}</h3>"
            f'<div class="trial">trial {html.escape(member.trial_id)} <i>{html.escape(method)}</i></div>'
            f"<div>{front.score_label} <b>{member.objectives['accuracy']:.4f}</b>{test}{mean}</div>{bars}"
            f'<div class="command"><code>{html.escape(f"{command} {member.trial_id} {OUTPUT}")}</code></div></div>'
        )


def _notes(notes: Sequence[Note]) -> str:
    if not notes:
        return "<p>No check has found anything.</p>"
    rows = (f"<li><b>{html.escape(note.heading)}.</b> {html.escape(note.text)}</li>" for note in notes)
    return f'<ul class="notes">{"".join(rows)}</ul>'


def _front(front: FrontFile, shown: Sequence[TrialResult], reseeded: Reseeded | None, command: str) -> Section:
    cloud = Cloud.of(front, shown)
    figure, views = front_figure(front, cloud)
    data = {
        "views": views,
        "trials": cloud.ids,
        "accuracy": cloud.values_TM[:, ACCURACY].tolist(),
        "members": [member.trial_id for member in front.front],
        "promote": [command, OUTPUT],
    }
    buttons = "".join(
        f'<button data-axis="{view["name"]}" aria-pressed="{str(n == 0).lower()}">{view["name"]}</button>'
        for n, view in enumerate(views)
    )
    if front.full and (floor := region_floor(front)) is not None:
        low = floor - 0.5 * abs(front.full["accuracy"] - floor)
        buttons += '<span></span><button data-range="" aria-pressed="true">all trials</button>'
        buttons += f'<button data-range="{low}" aria-pressed="false">region of interest</button>'
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    text = (
        f"Dim: dominated in {front.score_label}, FLOPs and memory together, so that a trial may be on the front "
        "without being on this line, which is what the front attains of the two quantities shown."
    ) + sampled(front, shown)
    if len(views) == 3:
        text += " Times are those of one kind of device, and compare only where as many trials ran at a time."
    return Section(
        "front",
        figure,
        "The front",
        text,
        f'<div class="switches">{front.score_label[0].upper()}{front.score_label[1:]} against {buttons}</div>'
        '<p id="picked">A click on a point or a row shows the command that promotes the trial, and copies it.</p>',
        f'<div class="table">{_table(front, shown, reseeded)}</div>'
        f'<script type="application/json" id="data">{_in_script(data)}</script><script>\n{script}</script>',
    )


def _search(
    front: FrontFile, results: Sequence[TrialResult], shown: Sequence[TrialResult], search: SearchReport
) -> Iterator[Section]:
    points = history(front, results, search)
    if len(points) > 1:
        text = (
            f"Share that the front dominates of the box from {front.score_label} {front.region.floor:.4f} and 1.1 "
            f"times full fine-tuning's cost to {front.score_label} 1 at no cost. A line that is still rising at its "
            "end asks for more trials."
        )
        yield Section("history", history_figure(points), "Hypervolume", text)
    lines = charted(front, shown, search.space)
    if lines and search.space:
        drawn_ones = varying(search.space, lines)
        constant = [path for path in by_path(search.space, lines) if path not in drawn_ones]
        text = (
            "A line is a complete trial that the search proposed, coloured by its rank: the front of these trials, the "
            "front without that one, and so on. Drag along an axis to choose lines, click it to choose all."
        )
        conditional = is_conditional(search.space)
        text += " A setting that its method lacks is at -." if conditional else ""
        text += f" The same in all, and not drawn: {', '.join(constant)}." if constant else ""
        yield Section("space", space_figure(front, shown, search), "Search space", text)
    if search.importances:
        text = (
            "Share of each parameter in what sets the trials best in an objective, a tenth or five, apart from all "
            "that the search proposed (PED-ANOVA)."
        )
        if is_conditional(search.space):
            text += " Parameters of one variant, called by its name, share 100% among them, over its trials alone."
        yield Section("importances", importances_figure(front, search), "Importance of the parameters", text)
    if ways(front, shown, search.curves)[0]:
        label = front.score_label
        text = f"Validation {label} after each epoch against what the run had cost so far: the front and the baselines."
        yield Section("convergence", convergence_figure(front, shown, search), "Convergence", text)


def _ends(results: Sequence[TrialResult]) -> Section:
    """List how far trials went, and why those stopped that did not run their whole budget."""
    own = [result for result in results if result.origin is None and result.state != "running"]
    rows = []
    for epochs in sorted({result.epochs for result in own}):
        reached = sum(result.epochs >= epochs for result in own)
        here = [result for result in own if result.epochs == epochs]
        stopped = [result for result in here if result.state != "complete"]
        lines = [f"trial {trial_id(one.number)}: {_why(one)}" for one in stopped[:LINES]]
        lines += [f"and {len(stopped) - LINES} more"] if len(stopped) > LINES else []
        done = len(here) - len(stopped)
        lines += [f"{done} ran their whole budget"] if done else []
        bar = f'<div class="share"><div><div style="width: {reached / len(own):.1%}"></div></div></div>'
        cells = (str(epochs) if epochs else "not launched", str(reached), str(len(stopped)))
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr>{numbers}<td>{bar}</td><td>{'<br>'.join(map(html.escape, lines))}</td></tr>")
    head = "<tr><th>epochs</th><th>reached by</th><th>stopped here</th><th></th><th>stopped because</th></tr>"
    return Section(
        "ends",
        heading="How far trials went",
        text="A rung is an epoch after which trials are compared, and those that others outdo are stopped.",
        before='<div class="table"><table class="ends">'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>",
    )


def _why(result: TrialResult) -> str:
    reason = re.sub(r"^stopped after \d+ of \d+ epochs(: )?", "", result.reason or "")
    score = SCORES[result.config.train.score]
    return {"failed": "failed: ", "infeasible": "over a limit: "}.get(result.state, "") + (
        reason or f"others had more {score} at less cost"
    )


def _table(front: FrontFile, results: Sequence[TrialResult], reseeded: Reseeded | None) -> str:
    chosen = {trial_id(result.number): result.searched for result in results}
    paths = list(dict.fromkeys(path for member in front.front for path in chosen.get(member.trial_id, {})))
    tested = any(member.test_accuracy is not None for member in front.front)
    score = front.score_label
    again = {member.trial_id: member for member in reseeded.members} if reseeded else {}
    seeds = f"{score}, {len(reseeded.seeds)} other seeds" if reseeded else ""
    measures = [score, *([seeds] if seeds else []), *([f"test {score}"] if tested else [])]
    head = ["trial", *measures, "FLOPs", "peak memory", *brief(paths).values()]
    rows = []
    for member in front.front:
        values = chosen.get(member.trial_id, {})
        test = "-" if member.test_accuracy is None else f"{member.test_accuracy:.4f}"
        cells = [
            member.trial_id + (f" {BASELINES[member.baseline]}" if member.baseline else ""),
            f"{member.objectives['accuracy']:.4f}",
            *([_over_seeds(again.get(member.trial_id))] if seeds else []),
            *([test] if tested else []),
            human_flops(member.objectives["train_flops"]),
            human_bytes(member.objectives["peak_bytes"]),
            *(short(values.get(path, "-")) for path in paths),
        ]
        kind = ' class="knee" title="knee"' if member.trial_id == front.knee else ""
        rows.append(f'<tr data-trial="{html.escape(member.trial_id)}"{kind}>{_cells(cells, "td")}</tr>')
    return f"<table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _over_seeds(member: ReseededMember | None) -> str:
    return f"{member.mean['accuracy']:.4f} ± {member.spread['accuracy']:.4f}" if member else "-"


def _cells(values: Sequence[str], tag: str) -> str:
    # A path may break after a slash or a dash, or a table of ten settings is three screens wide.
    return "".join(
        f"<{tag}>{html.escape(value).replace('/', '/<wbr>').replace('_', '_<wbr>')}</{tag}>" for value in values
    )


def _in_script(values: Any) -> str:
    return json.dumps(values).replace("<", "\\u003c")
