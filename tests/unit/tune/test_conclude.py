"""The end of a sweep, made from its study alone: once, again, of a half finished one, and stopped in between."""

import io
import json
import signal
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile, Region
from alast_tune.tracking import Tracker, default_uri
from alast_tune.tune import conclude as module
from alast_tune.tune.attributes import ACCURACY_FLOOR, BASELINE
from alast_tune.tune.cluster import Stop
from alast_tune.tune.conclude import SEARCHED, conclude, report
from alast_tune.tune.space import to_optuna
from alast_tune.tune.trials import open_study
from tests.unit.plots.figures import Pictures

VALUES = [[0.9, 2e12, 4e8], [0.8, 1e12, 2e8], [0.7, 3e12, 3e8]]


@pytest.fixture(autouse=True)
def drawn_small(monkeypatch: pytest.MonkeyPatch) -> None:
    Pictures(monkeypatch)


def begun(storage: Path, *, over: bool) -> tuple[SweepConfig, optuna.Study, Tracker]:
    """A sweep whose driver was killed, three trials being complete; if it is not over, a fourth runs."""
    nowhere = {"dataset": "folder", "root": storage / "nowhere"}  # no images are needed
    sweep = SweepConfig.model_validate(
        {
            "storage": storage,
            "name": "s",
            "trials": 3 if over else 4,
            "trial": {"data": nowhere},
            "space": {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0}},
        }
    )
    folder = storage / "s"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(sweep.given_values()))
    study = open_study(sweep, folder, new=True)
    study.set_user_attr("reference_point", (0.0, 4e12, 8e8))
    study.set_user_attr(SEARCHED, over)
    tracker = Tracker(default_uri(storage), storage)
    tracker.start_sweep(sweep)
    for number in range(sweep.trials):
        running = number == len(VALUES)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING if running else TrialState.COMPLETE,
                params={"method/alpha": 0.1 + number / 10},
                distributions=to_optuna(sweep.space),
                values=None if running else VALUES[number],
                user_attrs={"epochs": 3, "curve": [] if running else [VALUES[number]]},
            )
        )
        tracker.start_trial(number, sweep.trial, {"method/alpha": 0.1})
    return sweep, study, tracker


def statuses(storage: Path) -> dict[str, tuple[str, str | None]]:
    """How MLflow has each run, and where it stands."""
    client = mlflow.MlflowClient(default_uri(storage))
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    return {str(run.info.run_name): (run.info.status, run.data.tags.get("pareto")) for run in runs}


def quiet() -> Console:
    return Console(file=io.StringIO())


DONE = {
    "0000 alast K9 keep .6": ("FINISHED", "true"),
    "0001 alast K9 keep .6": ("FINISHED", "true"),
    "0002 alast K9 keep .6": ("FINISHED", None),
}


def test_a_sweep_is_reported_without_cluster_and_images_as_often_as_one_likes(storage: Path) -> None:
    _, _, tracker = begun(storage, over=True)
    tracker._writer.flush(60)
    tracker._close()
    folder = storage / "s"
    front = report(folder, quiet())
    assert [member.trial_id for member in front.front] == ["0001", "0000"]
    assert {member.mlflow_run_id for member in front.front} != {None}
    assert statuses(storage) == DONE | {"s": ("FINISHED", None)}
    assert {"front.png", "search-space.png", "front_table.json"} <= {file.name for file in (folder / "front").iterdir()}
    for file in (folder / "front.json", folder / "report.html"):
        file.unlink()
    assert report(folder, quiet()) == front == FrontFile.read(folder / "front.json")
    assert (folder / "report.html").exists()
    assert statuses(storage) == DONE | {"s": ("FINISHED", None)}


def test_a_sweep_whose_folder_was_renamed_is_reported_there(storage: Path) -> None:
    _, _, tracker = begun(storage, over=True)
    tracker._writer.flush(60)
    tracker._close()
    (storage / "s").rename(storage / "old")
    begun(storage, over=False)[2]._close()  # a new one has taken its name
    front = report(storage / "old", quiet())
    assert front.sweep == "old" and front == FrontFile.read(storage / "old" / "front.json")
    assert not (storage / "s" / "front.json").exists()


def test_a_half_finished_sweep_is_reported_and_keeps_what_is_left_to_run(storage: Path) -> None:
    sweep, _, tracker = begun(storage, over=False)
    tracker._writer.flush(60)
    tracker._close()
    assert report(storage / "s", quiet()).trials.total == 3
    assert statuses(storage) == DONE | {"s": ("KILLED", None), "0003 alast K9 keep .6": ("KILLED", None)}
    assert [trial.state.name for trial in open_study(sweep, storage / "s").trials] == ["COMPLETE"] * 3 + ["RUNNING"]


def test_a_signal_stops_the_end_of_a_sweep_which_can_be_made_up_for(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, study, tracker = begun(storage, over=True)
    stop, pages, lines = Stop(), module.report_search, list[str]()

    def stopped(*arguments: object) -> object:
        stop.request(signal.SIGTERM, None)
        return pages(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "report_search", stopped)
    with pytest.raises(SystemExit) as end, tracker:
        conclude(sweep, study, tracker, stop, lines.append)
    assert end.value.code == 128 + signal.SIGTERM
    assert lines == [f"stopped before all of s was reported; alast-tune report {storage}/s does it"]
    assert (storage / "s" / "front.json").exists()
    monkeypatch.undo()
    Pictures(monkeypatch)
    report(storage / "s", quiet())
    assert statuses(storage) == DONE | {"s": ("FINISHED", None)}


def test_what_is_no_sweep_is_refused(storage: Path) -> None:
    (storage / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^sweep = .*/empty: has no sweep\.json"):
        report(storage / "empty", quiet())


def test_a_report_counts_what_the_study_has_fixed(storage: Path) -> None:
    _, study, tracker = begun(storage, over=True)
    tracker._writer.flush(60)
    tracker._close()
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, values=[0.88, 4e12, 8e8], user_attrs={"epochs": 3, BASELINE: "full"})
    )
    study.set_user_attr(ACCURACY_FLOOR, 0.75)  # of an earlier run of full fine-tuning, at 0.8
    front = report(storage / "s", quiet())
    assert front.region == Region(source="full", floor=0.75, within=0.05)
    assert front.reference_point == (0.75, 4e12, 8e8)
    file = storage / "s" / "sweep.json"
    settings = json.loads(file.read_text())
    del settings["within"]  # as an older version has written it
    file.write_text(json.dumps(settings))
    assert report(storage / "s", quiet()).region == Region()
