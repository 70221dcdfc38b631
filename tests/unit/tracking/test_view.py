"""What MLflow's own charts show of a sweep, and what they say that they leave out."""

import base64
import json
import zlib
from pathlib import Path

import mlflow
import pytest

from alast_tune.tracking import default_uri, prepare_view


@pytest.mark.parametrize(
    ("drawn", "title", "score"),
    [
        (4, "Pareto front", "macro_f1"),
        (3, "Pareto front alone: more than 3 trials are complete", "accuracy"),
        (2, "The 2 cheapest members of the front: MLflow draws no more; report.html has all", "accuracy"),
    ],
)
def test_charts_say_what_they_are_of_and_what_they_leave_out(
    storage: Path, monkeypatch: pytest.MonkeyPatch, drawn: int, title: str, score: str
) -> None:
    monkeypatch.setattr("alast_tune.tracking.view._CHARTED", drawn)
    client = mlflow.MlflowClient(default_uri(storage))
    experiment = client.create_experiment("pets")
    parent = client.create_run(experiment, tags={"alast.kind": "sweep"}).info.run_id
    for pareto in ("true", "true", "true", "false"):
        tags = {"mlflow.parentRunId": parent, "alast.state": "complete", "alast.searched": "a", "pareto": pareto}
        run = client.create_run(experiment, tags=tags)
        if score != "accuracy":  # of which runs of older versions say nothing
            client.log_param(run.info.run_id, "train/score", score)
    prepare_view(client, parent)
    packed = client.get_experiment(experiment).tags[f"mlflow.sharedViewState.front-{parent[:8]}"]
    view = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))
    assert view["compareRunSections"][0]["name"] == title
    assert {chart["yaxis"]["key"] for chart in view["compareRunCharts"][:2]} == {score}
    assert {f"metrics.`{score}`", f"metrics.`test_{score}`"} < set(view["selectedColumns"])
