"""README and docs name what there is: settings, options, recipes, files, headings. Their commands run elsewhere."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.scripts.scripts import cli

import alast_tune
from alast_tune import config as records
from alast_tune import plugins
from alast_tune.cli import AlastTune
from alast_tune.cli.sweep import Sweep
from alast_tune.config import READINGS, AlastConfig, Record, SweepConfig, TrialConfig, known_methods, parse
from benchmarks.accuracy import RESULTS, read, summarise
from tests.documents import DOCUMENTS, ROOT, anchors, blocks, inline_code, method_of_the_docs, prose
from tests.unit.test_house import recipes

METHODS = tuple(known_methods().values())
SECTIONS = {name: field.annotation for name, field in TrialConfig.model_fields.items() if name != "method"}
OTHERS = {"labels", "no-deps", "print", "help", "file", "generate", "logdir"}
"""Options of other people's programs, and --help."""


def fields(record: Any) -> set[str]:
    return set(record.model_fields)


def options() -> set[str]:
    """Every option of our programs."""
    commands = [get_args(field.annotation)[0] for field in AlastTune.model_fields.values()]
    names = [field.alias or name for kind in (Sweep, *commands) for name, field in kind.model_fields.items()]
    folders = ("alast_tune/cli", "alast_tune/reports", "benchmarks", "sweeps")
    scripts = [path.read_text() for folder in folders for path in (ROOT / folder).glob("*.py")]
    found = {name.replace("_", "-") for name in names} | set(AlastTune.model_config["cli_shortcuts"].values())
    found |= {name for text in scripts for name in re.findall(r'"--([a-z-]+)"', text)}
    fields = [name for text in scripts for name in re.findall(r"^    (\w+): .*= Field\(", text, re.MULTILINE)]
    found |= {name.replace("_", "-") for name in fields}
    return found | OTHERS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if heading:
            assert heading in anchors(str(file.relative_to(ROOT))), f"{document}: {target}"


def test_every_document_is_found_from_the_readme() -> None:
    for document in DOCUMENTS[1:]:
        assert f"]({document})" in prose("README.md"), document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_what_it_is(document: str) -> None:
    """One that said nothing would be left out of all tests."""
    assert prose(document).count("```") == 0, "a fence that is not closed, or not at a line's beginning"
    for block in blocks(document):
        assert block.language in {"sh", "bash", "python", "yaml", "diff", "text"}, block.text
        assert block.language != "yaml" or block.file, f"not said which file this is:\n{block.text}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_presets_and_configurations_are_valid(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_HERE", {})
    if document == "docs/adding-a-method.md":
        alast_tune.register_method(method_of_the_docs())
    for block in blocks(document):
        values = yaml.safe_load(block.text) if block.language == "yaml" else {}
        if "space" in values:
            assert parse(SweepConfig, values).space
        elif "method" in values:
            assert parse(TrialConfig, values).method.name == values["method"]["name"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_exist(document: str) -> None:
    for name, path in re.findall(r"(?<![\w-])--([a-z][\w-]*)((?:\.\w+)*)", prose(document)):
        known = TrialConfig.model_fields if path else options()  # --train.epochs
        assert name in known, f"{document}: --{name}{path}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_recipes_and_files_exist(document: str) -> None:
    for code in inline_code(document):
        for file in re.findall(r"(?<![\w/])(?:alast_tune|benchmarks|clusters|sweeps|tests|methods)/[\w/.-]*", code):
            assert any((ROOT / base / file).exists() for base in ("", "alast_tune")), f"{document}: {code}"
        for recipe in re.findall(r"(?:^|/)just ([a-z][\w-]*)", code):
            assert recipe in recipes(), f"{document}: {code}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_for_elsewhere_name_what_there_is(document: str) -> None:
    """They cannot run here: the shell reads them, and files, recipes, presets and Ray's options are looked up."""
    for block in blocks(document):
        if block.language != "bash":
            continue
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for command in block.commands:
            for file in re.findall(r"\bclusters/[\w/.-]+", command):
                assert (ROOT / file).exists(), f"{document}: {command}"
            for recipe in re.findall(r"/just ([a-z][\w-]*)", command):
                assert recipe in recipes(), f"{document}: {command}"
            for preset in re.findall(r"--preset ([\w-]+)", command):
                assert (ROOT / "alast_tune/presets" / f"{preset}.yaml").exists(), f"{document}: {command}"
            if used := re.search(r"(?:^|[(/])ray ([a-z-]+)([^)|>]*)", command):
                known = {option for parameter in cli.commands[used[1]].params for option in parameter.opts}
                assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", used[2])) <= known, f"{document}: {command}"


def holders(name: str) -> Iterator[type[Record]]:
    """Records that have a field of that name."""
    for kind in (getattr(records, public) for public in records.__all__):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            yield kind


def accepted(kind: type[Record], values: dict[str, Any]) -> bool:
    try:
        kind.model_validate(values)
    except ValidationError as error:  # what else the record needs is not said here
        return not any(set(values) & set(fault["loc"]) for fault in error.errors())
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_exist(document: str) -> None:
    for code in inline_code(document):
        section, _, name = code.partition(".")
        if section in SECTIONS and name.isidentifier() and name != "safetensors":  # a file
            assert name in fields(SECTIONS[section]), f"{document}: {code}"
        if section == "method" and name.isidentifier():
            assert any(name in fields(method) for method in METHODS), f"{document}: {code}"
        if setting := re.fullmatch(r"(\w+): (.+)", code):
            values = yaml.safe_load(code)
            assert any(accepted(kind, values) for kind in holders(setting[1])), f"{document}: {code}"


def test_the_readings_are_as_the_table_says() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", prose("docs/method.md"), re.MULTILINE)
    said = {name: cells for name, *cells in rows if name in AlastConfig.model_fields}
    assert said.keys() >= {name for reading in READINGS.values() for name in reading}
    for name, cells in said.items():
        for reading, cell in zip(READINGS, cells, strict=True):
            value = getattr(AlastConfig.model_validate({"reading": reading}), name)
            words = {True: "yes", False: "no"} if isinstance(value, bool) else {}
            value = value.early if name == "floors" else words.get(value, value)
            assert cell.strip("`") == (f"{value:g}" if isinstance(value, float) else str(value)), (name, reading)


@pytest.mark.parametrize("place", [0, 1])
def test_the_parts_of_the_recipe_brought_what_the_tables_say(place: int) -> None:
    section = prose("docs/results.md").partition("What each part of the recipe brings")[2].partition("\n## ")[0]
    digits, _, emoji57 = section.partition("Where weights are pretrained")
    table = re.findall(r"^\| `([^`]+)` \| (.*) \|$", (digits, emoji57)[place], re.MULTILINE)
    said = {name: [cell.strip() for cell in cells.split("|")] for name, cells in table}
    results = RESULTS / ("recipe-digits.jsonl", "recipe-emoji57.jsonl")[place]
    for row in summarise(read(results), 3, "modern"):
        spread = f"{row['spread']:.4f}" if row["seeds"] > 1 else ""
        scores = f"{row['accuracy']:.4f}", spread, f"{row['test_accuracy']:.4f}", row["test_difference"] or ""
        assert said.pop(row["method"]) == [f"{row['learning_rate']:g}", str(row["seeds"]), *scores]
    assert not said
