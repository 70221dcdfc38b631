"""``alast-tune promote``: a member of a front becomes a configuration and a registered model."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console

from alast_tune.cli.front import find_front
from alast_tune.cli.guard import TRACKING_INCOMPLETE, complain
from alast_tune.config import Limits
from alast_tune.results import FrontFile, Reseeded
from alast_tune.storage import Place
from alast_tune.summary import within


class Promote(Limits):
    """Choose a member of a front for production: its whole configuration in a file, its model in MLflow's registry.

    Example: alast-tune promote demo --pick knee -o best.yaml
    """

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
        from alast_tune.tracking import RegistryError

        file = find_front(self.sweep, self.storage)
        front, folder = FrontFile.read(file), file.absolute().parent
        again = Reseeded.find(folder)
        member = promote.pick(within(front, self, again=again), self.pick, again)
        name = self.model_name or front.sweep
        try:
            promote.promote_member(member, front.sweep, folder, self.output, name, self.alias, self.verify, Console())
        except RegistryError as error:
            complain(str(error))
            sys.exit(TRACKING_INCOMPLETE)
