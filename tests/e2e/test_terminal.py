"""A sweep on a terminal: its panel while it runs, what it says at its end, and the terminal afterwards.

ALAST_SWEEP_STORAGE: show the end of the sweep `demo` of this folder, which has ended, instead of that of a small one;
ALAST_SCREENSHOTS: where the picture goes (docs/ of the repository for the README's).
"""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from tests.integration.harness import PATIENCE, ROOT, Pareto

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A program on a terminal of 80 columns and 24 rows, and all that it has written."""

    def __init__(self, process: "subprocess.Popen[bytes]", end: int) -> None:
        self.process = process
        self._end = end
        self.out = ""

    def read(self, until: Callable[[str], object] = lambda out: False) -> str:
        """Read until something is there, or the program has ended."""
        latest = time.monotonic() + PATIENCE
        while not until(self.out):
            assert time.monotonic() < latest, self.out
            if not select.select([self._end], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(self._end, 65536)
            except OSError:  # nobody has the other end any more
                break
            self.out += piece.decode(errors="replace")
        return self.out


@contextmanager
def terminal(pareto: Pareto, *arguments: str, **environment: str) -> Iterator[Terminal]:
    """Start a sweep on a terminal of its own."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, str(ROOT / "sweeps/pareto.py"), "--storage", str(pareto.storage), *arguments]
    own = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "NO_COLOR": ""}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=pareto.folder, env=os.environ | own | environment
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait(timeout=60)
        os.close(ours)


def lines(out: str) -> list[str]:
    """What was written, without escape sequences."""
    apart = re.sub(r"\x1b\[[12][AK]", "\n", out)  # a frame is drawn over the one before
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", apart).replace("\r", "\n").splitlines()


def picture(out: str, title: str, file: Path) -> None:
    """Draw what a terminal shows, in any fixed-width font of who looks at it."""
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Text.from_ansi(out))
    svg = console.export_svg(title=title, theme=DIMMED_MONOKAI)
    file.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


def test_a_panel_follows_the_sweep_and_the_answer_stays(ray_here: Cluster, pareto: Pareto, tmp_path: Path) -> None:
    known = os.environ.get("ALAST_SWEEP_STORAGE")
    arguments = ["--resume", "demo"] if known else ["--preset", pareto.preset(trials=3), "--name", "demo"]
    arguments += ["--storage", known] if known else []
    with terminal(pareto, *arguments, RAY_ADDRESS=ray_here.address) as seen:
        out = seen.read()
        assert seen.process.wait(timeout=60) == 0, out
    assert out.count(HIDE) == out.count(SHOW) > 0 and out.rindex(SHOW) > out.rindex(HIDE)
    during, _, after = out.rpartition("\x1b[2K")
    if not known:
        frames = lines(during)
        going_on = r"demo: [12] of 3 trials done, \d running, hypervolume 0\.\d{3}, about .* left"
        assert any(re.fullmatch(going_on, line) for line in frames), out
        assert any(re.fullmatch(r"  0000  epoch [12] of 2  full fine-tuning", line) for line in frames), out
        assert any("FLOPs of full fine-tuning" in line for line in frames)
        assert all(len(line) <= 80 for line in frames if line.startswith(("demo: ", "  00")))
    said = [line for line in lines(after) if line]
    assert re.match(r"demo: (\d+) of \1 trials done, 0 running", said[0])
    (head,) = (place for place, line in enumerate(said) if line.startswith("trial   method"))
    assert any(line.startswith("within 1 point of full fine-tuning") for line in said[1:head])
    assert any(line.startswith("MLflow: alast-tune ui") for line in said[head:])
    storage = known or str(pareto.storage)
    shown = after[after.index("within 1 point") :].replace(f" --storage {storage}", "").replace(storage, "runs")
    file = Path(os.environ.get("ALAST_SCREENSHOTS", tmp_path)) / "terminal.svg"
    picture(shown.replace("\r", ""), "alast-tune sweep --preset demo", file)
    assert "full&#160;fine-tuning" in file.read_text()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_gives_the_cursor_back(
    signum: signal.Signals, ray_here: Cluster, pareto: Pareto
) -> None:
    arguments = ["--preset", pareto.preset(trials=9, epochs=300), "--name", "stopped"]
    with terminal(pareto, *arguments, RAY_ADDRESS=ray_here.address) as seen:
        seen.read(until=lambda out: re.search(r"epoch \d+ of 300", out))  # whichever a frame catches
        seen.process.send_signal(signum)
        out = seen.read()
        assert seen.process.wait(timeout=60) == 128 + signum, out
    assert out.rindex(SHOW) > out.rindex(HIDE)
    assert any(line.startswith("stopped: 0 of 9 trials done, 1 running") for line in lines(out))
