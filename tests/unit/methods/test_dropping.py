"""Where tokens go, and by chance: what flows on, what gradients reach, what a resumed or shared step draws."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from alast_tune.config import AlastConfig, TrainConfig, TrialConfig, parse
from alast_tune.errors import ConfigError
from alast_tune.methods import Alast, StepPlan, build_method, summary
from alast_tune.methods.summary import RandomScores, scores_of, summarise
from alast_tune.models.backbone import embed, run_attention, run_block, run_mlp
from alast_tune.testing.steps import step
from tests.unit.every_method import DEPTH, vit
from tests.unit.kinds import KINDS, small

KEPT = {"keep_multiple": 1, "initial_budget": 0.5, "trainable_blocks": 3}


def alast(model: Any, **options: Any) -> Alast:
    method = build_method(AlastConfig.model_validate(KEPT | options), model, TrainConfig(learning_rate=0.01))
    assert isinstance(method, Alast)
    return method


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}, {"frozen_backward": "residual"}], ids=str)
def test_with_a_class_token_dropping_before_the_mlp_changes_nothing_but_the_cost(options: dict[str, Any]) -> None:
    """An MLP looks at each token by itself, and the last one to rank tokens was the attention before it."""
    late, soon = (alast(vit(), drop_tokens=place, alpha=0.2, **options) for place in ("after_block", "before_mlp"))
    for number in range(3):
        torch.testing.assert_close(step(soon, number), step(late, number), rtol=1e-5, atol=1e-6)
        assert soon.plan == late.plan
        assert soon.budgets == pytest.approx(late.budgets, rel=1e-4)
        for mine, theirs in zip(soon.parameters(), late.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if mine.grad is not None and theirs.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)
                mine.grad = theirs.grad = None
    assert min(soon.plan.tokens_L) < soon.plan.tokens_L[0]
    assert len(set(soon.budgets)) == DEPTH


PLACED = [name for name in KINDS if name not in ("vit_dwee_patch16_reg1_gap_256", "vit_base_patch16_xp_224")]


@torch.no_grad()
@pytest.mark.parametrize("name", PLACED)
def test_in_every_kind_of_block_the_mlp_gets_the_tokens_that_its_attention_ranks_first(name: str) -> None:
    """And the delta is that of the tokens which are there before and after it."""
    model = small(name).eval()
    method = alast(model, drop_tokens="before_mlp", trainable_blocks=1)
    x_BND = embed(model, torch.randn(3, 3, *model.patch_embed.img_size))
    prefix = int(model.num_prefix_tokens)
    scores = scores_of(model)
    scores.listen(True)
    attended_BND = run_attention(model, 0, x_BND)
    chosen_BK = scores.patches(0, attended_BND, None).topk(7).indices.sort(dim=1).values + prefix
    rows_BK = torch.cat([torch.arange(prefix).expand(3, -1), chosen_BK], dim=1)

    def rows(tokens_BND: Tensor) -> Tensor:
        return tokens_BND.gather(1, rows_BK[..., None].expand(-1, -1, tokens_BND.shape[2]))

    expected_BND = run_mlp(model, 0, rows(attended_BND))
    seen: list[Tensor] = []
    block: Any = model.blocks[0]
    block.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    deltas: list[Tensor] = []

    def choose(before_BND: Tensor, after_BND: Tensor) -> int:
        deltas.append(method._flow.delta(before_BND, after_BND))
        return 7 + prefix

    flowing = method._flow.run(0, True, True, x_BND, choose, 7 + prefix)
    y_BND = flowing[0] if isinstance(flowing, tuple) else flowing
    torch.testing.assert_close(y_BND, expected_BND)
    assert [tuple(each.shape[:2]) for each in seen] == [(3, 7 + prefix)]
    if isinstance(flowing, tuple):
        assert torch.equal(flowing[1], rows_BK)
    moved_BD = summarise(model, expected_BND) - summarise(model, rows(x_BND))
    if model.global_pool == "token":
        moved_BD = run_block(model, 0, x_BND)[:, 0] - x_BND[:, 0]
    torch.testing.assert_close(deltas[0], moved_BD.square().sum())


def test_a_frozen_block_passes_the_gradient_to_the_tokens_that_are_kept_alone() -> None:
    model = vit()
    method = alast(model, drop_tokens="before_mlp", frozen_backward="residual")
    x_BND = torch.randn(2, 17, 32, requires_grad=True)
    stage = method._flow.stages(StepPlan((17, 17, 9, 9, 9, 9), (False,) * DEPTH))[1]
    y_BND = stage.run(x_BND, 9)
    weights_BND = torch.randn_like(y_BND)
    (y_BND * weights_BND).sum().backward()
    assert x_BND.grad is not None
    reached_BN = x_BND.grad.abs().sum(dim=2) > 0
    assert reached_BN.sum(dim=1).tolist() == [9, 9] and reached_BN[:, 0].all()
    assert torch.equal(x_BND.grad[reached_BN].reshape(weights_BND.shape), weights_BND)


def test_blocks_that_cannot_be_gone_between_and_budgets_of_the_same_step_are_refused() -> None:
    class Whole(Block):
        """Does what nobody knows."""

    model = vit({"block_fn": Whole})
    alast(model)
    why = "the model is built of Whole, which is not an attention and then an MLP; take another"
    with pytest.raises(ConfigError, match=f"^method.name = alast: {why}"):
        alast(model, drop_tokens="before_mlp")
    with pytest.raises(ConfigError) as caught:
        parse(TrialConfig, {"method": {"name": "alast", "drop_tokens": "before_mlp", "reading": "paper"}})
    assert str(caught.value) == (
        "method.drop_tokens = before_mlp: drops before the block's delta is known; "
        "set method.budget_timing: next_step, or after_block here"
    )


def ranks(scores: RandomScores, index: int, *sizes: int) -> Tensor:
    """Which of four patches would stay, of each image of micro-batches."""
    rows = [scores.patches(index, torch.zeros(size, 17, 2), None) for size in sizes]
    return torch.cat(rows).argsort(dim=1, descending=True)[:, :4]


def test_chance_differs_by_image_block_step_seed_and_rank_and_by_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int = 3, at: int = 5, index: int = 2, rank: int = 0, sizes: tuple[int, ...] = (6,)) -> Tensor:
        monkeypatch.setattr(summary, "world", lambda: (rank, 2))
        scores = RandomScores(vit(), seed)
        scores.begin_step(4)
        ranks(scores, 1, 3)  # what came before does not matter
        scores.begin_step(at)
        return ranks(scores, index, *sizes)

    first = drawn()
    assert torch.equal(drawn(), first)
    assert torch.equal(drawn(sizes=(2, 3, 1)), first)
    assert len(set(map(tuple, first.tolist()))) == 6
    for other in ({"seed": 4}, {"at": 6}, {"index": 3}, {"rank": 1}):
        assert not torch.equal(drawn(**other), first), other


@pytest.mark.parametrize("place", ["after_block", "before_mlp"])
def test_a_resumed_run_draws_the_same_tokens(place: str) -> None:
    options = {"ranking": "random", "drop_tokens": place, "selection": "uniform"}
    whole = alast(vit(), **options)
    losses = [step(whole, number) for number in range(3)]
    resumed = alast(vit(), **options)
    step(resumed, 0)
    fresh = alast(vit(), **options)
    fresh.load_state_dict(resumed.state_dict())
    assert [step(fresh, number) for number in (1, 2)] == losses[1:]
    attended = alast(vit(), **options | {"ranking": "attention"})
    assert step(attended) != losses[0] and attended.plan == resumed.plan
