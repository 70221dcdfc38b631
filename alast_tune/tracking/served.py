"""What ``mlflow.pyfunc`` runs: this file travels with the model, which needs no alast-tune where it is served."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import ExifTags, Image
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

BATCH = 64
"""Images at a time, whatever number is asked about."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""


class ImageClassifier(PythonModel):
    """Classifies images, prepared as evaluation prepares them: upright, on white, resized, normalised.

    Input: a table with a column ``image``, each entry the bytes of an image file of any kind that Pillow reads
    (in a request's JSON: base64). Output: a table with the columns ``label`` (the likeliest class), ``probability``
    (its, in [0, 1]) and ``probabilities`` (of all classes, in the order of the metadata's ``classes``).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Build the timm model from the folder that training has left."""
        folder = Path(context.artifacts["weights"]).parent
        card = json.loads((folder / "config.json").read_text())
        self._classes: list[str] = card["label_names"]
        resizing = resolve_data_config(pretrained_cfg=card["pretrained_cfg"])
        self._resize = create_transform(**resizing, use_prefetcher=True)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._mean, self._std = (
            torch.tensor(card["pretrained_cfg"][name], device=self._device)[:, None, None] for name in ("mean", "std")
        )
        self._model = _load(folder, card).eval().to(self._device)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify a table of images."""
        pixels = [self._decode(number, data) for number, data in enumerate(model_input["image"])]
        parts = [self._probabilities(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        found_BK = np.concatenate(parts) if parts else np.zeros((0, len(self._classes)))
        best_B = found_BK.argmax(axis=1)
        return pd.DataFrame(
            {
                "label": pd.Series([self._classes[best] for best in best_B], dtype=object),
                "probability": found_BK.max(axis=1, initial=0),
                "probabilities": [row.tolist() for row in found_BK],
            }
        )

    @torch.inference_mode()
    def _probabilities(self, pixels: list[torch.Tensor]) -> np.ndarray[Any, Any]:
        images_BCHW = (torch.stack(pixels).to(self._device).float() / 255 - self._mean) / self._std
        found: np.ndarray[Any, Any] = self._model(images_BCHW).double().softmax(dim=1).cpu().numpy()
        return found

    def _decode(self, number: int, data: bytes) -> torch.Tensor:
        try:
            image = to_rgb(Image.open(io.BytesIO(data)))
        except Exception as error:  # the formats' readers raise nearly anything on rubbish
            raise MlflowException.invalid_parameter_value(f"image {number} cannot be read: {error}") from error
        pixels: torch.Tensor = self._resize(image)  # of bytes
        return pixels


def _load(folder: Path, card: dict[str, Any]) -> torch.nn.Module:
    """Build the model from timm alone, or with the reader that classifies, whose code is beside this file then."""
    weights = load_file(folder / "model.safetensors")
    if not any(name.startswith("reader.") for name in weights):
        plain: torch.nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return plain
    load_with_reader = import_module("alast_reading").load_with_reader  # MLflow has put it on the path

    model: torch.nn.Module = timm.create_model(card["architecture"], **card["model_args"])
    load_with_reader(model, weights)
    return model


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as training does (``alast_tune/data/rgb.py``): upright, on white, the first frame.

    16-bit grey becomes its upper 8 bits; floats are taken to lie in [0, 1].

    Raises:
        ValueError: grey values beyond 16 bits, below 0, or floats outside of [0, 1].
        Exception: what Pillow raises on a damaged file, or on a mode that it cannot convert.
    """
    image.load()
    orientation = None
    with suppress(Exception):  # EXIF that is damaged turns nothing, as in a viewer
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    elif image.has_transparency_data:
        if image.mode == "La":  # has no way to RGBA of its own
            image = image.convert("LA")
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("RGB")
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    most = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= most):  # nor where there are NaNs
        raise ValueError(f"has grey values from {low:g} to {high:g}, not in [0, {most}]; save it with 8 or 16 bits")
    white = image.info.get("transparency")
    grey = (values * 255 + 0.5 if image.mode == "F" else values >> 8).astype(np.uint8)
    if isinstance(white, int):
        grey[values == white] = 255
    return Image.fromarray(grey)


set_model(ImageClassifier())
