"""What ``mlflow.pyfunc`` runs: this file travels with the model, which needs no alast-tune where it is served."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image

BATCH = 64
"""Images at a time, whatever number is asked about."""


class ImageClassifier(PythonModel):
    """Classifies images, prepared as evaluation prepares them: RGB, resized to the model's size, normalised.

    Input: a table with a column ``image``, each entry the bytes of an image file of any kind that Pillow reads
    (in a request's JSON: base64). Output: a table with the columns ``label`` (the likeliest class), ``probability``
    (its, in [0, 1]) and ``probabilities`` (of all classes, in the order of the metadata's ``classes``).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Build the timm model from the folder that training has left."""
        folder = Path(context.artifacts["weights"]).parent
        card = json.loads((folder / "config.json").read_text())
        self._classes: list[str] = card["label_names"]
        self._size = tuple(card["pretrained_cfg"]["input_size"][1:])
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._mean, self._std = (
            torch.tensor(card["pretrained_cfg"][name], device=self._device)[:, None, None] for name in ("mean", "std")
        )
        self._model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(self._device)

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
    def _probabilities(self, pixels: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        images_BHWC = torch.from_numpy(np.stack(pixels)).to(self._device)
        images_BCHW = (images_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255 - self._mean) / self._std
        found: np.ndarray[Any, Any] = self._model(images_BCHW).double().softmax(dim=1).cpu().numpy()
        return found

    def _decode(self, number: int, data: bytes) -> np.ndarray[Any, Any]:
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except Exception as error:  # the formats' readers raise nearly anything on rubbish
            raise MlflowException.invalid_parameter_value(f"image {number} cannot be read: {error}") from error
        return np.asarray(image.resize(self._size[::-1], Image.Resampling.BILINEAR))


set_model(ImageClassifier())
