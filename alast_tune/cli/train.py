"""``alast-tune train``: one configuration, from its file to a model that can be served."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import CliImplicitFlag, CliSuppress
from rich.console import Console

from alast_tune.cli.guard import TRACKING_INCOMPLETE, complain
from alast_tune.cli.launch import Launched
from alast_tune.config import PromotedConfig, Provenance, parse, seconds_of
from alast_tune.errors import ConfigError
from alast_tune.scores import SCORES
from alast_tune.terminal import TrainingProgress, printer

GRACE = 10.0
"""Seconds since the last step after which a training is taken to be at something else, or stuck."""


class Train(PromotedConfig):
    """Train one configuration for production; goes on in its output folder, whatever it was that ended it.

    Every setting of the file can be given here too (--train.learning-rate 5e-5), and goes before it.

    Example: alast-tune train --config best.yaml --output runs/production --train.epochs 50
    """

    config: Path = Field(description="what to train, in YAML or JSON: what promote has written, or your own")
    output: Path = Field(
        Path("runs/train"),
        description="folder for model.safetensors (and adapter/, the adapters alone), config.json, report.json, "
        "confusion.png and the checkpoint",
    )
    workers: int = Field(
        1,
        description="divide each batch among so many workers, one a GPU, on the cluster that RAY_ADDRESS names or "
        "else on this machine; all nodes have to see the output folder",
    )
    model_name: str | None = Field(
        None, description="register the model under this name; unset: that of promotion, if the file has one"
    )
    alias: str = Field(
        "champion",
        description="that the registered version gets, unless the version that has it is more accurate on the same "
        "images, or not comparable",
    )
    move_alias: CliImplicitFlag[bool] = Field(False, description="the registered version gets the alias all the same")
    experiment: str | None = Field(
        None, min_length=1, description="MLflow's, of a new run; unset: $MLFLOW_EXPERIMENT_NAME, else alast-tune"
    )
    checkpoint_every: Annotated[float, BeforeValidator(seconds_of)] | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="write a checkpoint within an epoch too, whenever so long has passed, as 10min; unset: one an "
        "epoch, and one when SIGTERM ends the training",
    )
    help_all: CliImplicitFlag[bool] = Field(False, description="print this: every setting of the file too")
    provenance: CliSuppress[Provenance | None] = None

    def cli_cmd(self) -> None:
        """Train, test, register; in processes of torchrun's, all train and the first one does the rest."""
        from alast_tune.data.machine import limit_threads  # torch and MLflow take seconds to import
        from alast_tune.tracking import check_names

        own = set(Train.model_fields) - set(PromotedConfig.model_fields)
        config = parse(PromotedConfig, self.model_dump(exclude=own))
        name = self.model_name or (config.provenance.model_name if config.provenance else None)
        if name:
            check_names(name, self.alias)
        limit_threads()
        launched = Launched(config.train)
        if launched.size > 1 and self.workers > 1:
            raise ConfigError("workers", self.workers, "torchrun has started the processes already; leave it out")
        with _terminated_by_signal() as told, launched.one_line():
            if launched.rank:
                follow(launched, config, self.output, self.checkpoint_every, told)
            else:
                self._lead(launched, config, name, told)

    def _lead(self, launched: Launched, config: PromotedConfig, name: str | None, told: Told) -> None:
        """Do all that one process of several does for all of them."""
        from alast_tune.production import CONFIG, training
        from alast_tune.tracking import RegistryError, pending

        console = Console()
        say = printer(console)
        with training(config, self.output, say, self.experiment) as run:
            with (
                TrainingProgress(console, run.trial, run.steps_per_epoch, run.epochs_before) as progress,
                launched.group(),
            ):
                run.train(progress.epoch, progress.step, self.workers, self.checkpoint_every, told.is_to_end)
            outcome = run.finish()
        score = outcome.best.score
        tested = outcome.test.get(f"test_{score}")
        test = "no test images" if tested is None else f"test {SCORES[score]} {tested:.4f}"
        say(f"model: {self.output / 'model.safetensors'} (epoch {outcome.best.epoch}, {test})")
        if name:
            try:
                registered = run.register(outcome, name, self.alias, keep_better=not self.move_alias)
            except RegistryError as error:
                options = {
                    "config": self.output / CONFIG,
                    "output": self.output,
                    "model-name": name,
                    "alias": self.alias,
                }
                words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
                words += ["--move-alias"] if self.move_alias else []
                again = shlex.join(["alast-tune", "train", *words])
                complain(f"the model is trained, but not registered ({error}); once MLflow is back: {again}")
                sys.exit(TRACKING_INCOMPLETE)
            if registered.kept:
                kept = f"{self.alias} stays with {registered.kept}; --move-alias moves it"
                say(f"registered: models:/{name}/{registered.version}; {kept}")
            else:
                say(f"registered: models:/{name}@{self.alias} (version {registered.version})")
        if pending(self.output):  # the tracker has said so
            sys.exit(TRACKING_INCOMPLETE)


def follow(launched: Launched, config: PromotedConfig, folder: Path, every: float | None, told: Told) -> None:
    """Take this process's share of the training that the first process leads."""
    from alast_tune.train import fit

    with launched.group():
        for _ in fit(config.trial, folder.absolute(), None, every, told.is_to_end):
            pass


class Told:
    """Whether SIGTERM has told this process to end.

    A training is asked for a checkpoint first, as long as it takes steps: it ends between two of them. The second
    signal ends it at once, and so does the first where no steps are taken.
    """

    def __init__(self) -> None:
        self._told = False
        self._asked = -math.inf  # when a step last has

    def is_to_end(self) -> bool:
        """Ask, between two steps."""
        self._asked = time.monotonic()
        return self._told

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Take the signal; ended at once, MLflow's run ends on the way out, as with Ctrl-C."""
        if self._told or time.monotonic() - self._asked > GRACE:
            raise SystemExit(128 + signum)
        self._told = True


@contextmanager
def _terminated_by_signal() -> Iterator[Told]:
    """Let SIGTERM end the training in order."""
    told = Told()
    before = signal.signal(signal.SIGTERM, told)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
