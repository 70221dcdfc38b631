"""A sweep in MLflow's own run list and charts, as an address leads to it: MLflow keeps such a view in a tag."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any
from urllib.parse import urlencode

from mlflow import MlflowClient
from mlflow.entities import Run

from alast_tune.config import setting_of
from alast_tune.results import OBJECTIVES
from alast_tune.tracking.people import FLOPS_PERCENT, MEMORY_PERCENT

_SIDE = {"workflowType": "machine_learning"}  # else the pages are those for language models

_NAME = "attributes.`Run Name`"
"""A column that is always there, and narrow."""

_CHARTED = 100
"""MLflow draws so many runs at most."""


def prepare_view(client: MlflowClient, sweep: str | None = None) -> str:
    """Prepare a sweep's complete trials, cheapest first, with charts of accuracy against costs; of many the front.

    Costs are in percent of full fine-tuning where that has ended, else as they were measured.

    Args:
        client: of the store.
        sweep: id of its run; None for the one that began last, in whatever experiment.

    Returns:
        Where on the server that is, from ``/#/`` on. Where there is no such sweep, the list of experiments.
    """
    parent = client.get_run(sweep) if sweep else _latest(client)
    if parent is None:
        return f"/#/experiments?{urlencode(_SIDE)}"
    experiment, run_id = str(parent.info.experiment_id), str(parent.info.run_id)
    trials = f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`alast.state` = 'complete'"
    some = client.search_runs([experiment], trials, max_results=_CHARTED + 1)
    names = dict.fromkeys(name for run in some for name in run.data.tags["alast.searched"].split(", "))
    everywhere = set(some[0].data.params).intersection(*(run.data.params for run in some)) if some else set()
    # Of conditional parameters those that all runs have in some variant: MLflow draws no run that lacks one.
    searched = [path for path in dict.fromkeys(map(setting_of, names)) if path in names or path in everywhere]
    compared = any(FLOPS_PERCENT in run.data.metrics for run in some)
    costs = [FLOPS_PERCENT, MEMORY_PERCENT] if compared else [objective.name for objective in OBJECTIVES[1:]]
    score = some[0].data.params.get("train/score", "accuracy") if some else "accuracy"
    columns = {  # and their widths in pixels
        "params.`method/name`": 110,
        f"metrics.`{score}`": 90 if score == "accuracy" else 140,
        f"metrics.`test_{score}`": 120 if score == "accuracy" else 170,
        **{f"metrics.`{cost}`": 190 for cost in costs},
        "tags.`pareto`": 80,
        "attributes.`Models`": 130,
        "attributes.`Dataset`": 150,
    }
    title = "Pareto front"
    if len(some) > _CHARTED:  # MLflow would leave out the most expensive ones
        trials += " and tags.pareto = 'true'"
        title = f"Pareto front alone: more than {_CHARTED} trials are complete"
        if len(client.search_runs([experiment], trials, max_results=_CHARTED + 1)) > _CHARTED:
            title = f"The {_CHARTED} cheapest members of the front: MLflow draws no more; report.html has all"
    view = {
        "searchFilter": trials,
        "orderByKey": "metrics.`train_flops`",
        "orderByAsc": True,
        "selectedColumns": list(columns),
        "columnOrder": [_NAME, *columns],
        "columnWidths": columns | {_NAME: 260},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # else MLflow's own sections come before this one
        "compareRunSections": [_generated(uuid="front", name=title, display=True, isReordered=True)],
        "compareRunCharts": [
            *(_scatter(score, cost) for cost in costs),
            _chart("parallel", "PARALLEL", selectedParams=searched, selectedMetrics=[score]),
        ],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()
    key = f"front-{run_id[:8]}"
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", f"deflate;{packed}")
    view_of = _SIDE | {"viewStateShareKey": key, "compareRunsMode": "CHART"}
    return f"/#/experiments/{experiment}/runs?{urlencode(view_of)}"


def _latest(client: MlflowClient) -> Run | None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    asked, order = "tags.`alast.kind` = 'sweep'", ["attributes.start_time DESC"]
    return next(iter(client.search_runs(experiments, asked, max_results=1, order_by=order)), None)


def _generated(**values: Any) -> dict[str, Any]:
    return {"deleted": False, "isGenerated": False, **values}


def _chart(uuid: str, kind: str, **values: Any) -> dict[str, Any]:
    return _generated(uuid=uuid, type=kind, metricSectionId="front", runsCountToCompare=_CHARTED, **values)


def _scatter(score: str, cost: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": cost, "type": "METRIC"}, "yaxis": {"key": score, "type": "METRIC"}}
    return _chart(cost, "SCATTER", **axes)
