"""``alast-tune ui`` and ``list``: sweeps in MLflow, and which there are."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag, CliPositionalArg
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
    """Start MLflow on the sweeps of a storage, and open one's trials and charts in the browser; Ctrl-C ends it.

    Example: alast-tune ui demo --port 5001
    """

    sweep: CliPositionalArg[str | None] = Field(None, description="its name; default: the one that began last")
    storage: Place = Field(Path("runs"), description="where sweeps are")
    host: str = Field("127.0.0.1", description="address to listen at")
    port: int = Field(5000, ge=1, le=65535, description="port to listen at")
    browser: CliImplicitFlag[bool] = Field(
        True, description="open the page in the browser, where there is a display; the address is printed anyway"
    )

    def cli_cmd(self) -> None:
        """Become MLflow's server; where MLFLOW_TRACKING_URI is one already, only say where it is."""
        from alast_tune.tracking import connect, default_uri, prepare_view  # MLflow takes seconds to import

        uri, say = default_uri(self.storage), printer(Console(soft_wrap=True))
        if uri == f"sqlite:///{self.storage.absolute() / 'mlflow.db'}" and not (self.storage / "mlflow.db").exists():
            remedy = "holds no sweep yet; alast-tune sweep --preset demo, or give --storage"
            raise ConfigError("storage", display_path(self.storage), remedy)
        run_id = self._run_id()
        address = uri if uri.startswith("http") else f"http://{self.host}:{self.port}"
        if not uri.startswith("http"):
            _check_free(self.host, self.port)
        page = f"{address.rstrip('/')}{prepare_view(connect(uri, self.storage), run_id)}"
        say(f"open {page}")
        if self.browser and _has_display():
            subprocess.Popen([sys.executable, "-c", _OPEN, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if uri.startswith("http"):
            return
        server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes for jobs nobody gives it
        sys.stdout.flush()
        os.execv(sys.executable, [*server, "--host", self.host, "--port", str(self.port), "--workers", "1"])

    def _run_id(self) -> str | None:
        """Find the MLflow run of the sweep; None where none was named.

        Raises:
            ConfigError: no such sweep, or MLflow has not heard of it.
        """
        from alast_tune.tracking import sweep_run_id

        if self.sweep is None:
            return None
        there = names_with(self.storage, "sweep.json")
        if self.sweep not in there:
            raise ConfigError(
                "sweep", self.sweep, f"not under {display_path(self.storage)}; there are: {', '.join(there)}"
            )
        folder = self.storage / self.sweep
        fetch(folder)
        run_id = sweep_run_id(folder)
        if run_id is None:
            remedy = f"MLflow does not have it yet; alast-tune sync {shlex.quote(display_path(folder))}"
            raise ConfigError("sweep", self.sweep, remedy)
        return run_id


_OPEN = """
import sys, time, urllib.error, urllib.request, webbrowser
for _ in range(120):
    try:
        urllib.request.urlopen(sys.argv[1].partition("/#")[0] + "/health", timeout=5)
    except urllib.error.HTTPError:
        break
    except OSError:
        time.sleep(0.5)
    else:
        break
webbrowser.open(sys.argv[1])
"""
"""Opens a page once its server answers: a process of its own, since this one becomes the server."""


def _check_free(host: str, port: int) -> None:
    """Refuse an address at which no server can be started: another program's page would be shown there.

    Raises:
        ConfigError: it is taken, or not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                "port", port, f"no server can listen at {host}:{port} ({error.strerror}); give another --port"
            ) from None


def _has_display() -> bool:
    """Whether a browser would be seen by who has typed the command."""
    graphical = sys.platform in {"darwin", "win32"} or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return sys.stdout.isatty() and graphical


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
    best = f"{front.best_accuracy:.4f}" if front.front else "-"
    best += "" if front.score == "accuracy" else f" ({front.score_label})"
    return str(front.trials.complete), str(len(front.front)), best, what
