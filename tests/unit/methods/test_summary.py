"""Summaries and scores are what the model's own modules make of the tokens, for each way to classify."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.methods.summary import scores_of, summarise, summary_updates, why_no_scores
from alast_tune.models.backbone import Backbone, blocks_of, embed, run_block

SMALL: dict[str, dict[str, Any]] = {
    "class token": {"model_name": "deit_tiny_patch16_224"},
    "class token, rotary": {"model_name": "eva02_base_patch16_clip_224", "embed_dim": 192, "num_heads": 3},
    "class token, rotary by block and head": {"model_name": "vit_small_patch16_rope_mixed_224"},
    "mean": {"model_name": "vit_little_patch16_reg1_gap_256"},
    "mean, rotary, class token and registers": {"model_name": "vit_small_patch16_dinov3", "dynamic_img_size": False},
    "pool": {"model_name": "vit_base_patch16_siglip_224", "embed_dim": 192, "num_heads": 3},
    "pool, class token, rotary": {"model_name": "vit_pe_core_tiny_patch16_384"},
}


def small(name: str) -> Any:
    """Two lively blocks on 16 patches."""
    torch.manual_seed(0)
    model = timm.create_model(**SMALL[name], pretrained=False, depth=2, img_size=64, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def attention_of(model: Backbone, index: int, x_BND: Tensor) -> Tensor:
    """Softmax that timm computes, unfused, (B, H, N, N)."""
    attention = blocks_of(model)[index].attn
    seen: list[Tensor] = []
    hook = attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    attention.fused_attn = False
    run_block(model, index, x_BND)
    attention.fused_attn = True
    hook.remove()
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in SMALL if "pool" not in name])
def test_attention_s_scores_are_timm_s_softmax(name: str) -> None:
    model = small(name)
    x_BND = embed(model, torch.randn(3, 3, 64, 64))
    scores, prefix = scores_of(model), model.num_prefix_tokens
    scores.listen(True)
    y_BND = run_block(model, 0, x_BND)
    found_BP = scores.patches(0, y_BND, None)
    rows_BHNN = attention_of(model, 0, x_BND)
    token = model.global_pool == "token"
    expected_BN = (rows_BHNN[:, :, 0] if token else rows_BHNN.mean(dim=2)).mean(dim=1)
    torch.testing.assert_close(found_BP, expected_BN[:, prefix:])
    assert found_BP.std() > 1e-3 / found_BP.shape[1]  # ranks something


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in SMALL if "pool" in name])
def test_the_pool_s_scores_are_the_attention_that_it_pays(name: str) -> None:
    model = small(name)
    x_BND = embed(model, torch.randn(3, 3, 64, 64))
    pool, scores = model.attn_pool, scores_of(model)
    found_BP = scores.patches(0, x_BND, None)
    pool.fused_attn = False
    rows: list[Tensor] = []
    softmax = Tensor.softmax

    def noting(self: Tensor, dim: int) -> Tensor:
        rows.append(softmax(self, dim))
        return rows[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "softmax", noting)
        model.pool(model.norm(x_BND))
    expected_BN = rows[0][:, :, 0].mean(dim=1)
    torch.testing.assert_close(found_BP, expected_BN[:, -found_BP.shape[1] :])
    looked_at = x_BND[:, -expected_BN.shape[1] :]
    torch.testing.assert_close(summarise(model, x_BND), (looked_at * expected_BN[..., None]).sum(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in SMALL if "rotary" in name])
def test_positions_follow_the_tokens_that_are_kept(name: str) -> None:
    """A block on kept tokens is the block on all, with attention to the others masked."""
    model = small(name)
    x_BND = embed(model, torch.randn(2, 3, 64, 64))
    prefix = model.num_prefix_tokens
    patches = torch.stack([torch.randperm(16)[:7].sort().values for _ in range(2)])
    kept_BN = torch.cat([torch.arange(prefix).expand(2, -1), prefix + patches], dim=1)
    mask_BN = torch.zeros(2, x_BND.shape[1]).scatter(1, kept_BN, 1.0).bool()
    rows = kept_BN[..., None].expand(-1, -1, x_BND.shape[2])
    few_BND = run_block(model, 0, x_BND.gather(1, rows), kept_BN)
    all_BND = run_block(model, 0, x_BND, mask=mask_BN[:, None, None])
    torch.testing.assert_close(few_BND, all_BND.gather(1, rows), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(few_BND, run_block(model, 0, x_BND.gather(1, rows), kept_BN.flip(0)))


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_updates_are_those_of_the_summary(name: str) -> None:
    model = small(name)
    x_BND = embed(model, torch.randn(2, 3, 64, 64))
    magnitudes_L, deltas_L = summary_updates(model, x_BND)
    y_BND = blocks_of(model)[0](x_BND, **({} if getattr(model, "rope", None) is None else _rope(model)))
    before_BD, after_BD = summarise(model, x_BND), summarise(model, y_BND)
    torch.testing.assert_close(deltas_L[0], (after_BD - before_BD).square().sum())
    torch.testing.assert_close(magnitudes_L[0], ((after_BD - before_BD).norm(dim=1) / after_BD.norm(dim=1)).mean())


def _rope(model: Any) -> dict[str, Tensor]:
    rope = model.rope.get_embed()
    return {"rope": rope[0] if model.rope_mixed else rope}


@pytest.mark.parametrize(
    ("model_name", "why"),
    [
        ("vit_pwee_patch16_reg1_gap_256", "is built of ParallelScalingBlock, whose attention scores no tokens"),
        ("vit_dwee_patch16_reg1_gap_256", "has differential attention, which scores no tokens"),
    ],
)
def test_models_without_scores_are_refused_in_a_line(model_name: str, why: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(model_name, pretrained=False)
    assert why_no_scores(model) == why
    with pytest.raises(ConfigError, match=f"^method.name = bsr: the model {why}; take another method or another"):
        build_method(TrialConfig.model_validate({"method": {"name": "bsr", "blocks": [1]}}).method, model)
    model.attn_pool = nn.Identity()
    assert why_no_scores(model) == "has an attention pool of another kind than SigLIP's"
