"""The three readings of the paper, each against a slow one: plain loops, unfused attention, its own training.

The slow one does equations 4 to 6 and section 3.2 block by block and image by image, and then its own SGD step; only
which blocks train is taken from the method, since that is drawn at random.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from alast_tune.config import AlastConfig, TrainConfig
from alast_tune.methods import Alast, build_method
from tests.unit.every_method import DEPTH, MODELS, vit

STEPS, RATE, BATCH = 4, 0.02, 3
FINE = {"patch_size": 4}  # 64 patches: budgets have something to choose from


@dataclass
class Reading:
    """A reading, as the paper and its two interpretations put it."""

    start: float | None
    """Budgets before the first step; None: from the first images."""
    low: float
    same_step: bool
    """A block's new budget already decides what flows on from it."""
    compounds: bool
    """The budget is a share of the tokens that arrive, class token counted, not of the image's patches."""
    multiple: int
    summed: bool
    """Deltas are summed over the batch, not averaged."""
    first_is_zero: bool
    """Before the first step deltas were 0; otherwise its budgets do not move."""
    embeddings: bool


READINGS = {
    "paper": Reading(1.0, 0.01, True, False, 1, False, False, False),
    "authors": Reading(0.9, 0.5, True, True, 1, True, True, True),
    "fast": Reading(None, 0.1, False, False, 8, False, False, False),
}
ALPHAS = {"paper": 0.05, "authors": 0.01, "fast": 0.05}
"""Such that budgets move, but not all to where they are clipped."""


class Slow:
    """One model under one reading."""

    def __init__(self, reading: Reading, alpha: float, model: Any) -> None:
        self.reading, self.alpha, self.model = reading, alpha, model
        self.budgets = [reading.start or 1.0] * DEPTH
        self.previous: list[float] | None = [0.0] * DEPTH if reading.first_is_zero else None
        self.tokens: list[int] = []
        self.deltas: list[float] = []

    def step(self, images_BCHW: Tensor, trainable_L: tuple[bool, ...]) -> Tensor:
        """Forward, budgets, and an SGD step of what trains; gives the logits."""
        logits_BK = self._forward(images_BCHW)
        chosen = [*self.model.norm.parameters(), *self.model.head.parameters()]
        for block, trains in zip(self.model.blocks, trainable_L, strict=True):
            chosen += list(block.parameters()) if trains else []
        if self.reading.embeddings:
            chosen += [self.model.cls_token, self.model.pos_embed, *self.model.patch_embed.parameters()]
            chosen += [] if self.model.reg_token is None else [self.model.reg_token]
        gradients = torch.autograd.grad(loss_of(logits_BK), chosen)
        with torch.no_grad():
            for parameter, gradient in zip(chosen, gradients, strict=True):
                parameter -= RATE * gradient
        if not self.reading.same_step:
            for index in range(DEPTH):
                self._learn(index)
        self.previous = self.deltas
        return logits_BK

    def _forward(self, images_BCHW: Tensor) -> Tensor:
        model = self.model
        x_BND = model._pos_embed(model.patch_embed(images_BCHW))
        prefix = model.num_prefix_tokens
        patches = x_BND.shape[1] - prefix
        if self.reading.start is None and self.previous is None:
            self._calibrate(x_BND)
        self.tokens, self.deltas = [], []
        for index, block in enumerate(model.blocks):
            arriving = x_BND.shape[1]
            self.tokens.append(arriving)
            y_BND, row_BN = run(block, x_BND)
            # Equation 5: squared over the width; and over the batch.
            squares = [float(((y[0] - x[0]) ** 2).sum()) for x, y in zip(x_BND.detach(), y_BND.detach(), strict=True)]
            self.deltas.append(sum(squares) if self.reading.summed else sum(squares) / len(squares))
            if self.reading.same_step:
                self._learn(index)
            if index < DEPTH - 1:
                count = self._flow_on(self.budgets[index], patches, arriving, prefix)
                images = []
                for y, row in zip(y_BND, row_BN.tolist(), strict=True):
                    ranked = sorted(range(prefix, arriving), key=lambda token: -row[token])
                    images.append(y[[*range(prefix), *sorted(ranked[:count])]])
                y_BND = torch.stack(images)
            x_BND = y_BND
        logits_BK: Tensor = model.head(model.norm(x_BND)[:, 0])
        return logits_BK

    def _flow_on(self, budget: float, patches: int, arriving: int, prefix: int) -> int:
        """Section 3.2: of the patch tokens at least one, and never more than there are."""
        count = math.floor(budget * (arriving if self.reading.compounds else patches))
        while count % self.reading.multiple:
            count += 1
        return max(1, min(count, arriving - prefix))

    def _learn(self, index: int) -> None:
        """Equation 6."""
        if self.previous is not None:
            moved = self.budgets[index] + self.alpha * (self.deltas[index] - self.previous[index])
            self.budgets[index] = min(max(moved, self.reading.low), 1.0)

    @torch.no_grad()
    def _calibrate(self, x_BND: Tensor) -> None:
        """In proportion to |f(x)| / |f(x) + x| of the class token (figure 2), mean 0.6 before they are clipped."""
        ratios = []
        for block in self.model.blocks:
            y_BND, _ = run(block, x_BND)
            each = [float((y[0] - x[0]).norm() / y[0].norm()) for x, y in zip(x_BND, y_BND, strict=True)]
            ratios.append(sum(each) / len(each))
            x_BND = y_BND
        self.budgets = [min(max(ratio * 0.6 * DEPTH / sum(ratios), self.reading.low), 1.0) for ratio in ratios]


def run(block: Any, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    """One block with unfused attention: its output, and the class token's attention row, mean over heads (B, N)."""
    attention, (B, N, _) = block.attn, x_BND.shape
    qkv = attention.qkv(block.norm1(x_BND)).reshape(B, N, 3, attention.num_heads, attention.head_dim)
    q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
    q, k = attention.q_norm(q), attention.k_norm(k)
    softmax_BHNN = (q @ k.transpose(2, 3) / math.sqrt(attention.head_dim)).softmax(dim=-1)
    x_BND = x_BND + block.ls1(attention.proj((softmax_BHNN @ v).transpose(1, 2).reshape(B, N, -1)))
    return x_BND + block.ls2(block.mlp(block.norm2(x_BND))), softmax_BHNN[:, :, 0].detach().mean(dim=1)


def lively(options: dict[str, Any]) -> Any:
    """Weights so large that blocks move the class token, each by another amount."""
    model = vit(options | FINE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            for parameter in block.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.05 + 0.02 * (index * 5 % DEPTH)))
    return model


def loss_of(logits_BK: Tensor) -> Tensor:
    return (logits_BK - 1).square().mean()


def images(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(BATCH, 3, 32, 32, generator=generator) * (1 + number % 3)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("reading", READINGS)
def test_reading_equals_the_slow_one(reading: str, options: dict[str, Any]) -> None:
    alpha = ALPHAS[reading] * (8 if "init_values" in options else 1)  # layer scale makes deltas small
    model = lively(options)
    slow = Slow(READINGS[reading], alpha, copy.deepcopy(model))
    config = AlastConfig.model_validate({"reading": reading, "alpha": alpha, "trainable_blocks": 4})
    method = build_method(config, model, TrainConfig())
    assert isinstance(method, Alast)
    optimizer = torch.optim.SGD(method.parameters(), RATE)
    for number in range(STEPS):
        method.begin_step(number)
        logits = method.forward(images(number))
        loss_of(logits).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()
        expected = slow.step(images(number), method.plan.trainable_L)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert sum(method.plan.trainable_L) == 4
        assert method.plan.tokens_L == tuple(slow.tokens)
        assert method.plan.calibrated == (reading == "fast" and number == 0)
        assert method.deltas == pytest.approx(slow.deltas, rel=1e-3)
        assert method.budgets == pytest.approx(slow.budgets, abs=1e-4)
    for (name, one), other in zip(model.named_parameters(), slow.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=name)
    assert len(set(method.budgets)) > 2, "budgets all the same would prove little"
    assert min(method.plan.tokens_L) < method.plan.tokens_L[0]
