"""The tap gives what unfused attention computes, and holds on to nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alast_tune.methods.tap import AttentionTap
from tests.unit.every_method import MODELS, vit


def setting(options: dict[str, Any]) -> tuple[Any, AttentionTap, Tensor, list[Tensor]]:
    """Attention of a block behind the tap, unfused, what goes in, and the softmax rows that timm computes."""
    model = vit(options)
    tap, attention = AttentionTap(model), model.blocks[2].attn
    attention.fused_attn = False
    torch.nn.init.normal_(attention.qkv.weight, std=0.3)
    if isinstance(attention.q_norm, torch.nn.LayerNorm):
        torch.nn.init.normal_(attention.q_norm.weight, mean=2)
        torch.nn.init.normal_(attention.k_norm.bias)
    rows: list[Tensor] = []
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: rows.append(output))
    return attention, tap, torch.randn(3, 11, model.embed_dim, requires_grad=True), rows


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_queries_and_keys_make_the_softmax_that_timm_computes(options: dict[str, Any]) -> None:
    attention, tap, x, rows = setting(options)
    tap.listening = True
    attention(x)
    q, k = tap.queries_and_keys(attention)
    torch.testing.assert_close((q @ k.mT * attention.scale).softmax(dim=-1), rows[0])
    assert not q.requires_grad and not k.requires_grad


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_mean_keys_are_those_that_attention_uses(options: dict[str, Any]) -> None:
    attention, tap, x, _ = setting(options)
    used: list[Tensor] = []
    attention.k_norm.register_forward_hook(lambda module, inputs, output: used.append(output))
    tap.listening = True
    attention(x)
    keys = tap.mean_keys()
    torch.testing.assert_close(keys, used[0].mean(dim=1))
    assert keys.shape == (3, 11, attention.head_dim) and not keys.requires_grad


ASK = {"both": lambda tap, attention: tap.queries_and_keys(attention), "keys": lambda tap, attention: tap.mean_keys()}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_it_forgets_once_it_is_asked_and_does_not_listen_unasked(ask: Any) -> None:
    attention, tap, x, _ = setting({})
    attention(x)
    with pytest.raises(AssertionError, match="asked for right after"):
        ask(tap, attention)
    tap.listening = True
    attention(x)
    ask(tap, attention)
    assert not tap.listening
    with pytest.raises(AssertionError, match="asked for right after"):
        ask(tap, attention)
    tap.listening = True
    attention(x)
    tap.forget()
    assert not tap.listening
    with pytest.raises(AssertionError, match="asked for right after"):
        ask(tap, attention)


def test_listening_changes_no_number() -> None:
    model = vit()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    tap = AttentionTap(model)
    tap.listening = True
    assert torch.equal(model(images), before)
    assert list(model.state_dict()) == list(vit().state_dict())
