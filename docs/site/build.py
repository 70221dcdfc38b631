"""Build README.md and docs/ as a site in .site/html; every warning of the builder and every dead link is an error.

The site has the checkout's layout, so that links between documents hold in both. The commands' help and the tables of
settings are written here from the program itself. ``serve`` then shows the site at http://127.0.0.1:8000.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from alast_tune.cli import AlastTune, main
from alast_tune.config import DataConfig, ModelConfig, SweepConfig, TrainConfig, known_methods

ROOT = Path(__file__).parents[2]
BUILDER = ROOT / ".venv-docs"
SITE = ROOT / ".site"
PARTS = (
    "*.md", "LICENSE", "docs/*.md", "docs/*.png", "docs/*.svg", "docs/compare/*", "docs/ablate/*", "clusters/**/*.md",
    "alast_tune/embedded/*.md", "benchmarks/results/*.json*",
)  # fmt: skip
"""What the site shows or links to."""


def commands() -> Iterator[str]:
    """Write what ``--help`` says, command by command."""
    yield "# Commands\n"
    for words in ([], *([name] for name in AlastTune.model_fields)):
        said = io.StringIO()
        with redirect_stdout(said), suppress(SystemExit):
            main([*words, "--help"])
        yield f"## {' '.join(['alast-tune', *words])}\n\n```text\n{said.getvalue().strip()}\n```\n"


def settings() -> Iterator[str]:
    """Write a table of the fields of every record of a configuration."""
    yield "# Settings\n\nIn a YAML file as they stand here; on the command line with dots: `--trial.train.epochs 5`.\n"
    parts: dict[str, type[BaseModel]] = {"the sweep": SweepConfig}
    parts |= {"trial.data": DataConfig, "trial.model": ModelConfig, "trial.train": TrainConfig}
    parts |= {f"trial.method, name: {name}": kind for name, kind in known_methods().items()}
    for title, kind in parts.items():
        yield f"## {title}\n\n{(kind.__doc__ or '').strip()}\n"
        yield "| setting | takes | default | |\n| --- | --- | --- | --- |"
        for name, field in kind.model_fields.items():
            default = "" if field.default in (PydanticUndefined, None) else f"`{field.default}`"
            cells = (f"`{name}`", _words(field.annotation), default, field.description or "")
            yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        yield ""


def _words(kind: Any) -> str:
    """Say what a setting takes: names of types, or the words that there are to choose from."""
    arguments = [argument for argument in get_args(kind) if argument is not type(None)]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if get_origin(kind) is Annotated:
        return _words(arguments[0])
    if get_origin(kind) in {Union, UnionType}:
        return " or ".join(dict.fromkeys(map(_words, arguments)))
    return f"`{getattr(kind, '__name__', kind)}`"


def stage() -> None:
    """Put all pages together."""
    pages = SITE / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for path in (path for part in PARTS for path in ROOT.glob(part)):
        copy = pages / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (pages / "reference").mkdir()
    for name, lines in {"commands": commands(), "settings": settings()}.items():
        (pages / "reference" / f"{name}.md").write_text("\n".join(lines))
    for name in ("python.md", "site.css"):
        shutil.copy(ROOT / "docs/site" / name, pages / "reference")
    shutil.copy(ROOT / "docs/site/zensical.toml", SITE)


def set_up() -> None:
    """Make .venv-docs of requirements.txt, unless that is done."""
    wanted = (ROOT / "docs/site/requirements.txt").read_text()
    stamp = BUILDER / ".set-up"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(BUILDER, with_pip=True, clear=True)
        pip = (f"{BUILDER}/bin/python", "-m", "pip", "install", "--quiet", "-r", f"{ROOT}/docs/site/requirements.txt")
        subprocess.run(pip, check=True)
        stamp.write_text(wanted)


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "__skip", "__toc"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag leads to, and what it can be reached by."""
        for name, value in attrs:
            if name in {"href", "src"} and tag != "link":
                self.links.append(value or "")
            elif name in {"id", "name"}:
                self.anchors.add(value or "")


def dead_links(html: Path) -> Iterator[str]:
    """Name every link between files of the site that leads nowhere, and everything loaded from elsewhere."""
    pages = {path: Page(path.read_text()) for path in html.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.exists() or (known is not None and unquote(parts.fragment) not in known.anchors):
                yield f"{path.relative_to(html)}: {link}"


def build(*words: str) -> int:
    """Build the site, then look at its links; with words, hand the builder these (``serve``) instead."""
    set_up()
    stage()
    program = f"{BUILDER}/bin/zensical"
    if words:
        os.execv(program, [program, *words, "-f", f"{SITE}/zensical.toml"])
    build = (program, "build", "--clean", "--strict", "-f", f"{SITE}/zensical.toml")
    code = subprocess.run(build, check=False).returncode
    dead = sorted(dead_links(SITE / "html"))
    for line in dead:
        print(f"dead link: {line}", file=sys.stderr)
    if not code and not dead:
        print(f"the site is in {(SITE / 'html').relative_to(ROOT)}")
    return code or int(bool(dead))


if __name__ == "__main__":
    sys.exit(build(*sys.argv[1:]))
