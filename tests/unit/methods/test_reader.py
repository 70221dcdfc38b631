"""A reader classifies by what a frozen model makes of an image block by block; it is loaded again, or not at all."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alast_tune import checkpoint
from alast_tune.config import HeadConfig, LoraConfig, MethodConfig, ModelConfig, ReaderConfig, TrainConfig
from alast_tune.cost import step_flops
from alast_tune.errors import ConfigError
from alast_tune.methods import Method, StepPlan, build_method
from alast_tune.models import EMBEDDED_MEAN, EMBEDDED_STD, InputSpec, architecture_of, create_model, outline
from alast_tune.models.backbone import predict, summaries_of
from alast_tune.models.reading import HEADS, Read, Reader, attach_reader, summary_count
from alast_tune.testing.steps import adam, batch, train
from alast_tune.tracking.registry import save_served
from tests.unit.every_method import DEPTH, vit
from tests.unit.kinds import KINDS, small

READS: tuple[Read, ...] = ("linear", "attentive")
SERVE = """
import sys
import warnings
from pathlib import Path
warnings.simplefilter("ignore")
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
images = pandas.DataFrame({"image": [Path(name).read_bytes() for name in sys.argv[2:]]})
print(model.predict(images).to_json(orient="records"))
assert "alast_tune" not in sys.modules
"""


def lively(read: Read, summaries: int = 4, width: int = 6, classes: int = 3) -> Reader:
    reader, generator = Reader(read, summaries, width, classes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return reader


def trained(config: MethodConfig, model: Any, steps: int = 2) -> Method:
    method = build_method(config, model)
    train(method, adam(method), range(steps))
    return method


def normalised(x_D: Tensor) -> Tensor:
    return (x_D - x_D.mean()) / (x_D.var(unbiased=False) + 1e-5).sqrt()


def test_the_linear_reader_by_hand() -> None:
    reader, (x_SD,) = lively("linear"), torch.randn(1, 4, 6)
    rows = reader.classifier.weight.unflatten(1, (4, 6))  # (K, S, D)
    expected = sum((rows[:, place] @ normalised(x_D) for place, x_D in enumerate(x_SD)), reader.classifier.bias)
    torch.testing.assert_close(reader(x_SD[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_the_attentive_reader_by_hand() -> None:
    """Each head takes its slice of every summary's value, by its own softmax over the summaries."""
    reader, (x_SD,) = lively("attentive"), torch.randn(1, 4, 6)
    rows = zip(x_SD, reader.scale, reader.shift, strict=True)
    z_SD = torch.stack([normalised(x_D) * scale_D + shift_D for x_D, scale_D, shift_D in rows])
    weights_SH = reader.query(z_SD).softmax(dim=0)
    values_SV = F.gelu(reader.value(z_SD))
    size = values_SV.shape[1] // HEADS
    taken = [weights_SH[:, head] @ values_SV[:, head * size : (head + 1) * size] for head in range(HEADS)]
    torch.testing.assert_close(reader(x_SD[None])[0], reader.classifier(torch.cat(taken)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_on_every_kind_of_model_evaluation_computes_what_the_model_itself_does(name: str) -> None:
    for read in READS:
        model = small(name)
        attach_reader(model, read, 10, torch.Generator().manual_seed(0))
        x_BCHW = torch.randn(3, 3, *model.patch_embed.img_size)
        with torch.no_grad():
            torch.testing.assert_close(predict(model.eval(), x_BCHW), model(x_BCHW), atol=1e-4, rtol=1e-4)
            assert summaries_of(model, x_BCHW).shape == (3, summary_count(model), model.embed_dim)


def test_summaries_are_class_token_and_mean_of_each_block_and_what_the_classifier_gets() -> None:
    model, images = vit({"reg_tokens": 4}).eval(), batch()[0]
    with torch.no_grad():
        blocks: Any = model.forward_intermediates(
            images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        expected = [one for patches, prefix in blocks[:-1] for one in (prefix[:, 0], patches.mean(dim=1))]
        expected.append(model.forward_features(images)[:, 0])
        found = summaries_of(model, images)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)
    assert found.shape[1] == summary_count(model) == 2 * (DEPTH - 1) + 1


def test_the_model_stays_as_it_was_and_keeps_no_graph() -> None:
    model = vit()
    before, reached = {name: tensor.clone() for name, tensor in model.state_dict().items()}, []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: reached.append(output.grad_fn))
    method = trained(ReaderConfig(), model)
    assert reached == [None] * len(reached) and len(reached) == 2 * (DEPTH - 1)
    after = method.export().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if not name.startswith("head."))
    assert {name for name in after if name not in before} == {"reader.classifier.weight", "reader.classifier.bias"}
    assert method.plan == StepPlan((17,) * DEPTH, (False,) * DEPTH)


def test_the_seed_alone_draws_the_first_weights() -> None:
    def drawn(seed: int, elsewhere: int) -> Tensor:
        torch.manual_seed(elsewhere)
        (weight, _) = build_method(ReaderConfig(), vit(), TrainConfig(seed=seed)).parameters()
        return weight

    assert torch.equal(drawn(3, 0), drawn(3, 1))
    assert not torch.equal(drawn(3, 0), drawn(4, 0))


@pytest.mark.parametrize("read", READS)
def test_on_a_real_size_a_step_costs_what_one_of_the_classifier_does(read: Read) -> None:
    def flops(config: MethodConfig) -> int:
        model = outline(ModelConfig(name="deit_small_patch16_224", num_classes=100))
        return step_flops(model, config, build_method(config, model).plan, 224, 32)

    head, reader, lora = flops(HeadConfig()), flops(ReaderConfig(read=read)), flops(LoraConfig())
    assert 1 < reader / head < 1.01 < 2 * 1.01 < lora / head


def saved(folder: Path, read: Read) -> Any:
    """Train a reader on the embedded backbone, and leave it as a training does."""
    settings = ModelConfig(num_classes=10)
    method = trained(ReaderConfig(read=read), create_model(settings))
    checkpoint.save_model(method, folder)
    checkpoint.save_model_card(
        settings, InputSpec(32, EMBEDDED_MEAN, EMBEDDED_STD), [f"class {k}" for k in range(10)], folder
    )
    return method.model.eval()


@pytest.mark.parametrize("read", READS)
def test_what_is_saved_loads_again_or_not_at_all(read: Read, tmp_path: Path) -> None:
    model, (images, _) = saved(tmp_path, read), batch()
    assert architecture_of(tmp_path / checkpoint.BEST) == "embedded"
    with torch.no_grad():
        expected = predict(model, images)
        for options in ({}, {"num_classes": 10, "keep_classifier": True}):
            again = create_model(ModelConfig(checkpoint=tmp_path, **options)).eval()
            assert torch.equal(predict(again, images), expected)
            torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=1e-5)
        anew = create_model(ModelConfig(checkpoint=tmp_path, num_classes=10)).eval()
        torch.testing.assert_close(anew.forward_features(images), model.forward_features(images))
        assert set(anew.state_dict()) == set(create_model(ModelConfig(num_classes=10)).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"reader\."):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(
        ConfigError, match=r"keep_classifier = True: the weights have a classifier of 10 classes, and 3"
    ):
        create_model(ModelConfig(checkpoint=tmp_path, num_classes=3, keep_classifier=True))
    with pytest.raises(
        ConfigError, match=r"^model.keep_classifier = True: .* is a side reader, which cannot be trained"
    ):
        build_method(HeadConfig(), again)


def test_without_classes_there_is_nothing_to_read() -> None:
    with pytest.raises(ConfigError, match=r"^model.num_classes = 0: is what a reader needs; give a number of classes$"):
        build_method(ReaderConfig(), create_model(ModelConfig()))


def test_mlflow_serves_it_where_there_is_no_alast_tune(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "attentive")
    save_served(tmp_path / "model", tmp_path / "served")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    files = []
    for number, image in enumerate(pixels):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    nowhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", SERVE, str(tmp_path / "served"), *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, env=nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images_BCHW = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected_BK = predict(model, images_BCHW).double().softmax(dim=1)
    found_BK = torch.tensor([row["probabilities"] for row in json.load(io.StringIO(done.stdout))])
    torch.testing.assert_close(found_BK.double(), expected_BK, atol=1e-5, rtol=1e-4)
