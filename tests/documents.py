"""README.md, docs/*.md and clusters/README.md as what they are: text with programs in it.

Commands in ``sh`` blocks run here, those in ``bash`` blocks need a cloud, containers or Slurm, and are only read.
"""

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "clusters/README.md",
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """Path of the file that it is; a first line ``# mine.yaml`` says so."""
        named = _FILE.match(self.text)
        return named[1] if named else None

    @property
    def prints(self) -> list[str]:
        """Lines that a program is said to print, each behind ``#:``."""
        return re.findall(r"^#: (.*)$", self.text, re.MULTILINE)

    @property
    def commands(self) -> list[str]:
        """Commands of a shell block, one a line of the shell, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = (re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in lines)
        return [re.sub(r" {2,}", " ", line) for line in bare if line]


@cache
def blocks(document: str) -> tuple[Block, ...]:
    """Every fenced block, in order."""
    return tuple(Block(language, text) for language, text in _FENCE.findall((ROOT / document).read_text()))


@cache
def prose(document: str) -> str:
    """The text around the blocks."""
    return _FENCE.sub("", (ROOT / document).read_text())


def inline_code(document: str) -> list[str]:
    """What the prose sets in `code`."""
    return [double or single for double, single in re.findall(r"``(.+?)``|`([^`\n]+)`", prose(document))]


def anchors(document: str) -> set[str]:
    """Names of the headings, as GitHub links them."""
    heads = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def checkout_files() -> list[Path]:
    """Files of this checkout that git has, or would take."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        files = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or an unpacked archive
        files = [
            path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        ]
    return [path for path in files if path.is_file()]


def method_of_the_docs() -> Any:
    """Make the method that docs/adding-a-method.md adds: its settings' class."""
    (block,) = (block for block in blocks("docs/adding-a-method.md") if block.file == "bitfit.py")
    found: dict[str, Any] = {"__name__": "bitfit"}
    exec(compile(block.text, "bitfit.py", "exec"), found)
    return found["BitFit"]
