"""``alast-tune promote``: a member of a front becomes a configuration and a registered model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from alast_tune.cli.front import find_front
from alast_tune.cli.guard import TRACKING_INCOMPLETE, complain
from alast_tune.config import Limits
from alast_tune.data import batch_count
from alast_tune.results import FrontFile, FrontMember
from alast_tune.storage import Place, path_below
from alast_tune.summary import within
from alast_tune.terminal import TrainingProgress, printer
from alast_tune.train import load_trial


class Promote(Limits):
    """Choose a member of a front for production: its whole configuration in a file, its model in MLflow's registry."""

    sweep: CliPositionalArg[Place] = Field(description="its folder, its front.json, or its name under --storage")
    output: Path = Field(description="the configuration's file, for train --config (also -o)")
    pick: str = Field("knee", description="knee, cheapest (fewest FLOPs), best (accuracy), or a trial's id")
    storage: Place = Field(Path("runs"), description="where sweeps are")
    model_name: str | None = Field(None, description="of the registered model; unset: the sweep's name")
    alias: str = Field("champion", description="that the registered version gets")
    verify: bool = Field(
        False, description="first train it again from scratch; promote it only if FLOPs, accuracy and memory come out"
    )

    def cli_cmd(self) -> None:
        """Choose, verify, write, register."""
        from alast_tune import promote  # Ray and MLflow take seconds to import
        from alast_tune.production import CONFIG, write_config
        from alast_tune.tracking import RegistryError, check_names, default_uri, register

        file = find_front(self.sweep, self.storage)
        front, folder = FrontFile.read(file), file.absolute().parent
        member = promote.pick(within(front, self), self.pick)
        name = self.model_name or front.sweep
        uri = default_uri(folder.parent)
        check_names(name, self.alias)
        promote.check_output(self.output, front.sweep, member)
        model = path_below(folder, "promoted", member.trial_id)
        console = Console()
        say = printer(console)
        if self.verify:
            _verify(member, folder, console)
        config = promote.promoted_config(member, front.sweep, uri, name, self.verify, promote.origin_of(member, folder))
        write_config(config, self.output)
        say(f"config: {self.output} (trial {member.trial_id} of {front.sweep})")
        promote.export_member(member, folder, model)
        write_config(config, model / CONFIG)
        try:
            if member.mlflow_run_id is None:
                raise RegistryError(f"it lacks the trial's run; first: alast-tune sync {shlex.quote(str(folder))}")
            assert config.provenance
            tags = promote.version_tags(config.provenance)
            files = [model / CONFIG]
            version = register(uri, folder.parent, member.mlflow_run_id, model, name, self.alias, tags, files)
        except RegistryError as error:
            complain(f"not registered in MLflow at {uri} ({error}); {self.output} is written, repeat this for the rest")
            sys.exit(TRACKING_INCOMPLETE)
        say(f"registered: models:/{name}@{self.alias} (version {version})")


def _verify(member: FrontMember, folder: Path, console: Console) -> None:
    """Train a member again, and show what comes out; end the program if that is something else."""
    from alast_tune import promote

    _, splits = load_trial(member.config)
    train, report = member.config.train, None
    with TrainingProgress(console, member.config, batch_count(len(splits.train), train.batch_size)) as progress:
        for report in promote.repeat(member, folder, progress.step):
            progress.epoch(report)
    assert report is not None
    checks = promote.compare(member, report, len(splits.validation), promote.spread_of(member, folder))
    table = Table(title=f"trial {member.trial_id}, repeated", title_justify="left", box=SIMPLE_HEAD)
    for column in ("quantity", "expected", "got", "allowed", "verdict"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.quantity, check.expected, check.got, check.allowed, "ok" if check.passed else "FAILED")
    console.print(table)
    failed = [f"{check.quantity} {check.got}, not {check.expected}" for check in checks if not check.passed]
    if failed:
        complain(f"trial {member.trial_id} cannot be verified, and is not promoted: {'; '.join(failed)}")
        sys.exit(1)
