"""``--help`` of the commands that have every setting of a trial: what most people need, in groups, on one screen."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

from alast_tune.config import TrialConfig

WIDTH = 80
_COLUMN = 25
_METHOD = re.compile(r"(--(?:trial\.)?method\.name \{[^}]*\}\s+\(default: )\w+")


@dataclass(frozen=True)
class ShortHelp:
    """The short help of a command; ``--help-all`` is the one that argparse writes."""

    usage: str
    groups: Mapping[str, Mapping[str, str]]
    """Option, with a sample of its value -> what it does, by group."""
    rest: str
    """What is said after the options that no group has."""
    unlisted: frozenset[str]
    """Settings that have no option, or stand for many."""
    examples: str

    def answer(self, words: Iterable[str], fields: Iterable[str]) -> list[str] | None:
        """Print the short help if it is asked for.

        Args:
            words: of the command line, their names with underscores or hyphens.
            fields: names of all settings; those in no group are named in a line of their own.

        Returns:
            The words for argparse, whose ``--help`` is our ``--help-all``; None if the command has been answered.
        """
        words = ["--help-all" if word == "--help_all" else word for word in words]
        if {"--help", "-h"} & set(words):
            print(self.text(fields), end="")
            return None
        return ["--help" if word == "--help-all" else word for word in words]

    def text(self, fields: Iterable[str]) -> str:
        """Write the help, at most ``WIDTH`` columns wide."""
        parts = [self.usage]
        for title, options in self.groups.items():
            parts.append(f"{title}\n" + "\n".join(_entry(*option) for option in options.items()) + "\n")
        grouped = {option.split()[0].rstrip(",") for options in self.groups.values() for option in options}
        others = [f"--{name.replace('_', '-')}" for name in fields if name not in self.unlisted]
        rest = ", ".join(option for option in others if option not in grouped)
        more = f"{rest}; {self.rest}" if rest else self.rest
        filled = textwrap.fill(more, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        parts.append(f"the rest\n{filled}\n")
        return "\n".join([*parts, self.examples])


@contextmanager
def true_default(words: Iterable[str]) -> Iterator[None]:
    """Let argparse's help name the default method: pydantic-settings writes the last one of the union there."""
    if "--help" not in words:
        yield
        return
    shown = io.StringIO()
    try:
        with redirect_stdout(shown):
            yield
    finally:
        print(_METHOD.sub(rf"\g<1>{TrialConfig().method.name}", shown.getvalue()), end="")


def _entry(option: str, text: str) -> str:
    indent = " " * _COLUMN
    lines = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return f"  {option}".ljust(_COLUMN) + lines[_COLUMN:]


SWEEP = ShortHelp(
    usage="""\
usage: alast-tune sweep FOLDER [options]
       alast-tune sweep --preset NAME_OR_FILE [options]
       alast-tune sweep --resume NAME [options]

Search for the Pareto front of accuracy, training FLOPs and peak memory.
""",
    groups={
        "what": {
            "FOLDER": "your images, FOLDER/CLASS/*, or with train, val, test above; the settings are chosen, and said",
            "--model NAME_OR_FILE": "a timm name, local weights, or embedded",
            "--methods lora,apla": "searched methods; unset: all possible but top_k, bsr",
            "--preset NAME_OR_FILE": "a prepared sweep instead (see --list-presets), or YAML",
            "--trial.recipe paper": "train as the paper does; unset: modern for a FOLDER",
            "--dry-run": "print choices, forecast and YAML, and run nothing",
        },
        "where": {
            "--name NAME": "of the sweep; unset: the folder's or the preset's",
            "--storage PLACE": "where sweeps are kept: a folder, s3:// or gs:// (runs)",
            "--resume NAME": "go on with a sweep that was interrupted or shall grow",
            "--go-on": "resume the sweep of this name, or start it",
        },
        "how long": {
            "--trials N": "to run beside the baselines",
            "--time-budget 2h": "no trial starts later; those that run are finished",
            "--flops-budget 20x": "nor once all have trained so much: 1e18, or times full",
            "--min-gain 0.01": "nor once so small a share is expected",
            "--concurrent N": "trials at a time; unset: as many as fit",
            "--reseed N": "then run the best again with N other seeds",
        },
        "what counts": {
            "--max-memory 6GiB": "largest peak memory of training",
            "--max-flops 1e15": "most FLOPs of training",
            "--min-accuracy 0.9": "least validation accuracy",
            "--within 0.05": "look for what is so near full fine-tuning's accuracy",
        },
    },
    rest="any setting of a trial, as --trial.train.epochs 10: see --help-all",
    unlisted=frozenset({"folder", "chosen", "trial", "help_all"}),
    examples="""\
examples
  alast-tune sweep /data/pets --max-memory 6GiB --time-budget 2h
  alast-tune sweep /data/pets --model weights.safetensors --dry-run > pets.yaml
  alast-tune sweep --preset pets.yaml --trials 48
  alast-tune sweep --resume pets
""",
)

TRAIN = ShortHelp(
    usage="""\
usage: alast-tune train --config FILE [options]

Train one configuration to a model that can be served, or go on with it.
""",
    groups={
        "what": {
            "--config FILE": "what to train: what promote has written, or YAML of your own",
            "--epochs N": "instead of the file's; any of its settings can be given",
            "--all-data": "train on the validation images as well",
            "--recipe modern": "for what the file leaves open: AdamW, cosine, layer decay...",
        },
        "where": {
            "--output FOLDER, -o": "model, report and checkpoint; the same again goes on with them (runs/train)",
            "--workers N": "divide each batch among so many workers, one a GPU",
            "--checkpoint-every 10min": "within an epoch too; SIGTERM leaves one in any case",
            "--experiment NAME": "MLflow's; unset: $MLFLOW_EXPERIMENT_NAME or alast-tune",
        },
        "MLflow's registry": {
            "--model-name NAME": "register the model; unset: promotion's name, if any",
            "--alias NAME": "for the version, unless a better one has it (champion)",
            "--move-alias": "the version gets the alias all the same",
        },
    },
    rest="any setting of the file, as --train.learning-rate 5e-5: see --help-all",
    unlisted=frozenset({"data", "model", "method", "train", "provenance", "help_all"}),
    examples="""\
examples
  alast-tune train --config best.yaml --output runs/production
  alast-tune train --config best.yaml -o runs/all --epochs 50 --all-data
""",
)
