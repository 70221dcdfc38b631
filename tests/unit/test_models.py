"""Models are timm's own, weights arrive exactly, and what cannot work is refused in one line with its remedy."""

import argparse
import collections
import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from alast_tune.config import ModelConfig
from alast_tune.errors import ConfigError
from alast_tune.models import (
    EMBEDDED_WEIGHTS,
    Resizing,
    create_model,
    embedded_vit,
    input_spec,
    outline,
    timm_arguments,
    weights_fingerprint,
)

SHARED = Path(os.environ.get("ALAST_TUNE_SHARED", Path(__file__).parents[3] / "shared"))
FOCUS = SHARED / "data" / "vit_small_patch14_focus.safetensors"
NOWHERE = "http://127.0.0.1:9"


def refusal(**fields):
    with pytest.raises(ConfigError) as caught:
        create_model(ModelConfig(**fields))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{caught.value.field} = ")
    return text


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that does not answer, whatever network there is."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def tiny_state():
    """Weights that timm's deit_tiny_patch16_224 could have."""
    torch.manual_seed(1)
    return timm.create_model("deit_tiny_patch16_224", num_classes=7).state_dict()


@pytest.fixture(params=[".safetensors", ".pth", ".pt", ".bin"])
def tiny_checkpoint(request, tmp_path, tiny_state):
    path = tmp_path / f"tiny{request.param}"
    if request.param == ".safetensors":
        save_file(tiny_state, path)
    else:
        wrapped = {".pth": {"model": tiny_state, "args": argparse.Namespace(lr=1)}, ".bin": {"state_dict": tiny_state}}
        torch.save(wrapped.get(request.param, tiny_state), path)
    return path


class TestEmbedded:
    def test_weights_are_the_packages_in_single_precision(self):
        model = create_model(ModelConfig())
        stored = load_file(EMBEDDED_WEIGHTS)
        assert set(model.state_dict()) == set(stored)
        for key, value in model.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, stored[key].float())
        assert (len(model.blocks), model.num_classes) == (12, 0)

    def test_a_classifier_is_added(self):
        model = create_model(ModelConfig(num_classes=10))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)

    def test_without_pretraining_weights_are_the_seeds(self):
        torch.manual_seed(3)
        model = create_model(ModelConfig(pretrained=False, num_classes=10))
        torch.manual_seed(3)
        expected = embedded_vit(10).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    def test_a_trained_one_comes_back_from_its_checkpoint(self, tmp_path):
        trained = embedded_vit(10)
        save_file(trained.state_dict(), tmp_path / "trained.safetensors")
        config = ModelConfig(checkpoint=tmp_path / "trained.safetensors", num_classes=10, keep_classifier=True)
        model = create_model(config)
        assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())

    def test_takes_other_image_sizes(self):
        model = create_model(ModelConfig(image_size=48, num_classes=3))
        assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
        assert torch.equal(model.patch_embed.proj.weight, create_model(ModelConfig()).patch_embed.proj.weight)

    def test_input(self):
        spec = input_spec(create_model(ModelConfig(image_size=48)))
        assert (spec.image_size, spec.mean, spec.std) == (48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert hash(spec)


class TestCheckpoint:
    def test_round_trip(self, tiny_checkpoint, tiny_state):
        config = ModelConfig(
            name="deit_tiny_patch16_224", checkpoint=tiny_checkpoint, num_classes=7, keep_classifier=True
        )
        state = create_model(config).state_dict()
        assert state.keys() == tiny_state.keys()
        assert all(torch.equal(state[key], tiny_state[key]) for key in state)

    @pytest.mark.parametrize("num_classes", [3, None])
    def test_a_classifier_of_another_size_is_dropped(self, tmp_path, tiny_state, num_classes):
        save_file(tiny_state, tmp_path / "tiny.safetensors")
        config = ModelConfig(
            name="deit_tiny_patch16_224", checkpoint=tmp_path / "tiny.safetensors", num_classes=num_classes
        )
        model = create_model(config)
        assert model.num_classes == (num_classes or 1000)
        assert torch.equal(model.blocks[11].mlp.fc2.weight, tiny_state["blocks.11.mlp.fc2.weight"])

    def test_wrappers_of_distributed_and_compiled_training_are_removed(self, tmp_path, tiny_state):
        torch.save({f"module._orig_mod.{key}": value for key, value in tiny_state.items()}, tmp_path / "tiny.pth")
        config = ModelConfig(name="deit_tiny_patch16_224", checkpoint=tmp_path / "tiny.pth", num_classes=7)
        assert torch.equal(create_model(config).cls_token, tiny_state["cls_token"])

    def test_a_resized_position_grid_is_timms_own(self, tmp_path, tiny_state):
        path = tmp_path / "tiny.safetensors"
        save_file(tiny_state, path)
        own = {"num_classes": 7, "keep_classifier": True}
        ours = create_model(ModelConfig(name="deit_tiny_patch16_224", checkpoint=path, image_size=96, **own))
        theirs = timm.create_model(
            "deit_tiny_patch16_224",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path), "num_classes": 7},
            num_classes=7,
            img_size=96,
        )
        assert ours.pos_embed.shape == (1, 1 + 36, 192)
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())

    def test_half_precision_becomes_single(self, tmp_path, tiny_state):
        save_file({key: value.half() for key, value in tiny_state.items()}, tmp_path / "half.safetensors")
        model = create_model(ModelConfig(name="deit_tiny_patch16_224", checkpoint=tmp_path / "half.safetensors"))
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}

    @pytest.mark.skipif(not FOCUS.exists(), reason="vit_small_patch14_focus.safetensors is not in ../shared/data")
    def test_a_real_backbone_at_another_size(self):
        config = ModelConfig(name="vit_small_patch14_dinov2", checkpoint=FOCUS, image_size=84, num_classes=57)
        model = create_model(config)
        assert model.pos_embed.shape == (1, 1 + 36, 384)
        assert torch.equal(model.blocks[5].ls1.gamma, load_file(FOCUS)["blocks.5.ls1.gamma"].float())
        assert input_spec(model).mean == (0.485, 0.456, 0.406)
        assert model(torch.zeros(1, 3, 84, 84)).isfinite().all()


@pytest.fixture(scope="module")
def backbone():
    """The embedded weights, each of them different from what is drawn at random."""
    return {key: value.float() for key, value in load_file(EMBEDDED_WEIGHTS).items()}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-3}]}

FORMS = {
    "timm": lambda sd: {"epoch": 3, "arch": "x", "state_dict": sd, "optimizer": OPTIMIZER, "version": 2, "metric": 0.1},
    "timm, averaged": lambda sd: {"state_dict": zeros(sd), "state_dict_ema": sd, "optimizer": OPTIMIZER},
    "DeiT, averaged": lambda sd: {"model": zeros(sd), "model_ema": sd, "args": argparse.Namespace(lr=1e-3)},
    "averaged alone": lambda sd: {"model_ema": sd},
    "swa": lambda sd: prefixed("module.", sd) | {"n_averaged": torch.tensor(7)},
    "PyTorch's tutorial": lambda sd: {"model_state_dict": sd, "optimizer_state_dict": OPTIMIZER, "loss": 0.25},
    "DeepSpeed": lambda sd: {"module": sd, "optimizer": None, "ds_config": {"train_batch_size": 8}},
    "Lightning": lambda sd: {
        "state_dict": prefixed("model.", sd) | {"criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2",
        "optimizer_states": [OPTIMIZER],
    },
    "Lightning, averaged": lambda sd: {"state_dict": prefixed("model.", zeros(sd)) | prefixed("model_ema.", sd)},
    "DINO": lambda sd: {
        "student": prefixed("module.backbone.", zeros(sd)),
        "teacher": prefixed("backbone.", sd) | {"head.mlp.0.weight": torch.ones(3, 3)},
        "dino_loss": {"center": torch.zeros(1, 3)},
    },
    "MAE": lambda sd: {
        "model": sd
        | {"mask_token": torch.ones(1, 1, 80), "decoder_embed.weight": torch.ones(4, 80)}
        | {"decoder_blocks.0.norm1.weight": torch.ones(4)}
    },
    "compiled block by block": lambda sd: {key.replace("attn.", "_orig_mod.attn."): value for key, value in sd.items()},
    "compiled, then Lightning": lambda sd: {"state_dict": prefixed("net._orig_mod.", sd)},
    "FSDP": lambda sd: {"state_dict": prefixed("_fsdp_wrapped_module.", sd)},
    "a name of one's own": lambda sd: {"my_vit": sd, "best": torch.tensor(0.5), "optimizer": OPTIMIZER},
    "objects beside": lambda sd: {
        "model": sd,
        "best": np.float64(0.25),
        "history": np.arange(3.0),
        "where": Path("x"),
        "counts": collections.defaultdict(int, a=1),
        "scheduler": functools.partial(print, 1),
        "of": input_spec,
    },
}


class TestOtherPeoplesCheckpoints:
    @pytest.mark.parametrize("form", FORMS)
    def test_are_read(self, tmp_path, backbone, form):
        torch.save(FORMS[form](backbone), tmp_path / "x.ckpt")
        state = create_model(ModelConfig(checkpoint=tmp_path / "x.ckpt")).state_dict()
        assert state.keys() == backbone.keys()
        assert all(torch.equal(value, backbone[key]) for key, value in state.items())

    @pytest.mark.parametrize("name", ["model_best.pth.tar", "last.ckpt", "weights", "weights.model"])
    def test_suffixes_do_not_matter(self, tmp_path, backbone, name):
        torch.save({"state_dict": backbone}, tmp_path / name)
        assert torch.equal(create_model(ModelConfig(checkpoint=tmp_path / name)).cls_token, backbone["cls_token"])
        save_file(backbone, tmp_path / name)
        assert torch.equal(create_model(ModelConfig(checkpoint=tmp_path / name)).cls_token, backbone["cls_token"])

    def test_the_old_format_of_torch(self, tmp_path, backbone):
        saved = {"state_dict": backbone, "args": argparse.Namespace(lr=1)}
        torch.save(saved, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
        model = create_model(ModelConfig(checkpoint=tmp_path / "old.pth.tar"))
        assert torch.equal(model.cls_token, backbone["cls_token"])
        torch.save(saved | {"x": Path("x")}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
        assert "GLOBAL pathlib" in refusal(checkpoint=tmp_path / "old.pth.tar")

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_a_folder(self, tmp_path, backbone, name):
        (save_file if name.endswith("safetensors") else torch.save)(backbone, tmp_path / name)
        assert torch.equal(create_model(ModelConfig(checkpoint=tmp_path)).cls_token, backbone["cls_token"])

    def test_a_key_overrules_and_what_was_taken_is_said(self, tmp_path, backbone, caplog):
        file = tmp_path / "x.pth"
        torch.save({"state_dict": zeros(backbone), "state_dict_ema": backbone}, file)
        with caplog.at_level("INFO", "alast_tune"):
            create_model(ModelConfig(checkpoint=file))
            assert caplog.messages == [f"model.checkpoint = {file}: took state_dict_ema, of state_dict, state_dict_ema"]
            plain = create_model(ModelConfig(checkpoint=file, checkpoint_key="state_dict"))
        assert not plain.cls_token.any()
        text = refusal(checkpoint=file, checkpoint_key="modle")
        assert text == f"model.checkpoint_key = modle: {file} has no such weights; it has state_dict, state_dict_ema"
        torch.save({"teacher": prefixed("backbone.", zeros(backbone)) | prefixed("other.", backbone)}, file)
        assert "holds several models: backbone., other.; say which by model.checkpoint_key" in refusal(checkpoint=file)
        model = create_model(ModelConfig(checkpoint=file, checkpoint_key="teacher.other"))
        assert torch.equal(model.cls_token, backbone["cls_token"])
        torch.save({"a": backbone, "b": backbone}, file)
        assert "holds a, b; say which by model.checkpoint_key" in refusal(checkpoint=file)

    def test_what_is_left_out_is_said(self, tmp_path, backbone, caplog):
        torch.save(FORMS["MAE"](backbone), tmp_path / "mae.pth")
        with caplog.at_level("INFO", "alast_tune"):
            create_model(ModelConfig(checkpoint=tmp_path / "mae.pth"))
        (line,) = caplog.messages
        assert "left out the decoder of pre-training (decoder_embed.weight, decoder_blocks.0.norm1.weight, mask" in line

    def test_a_classifier_that_happens_to_fit_is_kept_only_if_that_is_asked_for(self, tmp_path, backbone, caplog):
        file, head = tmp_path / "x.pth", {"head.weight": torch.ones(7, 80), "head.bias": torch.ones(7)}
        torch.save(backbone | head, file)
        with caplog.at_level("INFO", "alast_tune"):
            model = create_model(ModelConfig(checkpoint=file, num_classes=7))
        assert not (model.head.weight == 1).any()
        assert caplog.messages == [
            f"model.checkpoint = {file}: its classifier of 7 classes is left out; model.keep_classifier: true keeps it"
        ]
        kept = create_model(ModelConfig(checkpoint=file, num_classes=7, keep_classifier=True))
        assert torch.equal(kept.head.weight, head["head.weight"])
        text = refusal(checkpoint=file, num_classes=3, keep_classifier=True)
        assert "the weights have a classifier of 7 classes, and 3 classes are wanted; leave it out" in text
        assert "the weights have no classifier" in refusal(num_classes=3, keep_classifier=True)

    def test_a_fingerprint_is_of_the_bytes(self, tmp_path):
        copy = tmp_path / "elsewhere.safetensors"
        copy.write_bytes(EMBEDDED_WEIGHTS.read_bytes())
        embedded = weights_fingerprint(ModelConfig())
        assert weights_fingerprint(ModelConfig(checkpoint=copy)) == embedded
        copy.rename(tmp_path / "model.safetensors")
        assert weights_fingerprint(ModelConfig(checkpoint=tmp_path)) == embedded
        (tmp_path / "model.safetensors").write_bytes(b"other")
        assert weights_fingerprint(ModelConfig(checkpoint=tmp_path)) != embedded
        assert weights_fingerprint(ModelConfig(pretrained=False)) is None


DINO = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "squash",
}


class TestImagesOfAFolder:
    """A checkpoint's folder says how its images are normalised and resized; the name stands for other weights'."""

    NAME = "vit_tiny_patch16_224"

    @pytest.fixture
    def folder(self, tmp_path, tiny_state):
        save_file(tiny_state, tmp_path / "model.safetensors")
        return tmp_path

    @pytest.mark.parametrize("card", [{"pretrained_cfg": DINO}, DINO], ids=["timm's", "an older one"])
    @pytest.mark.parametrize("given", [".", "model.safetensors"])
    def test_are_as_it_says(self, folder, card, given):
        config = ModelConfig(name=self.NAME, checkpoint=folder / given)
        bytes_alone = weights_fingerprint(config)
        (folder / "config.json").write_text(json.dumps({"architecture": self.NAME, **card}))
        spec = input_spec(outline(config))
        assert spec == input_spec(create_model(config))
        assert list(spec.mean) == DINO["mean"] and list(spec.std) == DINO["std"]
        assert spec.resizing == Resizing("bicubic", 0.875, "squash")
        # A sweep that was begun with the name's own images is not gone on with.
        assert weights_fingerprint(config).startswith(f"{bytes_alone} and config.json ")
        sized = config.model_copy(update={"image_size": 64})
        assert weights_fingerprint(sized) == weights_fingerprint(config)

    @pytest.mark.parametrize("card", [{}, {"hidden_size": 192}, {"pretrained_cfg": {"mean": [0.5] * 3}}])
    def test_are_the_name_s_where_it_says_nothing_else(self, folder, card):
        config = ModelConfig(name=self.NAME, checkpoint=folder)
        own = input_spec(outline(config))
        bytes_alone = weights_fingerprint(config)
        if "pretrained_cfg" in card:
            card["pretrained_cfg"] |= {"std": own.std, **dataclasses.asdict(own.resizing)}
        (folder / "config.json").write_text(json.dumps(card))
        assert (input_spec(outline(config)), weights_fingerprint(config)) == (own, bytes_alone)

    @pytest.mark.parametrize(
        ("said", "values"),
        [("mean", 0.5), ("mean", "0.5"), ("std", [0, 0, 0]), ("mean", [127, 127, 127]), ("std", [0.5])],
    )
    def test_that_are_normalised_by_no_numbers_are_refused(self, folder, said, values):
        (folder / "config.json").write_text(json.dumps({"pretrained_cfg": DINO | {said: values}}))
        with pytest.raises(ConfigError, match=rf"its config.json has {said} = .*, not three numbers from 0.*; mend it"):
            outline(ModelConfig(name=self.NAME, checkpoint=folder))

    @pytest.mark.parametrize(
        "card", [{"model_args": {"img_size": [64, 64]}}, {"pretrained_cfg": {"input_size": [3, 64, 64]}}]
    )
    def test_are_of_its_size_unless_another_is_given(self, folder, card):
        config = ModelConfig(name=self.NAME, checkpoint=folder)
        bytes_alone = weights_fingerprint(config)
        (folder / "config.json").write_text(json.dumps(card))
        assert input_spec(create_model(config)).image_size == 64
        assert weights_fingerprint(config).startswith(f"{bytes_alone} and config.json ")
        assert input_spec(outline(config.model_copy(update={"image_size": 96}))).image_size == 96

    def test_that_are_not_square_are_refused(self, folder):
        (folder / "config.json").write_text(json.dumps({"model_args": {"img_size": [64, 96]}}))
        with pytest.raises(ConfigError, match=r"its config.json has images of \[64, 96\]; set model.image_size$"):
            outline(ModelConfig(name=self.NAME, checkpoint=folder))

    def test_go_through_the_model_that_it_says(self, folder):
        """Weights of a model with QuickGELU fit one with GELU too, which predicts something else."""
        own, built = {"num_classes": 7, "keep_classifier": True}, {"act_layer": "quick_gelu"}
        config = ModelConfig(name=self.NAME, checkpoint=folder, **own)
        bytes_alone = weights_fingerprint(config)
        (folder / "config.json").write_text(json.dumps({"model_args": built | {"num_classes": 7, "drop_rate": 0.5}}))
        name, arguments = timm_arguments(config, 224)
        theirs = timm.create_model(name, num_classes=7, checkpoint_path=folder / "model.safetensors", **arguments)
        images = torch.randn(1, 3, 224, 224)
        assert arguments == {"img_size": 224, **built}
        torch.testing.assert_close(create_model(config).eval()(images), theirs.eval()(images))
        assert weights_fingerprint(config).startswith(f"{bytes_alone} and config.json ")

    @pytest.mark.parametrize(
        ("name", "said"), [(NAME, "with which timm builds no"), ("embedded", "and the embedded model none")]
    )
    def test_go_through_no_other_model_than_it_says(self, folder, name, said):
        (folder / "config.json").write_text(json.dumps({"model_args": {"shape": 3}}))
        with pytest.raises(ConfigError, match=rf"its config.json has model_args = {{'shape': 3}}, {said}"):
            outline(ModelConfig(name=name, checkpoint=folder))

    def test_are_not_those_of_a_config_beside_weights_of_another_name(self, folder):
        config = ModelConfig(name=self.NAME, checkpoint=folder / "mine.safetensors")
        (folder / "model.safetensors").rename(config.checkpoint)
        (folder / "config.json").write_text(json.dumps({"architecture": self.NAME, "pretrained_cfg": DINO}))
        assert input_spec(outline(config)) == input_spec(outline(ModelConfig(name=self.NAME, pretrained=False)))


class TestRefusedCheckpoint:
    NAME = "deit_tiny_patch16_224"

    def test_no_such_file(self, tmp_path):
        text = refusal(name=self.NAME, checkpoint=tmp_path / "none.pth")
        assert text == (
            f"model.checkpoint = {tmp_path / 'none.pth'}: "
            "no such file; give one of safetensors or torch.save, or a folder"
        )

    def test_an_unknown_kind(self, tmp_path):
        np.savez(tmp_path / "weights.npz", cls_token=np.zeros(3))
        assert "cannot be read as plain weights" in refusal(checkpoint=tmp_path / "weights.npz")

    def test_an_empty_folder(self, tmp_path):
        text = refusal(checkpoint=tmp_path)
        assert "has neither model.safetensors nor pytorch_model.bin; give the file that has the weights" in text

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
    @pytest.mark.parametrize("content", [b"", b"rubbish" * 100], ids=["empty", "rubbish"])
    def test_rubbish(self, tmp_path, suffix, content):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        text = refusal(name=self.NAME, checkpoint=path)
        assert text.startswith(f"model.checkpoint = {path}: cannot be read as plain weights")
        assert text.endswith("give an intact state dict")

    def test_cut_short(self, tiny_checkpoint):
        tiny_checkpoint.write_bytes(tiny_checkpoint.read_bytes()[:1_000_000])
        assert "cannot be read as plain weights" in refusal(name=self.NAME, checkpoint=tiny_checkpoint)

    def test_code_is_not_run(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "exploded"),))

        torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
        assert "cannot be read as plain weights" in refusal(name=self.NAME, checkpoint=tmp_path / "bomb.pth")
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"model": {"cls_token": 1}}])
    def test_no_state_dict(self, tmp_path, content):
        torch.save(content, tmp_path / "other.pth")
        assert refusal(name=self.NAME, checkpoint=tmp_path / "other.pth").endswith(
            "holds no state dict; save model.state_dict()"
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda state: state.pop("blocks.3.attn.qkv.weight"), "lacks blocks.3.attn.qkv.weight;"),
            (lambda state: state.update(extra=torch.zeros(1)), "has too many extra;"),
            (lambda state: state.update({"norm.bias": torch.zeros(5)}), "norm.bias (5,) instead of (192,);"),
        ],
        ids=["missing", "unexpected", "misshapen"],
    )
    def test_keys_that_do_not_fit(self, tmp_path, tiny_state, change, said):
        state = dict(tiny_state)
        change(state)
        save_file(state, tmp_path / "tiny.safetensors")
        text = refusal(name=self.NAME, checkpoint=tmp_path / "tiny.safetensors")
        assert said in text
        assert text.endswith("give weights of deit_tiny_patch16_224, or set model.name to what they belong to")

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda weight: (10 * weight).to(torch.int8), "has integers for blocks.3.attn.qkv.weight (torch.int8);"),
            (
                lambda weight: weight.masked_fill(weight == weight.max(), torch.nan),
                "is not finite in blocks.3.attn.qkv.weight;",
            ),
        ],
        ids=["quantised", "not a number"],
    )
    def test_values_that_are_no_weights(self, tmp_path, tiny_state, damage, said):
        name = "blocks.3.attn.qkv.weight"
        save_file(tiny_state | {name: damage(tiny_state[name])}, tmp_path / "tiny.safetensors")
        assert said in refusal(name=self.NAME, checkpoint=tmp_path / "tiny.safetensors")

    def test_weights_of_another_architecture(self, tmp_path, tiny_state):
        save_file(tiny_state, tmp_path / "tiny.safetensors")
        text = refusal(name="deit_small_patch16_224", checkpoint=tmp_path / "tiny.safetensors")
        assert "has of another shape" in text
        assert len(text) < 600

    def test_patches_of_another_size(self, tmp_path):
        """Timm would resize them, without a word."""
        save_file(timm.create_model("vit_small_patch32_224").state_dict(), tmp_path / "small.safetensors")
        text = refusal(name="vit_small_patch16_224", checkpoint=tmp_path / "small.safetensors")
        assert text.endswith("(patches of 32 pixels instead of 16); set model.name to vit_small_patch32_224")

    def test_only_flexivit_s_may_be_resized(self, tmp_path):
        flexible = timm.create_model("flexivit_small", patch_size=32, num_classes=0).state_dict()
        save_file(flexible, tmp_path / "flexible.safetensors")
        model = create_model(ModelConfig(name="flexivit_small", checkpoint=tmp_path / "flexible.safetensors"))
        assert model.patch_embed.proj.weight.shape[-1] == 16

    @pytest.mark.parametrize(
        ("width", "said"), [(192, "pos_embed (1, "), (191, "does not fit deit_tiny_patch16_224 (")]
    )
    def test_a_position_grid_that_is_no_square(self, tmp_path, tiny_state, width, said):
        save_file(tiny_state | {"pos_embed": torch.zeros(1, 8, width)}, tmp_path / "odd.safetensors")
        text = refusal(name=self.NAME, checkpoint=tmp_path / "odd.safetensors")
        assert text.startswith(f"model.checkpoint = {tmp_path / 'odd.safetensors'}: ")
        assert said in text


class TestSuitableModel:
    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("vit_small_patch14_reg4_dinov2", 56),
            ("deit_tiny_patch16_224", 64),
            ("deit3_small_patch16_224", 64),
            ("vit_tiny_patch16_224.augreg_in21k", 32),
            ("vit_xsmall_patch16_clip_224", 32),
        ],
    )
    def test_is_timms_own(self, name, size):
        torch.manual_seed(0)
        model = create_model(ModelConfig(name=name, pretrained=False, image_size=size, num_classes=5))
        torch.manual_seed(0)
        assert model.has_class_token
        assert input_spec(model).image_size == size
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)
        expected = timm.create_model(name, img_size=size, num_classes=5).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    def test_keeps_its_own_classifier_and_size(self):
        model = create_model(ModelConfig(name="deit_tiny_patch16_224", pretrained=False))
        assert (model.num_classes, input_spec(model).image_size) == (1000, 224)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("deit_tiny_patch16_244", "timm has no such model; did you mean deit_tiny_patch16_224"),
            ("zzz", "timm has no such model; deit_small_patch16_224 is one, embedded another"),
            ("deit_tiny_patch16_224.fb_in2k", "no such weights; after the dot goes fb_in1k"),
            ("resnet18", "is no plain timm Vision Transformer; take deit_small_patch16_224, say"),
            ("vit_tiny_r_s16_p8_224", "is no plain timm Vision Transformer"),
            ("deit_tiny_distilled_patch16_224", "and two classifiers; take deit_tiny_patch16_224"),
        ],
    )
    def test_or_refused(self, name, said):
        text = refusal(name=name, pretrained=False)
        assert text.startswith(f"model.name = {name}: ")
        assert said in text

    @pytest.mark.parametrize(
        ("name", "size", "choice"),
        [
            ("embedded", 30, "28 or 32"),
            ("deit_tiny_patch16_224", 100, "96 or 112"),
            ("deit_tiny_patch16_224", 12, "16"),
        ],
    )
    def test_an_image_size_that_is_no_multiple_of_the_patch_size(self, name, size, choice):
        text = refusal(name=name, image_size=size, pretrained=False)
        assert text.startswith(f"model.image_size = {size}: is no multiple of the patch size")
        assert text.endswith(f"; give {choice}")


class TestHub:
    def test_out_of_reach(self, hub_cache):
        text = refusal(name="deit_tiny_patch16_224", num_classes=10)
        assert text.startswith(
            "model.pretrained = True: the weights of deit_tiny_patch16_224 are not in the cache, and"
        )
        assert f"{NOWHERE} is out of reach" in text
        assert "set model.checkpoint to a local .safetensors or .pth file, or HF_HOME to" in text

    def test_an_unsuitable_model_is_refused_before_that(self, hub_cache):
        assert refusal(name="deit_tiny_distilled_patch16_224").startswith("model.name = ")

    def test_no_weights_to_be_had(self, hub_cache):
        text = refusal(name="vit_giant_patch14_224")
        assert text == (
            "model.pretrained = True: timm has no weights of vit_giant_patch14_224; "
            "set model.checkpoint, or model.pretrained to false"
        )

    @pytest.fixture
    def cached(self, hub_cache, tiny_state):
        """The hub's cache, holding deit_tiny_patch16_224."""
        repository = hub_cache / "models--timm--deit_tiny_patch16_224.fb_in1k"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        save_file(tiny_state | {"head.weight": torch.zeros(1000, 192)}, snapshot / "model.safetensors")
        return snapshot / "model.safetensors"

    def test_cached_weights_need_no_network(self, cached, tiny_state):
        model = create_model(ModelConfig(name="deit_tiny_patch16_224", num_classes=10, image_size=64))
        assert torch.equal(model.blocks[4].attn.qkv.weight, tiny_state["blocks.4.attn.qkv.weight"])
        assert model.pos_embed.shape == (1, 17, 192)

    def test_a_broken_cache(self, cached):
        cached.write_bytes(b"rubbish")
        text = refusal(name="deit_tiny_patch16_224", num_classes=10)
        assert "the weights of deit_tiny_patch16_224 could not be loaded (" in text
        assert "set model.checkpoint" in text

    def test_their_classifier_is_kept_only_if_that_is_asked_for(self, cached, tiny_state):
        head = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.ones(1000)}
        save_file(tiny_state | head, cached)
        name = "deit_tiny_patch16_224"
        model = create_model(ModelConfig(name=name, num_classes=1000))
        assert torch.equal(model.blocks[4].attn.qkv.weight, tiny_state["blocks.4.attn.qkv.weight"])
        assert model.head.weight.any() and not model.head.bias.any()
        for classes in (1000, None):
            kept = create_model(ModelConfig(name=name, num_classes=classes, keep_classifier=True))
            assert torch.equal(kept.head.bias, head["head.bias"])
        text = refusal(name=name, num_classes=10, keep_classifier=True)
        assert "the weights have a classifier of 1000 classes, and 10 classes are wanted" in text

    def test_their_fingerprint_is_that_of_the_file_in_the_cache(self, cached, tmp_path):
        here = weights_fingerprint(ModelConfig(name="deit_tiny_patch16_224"))
        shutil.copy(cached, tmp_path / "copy.safetensors")
        copy = ModelConfig(name="deit_tiny_patch16_224", checkpoint=tmp_path / "copy.safetensors")
        assert here == weights_fingerprint(copy) is not None


@pytest.mark.parametrize("name", ["embedded", "test_vit", "eva02_tiny_patch14_224"])
def test_paths_are_dropped_while_training_alone_more_in_later_blocks(name: str) -> None:
    config = ModelConfig(name=name, pretrained=False, num_classes=2, drop_path=0.3)
    model, plain = create_model(config), create_model(config.model_copy(update={"drop_path": 0.0}))
    chances = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert chances == pytest.approx([0.3 * index / (len(chances) - 1) for index in range(len(chances))])
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, input_spec(model).image_size, input_spec(model).image_size)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), plain.eval()(images))
