"""Every `sh` command of README.md, docs/*.md and clusters/README.md is run, in order, by one who has just cloned this.

A copy of the checkout gets a `.venv` of its own that uses this interpreter's packages, so that nothing is installed.
Files that the documents show (`# mine.yaml` in a block's first line) are written, diffs applied, Python run. What is
run differently from what is written stands in one table, with the reason; all else must end with exit code 0.

Not covered: that the packages install (`just setup` finds them installed).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from PIL import Image

from tests.documents import DOCUMENTS, ROOT, Block, blocks, checkout_files
from tests.integration.harness import PATIENCE, free_port

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Here:
    """What takes the place of something that the documents say."""

    says: str
    """In a command or a file; a regular expression."""
    runs: str
    why: str
    refused: str = ""
    """The command is expected to end with exit code 2 and this."""
    serves: bool = False
    """The command is a server: asked at {port}, then ended."""


TABLE = (
    # Smaller: the same on less, in commands, files and the copy's own presets.
    Here(r"trials: \d+", "trials: 3", "a hundred seconds, or a GPU"),
    Here(r"epochs: \d+, batch_size: \d+", "epochs: 1, batch_size: 8", "as above"),
    Here(r"dataset: digits(, train_images: \d+)?}", "dataset: digits, train_images: 64}", "as above"),
    Here(r"name: vit_small_patch14_reg4_dinov2\n +image_size: 224.*", "name: embedded", "its weights are on the hub"),
    Here(r"seeds: \d", "seeds: 1", "as above"),
    Here(r"learning_rates: \[1.0e-3, 3.0e-3\]", "learning_rates: [1.0e-3]", "as above"),
    Here(r"(ablate.py --preset embedded)", r"\1 --only frozen", "six sweeps"),
    Here(r"workers: 4", "workers: 0", "a few images"),
    Here(r"/data/pets", "images", "made-up images, in the copy"),
    Here(r'"train": {"epochs": 2}', '"train": {"epochs": 1}, "data": {"train_images": 256}', "half a minute"),
    Here(r"--train.epochs 50", "--train.epochs 2", "minutes"),
    Here(r"(just test)$", r"\1 tests/unit/test_front.py", "all of them are running"),
    Here(r"(just bench) --model .*", r"\1 --rounds 1 --warmup 0 --only full", "minutes"),
    Here(r"(just bench --only .*)", r"\1 --rounds 1 --warmup 0", "half a minute"),
    Here(r"(search.py .*) --seeds 30", r"\1 --seeds 1 --only random --processes 1", "most of an hour"),
    Here(r"benchmarks/scale.py$", r"\g<0> --finished 10 --samplers random --trials 2 --workers 0", "minutes"),
    Here(r"(pareto.py) --preset demo (--storage)", r"\1 --resume job \2", "the recipe above it has just run the same"),
    # Elsewhere: on ports of our own.
    Here(r"just ui", "just ui --port {port}", "a server", serves=True),
    Here(r"http://127.0.0.1:8265", "$(.venv/bin/python -m clusters.local.cluster up)", "or the next free port"),
    Here(r".*ray start --head", "true", "what `just submit` has started runs, and is ended by its process ids"),
    # Without a network: everything is parsed, then the weights are missed.
    Here(r".*--preset deit-s-cifar100.*", r"\g<0>", "weights are on the hub", refused="error: model.pretrained"),
)

PRESETS = ("demo.yaml", "compare/embedded.yaml", "ablate/embedded.yaml")
"""Of the copy, made smaller."""


class Reader:
    """Somebody with a fresh clone, who does what the documents say."""

    def __init__(self, folder: Path, at_the_end: ExitStack) -> None:
        self.folder = folder
        at_the_end.callback(lambda: self._shell(".venv/bin/python -m clusters.local.cluster down"))
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",  # python3 is this one
            "HF_HOME": str(folder.parent / "hub"),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
        }
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            self.environment.pop(name, None)
        for path in checkout_files():
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        self._make_venv()
        for name in PRESETS:
            preset = folder / "sweeps/presets" / name
            preset.write_text(here(preset.read_text())[0])
        draw = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(20):
                pixels = draw.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")

    def _make_venv(self) -> None:
        """An environment that is set up: this interpreter's packages and tools, the copy's own `alast_tune`."""
        home = self.folder / ".venv"
        venv.create(home, symlinks=True)
        (packages,) = home.glob("lib/python3*/site-packages")
        paths = dict.fromkeys([str(self.folder), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        (packages / "here.pth").write_text("\n".join(paths))
        for tool in BIN.iterdir():
            place = home / "bin" / tool.name
            if place.exists() or tool.is_dir():
                continue
            program = tool.read_bytes()
            if program.startswith(b"#!"):  # a script begins with the path of its interpreter
                place.write_bytes(program.replace(str(BIN).encode(), str(home / "bin").encode()))
                place.chmod(0o755)
            else:
                place.symlink_to(tool)
        project = tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]
        for name, target in project["scripts"].items():
            module, function = target.split(":")
            script = home / "bin" / name
            script.write_text(f"#!{home}/bin/python\nfrom {module} import {function}\n{function}()\n")
            script.chmod(0o755)
        self._shell('echo "$PWD $(cat requirements.lock pyproject.toml | cksum)" > .venv/.set-up')

    def follow(self, document: str) -> None:
        """Do all that a document says."""
        for block in blocks(document):
            if block.language == "sh":
                for command in block.commands:
                    self._run(command)
            elif block.language == "diff":
                self._shell("git apply -", block.text)
            elif block.file:
                (self.folder / block.file).write_text(here(block.text)[0])
            elif block.language == "python":
                self._shell(".venv/bin/python -", here(block.text)[0])

    def _run(self, command: str) -> None:
        if setting := re.fullmatch(r"export (\w+)=(\w+)", command):
            self.environment[setting[1]] = setting[2]
            return
        text, differences = here(command)
        if any(difference.serves for difference in differences):
            self._ask(text)
        elif refusals := [difference.refused for difference in differences if difference.refused]:
            said = self._shell(text, code=2)
            assert refusals[0] in said, said
        else:
            self._shell(text)

    def _shell(self, command: str, text: str = "", code: int = 0) -> str:
        start = monotonic()
        done = subprocess.run(
            ["bash", "-c", command], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=900, cwd=self.folder, env=self.environment,
        )  # fmt: skip
        print(f"{monotonic() - start:6.1f} s  {command}")
        assert done.returncode == code, f"{command}\n{text}\nexit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def _ask(self, command: str) -> None:
        """Start a server, wait until it answers, and end it."""
        port = free_port()
        log = self.folder / "server.log"
        with log.open("w") as out:
            server = subprocess.Popen(
                ["bash", "-c", command.format(port=port)], stdout=out, stderr=out,
                cwd=self.folder, env=self.environment, start_new_session=True,
            )  # fmt: skip
        try:
            end = monotonic() + PATIENCE
            while True:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert b"<html" in answer.read()
                    return
                assert server.poll() is None and monotonic() < end, log.read_text()
                sleep(0.3)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def here(text: str) -> tuple[str, list[Here]]:
    """Put what is run here in the place of what is said; and what of the table that was."""
    used = []
    for difference in TABLE:
        text, count = re.subn(difference.says, difference.runs, text, flags=re.MULTILINE)
        used += [difference] if count else []
    return text, used


def said(block: Block) -> list[str]:
    return block.commands if block.language == "sh" else [block.text]


def test_the_table_has_nothing_that_no_document_says() -> None:
    texts = [text for document in DOCUMENTS for block in blocks(document) for text in said(block)]
    texts += [(ROOT / "sweeps/presets" / name).read_text() for name in PRESETS]
    used = [difference for text in texts for difference in here(text)[1]]
    assert [difference.says for difference in TABLE if difference not in used] == []


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody who has followed the README, to its end: what the other documents take for granted."""
    with ExitStack() as at_the_end:
        reader = Reader(tmp_path_factory.mktemp("docs") / "alast-tune", at_the_end)
        reader.follow("README.md")
        yield reader


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not (BIN / "just").exists(), reason="no `just` (rust-just) in this environment")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_works(document: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if any(block.language == "diff" for block in blocks(document)):  # it changes the program
        with ExitStack() as at_the_end:
            Reader(tmp_path / "alast-tune", at_the_end).follow(document)
    else:
        reader: Reader = request.getfixturevalue("reader")
        if document != "README.md":
            reader.follow(document)
