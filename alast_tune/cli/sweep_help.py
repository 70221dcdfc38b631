"""``alast-tune sweep --help``: what most people need, in groups, on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

WIDTH = 80
_COLUMN = 25

USAGE = """\
usage: alast-tune sweep FOLDER [options]
       alast-tune sweep --preset NAME_OR_FILE [options]
       alast-tune sweep --resume NAME [options]

Search for the Pareto front of accuracy, training FLOPs and peak memory.
"""

GROUPS = {
    "what": {
        "FOLDER": "your images, FOLDER/CLASS/* or FOLDER/{train,val,test}/CLASS/*; the settings are chosen, and said",
        "--model NAME_OR_FILE": "a timm name, local weights, or embedded",
        "--preset NAME_OR_FILE": "a prepared sweep instead (see --list-presets), or YAML",
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
        "--concurrent N": "trials at a time; unset: as many as fit",
        "--reseed N": "train the front's members with N other seeds as well",
    },
    "limits": {
        "--max-memory 6GiB": "largest peak memory of training",
        "--max-flops 1e15": "most FLOPs of training",
        "--min-accuracy 0.9": "least validation accuracy",
    },
}
"""Option, with a sample of its value -> what it does, by group."""

EXAMPLES = """\
examples
  alast-tune sweep /data/pets --max-memory 6GiB --time-budget 2h
  alast-tune sweep /data/pets --model weights.safetensors --dry-run > pets.yaml
  alast-tune sweep --preset pets.yaml --trials 48
  alast-tune sweep --resume pets
"""


def short_help(fields: Iterable[str]) -> str:
    """Write the help of ``alast-tune sweep``, at most 80 columns wide.

    Args:
        fields: names of all settings; those in no group are named in a line of their own.
    """
    parts = [USAGE]
    for title, options in GROUPS.items():
        parts.append(f"{title}\n" + "\n".join(_entry(*option) for option in options.items()) + "\n")
    grouped = {option.split()[0] for options in GROUPS.values() for option in options}
    others = [f"--{name.replace('_', '-')}" for name in fields]
    rest = ", ".join(option for option in others if option not in grouped)
    more = f"{rest}; any setting of a trial, as --trial.train.epochs 10: see --help-all"
    filled = textwrap.fill(more, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    parts.append(f"the rest\n{filled}\n")
    return "\n".join([*parts, EXAMPLES])


def _entry(option: str, text: str) -> str:
    indent = " " * _COLUMN
    lines = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return f"  {option}".ljust(_COLUMN) + lines[_COLUMN:]
