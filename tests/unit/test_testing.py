"""The checks that every method has to pass find what they look for."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from torch import Tensor, nn

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.methods import Constant, Flow, Method, Stage, StepPlan
from alast_tune.testing import check_method
from tests.documents import method_of_the_docs
from tests.unit.every_method import vit


class Heads(MethodConfig):
    """The classifier trains."""

    name: Literal["heads"] = "heads"

    def trainable_parameters(self, model: Any) -> list[nn.Parameter]:
        return list(model.head.parameters())


class Drawing(Constant):
    """Scales gradients by how many steps it has taken, which no state tells."""

    steps = 0

    def end_step(self) -> None:
        self.steps += 1
        self.model.head.bias.grad *= self.steps


class Forgetful(Heads):
    def build(self, model: Any, train: TrainConfig) -> Method:
        return Drawing(self, model)


class Greedy(Constant):
    def begin_step(self, step: int, micro_batches: Any = (), token_keep: float = 1.0) -> None:
        self.model.norm.weight.requires_grad_(True)


class Unlisted(Heads):
    def build(self, model: Any, train: TrainConfig) -> Method:
        return Greedy(self, model)


class Twice(Constant):
    """Does more than its flow says."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return super().forward(images_BCHW) + 0 * super().forward(images_BCHW)


class Unmeasured(Heads):
    def build(self, model: Any, train: TrainConfig) -> Method:
        return Twice(self, model)


class Shifted(Heads):
    class Off(Flow):
        def stages(self, plan: StepPlan) -> list[Stage]:
            first, *rest = super().stages(plan)
            return [Stage(lambda x, leaving: first.run(x, leaving) * 2, first.arriving, first.leaving), *rest]

    def flow(self, model: Any) -> Flow:
        return self.Off(self, model)


class Nameless(Heads):
    def words(self) -> Iterator[tuple[str, str]]:
        yield "colour", "blue"


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (Nameless(), r"its words are of \['colour'\], which are no settings"),
        (Shifted(), "all tokens flow, and the logits are not the model's"),
        (Unlisted(), "has a gradient and is frozen"),
        (Unmeasured(), "blocks ran more often than the plan says|FLOPs are predicted"),
        (Forgetful(), "training goes another way|resumed, step"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MethodConfig) else "",
)
def test_a_faulty_method_is_found_out(config: MethodConfig, wrong: str) -> None:
    with pytest.raises(AssertionError, match=wrong):
        check_method(config, models=(vit,))


def test_the_method_of_the_docs_passes() -> None:
    method = method_of_the_docs()
    check_method(method(), method(biases="few"))


def test_there_is_something_to_check() -> None:
    with pytest.raises(AssertionError, match="needs settings"):
        check_method()
