"""A sweep in MLflow's own run list and charts, as an address leads to it: MLflow keeps such a view in a tag."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any
from urllib.parse import urlencode

from mlflow import MlflowClient

from alast_tune.results import OBJECTIVES

_SIDE = {"workflowType": "machine_learning"}  # else the pages are those for language models

_CHARTED = 100
"""MLflow draws so many runs at most."""


def prepare_view(client: MlflowClient, experiment: str, sweep: str | None = None) -> str:
    """Prepare a sweep's complete trials, cheapest first, with charts of accuracy against costs; of many the front.

    Args:
        client: of the store.
        experiment: its id.
        sweep: name; None for the one that began last.

    Returns:
        Where on the server that is, from ``/#/`` on. Where there is no such sweep, the experiment's runs as they are.
    """
    asked = "tags.`alast.kind` = 'sweep'" + (f" and attributes.run_name = '{sweep}'" if sweep else "")
    latest = client.search_runs([experiment], asked, max_results=1, order_by=["attributes.start_time DESC"])
    if not latest:
        return f"/#/experiments/{experiment}/runs?{urlencode(_SIDE)}"
    parent = latest[0].info.run_id
    trials = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`alast.state` = 'complete'"
    some = client.search_runs([experiment], trials, max_results=_CHARTED + 1)
    searched = some[0].data.tags["alast.searched"].split(", ") if some else []
    title = "Pareto front"
    if len(some) > _CHARTED:  # MLflow would leave out the most expensive ones
        trials += " and tags.pareto = 'true'"
        title = f"Pareto front alone: more than {_CHARTED} trials are complete"
    view = {
        "searchFilter": trials,
        "orderByKey": "metrics.`train_flops`",
        "orderByAsc": True,
        "selectedColumns": [
            "tags.`pareto`",
            *(f"metrics.`{objective.name}`" for objective in OBJECTIVES),
            "params.`method/name`",
            *(f"params.`{path}`" for path in searched),
        ],
        "runsHiddenMode": "SHOWALL",
        "isAccordionReordered": True,  # else MLflow's own sections come before this one
        "compareRunSections": [_generated(uuid="front", name=title, display=True, isReordered=True)],
        "compareRunCharts": [
            *(_scatter(objective.name) for objective in OBJECTIVES[1:]),
            _chart("parallel", "PARALLEL", selectedParams=searched, selectedMetrics=["accuracy"]),
        ],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()
    key = f"front-{parent[:8]}"
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", f"deflate;{packed}")
    view_of = _SIDE | {"viewStateShareKey": key, "compareRunsMode": "CHART"}
    return f"/#/experiments/{experiment}/runs?{urlencode(view_of)}"


def _generated(**values: Any) -> dict[str, Any]:
    return {"deleted": False, "isGenerated": False, **values}


def _chart(uuid: str, kind: str, **values: Any) -> dict[str, Any]:
    return _generated(uuid=uuid, type=kind, metricSectionId="front", runsCountToCompare=_CHARTED, **values)


def _scatter(cost: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": cost, "type": "METRIC"}, "yaxis": {"key": "accuracy", "type": "METRIC"}}
    return _chart(cost, "SCATTER", **axes)
