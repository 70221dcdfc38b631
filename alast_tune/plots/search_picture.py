"""The search as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alast_tune.plots.canvas import canvas, png, say, style_axes
from alast_tune.plots.cloud import BLUE, GREY, INK, NOBODY, VERMILLION
from alast_tune.plots.search import (
    NOT_TOLD,
    WAY_NAMES,
    WAY_STYLES,
    SearchReport,
    charted,
    colour_range,
    objective_names,
    ranked,
    space_axes,
    standing,
    varying,
    ways,
)
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult


def space_png(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> bytes:
    """Draw complete trials in parallel coordinates, coloured by accuracy; those on the front stand out.

    Returns:
        A PNG, 2100 x 750 pixels; without a complete trial it says so.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    trials = charted(front, results, report.space)
    figure = canvas(14, 5, f"Search space of {front.sweep}")
    if not trials:
        say(figure, NOBODY)
        return png(figure)
    panel = figure.add_subplot()
    axes = space_axes(varying(report.space, trials), trials)
    heights_TA = np.column_stack([axis.height(axis.places_T) for axis in axes])
    members = {member.trial_id for member in front.front}
    accuracy = np.array([trial.values[0] for trial in trials if trial.values])
    scale = ScalarMappable(Normalize(*colour_range(front, trials)), colormaps["cividis"])
    for trial, heights_A, colour in zip(trials, heights_TA, scale.to_rgba(accuracy), strict=True):
        place = standing(front, members, trial)
        if place == 2:
            panel.plot(heights_A, color=VERMILLION, lw=6, alpha=0.55, label="knee", solid_joinstyle="round")
        style = {"color": colour, "lw": 2.0} if place else {"color": GREY, "lw": 0.8, "alpha": 0.45}
        panel.plot(heights_A, **style)
    for place, axis in enumerate(axes):
        panel.axvline(place, color=INK, lw=0.9, zorder=3)
        for at, text in axis.ticks.items():
            box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.6}
            panel.text(
                place + 0.04, float(axis.height(at)), text, fontsize=8, va="center", color=INK, bbox=box, zorder=4
            )
    panel.set_xticks(range(len(axes)), [axis.label for axis in axes], fontsize=9)
    panel.tick_params(axis="x", length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    panel.set(ylim=(-0.04, 1.04), xlim=(-0.2, len(axes) - 0.4), yticks=[])
    panel.spines[:].set_visible(False)
    figure.colorbar(scale, ax=panel, pad=0.01, aspect=30).set_label(
        f"Validation {front.score_label} of those on the front", color=INK
    )
    handles, names = panel.get_legend_handles_labels()
    handles += panel.plot([], [], color=GREY, lw=0.8, alpha=0.7)
    panel.legend(handles, [*names, "dominated"], loc="upper left", bbox_to_anchor=(0, -0.01), ncols=2, frameon=False)
    return png(figure)


def importances_png(front: FrontFile, report: SearchReport) -> bytes:
    """Draw the importance of each parameter for each objective.

    Returns:
        A PNG, 1650 pixels wide; where nothing can be told it says so.
    """
    paths = ranked(report)
    figure = canvas(11, 1.6 + 0.35 * max(len(paths), 4), f"Importance of the parameters in {front.sweep} (PED-ANOVA)")
    if not paths:
        say(figure, f"Not to be told: {NOT_TOLD}.")
        return png(figure)
    panels = figure.subplots(1, len(OBJECTIVES), sharey=True)
    for panel, objective, name in zip(panels, OBJECTIVES, objective_names(front), strict=True):
        shares = report.importances.get(objective.name)
        style_axes(panel)
        panel.set(title=name, xlim=(0, 1.12), xlabel="share of the variance")
        panel.grid(visible=False, axis="y")
        if shares:
            widths = [shares.get(path, 0.0) for path in paths]
            words = [f"{shares[path]:.0%}" if path in shares else "" for path in paths]
            bars = panel.barh(list(paths.values()), widths, color=BLUE, zorder=2)
            panel.bar_label(bars, words, padding=3, fontsize=9, color=INK)
        else:
            panel.text(0.5, 0.5, NOT_TOLD, transform=panel.transAxes, ha="center", color=INK)
    panels[0].invert_yaxis()
    return png(figure)


def convergence_png(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> bytes:
    """Draw accuracy against FLOPs, memory and time so far: the front's members, the knee and the baselines (figure 6).

    Returns:
        A PNG, 2100 x 750 pixels; without a curve it says so.
    """
    lines, labels = ways(front, results, report.curves)
    costs = [cost for cost, label in enumerate(labels) if label]
    figure = canvas(14, 5, f"Convergence in {front.sweep}")
    if not lines:
        say(figure, NOBODY)
        return png(figure)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for panel, cost in zip(panels, costs, strict=True):
        style_axes(panel)
        named = set()
        for line in lines:
            colour, width = WAY_STYLES[line.kind]
            panel.plot(
                line.costs_E3[:, cost],
                line.accuracy_E,
                marker="o",
                ms=3 + width,
                color=colour,
                lw=width,
                ls="--" if line.kind in ("full", "paper") else "-",
                alpha=0.55 if line.kind == "member" else 1.0,
                label=None if line.kind in named else WAY_NAMES[line.kind],
            )
            named.add(line.kind)
        panel.set_xlabel(labels[cost])
        panel.set_xlim(left=0)
    panels[0].set_ylabel(f"Validation {front.score_label}")
    panels[0].legend(loc="lower right", fontsize=9)
    return png(figure)
