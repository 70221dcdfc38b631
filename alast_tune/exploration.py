"""Exploration: which blocks are the most influential, by training each alone for a few steps."""

from __future__ import annotations

import math
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch

from alast_tune.config import BlockChoice, TopKConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.evaluate import evaluate
from alast_tune.methods import build_method, most_influential
from alast_tune.models import input_spec
from alast_tune.optimizers import build_optimizer
from alast_tune.parallel import total_over_ranks
from alast_tune.running_epoch import seed_dropout

if TYPE_CHECKING:
    from alast_tune.run import Run


def explore(run: Run) -> tuple[int, ...]:
    """Find a run's most influential blocks: each trains alone for a few steps, and later batches score it.

    The weights are put back after each probe; what the probes cost is in the meter.

    Raises:
        ConfigError: more blocks are wanted than there are.
        DivergedError: too few of the probes end with a finite loss.
    """
    choice, train, model = run.config.method, run.config.train, run.model
    alike = train.model_copy(update={"layer_decay": 1.0})  # or the blocks with the highest rates would be chosen
    assert isinstance(choice, BlockChoice)
    first, depth = choice.from_block, len(model.blocks)
    if choice.count > depth - first:
        what = f"method.from_block = {first} leaves" if first else "the model has"
        raise ConfigError("method.count", choice.count, f"{what} {max(0, depth - first)} blocks; give no more")
    drawn = list(islice(chain.from_iterable(run._loader(epoch) for epoch in (0, 1)), 2 * choice.probe_steps))
    learning, scoring = drawn[: -(len(drawn) // 2)], drawn[-(len(drawn) // 2) :]
    _, scored = total_over_ranks(torch.zeros((), device=run.device), sum(len(labels) for _, labels in scoring))
    image_size = input_spec(model).image_size
    losses = []
    run.meter.exploring = True
    for block in range(first, depth):
        probe = build_method(TopKConfig(blocks=(block,), from_block=first), model, train)
        optimizer = build_optimizer(alike, probe)
        before = [parameter.detach().clone() for parameter in probe.parameters()]
        seed_dropout(train.seed, 0)
        model.train()
        for images, labels in learning:
            run._step(probe, optimizer, images, labels)
        with run.meter.evaluation(optimizer, image_size, run.micro_batch(probe, optimizer)) as size:
            chunks = [zip(images.split(size), labels.split(size), strict=True) for images, labels in scoring]
            loss = evaluate(model, chain.from_iterable(chunks), run.device, run._dtype).loss
        run.meter.add_forward(image_size, scored)
        losses.append(loss if math.isfinite(loss) else math.inf)
        with torch.no_grad():
            for parameter, value in zip(probe.parameters(), before, strict=True):
                parameter.copy_(value)
    run.meter.end_exploration()
    if sum(map(math.isfinite, losses)) < choice.count:
        raise DivergedError("the probes of exploration have diverged; lower train.learning_rate")
    return tuple(first + block for block in most_influential(losses, choice.count))
