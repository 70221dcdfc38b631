"""The site: every document has its place on it, its reference is made from the program, and dead links are found."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from docs.site.build import commands, dead_links, settings
from tests.documents import DOCUMENTS, ROOT

NAV = tomllib.loads((ROOT / "docs/site/zensical.toml").read_text())["project"]["nav"]
PINS = "docs/site/requirements.txt"


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for target in entry.values():
            yield from pages(target) if isinstance(target, list) else [target]


def test_every_document_is_on_the_site_and_every_page_exists() -> None:
    listed = list(pages(NAV))
    assert len(listed) == len(set(listed))
    assert set(DOCUMENTS) <= set(listed), "give it its place in docs/site/zensical.toml"
    made = {"reference/commands.md", "reference/settings.md", "reference/python.md"}
    assert [page for page in listed if page not in made and not (ROOT / page).is_file()] == []


def test_the_reference_has_every_command_and_setting() -> None:
    said = "\n".join(commands())
    assert all(f"## alast-tune {name}\n" in said for name in ("sweep", "front", "promote", "train", "doctor"))
    assert "--time-budget" in said
    said = "\n".join(settings())
    assert "| `max_memory` | `ByteSize` |  | " in said
    assert "| `frozen_backward` | `exact`, `residual` | `exact` | " in said
    assert "## trial.method, name: apla" in said


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/index.html").write_text(
        '<h1 id="top"></h1><img src="../there.png"><a href="https://x.example/"></a>'
    )
    (tmp_path / "there.png").touch()
    links = ("a/", "a/#top", "a/#gone", "b/", "no.png", "#")
    (tmp_path / "index.html").write_text("".join(f'<a href="{link}"></a>' for link in links))
    assert list(dead_links(tmp_path)) == ["index.html: a/#gone", "index.html: b/", "index.html: no.png"]


def test_what_builds_the_site_is_pinned_with_hashes() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["docs"]
    pins = re.findall(r"^([a-z][\w.-]*)==(\S+)(.*\n    --hash=sha256:)?", (ROOT / PINS).read_text(), re.MULTILINE)
    assert all(hashes for _, _, hashes in pins)
    versions = {name: version for name, version, _ in pins}
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[requirement.name]), f"{PINS} lacks {requirement}"
