"""Each class as often as the others."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from alast_tune.data.balanced import BalancedSampler


def drawn(labels: list[int], seed: int) -> list[int]:
    return list(BalancedSampler(torch.tensor(labels), torch.Generator().manual_seed(seed)))


@given(st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=60), st.integers(0, 5))
def test_every_class_has_as_many_draws_and_no_image_two_more_than_another(labels: list[int], seed: int) -> None:
    order = drawn(labels, seed)
    assert len(order) == len(labels) == len(BalancedSampler(torch.tensor(labels), torch.Generator()))
    of_class = Counter(labels[index] for index in order)
    counts = [of_class[label] for label in set(labels)]
    assert max(counts) - min(counts) <= 1
    of_image = Counter(order)
    for label in set(labels):
        times = [of_image[index] for index, own in enumerate(labels) if own == label]
        assert max(times) - min(times) <= 1


def test_the_generator_decides_and_no_two_epochs_are_alike() -> None:
    labels = [0] * 30 + [1] * 6
    assert drawn(labels, 1) == drawn(labels, 1) != drawn(labels, 2)
    generator = torch.Generator().manual_seed(1)
    sampler = BalancedSampler(torch.tensor(labels), generator)
    first, second = list(sampler), list(sampler)
    assert first != second and first == drawn(labels, 1)
    assert [labels[index] for index in first] != sorted(labels[index] for index in first)  # classes are mixed
    left_out = set(range(30)) - set(first)
    assert left_out and not left_out <= set(range(30)) - set(second)  # others, another time


def test_the_class_that_has_one_more_is_another_one_each_time() -> None:
    labels = [0, 1, 2, 2]
    more = {Counter(labels[index] for index in drawn(labels, seed)).most_common(1)[0][0] for seed in range(20)}
    assert more == {0, 1, 2}
