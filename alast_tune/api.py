"""Sweeps from Python: what ``alast-tune sweep``, ``front``, ``promote`` and ``report`` do, by the same code.

    sweep = alast_tune.sweep(preset="demo", trials=4)
    sweep = alast_tune.open("runs/demo")

A notebook draws both; see docs/python.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from alast_tune.config import Limits, SweepConfig, as_config_error, parameters, parse, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.in_process import merged, run_in_process
from alast_tune.notebook import front_as_html, log_console
from alast_tune.other_seeds import in_the_mean, with_knee_of_means
from alast_tune.results import FrontFile, FrontMember, Reseeded, TrialResult
from alast_tune.storage import copy_of, display_path, fetch
from alast_tune.summary import cheapest_within, trial_id
from alast_tune.summary import within as members_within
from alast_tune.terminal import printer

if TYPE_CHECKING:
    import pandas as pd

    from alast_tune.promote import Promotion

POINT = 0.01
"""How far below full fine-tuning's accuracy :meth:`Sweep.best` looks, unless asked otherwise."""


def sweep(
    what: str | Path | SweepConfig | None = None,
    *,
    preset: str | Path | None = None,
    callbacks: Sequence[object] = (),
    console: Console | None = None,
    **settings: Any,
) -> Sweep:
    """Search for a front, and return once the search has ended.

    Args:
        what: a folder of images, for which all that is left open is chosen, and said; or a whole configuration.
        preset: name of a preset, or a YAML file, instead of a folder.
        callbacks: objects that are told what happens; see :mod:`alast_tune.callbacks`.
        console: prints progress; unset: on standard error, in a notebook below the cell.
        settings: any of :class:`~alast_tune.config.SweepConfig`, as ``trials=4`` or ``trial={"train": {"epochs": 2}}``:
            nested ones go into what preset or configuration say. Also ``methods``, names of those that ``space: auto``
            searches; ``model``, a timm name or a file of weights; and ``go_on=True``, which goes on with the sweep of
            this ``name`` if it is there.

    Raises:
        ConfigError: a setting that cannot work, before any trial starts.
        NothingCompleteError: not one trial has run its whole budget.
    """
    from alast_tune.choices import with_auto_space
    from alast_tune.cli.plan import plan_of
    from alast_tune.cli.sweep import Sweep as Options
    from alast_tune.cli.sweep import goes_on

    if isinstance(what, SweepConfig):
        config = parse(SweepConfig, merged(what.given_values(), settings)) if settings else what
        return _run(config, callbacks=callbacks, console=console)
    known = {*SweepConfig.model_fields, "methods", "model", "go_on"}
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(unknown[0], settings[unknown[0]], "no such setting; see alast-tune sweep --help-all")
    places = {name: str(place) for name, place in (("folder", what), ("preset", preset)) if place is not None}
    try:  # the command line's own settings, so that both fill in the same
        options = Options(**places, **merged({}, settings))  # type: ignore[arg-type]
    except ValidationError as error:
        raise as_config_error(error) from None
    config = parse(SweepConfig, options.given_values())
    resume = goes_on(options, config)
    if options.methods and not options.chosen and not resume:
        config = with_auto_space(config, options.methods)
    if options.chosen and not resume:
        for line in plan_of(config, options.chosen):
            printer(console or log_console())(line)
    return _run(config, resume=resume, callbacks=callbacks, console=console)


def open_sweep(sweep: str | Path, storage: str | Path = "runs") -> Sweep:
    """Open a sweep that has ended, was interrupted, or is running; ``alast_tune.open`` is this.

    Args:
        sweep: its folder, here or in object storage (``s3://bucket/sweeps/pets``), or its name under ``storage``.
        storage: folder or object storage of sweeps.

    Raises:
        ConfigError: there is none.
    """
    from alast_tune.cli.front import find_sweep

    folder = find_sweep(_place("sweep", sweep), _place("storage", storage))
    if not any((folder / file).exists() for file in ("sweep.json", "front.json")):
        raise ConfigError(
            "sweep", display_path(folder), "holds neither a sweep.json nor a front.json: it is no sweep's folder"
        )
    return Sweep(folder)


class Front(tuple[FrontMember, ...]):
    """The members of a front, cheapest first; a notebook shows them as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return front_as_html(self)


class Sweep:
    """A sweep that has ended, was interrupted, or is running; everything is read anew when it is asked for.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where the sweep is kept; of one in object storage, its copy on this machine."""

    @property
    def name(self) -> str:
        """The sweep's name is its folder's."""
        return self.folder.name

    @property
    def config(self) -> SweepConfig:
        """What was searched, and how."""
        return stored_sweep(self.folder, "sweep")

    @property
    def front_file(self) -> FrontFile:
        """``front.json``: beside the members the knee, hypervolumes, limits and how many trials have ended how."""
        fetch(self.folder)
        front = FrontFile.read(self.folder / "front.json")
        return with_knee_of_means(front, Reseeded.find(self.folder))  # a sweep that goes on has written the first runs'

    @property
    def front(self) -> Front:
        """The members of the front as records, cheapest first: ``member.trial_id``, ``.objectives``, ``.config``."""
        return Front(self.front_file.front)

    @property
    def reseeded(self) -> Reseeded | None:
        """What counts on the front, and full fine-tuning, over other seeds; None unless ``reseed`` was given."""
        fetch(self.folder)
        return Reseeded.find(self.folder)

    def trials(self) -> pd.DataFrame:
        """Lay out all trials, one a row, in the order of their numbers.

        Columns: ``number``, ``state`` (complete, infeasible, pruned, failed or running), ``method``; each setting that
        varies, by its path (``train/learning_rate``); ``accuracy`` and ``test_accuracy`` in [0, 1], of another
        ``train.score`` that one's; ``train_flops``, ``peak_bytes``, of trials that ran their whole budget; ``epochs``;
        ``seconds`` in training so far;
        ``on_front``; ``reason``, why a trial is not complete.

        Raises:
            ConfigError: the study cannot be read.
        """
        import pandas as pd

        results, seconds = self._results()
        members = {member.trial_id for member in self.front}
        varied = {path for result in results for path in result.searched}
        known = dict.fromkeys(one.path for one in parameters(self.config.space).values())
        paths = [*(path for path in known if path in varied), *sorted(varied - known.keys())]
        rows = []
        for result in results:
            accuracy, flops, peak = result.values or (None, None, None)
            own = result.searched
            # A choice called "method" is what the column says, but for a baseline, whose method is its own.
            searched = {path: own.get(path) for path in paths if path != "method" or path in own}
            rows.append(
                {"number": result.number, "state": result.state, "method": result.config.method.name}
                | searched
                | {"accuracy": accuracy, "test_accuracy": result.test_accuracy}
                | {"train_flops": flops, "peak_bytes": peak, "epochs": result.epochs}
                | {"seconds": seconds.get(result.number), "on_front": trial_id(result.number) in members}
                | {"reason": result.reason}
            )
        return pd.DataFrame(rows)

    def best(
        self,
        *,
        within: float | None = None,
        max_memory: str | int | None = None,
        max_flops: float | None = None,
    ) -> FrontMember:
        """Choose a member of the front, by the means over other seeds where :attr:`reseeded` has them.

        With ``within``, the one with the fewest training FLOPs of those that keep the limits and whose accuracy is at
        most so much below full fine-tuning's. With limits alone, the most accurate one that keeps them. Without either,
        as with ``within=0.01``: the cheapest within a point of full fine-tuning.

        Args:
            within: difference in accuracy, in [0, 1].
            max_memory: largest peak memory of training, as ``"6GiB"`` or in bytes.
            max_flops: most FLOPs of training.

        Raises:
            ConfigError: no member is so near, or keeps the limits.
        """
        limits = {"max_memory": max_memory, "max_flops": max_flops}
        given = {name: value for name, value in limits.items() if value is not None}
        kept = members_within(self.front_file, parse(Limits, given))
        if within is None and given:
            front, _ = in_the_mean(kept, self.reseeded)
            found = max(front.front, key=lambda member: member.objectives["accuracy"], default=None)
            if found is None:
                name, value = next(iter(given.items()))
                raise ConfigError(name, value, f"no member of the front of {self.name} keeps this limit; loosen it")
            return _member(kept, found)
        tolerance = POINT if within is None else within
        if not 0 <= tolerance <= 1:
            raise ConfigError("within", tolerance, "is a difference in accuracy, from 0 to 1, as 0.01")
        front, _ = in_the_mean(kept, self.reseeded, tolerance)
        found = cheapest_within(front, tolerance)
        if found is None:
            full, accurate = front.full, front.best_accuracy
            if full is None:
                raise ConfigError("within", tolerance, f"full fine-tuning has not ended in {self.name}; give limits")
            near = f"full fine-tuning has {full['accuracy']:.4f}, the best member that keeps the limits {accurate:.4f}"
            raise ConfigError("within", tolerance, f"no member of the front is so near: {near}; give more")
        return _member(kept, found)

    def promote(
        self,
        pick: str | int | FrontMember = "knee",
        output: str | Path = "best.yaml",
        *,
        model_name: str | None = None,
        alias: str = "champion",
        verify: bool = False,
    ) -> Promotion:
        """Choose a member for production: its configuration in a file, its model exported and in MLflow's registry.

        Args:
            pick: a member; or ``knee``, ``cheapest``, ``best``, or a trial's number.
            output: the configuration's file, for ``alast-tune train --config``.
            model_name: of the registered model; unset: the sweep's name.
            alias: that the registered version gets.
            verify: first train it again, and refuse to promote it unless FLOPs, accuracy and memory come out.

        Raises:
            ConfigError: nobody to pick, no checkpoint of it, other data, or a file that is in the way.
            VerificationError: it does not come out.
            RegistryError: MLflow does not take it; the file and the model are written.
        """
        from alast_tune import promote

        front = self.front_file
        member = promote.pick(front, pick.trial_id if isinstance(pick, FrontMember) else str(pick), self.reseeded)
        if isinstance(pick, FrontMember) and pick.objectives != member.objectives:
            raise ConfigError("pick", pick.trial_id, f"is of another sweep, not of {self.name}; promote it there")
        return promote.promote_member(
            member, front.sweep, self.folder, Path(output), model_name or front.sweep, alias, verify, log_console()
        )

    def report(self) -> Path:
        """Write ``report.html``, ``front.json`` and MLflow's tags again from the study; returns the page's path.

        Raises:
            ConfigError: a driver is at work on the sweep, or its study is empty.
        """
        from alast_tune.tracking.page import REPORT
        from alast_tune.tune.conclude import report

        report(self.folder, log_console())
        return self.folder / REPORT

    def resume(
        self,
        *,
        retry_failed: bool = False,
        callbacks: Sequence[object] = (),
        console: Console | None = None,
        **settings: Any,
    ) -> Sweep:
        """Go on with a sweep that was interrupted, or with more trials: ``sweep.resume(trials=32)``.

        Raises:
            ConfigError: a setting that changes results, or another driver is at work on the sweep.
        """
        config = parse(SweepConfig, merged(self.config.given_values(), settings))
        return _run(config, resume=True, retry_failed=retry_failed, callbacks=callbacks, console=console)

    def __repr__(self) -> str:
        return f"<Sweep {display_path(self.folder)}>"

    def __str__(self) -> str:
        """What ``alast-tune front`` prints."""
        from alast_tune.terminal import show

        console = Console(width=120, no_color=True, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            show(console, self.front_file, [display_path(self.folder)], self.reseeded)
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        front = self.front_file
        try:
            results = self._results()[0]
        except ConfigError:  # front.json alone was copied here
            results = []
        return front_as_html(front.front, front, results)

    def _results(self) -> tuple[list[TrialResult], dict[int, float]]:
        """Read all trials from the study, and how many seconds each has trained."""
        from alast_tune.tune.trials import epochs_of, open_study, results

        fetch(self.folder)
        study = open_study(self.config, self.folder, must_exist=True)
        epochs = {trial.number: epochs_of(trial.user_attrs) for trial in study.get_trials(deepcopy=False)}
        return results(study, self.config), {number: rows[-1][-1] for number, rows in epochs.items() if rows}


def _run(config: SweepConfig, **options: Any) -> Sweep:
    """Run a sweep in this process; a notebook shows how far it is."""
    sweep = Sweep((config.storage / config.name).absolute())
    run_in_process(config, sweep, **options)
    return sweep


def _member(front: FrontFile, judged: FrontMember) -> FrontMember:
    """Find a member as it was measured in the sweep."""
    return next(member for member in front.front if member.trial_id == judged.trial_id)


def _place(field: str, place: str | Path) -> Path:
    try:
        return copy_of(place)
    except ValueError as error:
        raise ConfigError(field, place, str(error)) from None
