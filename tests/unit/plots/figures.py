"""Sweeps to draw, and what was drawn."""

import json
import re

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from alast_tune.blocks import BlockReport
from alast_tune.config import FloatRange, IntRange, SweepConfig
from alast_tune.plots import SearchReport
from alast_tune.results import TrialResult
from alast_tune.summary import summarise
from alast_tune.tune.space import trial_config

REFERENCE = (0.0, 3e12, 6e7)
COMPLETE = {0: (0.90, 1.0e12, 4e7), 1: (0.95, 2.0e12, 5e7), 2: (0.80, 0.5e12, 3e7), 4: (0.70, 2.5e12, 5.5e7)}

SPACE = {
    "method/alpha": FloatRange(low=1e-3, high=1.0, log=True),
    "method/trainable_blocks": IntRange(low=1, high=12),
}
SWEEP = SweepConfig(space=SPACE)

CURVE = np.array([[0.5, 0.5e12, 3e7, 10.0], [0.9, 1.0e12, 4e7, 20.0]])
REPORT = SearchReport(
    space=SPACE,
    importances={
        "accuracy": {"method/alpha": 0.25, "method/trainable_blocks": 0.75},
        "train_flops": {"method/alpha": 0.1, "method/trainable_blocks": 0.9},
    },
    curves=dict.fromkeys(COMPLETE, CURVE),
)


def sweep(values, sweep_name="demo", baselines=None):
    """Trials with these objectives; baselines by number."""
    results = []
    for number in range(max(values, default=-1) + 1):
        params = {"method/alpha": 0.01 * (number + 1), "method/trainable_blocks": number + 1}
        baseline = (baselines or {}).get(number)
        config = trial_config(SWEEP, params, baseline)
        state = "complete" if number in values else "failed"
        results.append(TrialResult(number, state, config, params, values.get(number), 2, baseline=baseline))
    return summarise(sweep_name, results, REFERENCE), results


def traces(page, figure="front"):
    """Read a figure's traces back from the page."""
    start = re.search(rf'Plotly\.newPlot\(\s*"{figure}",\s*', page).end()
    return json.JSONDecoder().raw_decode(page, start)[0]


def ids(page, name):
    return [sorted(trace["customdata"]) for trace in traces(page) if trace["name"] == name]


class Pictures(list):
    """Matplotlib's figures as they are saved, which happens in a small size; each keeps the one that it should have."""

    def __init__(self, patch):
        super().__init__()
        save = Figure.savefig

        def small(figure, file, **options):
            figure.pixels = tuple(round(side * figure.dpi) for side in figure.get_size_inches())
            self.append(figure)
            save(figure, file, dpi=20, **options)

        patch.setattr(Figure, "savefig", small)

    def of(self, png):
        """The figure that has just become a PNG."""
        assert png.startswith(b"\x89PNG")
        return self.pop()


def points(axes):
    """Scattered points by their label."""
    return {
        part.get_label(): part.get_offsets().tolist()
        for part in axes.collections
        if isinstance(part, PathCollection) and len(part.get_offsets())
    }


def words(drawn):
    """What is written in a figure or a panel, titles left out."""
    return [text.get_text() for text in drawn.texts if text is not getattr(drawn, "_suptitle", None)]


def blocks(depth=12, steps=30, budgets=True, images=2, side=4):
    draw = np.random.default_rng(0)
    return BlockReport(
        steps_S=np.arange(steps, dtype=float),
        budgets_SL=draw.uniform(size=(steps, depth)) if budgets else np.empty((0, depth)),
        trained_L=draw.uniform(size=depth),
        tokens_L=draw.uniform(1, 17, size=depth),
        all_tokens=17,
        before_L=draw.uniform(size=depth),
        after_L=draw.uniform(size=depth),
        images_IHWC=draw.integers(0, 255, size=(images, 16, 16, 3), dtype=np.uint8),
        attended=(1, 3),
        attention_AIhw=draw.uniform(size=(2, images, side, side)),
    )
