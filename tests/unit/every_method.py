"""Every method with settings in which any two values of its options meet, for tests that must hold for all of them.

A table that covers pairs finds what any two options do to each other, in a dozen rows; hundreds of settings drawn at
random (``random_case``) are for the nightly tests.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import MethodConfig, TrialConfig

DEPTH = 6
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers, layer scale, qk-norm": {"reg_tokens": 4, "init_values": 1e-3, "qk_norm": True},
    "other widths": {"embed_dim": 48, "num_heads": 3, "mlp_ratio": 3.0, "no_embed_class": True},
}
METHODS = ("full", "head", "top_k", "bsr", "tome", "lora", "lora+tome", "apla", "reader", "alast", "lora+alast")
UNSET = ...
"""In place of a value: the option is left to the reading, or to its default."""

AROUND: dict[str, Sequence[Any]] = {"model": tuple(MODELS), "precision": ("fp32", "bf16"), "batch": (24, 5)}
"""What a step is made of besides its method."""

ADAPTERS: dict[str, Sequence[Any]] = {
    "rank": (4, 1),
    "targets": (("qkv", "proj", "fc1", "fc2"), ("qkv",), ("proj", "fc2"), ("fc1",)),
    "blocks": (UNSET, (1, 3, 4), (5,)),
}
ON_ADAPTERS = {f"lora.{name}": values for name, values in ADAPTERS.items()}
ALAST: dict[str, Sequence[Any]] = {
    "reading": ("fast", "paper", "authors"),
    "trainable_blocks": (3, 1, DEPTH, 0),
    "budget_timing": (UNSET, "same_step", "next_step"),
    "initial_budget": (UNSET, "calibrate", 0.6),
    "selection": ("proportional", "softmax", "top_k", "uniform"),
    "delta_reduction": ("batch_mean", "batch_sum", "relative"),
    "ranking": ("attention", "random"),
    "drop_tokens": ("after_block", "before_mlp"),
    "first_delta": ("skip", "zero"),
    "keep_reference": ("image", "incoming"),
    "keep_multiple": (1, 8),
    "frozen_backward": ("exact", "residual"),
    "train_embeddings": (False, True),
    "floors": (UNSET, {"early": 0.9, "middle": 0.5, "late": 0.2}),
    "max_budget": (1.0, 0.95),
    "alpha": (1e-3, 0.3),
    "from_block": (0, 3),
}
OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "full": {"from_block": (0, 3, DEPTH)},
    "head": {},
    "top_k": {"blocks": ((1, 3), (0,), (5,), tuple(range(DEPTH)))},
    "bsr": {
        "blocks": ((3, 5), (0,), (0, 3, 4, 5)),
        "keep": (0.5, 0.3, 1.0),
        "drop_after": (UNSET, (1, 2), ()),
    },
    "tome": {
        "merge": (4, (0, 5, 0, 1, 3, 0), 99, UNSET),
        "target_flops": (0.6, UNSET),
        "merge_share": (0.5, 0.3),
        "from_block": (0, 2),
    },
    "lora": ADAPTERS | {"from_block": (0, 4)},
    "lora+tome": {"merge": (4, UNSET), "merge_share": (0.5, 0.3), "from_block": (0, 2)} | ON_ADAPTERS,
    "apla": {"columns": (UNSET, 1, 9, 31), "blocks": (UNSET, (1, 3, 4), (5,)), "from_block": (0, 4)},
    "reader": {"read": ("linear", "attentive")},
    "alast": ALAST,
    "lora+alast": ALAST | ON_ADAPTERS,
}


@dataclass(frozen=True)
class Case:
    """A method, and the step that it is to do."""

    config: MethodConfig
    model: str
    precision: str
    batch: int


def vit(options: Mapping[str, Any] | None = None) -> VisionTransformer:
    """Six small blocks: 16 patches of an image of 32 pixels."""
    torch.manual_seed(0)
    base = {"embed_dim": 32, "num_heads": 2, "patch_size": 8} | dict(options or {})
    return VisionTransformer(img_size=32, depth=DEPTH, num_classes=10, **base)


def covering_rows(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Few rows, a value of every option each, such that any two values of two options meet in one of them.

    Greedily: a row starts from a pair that has not met and takes of each other option the value that makes most new
    pairs meet; of equally good ones another in every row.
    """
    place = {name: number for number, name in enumerate(options)}

    def pair(one: tuple[str, int], other: tuple[str, int]) -> tuple[tuple[str, int], ...]:
        return (one, other) if place[one[0]] < place[other[0]] else (other, one)

    values = [[(name, number) for number in range(len(options[name]))] for name in options]
    missing = dict.fromkeys(pair(a, b) for some, others in combinations(values, 2) for a in some for b in others)
    rows: list[dict[str, Any]] = []
    while missing:
        row = dict(next(iter(missing)))
        for name, choices in options.items():
            if name not in row:
                turn = [(name, (number + len(rows)) % len(choices)) for number in range(len(choices))]
                met = {one: sum(pair(one, other) in missing for other in row.items()) for one in turn}
                row[name] = max(turn, key=lambda one, met=met: met[one])[1]  # type: ignore[misc]
        for one, other in combinations(row.items(), 2):
            missing.pop(pair(one, other), None)
        rows.append({name: options[name][number] for name, number in row.items()})
    return rows


@cache
def cases(name: str) -> tuple[Case, ...]:
    """All pairs of options of the method ``name``; ``lora+alast`` and ``lora+tome`` are on adapters."""
    return tuple(_case(name, row) for row in covering_rows(AROUND | OPTIONS[name]))


def random_case(name: str, draw: random.Random) -> Case:
    """Settings of the method ``name``, and a step, drawn at random."""
    blocks = tuple(sorted(draw.sample(range(DEPTH), draw.randint(1, DEPTH))))
    last = tuple(sorted({*blocks, DEPTH - 1}))  # of which from_block leaves one
    ranges: dict[str, Any] = {
        "blocks": draw.choice([UNSET, last]) if name in {"lora", "apla"} else last if "lora" in name else blocks,
        "keep": draw.uniform(0.3, 1),
        "drop_after": UNSET,
        "merge": draw.choice([draw.randint(0, 4), tuple(draw.randint(0, 5) for _ in range(DEPTH)), UNSET]),
        "merge_share": draw.uniform(0.1, 0.5),
        "target_flops": UNSET,
        "columns": draw.choice([UNSET, draw.randint(1, 31)]),
        "trainable_blocks": draw.randint(0, DEPTH),
        "alpha": 10 ** draw.uniform(-4, 0),
        "initial_budget": draw.choice(["calibrate", UNSET, draw.uniform(0.5, 0.95)]),
        "rank": draw.choice([1, 4, 8]),
        "targets": tuple(draw.sample(ADAPTERS["targets"][0], draw.randint(1, 4))),
    }
    ranges |= {f"lora.{option}": ranges[option] for option in ADAPTERS}
    options = AROUND | OPTIONS[name]
    return _case(name, {option: ranges.get(option, draw.choice(values)) for option, values in options.items()})


def _case(name: str, row: dict[str, Any]) -> Case:
    values = {option: value for option, value in row.items() if option not in AROUND and value is not UNSET}
    if "merge" in values:
        values.pop("target_flops", None)
    if "merge_share" in values and not values.keys() & {"merge", "target_flops"}:
        values["merge_once_in"] = 2
    lora = {option.removeprefix("lora."): values.pop(option) for option in list(values) if option.startswith("lora.")}
    for its in (values, lora):
        if "blocks" in its:
            its["blocks"] = tuple(block for block in its["blocks"] if block >= values.get("from_block", 0))
    if name.startswith("lora+"):
        values["lora"] = lora
    if "trainable_blocks" in values:
        drawable = [block for block in lora.get("blocks", range(DEPTH)) if block >= values["from_block"]]
        values["trainable_blocks"] = min(values["trainable_blocks"], len(drawable))
    if values.get("drop_tokens") == "before_mlp":  # which asks for budgets of the step before
        values["budget_timing"] = "next_step"
    tag = name.removeprefix("lora+")
    config = TrialConfig.model_validate({"method": {"name": tag} | values}).method
    return Case(config, row["model"], row["precision"], row["batch"])
