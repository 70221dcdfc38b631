"""Production training: one configuration, with its test accuracy, its MLflow run, and a folder that timm loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alast_tune import checkpoint
from alast_tune.config import (
    PromotedConfig,
    TrialConfig,
    check_effects,
    flatten,
    parse,
    read_mapping,
    without_places,
    write_yaml,
)
from alast_tune.cost import STEPS
from alast_tune.data import Images, Splits, batch_count, check_apart, eval_loader, load_splits
from alast_tune.device import AUTOCAST, device_of, precision_of
from alast_tune.errors import ConfigError
from alast_tune.evaluate import evaluate
from alast_tune.fingerprints import Fingerprints, fingerprints, keep_fingerprints
from alast_tune.lease import exclusive_driver
from alast_tune.models import InputSpec, create_model, input_spec
from alast_tune.plots import confusion_png
from alast_tune.results import EpochReport
from alast_tune.run import load_trial
from alast_tune.scores import Evaluation
from alast_tune.storage import atomic_write
from alast_tune.tracking import ALL_DATA, COMPARED_DATA, SCORE, Registered, Tracker, default_uri, register, tag_run
from alast_tune.train import fit, last_report

CONFIG = "config.yaml"
"""In the output folder: the whole configuration, provenance included."""
REPORT = "report.json"
"""In the output folder: the last epoch's metrics; at the end the best epoch, its measures on test images and by class
(on validation images if there are no others), and the confusion matrix."""
CONFUSION = "confusion.png"
"""In the output folder: that matrix as a picture."""


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves in its folder."""

    last: EpochReport
    best: EpochReport
    """Of the epoch whose weights are in ``model.safetensors``."""
    split: Literal["test", "validation"] | None
    """Images that those weights were evaluated on: where there are no test images those of validation, unless the model
    has trained on them."""
    evaluation: Evaluation | None

    @property
    def test(self) -> dict[str, float]:
        """Measures on the test images by name (``test_accuracy``); empty without test images."""
        found = self.evaluation.metrics() if self.evaluation and self.split == "test" else {}
        return {f"test_{name}": value for name, value in found.items()}

    def objectives(self) -> dict[str, float]:
        """What a front compares, of the model and of all of its training; and on the test images, if there are any."""
        score, cost = self.best.score, self.last.cost
        own = {"accuracy": self.best.accuracy, score: self.best.quality}
        test = {f"test_{name}": self.test[f"test_{name}"] for name in own if self.test}
        return own | {"train_flops": float(cost.train_flops), "peak_bytes": float(cost.peak_bytes)} | test

    def progress(self) -> dict[str, float]:
        """List what is logged when all epochs are done."""
        best = {"best_epoch": self.best.epoch, "best_accuracy": self.best.accuracy}
        return best | {f"best_{self.best.score}": self.best.quality} | self.test

    def values(self, classes: tuple[str, ...]) -> dict[str, object]:
        """Put into the plain values of ``report.json``; ``classes`` are their names."""
        found: dict[str, object] = {**self.last.metrics(), "test_accuracy": None, **self.progress()}
        if self.evaluation:
            found |= {"score": self.best.score, "classes_of": self.split}
            found |= {"classes": self.evaluation.table(classes), "confusion": self.evaluation.confusion_KK.tolist()}
        return found


class Training:
    """One training in a folder of its own; :func:`training` makes it.

    Args:
        config: what to train.
        folder: of the output.
        splits: of its images.
        tracker: with the run open.
        run_id: of the run.
        compared_data: fingerprint of the images that its accuracies are of.
    """

    def __init__(
        self,
        config: PromotedConfig,
        folder: Path,
        splits: Splits,
        tracker: Tracker,
        run_id: str,
        compared_data: str,
    ) -> None:
        self.trial = config.trial
        self._config = config
        self._compared_data = compared_data
        self.run_id = run_id
        self.steps_per_epoch = batch_count(len(splits.train), self.trial.train.batch_size)
        self._folder = folder
        self._splits = splits
        self._tracker = tracker
        self._before = last_report(folder)

    @property
    def epochs_before(self) -> int:
        """Epochs that were done before it was gone on with."""
        return self._before.epoch if self._before else 0

    def train(
        self,
        on_epoch: Callable[[EpochReport], None],
        on_step: Callable[[int], None] | None = None,
        workers: int = 1,
        checkpoint_every: float | None = None,
        is_to_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train what remains.

        Args:
            on_epoch: is told of every epoch.
            on_step: is told of the steps done in the running epoch, by a single worker.
            workers: 1 trains in this process; more divide each batch among Ray's workers.
            checkpoint_every: seconds after which there is a checkpoint within an epoch too.
            is_to_end: asked after each step, in this process, whether to leave a checkpoint and end.

        Raises:
            ConfigError, DivergedError, InterruptedTrainingError, WorkersError: as ``fit`` and ``fit_distributed``.
        """
        if self._before and self._before.epoch > self._tracker.logged:  # a process was killed before it could
            self._log(self._before)

        def done(report: EpochReport) -> None:
            self._log(report)
            on_epoch(report)

        if workers == 1:
            for report in fit(self.trial, self._folder, on_step, checkpoint_every, is_to_end):
                done(report)
        else:
            from alast_tune.tune.distributed import fit_distributed  # Ray takes seconds to import

            fit_distributed(self.trial, self._folder, workers, done, checkpoint_every)

    def finish(self) -> Outcome:
        """Look at the test images, once, with the weights that leave the folder; write down what came out.

        Where there are none, the classes are those of the validation images.
        """
        state = checkpoint.load(self._folder)
        last, best = checkpoint.read_report(state["report"]), checkpoint.read_report(state["best"] or state["report"])
        splits, names = self._splits, [CONFIG, REPORT, STEPS, checkpoint.MODEL_CARD]
        images = splits.test or (None if self.trial.data.all_data else splits.validation)
        checkpoint.save_model_card(self.trial.model, splits.spec, splits.classes, self._folder)
        evaluation = self._evaluate(images) if images else None
        outcome = Outcome(last, best, ("test" if splits.test else "validation") if images else None, evaluation)
        _write_report(outcome.values(splits.classes), self._folder)
        if evaluation:
            title = f"{self._folder.name}: what {outcome.split} images are taken for"
            picture = confusion_png(title, evaluation.confusion_KK, splits.classes)
            (self._folder / CONFUSION).write_bytes(picture)
            names.append(CONFUSION)
        self._tracker.log_progress(outcome.progress(), last.epoch)
        for name in names:
            self._tracker.upload(name)
        return outcome

    def register(self, outcome: Outcome, name: str, alias: str, *, keep_better: bool = True) -> Registered:
        """Make the model a version of a registered one, and tag the promoted run with this one.

        Args:
            outcome: of the training.
            name: of the registered model.
            alias: that the version gets.
            keep_better: another version keeps the alias unless this one is known to be as accurate on the same images.

        Raises:
            RegistryError: the store is away, or refuses.
        """
        uri, links = self._tracker.uri, _links(self._config)
        tags = {f"alast.{quantity}": str(value) for quantity, value in outcome.objectives().items()}
        tags |= {COMPARED_DATA: self._compared_data, ALL_DATA: str(self.trial.data.all_data).lower()}
        tags |= {SCORE: self.trial.train.score}
        folder = self._folder
        registered = register(
            uri, folder.parent, self.run_id, folder, name, alias, links | tags, keep_better=keep_better
        )
        if promoted := links.get("alast.promoted_run"):
            tag_run(uri, promoted, {"alast.trained_run": self.run_id})
        return registered

    def _evaluate(self, images: Images) -> Evaluation:
        """Evaluate the weights as anybody would read them."""
        train, data = self.trial.train, self.trial.data
        exported = {
            "checkpoint": self._folder / checkpoint.BEST,
            "checkpoint_key": None,
            "keep_classifier": True,
            "num_classes": self._splits.num_classes,
        }
        model = create_model(self.trial.model.model_copy(update=exported))
        device = device_of(train)
        parts = -(-train.batch_size // 8) if train.accumulate == "auto" else train.accumulate
        loader = eval_loader(images, -(-train.batch_size // parts), data.workers)
        return evaluate(model.to(device), loader, device, AUTOCAST[precision_of(train)])

    def _log(self, report: EpochReport) -> None:
        self._tracker.log_progress(report.metrics(), report.epoch)
        _write_report(report.metrics(), self._folder)


@contextmanager
def training(
    config: PromotedConfig, folder: Path, say: Callable[[str], None], experiment: str | None = None
) -> Iterator[Training]:
    """Train in a folder, or go on there, with an MLflow run that ends with the context: killed, if by an exception.

    Once its epochs are through and :meth:`Training.finish` is called, the folder holds ``model.safetensors`` beside
    timm's ``config.json`` (``timm.create_model("local-dir:FOLDER", pretrained=True)``), ``adapter`` (if there are any
    adapters, these alone), ``last.safetensors``, ``report.json``, ``confusion.png``, ``steps.csv`` and
    ``config.yaml``; the run has all of that but the weights.

    Args:
        config: what to train.
        folder: of the output.
        say: prints a line; called from other threads too.
        experiment: MLflow's, of a new run; unset: that of ``MLFLOW_EXPERIMENT_NAME``, else ``alast-tune``.

    Raises:
        ConfigError: whatever cannot work, before any training; a folder that belongs to another configuration, to
            other images or starting weights, or that another process is at work in; a store that does not answer.
    """
    folder = folder.absolute()
    trial = config.trial
    check_apart(config.data, "output", folder)
    if config.provenance is None and not (folder / CONFIG).exists():
        check_effects(trial)
    model, splits = load_trial(trial)
    for note in splits.notes:
        say(f"note: {note}")
    with exclusive_driver(folder, "output"):
        _check_settings(trial, folder)
        found = fingerprints(splits, trial.model)
        keep_fingerprints(found, folder, "output", new=not (folder / checkpoint.FILE).exists())
        compared = _compared(config, found, input_spec(model))
        _warn_of_other_origin(config, compared, say)
        tracker = Tracker(default_uri(folder.parent), folder.parent, say, experiment)
        params = {**flatten(trial), "data_fingerprint": found.data, "weights_fingerprint": found.weights}
        run_id = tracker.start_run(folder, "training", _links(config), params, (config.data, found.data))
        try:
            write_config(config, folder / CONFIG)
            yield Training(config, folder, splits, tracker, run_id, compared.data)
        except BaseException:
            tracker.kill()
            raise
        tracker.end_sweep("FINISHED")


def _check_settings(trial: TrialConfig, folder: Path) -> None:
    """Refuse a folder of other settings; where things lie may have changed."""
    if (folder / CONFIG).exists() and without_places(read_config(folder / CONFIG).trial) != without_places(trial):
        raise ConfigError("output", folder, "belongs to a training with other settings; give another folder")


def _compared(config: PromotedConfig, found: Fingerprints, spec: InputSpec) -> Fingerprints:
    """Take the fingerprints by which a training compares with others, which need not train on all images as well."""
    if not config.data.all_data:
        return found
    splits = load_splits(config.data.model_copy(update={"all_data": False}), spec, verify=False)
    return fingerprints(splits, config.model)


def _warn_of_other_origin(config: PromotedConfig, found: Fingerprints, say: Callable[[str], None]) -> None:
    """Say if images or starting weights are not the promoted trial's."""
    origin = config.provenance
    if origin is None:
        return
    before = Fingerprints(data=origin.data_fingerprint, weights=origin.weights_fingerprint)
    if differences := before.differences(found):
        say(f"note: {differences} than trial {origin.trial_id} had")


def _links(config: PromotedConfig) -> dict[str, str]:
    """Tag the run with the promoted trial that it goes back to."""
    origin = config.provenance
    if origin is None:
        return {}
    links = {"alast.promoted_sweep": origin.sweep, "alast.promoted_trial": origin.trial_id}
    return links | ({"alast.promoted_run": origin.mlflow_run_id} if origin.mlflow_run_id else {})


def _write_report(values: Mapping[str, object], folder: Path) -> None:
    """Write a line a value, and of a table or a matrix a line a row."""
    lines = []
    for name, value in values.items():
        rows = ",\n".join(f"    {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
        lines.append(f'  "{name}": ' + (f"[\n{rows}\n  ]" if rows else json.dumps(value)))
    (folder / REPORT).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_config(config: PromotedConfig, file: Path) -> None:
    """Write every setting of a configuration, defaults too, so that a later version's change nothing."""
    with atomic_write(file) as scratch:
        scratch.write_text(write_yaml(config.model_dump(mode="json")))


def read_config(file: Path) -> PromotedConfig:
    """Read what :func:`write_config` wrote, or anybody's own configuration.

    Raises:
        ConfigError: no such file, or settings that there are not.
    """
    return parse(PromotedConfig, read_mapping(file))
