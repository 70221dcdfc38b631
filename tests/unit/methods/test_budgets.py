"""Equations 5 and 6 by hand, and the drawing of blocks."""

from itertools import pairwise

import pytest
import torch

from alast_tune.methods.budgets import class_delta, relative_magnitude, sample_layers, scale_to_mean, update_budgets


def test_delta_sums_over_the_width_and_averages_over_the_batch() -> None:
    before, after = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 0.0]])
    assert float(class_delta(before, after)) == 9.0
    assert float(class_delta(before, after, "batch_sum")) == 18.0


def test_relative_magnitude_is_one_for_an_update_from_nothing_and_zero_for_none() -> None:
    x = torch.ones(4, 5)
    assert float(relative_magnitude(torch.zeros(4, 5), x)) == pytest.approx(1.0)
    assert float(relative_magnitude(x, x)) == 0.0


def test_update_follows_equation_six_and_clips_on_both_sides() -> None:
    budgets = update_budgets([0.5, 0.5, 0.5], [3.0, 1.0, 90.0], [1.0, 2.0, 0.0], alpha=0.1, low=0.45, high=1.0)
    assert budgets.tolist() == pytest.approx([0.7, 0.45, 1.0])


def test_without_an_earlier_delta_budgets_stay() -> None:
    assert update_budgets([0.5, 0.8], [3.0, 1.0], None, 0.1, 0.1, 1.0).tolist() == [0.5, 0.8]


def test_updates_telescope_while_nothing_is_clipped() -> None:
    """b_i = b_0 + alpha (delta_i - delta_0), whatever lay between."""
    budgets, deltas = torch.tensor([0.5]), [[0.2], [0.9], [0.1], [0.6]]
    for previous, delta in pairwise(deltas):
        budgets = update_budgets(budgets, delta, previous, alpha=0.25, low=0.01, high=1.0)
    assert float(budgets) == pytest.approx(0.5 + 0.25 * (0.6 - 0.2))


def test_scaling_reaches_the_mean_and_respects_floors() -> None:
    scaled = scale_to_mean(torch.tensor([1.0, 3.0]), 0.4, torch.tensor([0.1, 0.1]), 1.0)
    assert scaled.tolist() == pytest.approx([0.2, 0.6])
    assert scale_to_mean(torch.tensor([1.0, 9.0]), 0.5, torch.tensor([0.3, 0.3]), 0.8).tolist() == pytest.approx(
        [0.3, 0.8]
    )


@pytest.mark.parametrize("how", ["proportional", "softmax", "top_k", "uniform"])
def test_exactly_count_blocks_are_drawn_even_where_budgets_vanish(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in range(7):
        assert int(sample_layers([0.0, 0.0, 1.0, 0.0, 0.2, 0.0], count, generator, how).sum()) == count


def test_top_k_takes_the_largest_and_earlier_ones_first() -> None:
    mask = sample_layers([0.2, 0.9, 0.9, 0.9], 2, torch.Generator(), "top_k")
    assert mask.tolist() == [False, True, True, False]


def test_drawing_is_proportional_to_the_budget() -> None:
    generator = torch.Generator().manual_seed(1)
    hits = sum(sample_layers([0.1, 0.3, 0.6], 1, generator).double() for _ in range(4000)) / 4000
    assert hits.tolist() == pytest.approx([0.1, 0.3, 0.6], abs=0.03)


def test_a_uniform_drawing_does_not_look_at_budgets() -> None:
    generator = torch.Generator().manual_seed(1)
    hits = sum(sample_layers([0.1, 0.3, 0.6], 1, generator, "uniform").double() for _ in range(4000)) / 4000
    assert hits.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("count", [-1, 4])
def test_more_blocks_than_there_are_cannot_be_drawn(count: int) -> None:
    with pytest.raises(ValueError, match="must be 0 to 3"):
        sample_layers([1.0, 1.0, 1.0], count, torch.Generator())
