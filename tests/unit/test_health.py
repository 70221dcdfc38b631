"""Each check of a sweep's health: when it gives a note, and when it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from alast_tune import health
from alast_tune.config import Choice, Distribution, FloatRange, IntRange, TrialConfig, Variants
from alast_tune.other_seeds import reseeded
from alast_tune.results import Baseline, FrontFile, Reseeded, SeedRun, TrialResult
from alast_tune.summary import summarise

REFERENCE = (0.0, 4e12, 8e8)
FULL = (0.95, 3e12, 7e8)
RATE = {"train/learning_rate": FloatRange(low=1e-4, high=1e-2, log=True)}


def trial(
    number: int, values: tuple[float, float, float], params: Mapping[str, Any], baseline: Baseline | None = None
) -> TrialResult:
    return TrialResult(number, "complete", TrialConfig(), dict(params), values, 2, baseline=baseline)


def on_the_front(path: str, *chosen: Any) -> tuple[FrontFile, list[TrialResult]]:
    """Full fine-tuning, and so many members near it, all on the front, with these values of a parameter."""
    results = [trial(0, FULL, {path: chosen[0]}, "full")]
    results += [
        trial(n, (0.95 - n / 1000, 2e12 - n * 1e11, 4e8), {path: value}) for n, value in enumerate(chosen, start=1)
    ]
    return summarise("s", results, REFERENCE), results


def test_few_validation_images_are_a_note() -> None:
    front, results = on_the_front("train/learning_rate", 1e-3, 2e-3)
    assert health.health_notes(front, results, {}, {}) == []
    (note,) = health.health_notes(front.model_copy(update={"validation_images": 24}), results, {}, {})
    assert note.heading == "Few validation images" and note.text.startswith("One of 24 validation images is 4.2 points")


@pytest.mark.parametrize(
    ("item", "chosen", "found"),
    [
        (RATE["train/learning_rate"], (0.0099, 0.0095, 1e-3, 2e-4), "train/learning_rate is at its highest in 2 of 4"),
        (RATE["train/learning_rate"], (1.05e-4, 1.1e-4, 1e-3), "train/learning_rate is at its lowest in 2 of 3"),
        (RATE["train/learning_rate"], (2e-4, 5e-4, 5e-3), None),  # on its scale far from both ends
        (RATE["train/learning_rate"], (0.0099, 1.05e-4, 1e-3), None),  # one at each
        (RATE["train/learning_rate"], (0.0099, 0.0099), None),  # two trials say nothing
        (IntRange(low=1, high=12), (1, 1, 5), "train/learning_rate is at its lowest in 2 of 3"),
        (IntRange(low=1, high=12), (2, 2, 11), None),
        (IntRange(low=1, high=3), (1, 1, 1), None),  # of three values two are edges
        (FloatRange(low=1.0, high=1.0), (1.0, 1.0, 1.0), None),
        (Choice(choices=("a", "b")), ("a", "a", "a"), None),
    ],
)
def test_best_trials_at_the_edge_of_a_range_are_named(item: Distribution, chosen: Any, found: str | None) -> None:
    front, results = on_the_front("train/learning_rate", *chosen)
    note = health.edge_of_the_range(front, results, {"train/learning_rate": item})
    assert (note is None) == (found is None)
    assert note is None or (found or "") in note.text


def test_trials_far_below_full_fine_tuning_say_nothing_of_edges() -> None:
    _, results = on_the_front("train/learning_rate", 1e-3, 1e-3, 1e-3)
    cheap = [trial(9 + n, (0.5 - n / 100, 1e11 - n * 1e10, 1e8), {"train/learning_rate": 1e-4}) for n in range(6)]
    with_cheap = summarise("s", results + cheap, REFERENCE)
    assert len(with_cheap.front) == 10
    assert health.edge_of_the_range(with_cheap, results + cheap, RATE) is None
    only = [results[0], *cheap]  # where nobody is near, the whole front is asked
    assert health.edge_of_the_range(summarise("s", only, REFERENCE), only, RATE) is not None


def scattered(count: int, explains: str) -> tuple[list[TrialResult], dict[str, Distribution]]:
    """Trials with random parameters, whose accuracy follows one of them, a bow over it, a choice, or nothing."""
    draw = np.random.default_rng(1)
    space: dict[str, Distribution] = {"a": FloatRange(low=0, high=1), "b": Choice(choices=("x", "y"))}
    results = []
    for number in range(count):
        params = {"a": float(draw.uniform()), "b": str(draw.choice(["x", "y"]))}
        noise = float(draw.normal(0, 0.02))
        signal = {"a": params["a"], "bow": abs(params["a"] - 0.5), "b": float(params["b"] == "x"), "nothing": 0.0}
        results.append(trial(number, (0.5 + 0.2 * signal[explains] + noise, 1e12, 1e8), params))
    return results, space


@pytest.mark.parametrize("explains", ["a", "bow", "b"])
def test_accuracy_that_follows_a_parameter_is_explained(explains: str) -> None:
    assert health.accuracy_is_unexplained(*scattered(40, explains)) is None


def test_accuracy_that_follows_nothing_is_said() -> None:
    note = health.accuracy_is_unexplained(*scattered(40, "nothing"))
    assert note is not None and note.text.startswith("Over 40 trials the most telling parameter accounts for ")
    assert health.accuracy_is_unexplained(*scattered(19, "nothing")) is None  # too few to say
    results, space = scattered(40, "nothing")
    alike = [trial(one.number, (0.5, 1e12, 1e8), one.params) for one in results]
    assert health.accuracy_is_unexplained(alike, space) is None  # there is nothing to explain
    assert health.accuracy_is_unexplained(results, {}) is None  # and nothing that could


@pytest.mark.parametrize(
    ("best", "unbeaten"),
    [
        ((0.94, 2e12, 4e8), None),
        ((0.93, 2e12, 4e8), "full fine-tuning (0.9500)"),
        ((0.96, 3e12, 4e8), "full fine-tuning (0.9500)"),  # no fewer FLOPs
        ((0.96, 2e12, 7e8), "full fine-tuning (0.9500)"),  # no less memory
    ],
)
def test_a_baseline_that_nothing_replaces_is_named(best: tuple[float, float, float], unbeaten: str | None) -> None:
    results = [trial(0, FULL, {}, "full"), trial(1, (0.90, 2.5e12, 6e8), {}, "paper"), trial(2, best, {})]
    note = health.no_better_than_its_baseline(results)
    assert (note is None) == (unbeaten is None)
    assert note is None or (unbeaten or "") in note.text
    assert (note is not None and "ALaST as in the paper" in note.text) == (best[1] == 3e12 or best[2] == 7e8)
    assert health.no_better_than_its_baseline(results[:2]) is None  # nothing was searched yet
    assert health.no_better_than_its_baseline(results[2:]) is None  # nothing to beat


def over_seeds(*accuracies: tuple[float, float]) -> Reseeded:
    """Members on a front, each with its accuracies from two seeds."""
    results = [trial(n, (0.5 + n / 10, (1 + n) * 1e11, 1e8), {}) for n in range(len(accuracies))]
    runs = {
        f"{n:04d}": [
            SeedRun(
                seed=seed,
                objectives={"accuracy": one, "train_flops": (1 + n) * 1e11, "peak_bytes": 1e8},
                test_accuracy=None,
            )
            for seed, one in enumerate(pair)
        ]
        for n, pair in enumerate(accuracies)
    }
    return reseeded(summarise("s", results, REFERENCE).front, "s", runs)


def test_seeds_that_differ_more_than_members_are_said() -> None:
    note = health.seeds_outweigh_members(over_seeds((0.50, 0.60), (0.52, 0.62)))
    assert note is not None and "differs by 0.0707" in note.text and "by 0.0141 between members" in note.text
    assert health.seeds_outweigh_members(over_seeds((0.50, 0.52), (0.70, 0.72))) is None
    assert health.seeds_outweigh_members(over_seeds((0.50, 0.60))) is None  # one member differs from nobody


def test_a_memory_forecast_that_was_off_is_said() -> None:
    note = health.memory_forecast_is_off({0: (100.0, 105.0), 3: (100.0, 130.0), 4: (100.0, 85.0)})
    assert note is not None
    assert note.text.startswith("In 2 of 3 trials") and "trial 0003, 30% above it" in note.text
    below = health.memory_forecast_is_off({4: (100.0, 85.0)})
    assert below is not None and "trial 0004, 15% below it" in below.text
    assert health.memory_forecast_is_off({0: (100.0, 109.0), 1: (100.0, 91.0)}) is None
    assert health.memory_forecast_is_off({}) is None


def test_all_checks_are_made() -> None:
    results, space = scattered(40, "nothing")
    results = [trial(40, (0.95, 3e12, 7e8), {"a": 0.5, "b": "x"}, "full"), *results]
    front = summarise("s", results, REFERENCE)
    seeds = over_seeds((0.50, 0.60), (0.52, 0.62))
    found = health.health_notes(front, results, space, {0: (100.0, 130.0)}, seeds)
    assert [note.heading for note in found] == [
        "No parameter explains the accuracy",
        "Nothing better than the baseline",
        "Seeds differ more than members",
        "The memory forecast was off",
    ]
    front, results = on_the_front("train/learning_rate", 1e-4, 1e-4, 1e-4)
    assert [note.heading for note in health.health_notes(front, results, RATE, {})] == [
        "The best trials lie at the edge of the space"
    ]


def test_a_conditional_parameter_is_looked_at_among_the_best_of_its_variant() -> None:
    ways = Variants.model_validate(
        {"variants": {"lora": {"train/learning_rate": RATE["train/learning_rate"]}, "b": {}}}
    )
    space: dict[str, Distribution] = {"way": ways}
    of_lora = [{"way": "lora", "lora/train/learning_rate": rate} for rate in (0.0099, 0.0098, 1e-3)]

    def note(*params: Mapping[str, Any]) -> health.Note | None:
        results = [trial(0, FULL, {"way": "b"}, "full")]
        results += [trial(n, (0.95 - n / 1000, 2e12 - n * 1e11, 4e8), one) for n, one in enumerate(params, start=1)]
        return health.edge_of_the_range(summarise("s", results, REFERENCE), results, space)

    found = note(*of_lora, *[{"way": "b"}] * 4)
    assert found and "lora/train/learning_rate is at its highest in 2 of 3" in found.text
    assert note(*of_lora[:2], *[{"way": "b"}] * 4) is None  # two trials say nothing


def test_a_conditional_parameter_may_explain_the_accuracy() -> None:
    ways = Variants.model_validate(
        {"variants": {"lora": {"train/learning_rate": RATE["train/learning_rate"]}, "b": {}}}
    )
    draw = np.random.default_rng(0)
    for explains in (True, False):
        results = []
        for number in range(60):
            rate, noise = float(draw.uniform(1e-4, 1e-2)), float(draw.random())
            params = {"way": "lora", "lora/train/learning_rate": rate} if number % 2 else {"way": "b"}
            accuracy = 0.5 + 0.4 * (100 * rate if explains and number % 2 else noise)
            results.append(trial(number, (accuracy, 1e12, 4e8), params))
        assert (health.accuracy_is_unexplained(results, {"way": ways}) is None) == explains
