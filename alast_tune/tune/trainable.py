"""The Ray trainable: one epoch a step, a checkpoint an epoch, the actor reused from trial to trial."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from alast_tune.blocks import BlockReport, report_blocks
from alast_tune.config import TrialConfig
from alast_tune.data.machine import cpu_model
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.failpoints import failpoint
from alast_tune.run import Run
from alast_tune.storage import copy_of
from alast_tune.text import safe
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.resources import limit_memory
from alast_tune.tune.storage_errors import of_a_worker


class AlastTrainable(tune.Trainable):
    """Wraps a :class:`~alast_tune.run.Run`.

    Config: ``number`` of the trial in the study, ``trial`` (a TrialConfig as plain values),
    ``threads`` for torch on a CPU, ``sweep`` (address of its folder), ``resume_from`` (addresses of checkpoints, newest
    first).
    Each result holds the epoch's metrics under ``report``; the ``node`` it ran on: host, beginning of Ray's id; and the
    kind of ``device`` that it trained on.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Get ready, in no time: what may hang, :meth:`begin` does within the first step, of which the driver knows."""
        self._trouble: dict[str, Any] = {}
        self.__dict__.pop("_run", None)  # a reused actor does not hold two models
        self._trial = TrialConfig.model_validate(config["trial"])

    def begin(self, addresses: Iterable[str]) -> None:
        """Build the run; go on from the first checkpoint that can be read."""
        torch.set_num_threads(self.config["threads"])
        if self.trial_resources:  # what Tune has reserved
            limit_memory(self.trial_resources.required_resources.get("GPU", 0.0))
        with self._guarded():
            self._restore(addresses)

    def step(self) -> dict[str, Any]:
        """Train one epoch; a run that was finished before only repeats its last report."""
        if not hasattr(self, "_run"):
            self.begin(self.config["resume_from"])
        if not self._trouble and not self._run.finished:
            with self._guarded():
                self._run.train_epoch()
        if self._trouble:
            return self._trouble
        assert self._run.report
        node = f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:8]}"
        where = {"node": node, "device": device_kind(self._run.device)}
        ended = self._run.finished
        return {"report": self._run.report.metrics(), "done": ended, "complete": ended, **where}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write everything the next epoch depends on."""
        if not self._trouble:
            try:
                self._run.save(Path(checkpoint_dir))
            except (OSError, RuntimeError) as error:
                if self._is_beside(checkpoint_dir):
                    raise
                raise RuntimeError(of_a_worker(f"{type(error).__name__}: {error}")) from error
            failpoint("after-save")

    def _is_beside(self, folder: str) -> bool:
        """Whether a folder of this worker, from which Tune takes a checkpoint to the sweep's, is on that one's disk."""
        sweep = Path(self.config["sweep"])  # of an address in object storage, a path that is not there
        return sweep.exists() and sweep.stat().st_dev == Path(folder).stat().st_dev

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Go on from a checkpoint folder, or if it is damaged the one before, after the worker or its node has died."""

        def newest_first() -> Iterator[str]:
            yield str(checkpoint)  # out of object storage a copy, with strangers beside it
            yield from checkpoints(copy_of(self.config["sweep"]), self.config["number"])

        self.begin(newest_first())

    def _restore(self, addresses: Iterable[str]) -> None:
        """Start the run from the first checkpoint that can be read, else from the beginning."""
        for address in addresses:
            self._run = Run(self._trial, verify=False)  # the driver has looked at every image
            try:
                with stored(address) as folder:
                    self._run.load(folder)
                return
            except (ConfigError, FileNotFoundError):  # damaged or gone; a half-loaded run is not gone on with
                continue
        self._run = Run(self._trial, verify=False)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """End the trial with a word, not an error, for what another try would only repeat.

        Other errors travel as text: one that Ray cannot unpickle in the driver would end the whole sweep.
        """
        try:
            yield
        except Exception as error:
            starved = out_of_memory(error)
            if not starved and not isinstance(error, DivergedError):
                # What is written in training goes anywhere but to the sweep's storage.
                text = of_a_worker(f"{type(error).__name__}: {error}")
                # Where it holds what may not be shown, or not even be written to a file, so does its traceback.
                raise RuntimeError(safe(text)) from (error if safe(text) == text else None)
            run = self.__dict__.get("_run")
            report = {} if starved or run is None or run.report is None else run.report.metrics()
            words = str(error).splitlines()[0] if str(error) else "out of memory"
            self._trouble = {"report": report, "done": True, "trouble": words, "out_of_memory": starved}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial into the same process, whose imports are done."""
        self.setup(new_config)
        return True


@contextmanager
def stored(address: str) -> Iterator[Path]:
    """Have a checkpoint in a folder, fetched from where it is kept if need be."""
    with tune.Checkpoint(address).as_directory() as folder:
        yield Path(folder)


def device_kind(device: torch.device) -> str:
    """Name the kind of a device: training times compare between devices of one kind; of a CPU, with as many threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{cpu_model()}, {torch.get_num_threads()} threads"


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, a GPU's or the machine's."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def finished_run(trial: TrialConfig, addresses: Iterable[str]) -> tuple[Run, str]:
    """Load a complete trial's last epoch, whose accuracy the front shows: never an earlier one; and from where.

    Args:
        trial: complete.
        addresses: of its checkpoints, newest first; one that is damaged or of another epoch is passed over.

    Raises:
        ConfigError: no checkpoint of that epoch can be read; says what is wrong with the newest.
    """
    trouble: list[ConfigError] = []
    for address in addresses:
        run = Run(trial, verify=False)  # a half-loaded one is not gone on with
        try:
            with stored(address) as folder:
                run.load(folder)
        except (ConfigError, OSError) as error:
            why = f"cannot be read ({type(error).__name__}: {first_line(error)})"
            trouble.append(error if isinstance(error, ConfigError) else ConfigError("checkpoint", address, why))
            continue
        if run.finished:
            return run, address
        remedy = f"is of epoch {run.epoch}, the front shows epoch {trial.train.epochs}, whose checkpoint is gone"
        trouble.append(ConfigError("checkpoint", address, remedy))
    raise trouble[0] if trouble else ConfigError("checkpoint", "none", "the trial has left none here")


def first_line(error: BaseException) -> str:
    """Take the first line of an error's text, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def member_accuracy(trial: dict[str, Any], addresses: list[str], threads: int) -> float | None:
    """Evaluate a complete trial's last epoch on the test images, which no search has seen; None if there are none.

    Returns:
        The measure that ``train.score`` names.
    """
    torch.set_num_threads(threads)
    run, _ = finished_run(TrialConfig.model_validate(trial), addresses)
    return run.evaluate("test").score(run.config.train.score) if run.has_test else None


def member_blocks(trial: dict[str, Any], addresses: list[str], threads: int) -> BlockReport:
    """Look into a complete trial's last epoch, block by block."""
    torch.set_num_threads(threads)
    config = TrialConfig.model_validate(trial)
    with stored(finished_run(config, addresses)[1]) as folder:
        return report_blocks(config, folder)
