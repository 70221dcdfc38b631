"""The class token's attention row, and which tokens stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alast_tune.methods.tokens import class_attention, keep_count, keep_tokens


def test_row_equals_that_of_unfused_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 10, 8, generator=generator) for _ in range(2))
    whole = (q @ k.transpose(-2, -1) * 0.3).softmax(dim=-1)
    torch.testing.assert_close(class_attention(q, k, 0.3), whole[:, :, 0, 1:].mean(dim=1))


def test_kept_tokens_are_the_best_in_their_own_order_behind_class_token_and_registers() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1)  # class token 0, register 1, patches 2 to 5
    kept, index = keep_tokens(x, torch.tensor([[0.4, 0.1, 0.2, 0.3]]), 2)
    assert kept.flatten().tolist() == [0, 1, 2, 5]
    assert index.tolist() == [[0, 3]]


def test_ties_go_to_the_earlier_position() -> None:
    _, index = keep_tokens(torch.zeros(1, 6, 2), torch.full((1, 5), 0.2), 3)
    assert index.tolist() == [[0, 1, 2]]


def test_every_image_keeps_its_own_and_gradients_reach_only_those() -> None:
    x = torch.zeros(2, 4, 1, requires_grad=True)
    kept, _ = keep_tokens(x, torch.tensor([[3.0, 1, 2], [1, 2, 3]]), 1)
    kept.sum().backward()
    assert x.grad is not None
    assert x.grad.squeeze(2).tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("count", [0, 4])
def test_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to 3"):
        keep_tokens(torch.zeros(1, 4, 2), torch.zeros(1, 3), count)


def test_share_of_the_image_or_of_what_arrives() -> None:
    assert keep_count(0.29, 100, 100, 1, "image") == 29  # not 28, which floating point would say
    assert keep_count(0.5, 196, 60, 1, "image") == 60  # never more than arrive
    assert keep_count(0.5, 196, 59, 1, "incoming") == 30  # int(0.5 * 60 tokens)
    assert keep_count(0.5, 49, 49, 1, "image", multiple=8) == 24
    assert keep_count(0.51, 49, 49, 1, "image", multiple=8) == 24
    assert keep_count(0.52, 49, 49, 1, "image", multiple=8) == 32
    assert keep_count(0.001, 49, 49, 1, "image") == 1


def test_compounding_is_as_drastic_as_noted() -> None:
    """A constant 0.9 of what arrives leaves 60 of 197 tokens after 12 blocks."""
    patches = 196
    for _ in range(12):
        patches = keep_count(0.9, 196, patches, 1, "incoming")
    assert patches + 1 == pytest.approx(60, abs=6)


@given(st.floats(0.001, 1), st.integers(1, 300), st.integers(1, 16), st.sampled_from(["image", "incoming"]))
def test_what_flows_on_is_never_nothing_nor_more_than_arrives(
    budget: float, arriving: int, multiple: int, reference: str
) -> None:
    assert 1 <= keep_count(budget, 300, arriving, 1, reference, multiple) <= arriving
