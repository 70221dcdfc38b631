"""What people read in MLflow's list of runs, on a real store: percents, test accuracies, models, data sets, numbers."""

from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import TrialResult
from alast_tune.summary import summarise
from alast_tune.tracking import Tracker, default_uri, prepare_view, run_ids, sweep_run_id
from tests.unit.plots.figures import Pictures

SWEEP = SweepConfig.model_validate(
    {
        "name": "s-1.0",
        "trial": {"data": {"dataset": "folder", "root": "/pictures/pets"}},
        "space": {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0}},
    }
)
FULL = (0.9, 4e12, 8e8)


@pytest.fixture(autouse=True)
def drawn_small(monkeypatch: pytest.MonkeyPatch) -> None:
    Pictures(monkeypatch)


def result(number: int, values: tuple[float, ...], **more: object) -> TrialResult:
    return TrialResult(number, "complete", SWEEP.trial, {"method/alpha": 0.1}, values, 3, **more)  # type: ignore[arg-type]


def start(storage: Path, numbers: range = range(0)) -> Tracker:
    tracker = Tracker(default_uri(storage), storage)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    for number in numbers:
        tracker.start_trial(number, SWEEP.trial, {"method/alpha": 0.1}, "full" if number == 0 else None)
    return tracker


def runs(tracker: Tracker, storage: Path) -> list[Run]:
    """The trials' runs, once all is written."""
    assert tracker._writer.flush(60)
    client = mlflow.MlflowClient(tracker.uri)
    return [client.get_run(run_id) for _, run_id in sorted(run_ids(storage / SWEEP.name).items())]


def percents(run: Run) -> list[float | None]:
    return [run.data.metrics.get(f"{cost}_percent_of_full") for cost in ("flops", "memory")]


def test_costs_are_compared_with_full_fine_tuning_as_soon_as_it_has_ended(storage: Path) -> None:
    tracker = start(storage, range(4))
    early, full = result(1, (0.8, 1e12, 3e8)), result(0, FULL, baseline="full")
    tracker.end_result(early)
    assert percents(runs(tracker, storage)[1]) == [None, None]
    tracker.end_result(full)
    tracker.end_result(result(2, (0.7, 3333333333333.0, 2e8)))
    found = runs(tracker, storage)
    assert list(map(percents, found)) == [[100.0, 100.0], [25.0, 37.5], [83.3, 25.0], [None, None]]
    assert [run.data.tags.get("alast.state") for run in found] == ["complete"] * 3 + [None]
    tracker.kill()

    resumed = start(storage)  # what was logged is not logged again
    resumed.reconcile_runs([early, full, result(2, (0.7, 3333333333333.0, 2e8)), result(3, (0.6, 1e12, 1e8))])
    found = runs(resumed, storage)
    assert percents(found[3]) == [25.0, 12.5]
    client = mlflow.MlflowClient(resumed.uri)
    assert len(client.get_metric_history(found[1].info.run_id, "flops_percent_of_full")) == 1


def test_a_driver_that_died_before_full_fine_tuning_ended_leaves_no_run_without_percents(storage: Path) -> None:
    tracker, early = start(storage, range(2)), result(1, (0.8, 1e12, 3e8))
    tracker.end_result(early)
    tracker.kill()
    resumed = start(storage)
    resumed.reconcile_runs([early])
    resumed.start_trial(0, SWEEP.trial, {}, "full")
    resumed.end_result(result(0, FULL, baseline="full"))
    assert list(map(percents, runs(resumed, storage))) == [[100.0, 100.0], [25.0, 37.5]]


def test_members_have_test_accuracy_and_a_model_that_says_where_the_weights_are(storage: Path) -> None:
    tracker = start(storage, range(3))
    results = [
        result(0, FULL, baseline="full", test_accuracy=0.875),
        result(1, (0.8, 1e12, 3e8), test_accuracy=5 / 6),
        result(2, (0.7, 2e12, 4e8)),
    ]
    for one in results:
        tracker.end_result(one)
    weights = {"0000": "/there/0000", "0001": "s3://there/0001"}
    tracker.log_front(summarise(SWEEP.name, results, FULL), results, weights=weights)
    tracker.log_front(summarise(SWEEP.name, results, FULL), results, weights=weights)  # alast-tune report
    found = runs(tracker, storage)
    assert [run.data.metrics.get("test_accuracy") for run in found] == [0.875, 0.833333, None]
    client = mlflow.MlflowClient(tracker.uri)
    models = client.search_logged_models([found[0].info.experiment_id])
    assert {(model.name, model.source_run_id, model.status.value) for model in models} == {
        ("s-1_0 0000", found[0].info.run_id, "READY"),
        ("s-1_0 0001", found[1].info.run_id, "READY"),
    }
    assert {model.tags["alast.checkpoint"] for model in models} == set(weights.values())
    assert "alast-tune promote s-1.0 --pick 0001" in {model.tags["alast.promote"] for model in models}
    assert all(model.tags["alast.checkpoint"] in model.tags["mlflow.note.content"] for model in models)
    outputs = found[1].outputs
    assert outputs and len(outputs.model_outputs) == 1

    tracker.start_trial(3, SWEEP.trial, {})
    results.append(result(3, (0.85, 0.5e12, 2e8)))  # better than trial 1
    tracker.log_front(summarise(SWEEP.name, results, FULL), results, weights={"0000": "/there/0000", "0003": "x"})
    assert tracker._writer.flush(60)
    names = {model.name for model in client.search_logged_models([found[0].info.experiment_id])}
    assert names == {"s-1_0 0000", "s-1_0 0003"}


def test_runs_name_their_data_set_with_its_digest(storage: Path) -> None:
    tracker = start(storage, range(1))
    other = SWEEP.trial.model_copy(update={"data": SWEEP.trial.data.model_copy(update={"split_seed": 1})})
    tracker.start_trial(1, other, {})  # of a grid: nobody has taken its fingerprint
    same, divided_otherwise = runs(tracker, storage)
    client = mlflow.MlflowClient(tracker.uri)
    parent = client.get_run(str(sweep_run_id(storage / SWEEP.name)))
    for run in (same, parent):
        (one,) = run.inputs.dataset_inputs
        assert (one.dataset.name, one.dataset.digest) == ("pets", "0123456789abcdef")
        assert (one.dataset.source_type, one.dataset.source) == ("local", '{"uri": "/pictures/pets"}')
    assert not divided_otherwise.inputs.dataset_inputs


def test_no_number_is_long(storage: Path) -> None:
    tracker = start(storage)
    train = {"learning_rate": 0.00012345678901234567, "epochs": 10}
    config = TrialConfig.model_validate({"method": {"name": "alast", "alpha": 1 / 3}, "train": train})
    tracker.start_trial(0, config, {"method/alpha": 1 / 3})
    tracker.log_epoch(0, {"accuracy": 5 / 6, "train_flops": 155213053953.0, "peak_bytes": 14_123_456.0}, 1)
    tracker.log_progress({"hypervolume": 1.2345678901234567e20}, 1)
    (run,) = runs(tracker, storage)
    assert run.data.metrics == {
        "accuracy": 0.833333,
        "train_flops": 155213053953.0,  # as it was counted
        "peak_bytes": 14_123_456.0,
        "peak_gib": 0.01315,
    }
    assert (run.data.params["train/learning_rate"], run.data.params["method/alpha"]) == ("0.000123457", "0.333333")
    assert run.data.params["train/epochs"] == "10"
    parent = mlflow.MlflowClient(tracker.uri).get_run(str(sweep_run_id(storage / SWEEP.name)))
    assert parent.data.metrics["hypervolume"] == 1.23457e20


def test_an_experiment_is_the_options_else_the_environments(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def experiment_of(name: str, option: str | None) -> str:
        tracker = Tracker(default_uri(storage), storage, experiment=option)
        run_id = tracker.start_sweep(SWEEP.model_copy(update={"name": name}))
        client = mlflow.MlflowClient(tracker.uri)
        number = client.get_run(run_id).info.experiment_id
        assert prepare_view(client, run_id).startswith(f"/#/experiments/{number}/")
        tracker.kill()
        return str(client.get_experiment(client.get_run(run_id).info.experiment_id).name)

    assert experiment_of("a", None) == "alast-tune"
    assert experiment_of("b", "pets") == "pets"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert experiment_of("c", None) == "theirs"
    assert experiment_of("d", "pets") == "pets"
    assert experiment_of("a", "pets") == "alast-tune"  # gone on with
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        Tracker(default_uri(storage), storage, experiment="x" * 1000)
