"""Production training on several GPUs or nodes: one run, each of its batches divided among Ray Train's workers.

Its checkpoint is the folder's own, the one that a single process keeps: Ray Train starts the workers, joins them
into a process group, and starts them all again when one has died.
"""

from __future__ import annotations

import math
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from alast_tune.config import TrialConfig, with_absolute_paths
from alast_tune.errors import ConfigError, DivergedError, WorkersError
from alast_tune.parallel import world
from alast_tune.results import EpochReport
from alast_tune.train import fit, last_report
from alast_tune.tune.cluster import cluster, stopped_by_signals
from alast_tune.tune.resources import NODE_LABEL

RESTARTS = 3
"""Of all workers, from the last checkpoint, when one of them or its node has died."""

PULSE = 0.2
"""Seconds between two looks at what the workers have reported, and at signals."""

SCRATCH = ".ray-"
"""Beginning of the name of a driver's own place in the folder."""

_FINAL = (ConfigError, DivergedError)  # another try would only repeat it


def fit_distributed(
    config: TrialConfig,
    folder: Path,
    workers: int,
    on_epoch: Callable[[EpochReport], None],
    checkpoint_every: float | None = None,
) -> None:
    """Fine-tune with several workers, to the same end as :func:`~alast_tune.train.fit` over ``folder`` in one process.

    Every worker takes its share of each batch, so that batch size, learning rate and plans are those of one worker.
    Each has a card where the cluster has any and ``train.device`` is not ``cpu``, and an equal share of the CPUs.

    Args:
        config: everything that determines the run.
        folder: keeps the checkpoint and the model; this process's alone, and all nodes have to see it.
        workers: how many, at least 1.
        on_epoch: is told of every epoch, here and while it runs; of one that a restart repeats, once.
        checkpoint_every: seconds after which there is a checkpoint within an epoch too.

    Raises:
        ConfigError: whatever cannot work.
        DivergedError: a loss or a class-token delta that is not finite.
        WorkersError: workers have died more often than they are restarted.
    """
    most = config.train.batch_size
    if not 1 <= workers <= most:
        raise ConfigError(
            "workers", workers, f"each needs an image of every batch; give 1 to {most} (train.batch_size)"
        )
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{SCRATCH}*"):  # of a driver that was killed, whose workers may not know yet
        shutil.rmtree(left, ignore_errors=True)
    with (
        cluster(),
        stopped_by_signals() as stop,
        # Ray Train wants a place of its own. Its workers tell by it whether they see the folder.
        TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True) as scratch,
    ):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = resources_per_worker(workers, nodes, config.train.device)
        job = _Job(with_absolute_paths(config), folder, Path(scratch), resources, checkpoint_every)
        last = last_report(folder)
        told = last.epoch if last else 0
        here = {NODE_LABEL: ray.get_runtime_context().get_node_id()}
        # Of its threads one waits for the workers, one takes their reports, one hands them out.
        controller: Any = (
            ray.remote(_TrainingController).options(num_cpus=0, max_concurrency=3, label_selector=here).remote()
        )
        try:
            ending = controller.train.remote(_train, job, workers)
            over = False
            while not over:
                over = bool(ray.wait([ending], timeout=PULSE)[0])
                stop.check()
                for report in ray.get(controller.after.remote(told)):
                    on_epoch(report)
                    told = report.epoch
            trouble = ray.get(ending)
        except RayActorError as error:
            trouble = _lost(error)
        finally:
            ray.kill(controller)  # and with it the workers, if there are any left
    if trouble:
        raise trouble


def resources_per_worker(workers: int, nodes: Sequence[Mapping[str, float]], device: str) -> dict[str, float]:
    """Divide a cluster: a card for each worker if it has any that may be used, and as many CPUs as all can have.

    Args:
        workers: how many.
        nodes: ``CPU`` and ``GPU`` of each.
        device: ``train.device``.

    Raises:
        ConfigError: there is no room for so many.
    """
    cards = device != "cpu" and any(node.get("GPU", 0) for node in nodes)

    def room(cpus: int) -> int:
        return sum(int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if cards else math.inf)) for node in nodes)

    if room(1) < workers:
        kind = "CPU and a GPU" if cards else "CPU"
        raise ConfigError("workers", workers, f"each takes a {kind}, and the cluster has room for {room(1)}")
    most = int(max(node.get("CPU", 0) for node in nodes))
    cpus = max(cpus for cpus in range(1, most + 1) if room(cpus) >= workers)
    return {"CPU": float(cpus)} | ({"GPU": 1.0} if cards else {})


@dataclass(frozen=True)
class _Job:
    """What every worker is to do."""

    config: TrialConfig
    folder: Path
    scratch: Path
    """In the folder, and made by this driver: who sees it sees the folder, and while it is there the run is its."""
    resources: dict[str, float]
    checkpoint_every: float | None


class _TrainingController:
    """An actor beside the driver, which runs Ray Train and has what the workers report; if it dies, they die."""

    def __init__(self) -> None:
        self._reports: dict[int, EpochReport] = {}

    def train(self, loop: Callable[[dict[str, Any]], None], job: _Job, workers: int) -> Exception | None:
        """Let the workers run to their end; give back what went wrong, if anything did."""
        trainer = TorchTrainer(
            loop,
            train_loop_config={"job": job, "controller": ray.get_runtime_context().current_actor},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu="GPU" in job.resources, resources_per_worker=job.resources
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # declared as of its first version
                name="train",
                storage_path=str(job.scratch),
                failure_config=FailureConfig(max_failures=RESTARTS),
                callbacks=[_GiveUp()],  # type: ignore[list-item]
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            cause = error.controller_failure
            return cause if isinstance(cause, _FINAL) else _lost(cause)
        except WorkerGroupError as error:
            return _lost(*error.worker_failures.values())
        except TrainingFailedError as error:
            return _lost(error)
        return None

    def tell(self, report: EpochReport) -> None:
        """Take an epoch's report; one that a restart repeats is known already."""
        self._reports.setdefault(report.epoch, report)

    def after(self, epoch: int) -> list[EpochReport]:
        """Give the reports of later epochs, in order."""
        return [self._reports[later] for later in sorted(self._reports) if later > epoch]


class _GiveUp(UserCallback):
    """Ends the run at an error that is final; Ray Train itself restarts the workers after every kind."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, _FINAL):
                raise error


def _train(options: dict[str, Any]) -> None:
    """What a worker does, in the process group that Ray Train has made."""
    job: _Job = options["job"]
    if not job.scratch.is_dir():
        raise ConfigError("output", job.folder, f"{socket.gethostname()} does not see it; all nodes have to share it")
    last = last_report(job.folder)
    torch.set_num_threads(int(job.resources["CPU"]))
    # The last one may not have been told: a worker may have died right after the epoch was saved.

    def check(step: int) -> None:
        if not job.scratch.is_dir():
            raise ConfigError("output", job.folder, "another driver has taken it over")

    for report in chain([last] if last else [], fit(job.config, job.folder, check, job.checkpoint_every)):
        if world()[0] == 0:
            ray.get(options["controller"].tell.remote(report))


def _lost(*errors: BaseException) -> WorkersError:
    """Say in a line what workers have died of."""
    lines = sorted({f"{type(error).__name__}: {str(error).partition(chr(10))[0]}" for error in errors})
    return WorkersError(f"workers failed ({'; '.join(lines)}); the same command goes on from the last checkpoint")
