"""``alast-tune front`` and ``sync``: what sweeps have found, and having MLflow hear of all of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg
from rich.console import Console

from alast_tune.cli.guard import TRACKING_INCOMPLETE
from alast_tune.config import Limits
from alast_tune.errors import ConfigError
from alast_tune.lease import exclusive_driver
from alast_tune.near_full import NEAR
from alast_tune.plots import fronts_html, fronts_png
from alast_tune.results import FrontFile, Reseeded
from alast_tune.storage import Place, display_path, fetch, is_copy, names_with, words_for
from alast_tune.summary import joint_front, within
from alast_tune.terminal import SeedsTable, answers, comparison_table, front_table, printer


def find_front(sweep: Path, storage: Path) -> Path:
    """Find a sweep's ``front.json`` by the sweep's folder, the file itself, or the sweep's name.

    Raises:
        ConfigError: there is none.
    """
    fetch(sweep)
    fetch(storage / sweep)
    candidates = (sweep, sweep / "front.json", storage / sweep / "front.json")
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        storage = sweep.parent if is_copy(sweep) else storage
        known = ", ".join(names_with(storage, "front.json"))
        there = f"there are: {known}" if known else f"none under {display_path(storage)} has one yet"
        raise ConfigError("sweep", display_path(sweep), f"no front.json; {there}")
    return file


def find_sweep(sweep: Path, storage: Path) -> Path:
    """Find a sweep's folder, given itself or by the sweep's name.

    Raises:
        ConfigError: there is none.
    """
    fetch(sweep)
    fetch(storage / sweep)
    folder = next((path for path in (sweep, storage / sweep) if path.is_dir()), None)
    if folder is None:
        there = ", ".join(names_with(storage, "sweep.json")) or "none"
        remedy = f"neither a folder nor a sweep under {display_path(storage)}; there are: {there}"
        raise ConfigError("sweep", display_path(sweep), remedy)
    return folder.absolute()


class Front(Limits):
    """Print the front of a sweep, or the part of it that keeps given limits; of several sweeps, how they compare.

    Example: alast-tune front demo --max-memory 1GiB
    """

    sweeps: CliPositionalArg[list[Place]] = Field(
        min_length=1, description="each its folder, its front.json, or its name under --storage"
    )
    storage: Place = Field(Path("runs"), description="where sweeps are")
    within: float | None = Field(
        None,
        ge=0,
        le=1,
        description="choose the knee among members so near full fine-tuning's accuracy, and name the cheapest of them; "
        f"unset: the sweep's own or {NEAR} for the knee, 0.01 and 0.05 for the cheapest",
    )
    wide: CliImplicitFlag[bool] = Field(False, description="print one row a trial with everything, however wide it is")
    plot: Path | None = Field(None, description="draw the fronts over one another, into a .html or .png file")
    as_json: CliImplicitFlag[bool] = Field(
        False, alias="json", description="print front.json itself; of several sweeps, that of their joint front"
    )

    def cli_cmd(self) -> None:
        """Read each front.json; print and draw them."""
        if self.plot and self.plot.suffix not in {".html", ".png"}:
            raise ConfigError("plot", self.plot, "give a .html or a .png file")
        if self.within is not None and len(self.sweeps) > 1:
            raise ConfigError("within", self.within, "is asked of one sweep, beside its own full fine-tuning; name one")
        files = [find_front(sweep, self.storage) for sweep in self.sweeps]
        seeds = [Reseeded.find(file.parent) for file in files]
        fronts = [
            within(FrontFile.read(file), self, self.within, again) for file, again in zip(files, seeds, strict=True)
        ]
        names = [front.sweep for front in fronts]
        if len(set(names)) < len(names):  # the same name in two storages
            labels = [
                re.sub(r"[^A-Za-z0-9._]+", "-", display_path(sweep))[-200:].strip("-._") or "sweep"
                for sweep in self.sweeps
            ]
            fronts = [f.model_copy(update={"sweep": label}) for f, label in zip(fronts, labels, strict=True)]
        front = fronts[0]
        if len(fronts) > 1:
            fronts, front = joint_front(fronts)
            from alast_tune.fingerprints import read_fingerprints  # imports torch

            known = [found for file in files if (found := read_fingerprints(file.parent))]
            note = printer(Console(stderr=True))
            if len({found.meter for found in known}) > 1:
                note("note: the sweeps' FLOPs were counted in different ways, and do not compare")
            if len({found.data for found in known}) > 1:
                note("note: the sweeps had not the same images; accuracies compare only if the validation images are")
        if self.plot:
            drawn = fronts_html(fronts).encode() if self.plot.suffix == ".html" else fronts_png(fronts)
            self.plot.parent.mkdir(parents=True, exist_ok=True)
            self.plot.write_bytes(drawn)
        if self.as_json:
            print(json.dumps(front.model_dump(mode="json", by_alias=True), indent=2))  # in ASCII, whatever it holds
            return
        console = Console()
        if len(fronts) > 1:
            console.print(comparison_table(fronts, front))
        else:
            words = [display_path(self.sweeps[0]), *words_for(self.storage)]
            asked = {} if self.within is None else {"tolerances": [self.within]}
            for line in answers(front, words, seeds[0], **asked):
                printer(console)(line)
        if self.wide:  # as wide as it is: a pager (less -S) shows it, a terminal breaks it
            Console(width=10_000).print(front_table(front, wide=True))
        else:
            console.print(front_table(front))
        if len(fronts) == 1 and seeds[0]:
            console.print(SeedsTable(front, seeds[0]))
        if self.plot:
            printer(console)(f"drawn: {self.plot}")


class Sync(BaseModel):
    """Write to MLflow what a sweep or a training could not, because its server was away or its disk full.

    Example: alast-tune sync demo
    """

    sweep: CliPositionalArg[Place] = Field(description="its folder, or its name under --storage")
    storage: Place = Field(Path("runs"), description="where sweeps are")

    def cli_cmd(self) -> None:
        """Carry out what the sweep's queue holds; exit code 3 if the store still cannot be written to."""
        from alast_tune.tracking import default_uri, sync  # MLflow takes seconds to import

        folder = find_sweep(self.sweep, self.storage)
        with exclusive_driver(folder):
            left = sync(folder, default_uri(folder.absolute().parent), printer(Console()))
        if left:
            sys.exit(TRACKING_INCOMPLETE)
