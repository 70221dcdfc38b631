"""Low-rank adapters: nothing at first, merged at the end; under ALaST budgets and freezing act on them."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from alast_tune.config import ModelConfig, TrainConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Method, build_method
from alast_tune.methods.lora import save_adapters
from alast_tune.models import create_model
from tests.unit.every_method import DEPTH, MODELS, vit
from tests.unit.kinds import small

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def build(model: Any, name: str, **options: Any) -> Method:
    config = TrialConfig.model_validate({"method": {"name": name, **options}}).method
    return build_method(config, model, TrainConfig(seed=1))


def images(seed: int = 7) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def step(method: Method, optimizer: torch.optim.Optimizer, number: int) -> None:
    method.begin_step(number)
    (method.forward(images(number)) - 1).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.end_step()


def train(method: Method, steps: int) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(method.parameters(), 1e-2, weight_decay=0.1)
    for number in range(steps):
        step(method, optimizer, number)
    return optimizer


def adapted(model: Any) -> set[str]:
    """Layers that have adapters."""
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


def without_adapters(model: Any) -> dict[str, Tensor]:
    """The weights as they lie under the adapters, by timm's names."""
    return {
        name.replace(".base_layer", ""): tensor.clone()
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def test_only_adapters_and_the_classifier_train() -> None:
    method = build(vit(), "lora")
    train(method, 3)
    start = vit().state_dict()
    moved = {name for name, weight in without_adapters(method.model).items() if not torch.equal(weight, start[name])}
    assert moved == {"head.weight", "head.bias"}
    for name, parameter in method.model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name or name.startswith("head.")), name
        assert ".lora_B" not in name or float(parameter.detach().abs().min()) > 0, name
    assert {id(p) for p in method.parameters()} == {id(p) for p in method.model.parameters() if p.requires_grad}
    assert method.plan.trainable_L == (True,) * DEPTH
    assert method.plan.tokens_L == (17,) * DEPTH


@pytest.mark.parametrize("targets", [("qkv",), ("proj", "fc2"), ("qkv", "proj", "fc1", "fc2")], ids=str)
@pytest.mark.parametrize("blocks", [None, (1, 4)], ids=str)
def test_adapters_are_where_they_were_asked_for(targets: tuple[str, ...], blocks: tuple[int, ...] | None) -> None:
    method = build(vit(), "lora", targets=targets, blocks=blocks, rank=3)
    chosen = range(DEPTH) if blocks is None else blocks
    assert adapted(method.model) == {
        f"blocks.{block}.{layer}" for block in chosen for layer in TARGETS if layer.split(".")[1] in targets
    }
    assert method.plan.trainable_L == tuple(block in chosen for block in range(DEPTH))
    assert all(min(p.shape) == 3 for name, p in method.model.named_parameters() if ".lora_" in name)


def test_block_1_is_not_block_10() -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=8, depth=12, num_heads=1, num_classes=2)
    assert {name.split(".")[1] for name in adapted(build(model, "lora", blocks=(1,)).model)} == {"1"}


@pytest.mark.parametrize("name", ["lora", "alast"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_merged_it_is_plain_timm_and_computes_the_same(name: str, options: dict[str, Any]) -> None:
    adapters = {"rank": 4, "lora_alpha": 6.0}
    method = build(vit(options), name, **(adapters if name == "lora" else {"trainable_blocks": 4, "lora": adapters}))
    train(method, 4)
    plain = vit(options)
    plain.load_state_dict(method.export().state_dict(), strict=True)
    with torch.no_grad():
        expected = method.model.eval()(images())
        torch.testing.assert_close(plain.eval()(images()), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(vit(options).eval()(images()), expected, atol=1e-3)
        assert torch.equal(method.model(images()), expected)  # the export took nothing away
    assert len(adapted(method.model)) == 4 * DEPTH


def test_an_adapter_adds_its_product_scaled_by_alpha_over_rank() -> None:
    method = build(vit(), "lora", rank=4, lora_alpha=6.0, targets=("fc1",), blocks=(2,))
    train(method, 3)
    layer = method.model.blocks[2].mlp.fc1
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (6 / 4)
    exported = method.export().blocks[2].mlp.fc1.weight
    torch.testing.assert_close(exported, vit().blocks[2].mlp.fc1.weight + update)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora", {"rank": 4, "lora_alpha": 6.0}),
        ("lora", {"rank": 2, "targets": ("qkv", "fc2"), "blocks": (1, 4)}),
        ("alast", {"trainable_blocks": 2, "lora": {"rank": 2}}),  # most blocks are frozen when it is saved
    ],
    ids=["every layer", "some layers", "alast"],
)
@pytest.mark.parametrize("model", ["embedded", "test_vit"])
def test_peft_loads_the_adapters_alone(name: str, options: dict[str, Any], model: str, tmp_path: Path) -> None:
    settings = ModelConfig(name=model, pretrained=model == "embedded", image_size=32, num_classes=3)
    torch.manual_seed(0)
    start = create_model(settings)
    method = build(copy.deepcopy(start), name, **options)
    train(method, 3)
    save_adapters(method, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    torch.manual_seed(1)  # the classifier's first weights, which the file's take the place of
    loaded = peft.PeftModel.from_pretrained(start if model == "test_vit" else create_model(settings), tmp_path).eval()
    with torch.no_grad():
        expected = method.export().eval()(images())
        torch.testing.assert_close(loaded(images()), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(loaded.merge_and_unload()(images()), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(create_model(settings).eval()(images()), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "eva02_base_patch14_224", "eva02_tiny_patch14_224"])
def test_adapters_that_a_fresh_model_would_pass_by_are_not_saved(name: str, tmp_path: Path) -> None:
    """The last one's attention takes the weight of queries, keys and values from beside their adapter."""
    start = small(name)
    method = build(copy.deepcopy(start), "lora", rank=2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapters(method, tmp_path / "all")
    assert (tmp_path / "all").exists() == (name != "eva02_tiny_patch14_224")
    if name == "eva02_tiny_patch14_224":
        method = build(copy.deepcopy(start), "lora", rank=2, targets=("proj",))
        save_adapters(method, tmp_path / "all")
    size = start.patch_embed.img_size[0]
    pictures = torch.randn(2, 3, size, size)
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(start, tmp_path / "all").eval()
        torch.testing.assert_close(loaded(pictures), method.export().eval()(pictures), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"name": "full"}, {"name": "alast", "reading": "authors", "lora": {}}], ids=str)
def test_what_is_not_adapters_alone_is_not_saved_as_adapters(options: dict[str, Any], tmp_path: Path) -> None:
    save_adapters(build(vit(), **options, **({"trainable_blocks": 2} if "lora" in options else {})), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("selection", ["proportional", "softmax", "top_k"])
def test_only_blocks_with_adapters_are_drawn(selection: str) -> None:
    method = build(vit(), "alast", trainable_blocks=2, selection=selection, lora={"blocks": (1, 3, 4)})
    drawn = [0] * DEPTH
    optimizer = torch.optim.SGD(method.parameters(), 0.0)
    for number in range(20):
        step(method, optimizer, number)
        assert sum(method.plan.trainable_L) == 2
        drawn = [count + trains for count, trains in zip(drawn, method.plan.trainable_L, strict=True)]
    assert drawn[0] == drawn[2] == drawn[5] == 0
    assert selection == "top_k" or min(drawn[1], drawn[3], drawn[4]) > 0


def test_budgets_and_deltas_exist_for_blocks_without_adapters_too() -> None:
    method: Any = build(vit(), "alast", trainable_blocks=1, target_budget=0.3, lora={"blocks": (5,)})
    train(method, 2)
    assert len(method.budgets) == len(method.deltas) == DEPTH
    assert len(set(method.budgets)) > 1
    assert min(method.plan.tokens_L) < 17


BELOW = "nothing trains below method.from_block = 2; give later blocks"


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("lora", {"blocks": (0, 6)}, "method.blocks = 6: the model has blocks 0 to 5"),
        (
            "alast",
            {"trainable_blocks": 1, "lora": {"blocks": (0, 6)}},
            "method.lora.blocks = 6: the model has blocks 0 to 5",
        ),
        (
            "alast",
            {"trainable_blocks": 3, "lora": {"blocks": (0, 5)}},
            "method.trainable_blocks = 3: method.lora.blocks leaves 2 blocks",
        ),
        ("alast", {"trainable_blocks": 7, "lora": {}}, "method.trainable_blocks = 7: the model has 6 blocks"),
        *(
            (name, {"blocks": (4, 1), "from_block": 2}, f"method.blocks = 1: {BELOW}")
            for name in ("lora", "apla", "top_k")
        ),
        (
            "tome",
            {"merge": 2, "lora": {"blocks": (1,)}, "from_block": 2},
            f"method.lora.blocks = 1: {BELOW}",
        ),
    ],
)
def test_blocks_that_cannot_be_are_refused(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(vit(), name, **options)
    assert str(refusal.value) == complaint
