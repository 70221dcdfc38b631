"""``alast-tune ui`` and ``list``: sweeps in MLflow, and which there are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from alast_tune.config import stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile
from alast_tune.storage import Place, display_path, fetch, names_with
from alast_tune.terminal import printer
from alast_tune.text import safe


class Ui(BaseModel):
    """Start MLflow on the sweeps of a storage, and print the address of one's trials and charts; Ctrl-C ends it.

    Example: alast-tune ui demo --port 5001
    """

    sweep: CliPositionalArg[str | None] = Field(None, description="its name; default: the one that began last")
    storage: Place = Field(Path("runs"), description="where sweeps are")
    host: str = Field("127.0.0.1", description="address to listen at")
    port: int = Field(5000, ge=1, le=65535, description="port to listen at")

    def cli_cmd(self) -> None:
        """Become MLflow's server; where MLFLOW_TRACKING_URI is one already, only say where it is."""
        from alast_tune.tracking import default_uri, open_store, prepare_view  # MLflow takes seconds to import

        uri, say = default_uri(self.storage), printer(Console(soft_wrap=True))
        if uri == f"sqlite:///{self.storage.absolute() / 'mlflow.db'}" and not (self.storage / "mlflow.db").exists():
            remedy = "holds no sweep yet; alast-tune sweep --preset demo, or give --storage"
            raise ConfigError("storage", display_path(self.storage), remedy)
        there = names_with(self.storage, "sweep.json")
        if self.sweep is not None and self.sweep not in there:
            raise ConfigError(
                "sweep", self.sweep, f"not under {display_path(self.storage)}; there are: {', '.join(there)}"
            )
        address = uri if uri.startswith("http") else f"http://{self.host}:{self.port}"
        say(f"open {address.rstrip('/')}{prepare_view(*open_store(uri, self.storage), self.sweep)}")
        if uri.startswith("http"):
            return
        server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
        sys.stdout.flush()
        os.execv(sys.executable, [*server, "--host", self.host, "--port", str(self.port), "--workers", "1"])


class List(BaseModel):
    """List the sweeps of a storage: how many trials are complete, the best accuracy, and what was tuned.

    Example: alast-tune list --storage /shared/runs
    """

    storage: Place = Field(Path("runs"), description="where sweeps are")

    def cli_cmd(self) -> None:
        """Print a line a sweep; those whose files cannot be read come last, with the reason."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("sweep", no_wrap=True)
        for name in ("complete", "on front", "best accuracy"):
            table.add_column(name, justify="right")
        table.add_column("model and data")
        names = names_with(self.storage, "sweep.json")
        if not names:
            raise ConfigError(
                "storage", display_path(self.storage), "holds no sweep yet; alast-tune sweep --preset demo"
            )
        unread: dict[str, ConfigError] = {}
        for name in names:
            try:
                table.add_row(name, *_columns(self.storage / name))
            except ConfigError as error:
                unread[name] = error
        console = Console()
        console.print(table)
        for name, reason in unread.items():
            printer(console)(f"{name}: {' '.join(str(reason).split())}")


def _columns(folder: Path) -> tuple[str, str, str, str]:
    fetch(folder)
    trial, file = stored_sweep(folder).trial, folder / "front.json"
    what = safe(f"{trial.model.name}, {trial.data.root or trial.data.dataset}")
    if not file.exists():
        return "0", "-", "-", what
    front = FrontFile.read(file)
    return str(front.trials.complete), str(len(front.front)), f"{front.best_accuracy:.4f}", what
