"""Every `sh` command of README.md, docs/*.md and clusters/README.md is run, in order, by one who has just cloned this.

A copy of the checkout gets a `.venv` of its own that uses this interpreter's packages, so that nothing is installed.
Files that the documents show (`# mine.yaml` in a block's first line) are written, diffs applied, Python run. What is
run differently from what is written stands in one table, with the reason; all else must end with exit code 0, and print
what stands behind ``#:``: the words exactly, the numbers within a tenth where the program is run as it is written. What
another test runs as well is run here at night only; that it names what there is, is looked up nevertheless.

Not covered: that the packages install (`just setup` finds them installed).
"""

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic, sleep

import mlflow
import numpy as np
import pytest
from PIL import Image

from alast_tune.cli import main
from alast_tune.config import TrialConfig
from tests.documents import DOCUMENTS, ROOT, Block, blocks, checkout_files
from tests.integration.harness import PATIENCE, free_port
from tests.unit.test_documents import options
from tests.unit.test_house import recipes

BIN = Path(sys.executable).parent
PROGRAM = ".venv/bin/alast-tune"


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
    nightly: bool = False
    """The command is left out by day; ``why`` says what runs the same then."""


TABLE = (
    # At night; first, for what they look for is what is written.
    Here(r".*just sweep --resume pets", r"\g<0>", "test_sweep.py resumes sweeps", nightly=True),
    Here(r".*ray job submit .*", r"\g<0>", "test_jobs.py submits by hand", nightly=True),
    Here(r".*benchmarks/live.py .*", r"\g<0> --budget 0.2 --seeds 1", "test_live.py has its account", nightly=True),
    Here(r".*compare.py --preset embedded", r"\g<0>", "test_compare.py runs one; the presets are parsed", nightly=True),
    Here(
        r".*--preset deit-s-cifar100.*",
        r"\g<0>",
        "test_presets.py parses it; its weights are on the hub",
        refused="error: model.pretrained",
        nightly=True,
    ),
    Here(r".*--warm-start pets", r"\g<0>", "test_promotion.py begins a sweep with another's results", nightly=True),
    Here(r".*front pets-small", r"\g<0>", "what it shows is made at night", nightly=True),
    Here(r".*ablate.py --preset embedded", r"\g<0>", "as above; test_reports.py makes its tables", nightly=True),
    Here(r".*--workers 2", r"\g<0>", "test_distributed.py", nightly=True),
    Here(r".*--reseed 2", r"\g<0>", "test_reseed.py", nightly=True),
    Here(r".*--preset ways.yaml", r"\g<0>", "test_grid.py; the file is parsed", nightly=True),
    Here(r".*just cluster-up", r"\g<0>", "test_local_cluster.py, and `just submit` in docs/jobs.md", nightly=True),
    Here(r".*just submit --preset demo --name here", r"\g<0>", "as above", nightly=True),
    # Smaller: the same on less, in commands, files and the copy's own presets.
    Here(r"trials: \d+", "trials: 1", "a hundred seconds, or a GPU"),
    Here(r"epochs: \d+, batch_size: \d+", "epochs: 1, batch_size: 16", "as above"),
    Here(r"dataset: digits(, train_images: \d+)?}", "dataset: digits, train_images: 64}", "as above"),
    Here(r"name: vit_small_patch14_reg4_dinov2\n +image_size: 224.*", "name: embedded", "its weights are on the hub"),
    Here(r"seeds: \d", "seeds: 1", "as above"),
    Here(r"learning_rates: \[1.0e-3, 3.0e-3\]", "learning_rates: [1.0e-3]", "as above"),
    Here(r"(ablate.py --preset embedded)", r"\1 --only frozen", "six sweeps"),
    Here(r"workers: 4", "workers: 0", "a few images"),
    Here(r"/data/pets", "images", "made-up images, in the copy"),
    Here(r'"runs/demo', r"\g<0>", "the demo is smaller here, so that its numbers are others"),
    Here(r'preset="demo"|alast_tune.open\("runs/python"\)', r"\g<0>", "as above"),
    Here(r"--train.epochs 50", "--train.epochs 2", "minutes"),
    Here(r"(just test)$", r"\1 tests/unit/test_front.py", "all of them are running"),
    Here(r"(just bench) --model .*", r"\1 --rounds 1 --warmup 0 --only full", "minutes"),
    Here(r"(search.py .*) --seeds 30", r"\1 --seeds 1 --only random --processes 1", "most of an hour"),
    Here(r"benchmarks/scale.py$", r"\g<0> --finished 10 --sampler random --trials 2 --results scale.json", "minutes"),
    Here(r"(just submit --preset demo --name job)", r"\1 --trials 1", "half a minute"),
    Here(r"(pareto.py) --preset demo (--storage)", r"\1 --resume job \2", "the recipe above it has just run the same"),
    # Elsewhere: on ports of our own.
    Here(r"just ui", "just ui --port {port}", "a server", serves=True),
    Here(r"http://127.0.0.1:8265", "$(.venv/bin/python -m clusters.local.cluster up)", "or the next free port"),
    Here(r".*ray start --head", "true", "what `just submit` has started runs, and is ended by its process ids"),
)

PRESETS = (
    "alast_tune/presets/demo.yaml",
    "sweeps/presets/compare/embedded.yaml",
    "sweeps/presets/ablate/embedded.yaml",
)
"""Of the copy, made smaller."""


class Reader:
    """Somebody with a fresh clone, who does what the documents say."""

    def __init__(self, folder: Path, at_the_end: ExitStack, nightly: bool = False) -> None:
        self.folder = folder
        self._nightly = nightly
        self._done: set[tuple[str, int]] = set()
        self._swept: set[str] = set()
        self._started: set[str] = set()
        self._changed = False
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
            preset = folder / name
            preset.write_text(here(preset.read_text())[0])
        draw = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(10):
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

    def follow(self, document: str, end: int | None = None) -> int:
        """Do what a document says, up to the end of a block, and nothing twice; returns how many blocks of it are done.

        Raises:
            AssertionError: a command fails, or prints something else.
        """
        for number, block in enumerate(blocks(document)[:end]):
            if (document, number) not in self._done:
                self._done.add((document, number))  # what fails is said once
                self._do(block)
        return sum(done == document for done, _ in self._done)

    def _do(self, block: Block) -> None:
        if block.language == "sh":
            for command in block.commands:
                self._run(command)
        elif block.language == "diff":
            self._shell("git apply -", block.text)
            self._changed = True
        elif block.file:
            (self.folder / block.file).write_text(here(block.text)[0])
        elif block.language == "python":
            text, differences = here(block.text)
            printed = io.StringIO()
            if self._by_itself(block.language):
                printed.write(self._shell(".venv/bin/python - 2> errors.log || (cat errors.log; false)", text))
            else:
                with self._here("python"), redirect_stdout(printed):
                    exec(compile(text, "document", "exec"), {"__name__": "__main__"})
            if block.prints:
                compare(printed.getvalue().splitlines(), block.prints, numbers=not differences)

    def _by_itself(self, program: str) -> bool:
        """Whether a program runs in a process of its own: the first time, at night, and where it has been changed.

        Else it is this process's: to import everything takes longer than what is then done.
        """
        first, self._started = program not in self._started, self._started | {program}
        return first or self._nightly or self._changed

    @contextmanager
    def _here(self, what: str) -> Iterator[None]:
        """Be in the copy's folder, with what a process of its own would have left behind put away."""
        start = monotonic()
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
            patch.chdir(self.folder)
            patch.setenv("MLFLOW_TRACKING_URI", "")
            yield
            mlflow.set_tracking_uri("")
        print(f"{monotonic() - start:6.1f} s  {what}")

    def _run(self, command: str) -> None:
        if setting := re.fullmatch(r"export (\w+)=(\w+)", command):
            self.environment[setting[1]] = setting[2]
            return
        text, differences = here(command)
        if any(difference.nightly for difference in differences) and not self._nightly:
            return
        if "/python sweeps/" in command:
            if command in self._swept:  # another document has the same line
                return
            self._swept.add(command)
        if any(difference.serves for difference in differences):
            self._ask(text)
        elif refusals := [difference.refused for difference in differences if difference.refused]:
            said = self._shell(text, code=2)
            assert refusals[0] in said, said
        elif (words := shlex.split(text))[0] == PROGRAM and not self._by_itself(PROGRAM):
            with self._here(text):
                main(words[1:])
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


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def compare(printed: list[str], expected: list[str], numbers: bool) -> None:
    """Compare what a program has printed with what its document says: the words, and numbers to a tenth."""
    assert [NUMBER.sub("1", line).split() for line in printed] == [NUMBER.sub("1", line).split() for line in expected]
    if numbers:
        for line, other in zip(printed, expected, strict=True):
            found, wanted = ([float(number) for number in NUMBER.findall(text)] for text in (line, other))
            assert found == pytest.approx(wanted, rel=0.1), f"{line!r} is said to be {other!r}"


def test_what_is_printed_is_compared() -> None:
    compare(["trial 0003: 0.52, 12 GFLOP"], ["trial 0003: 0.50, 12 GFLOP"], numbers=True)
    compare(["trial 0001: 0.10"], ["trial 0003: 0.50"], numbers=False)
    with pytest.raises(AssertionError, match="is said to be"):
        compare(["accuracy 0.60"], ["accuracy 0.50"], numbers=True)
    with pytest.raises(AssertionError):
        compare(["accurate 0.50"], ["accuracy 0.50"], numbers=False)


def said(block: Block) -> list[str]:
    return block.commands if block.language == "sh" else [block.text]


def test_the_table_has_nothing_that_no_document_says() -> None:
    texts = [text for document in DOCUMENTS for block in blocks(document) for text in said(block)]
    texts += [(ROOT / name).read_text() for name in PRESETS]
    used = [difference for text in texts for difference in here(text)[1]]
    assert [difference.says for difference in TABLE if difference not in used] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_names_what_there_is(document: str) -> None:
    """Those that are not run by day are not the reader's trouble by night either."""
    shown = {block.file for name in DOCUMENTS for block in blocks(name)}
    for command in (command for block in blocks(document) if block.language == "sh" for command in block.commands):
        for file in re.findall(r"(?<![\w/.])(?:sweeps|benchmarks|clusters|tests)/[\w/.-]*", command):
            assert (ROOT / file).exists() or file in shown, command
        for recipe in re.findall(r"/just ([a-z][\w-]*)", command):
            assert recipe in recipes(), command
        for preset in re.findall(r"--preset ([\w.-]+)", command):
            scripts = [script for script in ("compare", "ablate") if f"{script}.py" in command]
            folders = ("alast_tune/presets", *(f"sweeps/presets/{script}" for script in scripts))
            files = [ROOT / folder / f"{preset}.yaml" for folder in folders]
            assert preset in shown or any(file.exists() for file in files), command
        if not re.search(r"\bray |\bpip ", command):
            for name, path in re.findall(r"(?<![\w-])--([a-z][\w-]*)((?:\.\w+)*)", command):
                assert name in (TrialConfig.model_fields if path else options()), command


NEEDS_JUST = pytest.mark.skipif(not (BIN / "just").exists(), reason="no `just` (rust-just) in this environment")

PARTS = [
    (document, number + 1)
    for document in DOCUMENTS
    for number, block in enumerate(blocks(document))
    if block.language == "sh" or (block.language == "python" and not block.file)
]
"""Blocks in which something is run, each with the files and changes before it."""


FIRST = ("README.md", "docs/first-sweep.md", "docs/own-model-and-data.md", "docs/jobs.md")
"""Which the other documents take for granted, in this order."""


def changes_the_program(document: str) -> bool:
    return any(block.language == "diff" for block in blocks(document))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Callable[[str], Reader]]:
    """Whoever follows a document: one reader for all, but for those documents that change the program."""
    with ExitStack() as at_the_end:

        @cache
        def reader(name: str) -> Reader:
            one = Reader(tmp_path_factory.mktemp("docs") / "alast-tune", at_the_end)
            if name != "README.md":  # which makes it: seconds
                (one.folder / "runs").mkdir()
                shutil.copy(empty_mlflow, one.folder / "runs")
            return one

        yield lambda document: reader(document if changes_the_program(document) else "README.md")


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)  # the first of them follows README and the first sweep before its own document
@NEEDS_JUST
@pytest.mark.parametrize(("document", "end"), PARTS)
def test_every_command_works(document: str, end: int, readers: Callable[[str], Reader]) -> None:
    reader = readers(document)
    if document not in FIRST and not changes_the_program(document):
        for earlier in FIRST:
            reader.follow(earlier)
    assert reader.follow(document, end) >= end


@pytest.mark.e2e
@pytest.mark.nightly
@pytest.mark.timeout(2400)
@NEEDS_JUST
def test_every_command_works_that_is_left_out_by_day(tmp_path: Path) -> None:
    with ExitStack() as at_the_end:
        reader = Reader(tmp_path / "alast-tune", at_the_end, nightly=True)
        for document in (*FIRST, *DOCUMENTS):
            if not changes_the_program(document):
                assert reader.follow(document) == len(blocks(document))
