"""A sweep on real Ray nodes with pretended cards: on all of them, past one that is lost, on those that come later."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from alast_tune.results import FrontFile
from alast_tune.tune import resources
from alast_tune.tune import study as study_module
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.observer import SweepObserver, TuneEvents
from alast_tune.tune.trainable import AlastTrainable
from tests.integration.harness import PATIENCE, Pareto, added
from tests.integration.test_sweep import logged_epochs, runs_in, trial_states

TRIALS, EPOCHS = 4, 4


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something done at every step of the driver's loop, while workers go on."""

    def patch(do: Callable[[], None]) -> None:
        on_step_begin = TuneEvents.on_step_begin

        def first(events: TuneEvents, *arguments: Any, **info: Any) -> None:
            do()
            on_step_begin(events, *arguments, **info)

        monkeypatch.setattr(TuneEvents, "on_step_begin", first)

    return patch


class Together(AlastTrainable):
    """Real training, which begins when two trials are there: else one node could do it all while the other starts."""

    def step(self) -> dict[str, Any]:
        self.mark(f"begun-{self.config['number']}")
        until(lambda: len(list(self.folder.glob("begun-*"))) >= 2)
        return super().step()

    @property
    def folder(self) -> Path:
        return Path(self._storage.experiment_fs_path)

    def mark(self, name: str) -> bool:
        """Say that something happens here; whether it is the first time."""
        first = not (self.folder / name).exists()
        (self.folder / name).touch()
        return first


class OnLostNode(Together):
    """The first trial stays in its third epoch until its node is taken away."""

    def step(self) -> dict[str, Any]:
        if not hasattr(self, "_run"):
            self.begin(self.config["resume_from"])
        if self.config["number"] == 0 and self._run.epoch == 2 and self.mark("third"):
            until(lambda: False)
        return super().step()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def allow_store_in_file(patch: pytest.MonkeyPatch) -> None:
    """Let several nodes have one: only the driver writes to the store, whichever it is."""
    patch.setattr(study_module, "is_file_based", lambda uri: False)


@pytest.mark.slow
def test_a_sweep_uses_all_nodes_and_a_lost_one_costs_at_most_an_epoch(
    ray_here: Cluster, pareto: Pareto, at_every_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints lie on storage that the other node shares."""
    folder, moved = pareto.storage / "nodes", SweepObserver.moved
    where: dict[int, str] = {}
    """The node that each trial was seen on first."""

    def note(observer: SweepObserver, number: int, node: str) -> None:
        where.setdefault(number, node.split()[1])
        moved(observer, number, node)

    monkeypatch.setattr(SweepObserver, "moved", note)
    monkeypatch.setattr(study_module, "AlastTrainable", OnLostNode)
    with added(ray_here, num_cpus=1, num_gpus=1) as one, added(ray_here, num_cpus=1, num_gpus=1) as other:

        def lose() -> None:
            """Take the first trial's node away in its third epoch."""
            if len(ray_here.worker_nodes) == 2 and (folder / "tune" / "driver-00" / "third").exists():
                (lost,) = [node for node in (one, other) if node.node_id.startswith(where[0])]
                ray_here.remove_node(lost, allow_graceful=False)

        out = pareto.here("--preset", pareto.preset(), "--name", "refused", expect=2)
        assert "error: MLFLOW_TRACKING_URI = sqlite:///" in out and "several nodes need a tracking server" in out
        assert not (pareto.storage / "refused" / "study.db").exists()

        allow_store_in_file(monkeypatch)
        at_every_step(lose)
        arguments = ["--name", "nodes", "--scheduler", "none", "--gpus-per-trial", "1", "--keep", "all"]
        out = pareto.here("--preset", pareto.preset(TRIALS, EPOCHS, concurrent=2), *arguments)
        (left,) = ray_here.worker_nodes

    assert trial_states(folder) == ["COMPLETE"] * TRIALS, out
    counts = FrontFile.read(folder / "front.json").trials
    assert (counts.total, counts.complete) == (TRIALS, TRIALS)
    assert logged_epochs(pareto.storage) == dict.fromkeys(range(TRIALS), (1, 2, 3, 4))
    _, runs = runs_in(pareto.storage, "trial")
    nodes = {int(run.data.tags["alast.trial"]): run.data.tags["alast.node"].split()[1] for run in runs}
    assert nodes[0] == left.node_id[:8] == where[1] != where[0]
    for trial in range(TRIALS):
        # Tune counts them on past a restart: one an epoch, so that none was trained again.
        assert Path(checkpoints(folder, trial)[0]).name == f"checkpoint_{EPOCHS - 1:06d}"


@pytest.mark.slow
def test_a_sweep_grows_with_its_cluster(
    ray_here: Cluster, pareto: Pareto, at_every_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an autoscaler does it: one node when it is asked for, and one with less memory because a trial waits."""
    folder, asked = pareto.storage / "grown", []
    with ExitStack() as nodes:

        def autoscale(bundles: list[dict[str, float]]) -> None:
            asked.append(bundles)
            if bundles:
                nodes.enter_context(added(ray_here, num_cpus=3, memory=8 << 30))

        def grow() -> None:
            if len(ray_here.worker_nodes) == 1 and trial_states(folder).count("RUNNING") == 2:
                nodes.enter_context(added(ray_here, num_cpus=3, memory=7 << 30))

        allow_store_in_file(monkeypatch)
        monkeypatch.setattr(study_module, "AlastTrainable", Together)
        monkeypatch.setattr(resources, "request_resources", autoscale)
        at_every_step(grow)
        arguments = ["--name", "grown", "--scheduler", "none", "--cpus-per-trial", "3"]
        out = pareto.here("--preset", pareto.preset(TRIALS, EPOCHS, concurrent=2), *arguments)
    lacking = "cpus_per_trial = 3: the largest node has 2 CPUs"
    assert f"{lacking}; waiting for one that has more, 30 minutes at most\n" in out
    assert asked == [[{"CPU": 3.0}], []]  # from there on trials ask
    assert trial_states(folder) == ["COMPLETE"] * TRIALS
    _, runs = runs_in(pareto.storage, "trial")
    assert len({run.data.tags["alast.node"] for run in runs}) == 2
