"""Which models can be fine-tuned, by which methods."""

from collections import Counter

import pytest

from alast_tune.config import FullConfig
from alast_tune.methods import support
from alast_tune.methods.support import all_support
from alast_tune.models import Backbone


def test_a_line_says_what_can_be_done_with_a_model_and_why_not() -> None:
    lines = {support.name: str(support) for support in all_support("*_tiny_*")}
    assert lines["vit_tiny_patch16_224"] == "vit_tiny_patch16_224: all methods"
    assert lines["eva02_tiny_patch14_224"] == (
        "eva02_tiny_patch14_224: all methods but tome: classifies from all tokens, as if each stood for one patch"
    )
    assert lines["deit_tiny_distilled_patch16_224"] == (
        "deit_tiny_distilled_patch16_224: no method: has a distillation token and two classifiers; "
        "take deit_tiny_patch16_224"
    )
    (parallel,) = all_support("vit_base_patch16_xp_224")
    assert parallel.methods == ["full", "head", "top_k", "reader"]
    assert "but alast, bsr: is built of ParallelScalingBlock, whose attention scores no tokens" in str(parallel)
    assert "but lora: has none of the layers qkv, proj, fc1, fc2 in its blocks" in str(parallel)


def test_a_method_that_cannot_be_asked_hinders_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(FullConfig):
        """Has a setting without a default."""

        depth: int

        def why_not(self, model: Backbone) -> str:
            return "is too deep" if len(model.blocks) > self.depth else ""

    monkeypatch.setattr(support, "known_methods", lambda: {"needy": Needy, "full": FullConfig})
    (found,) = all_support("vit_tiny_patch16_224")
    assert found.methods == ["full"]
    assert "but needy: cannot say whether it can (AttributeError: " in str(found)


@pytest.mark.slow
def test_nearly_all_that_timm_has_is_accepted() -> None:
    found = list(all_support())
    accepted = Counter(method for support in found for method in support.methods)
    assert len(found) >= 244
    assert min(accepted[method] for method in ("full", "head", "lora", "alast")) >= 230
