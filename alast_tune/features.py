"""Features: what enters the first block that trains, computed once for all images, in a file that processes share.

What lies below never changes, so what it makes of an image is the same at every epoch, unless the image is augmented
at random: then ``data.views`` fixed augmentations take turns. Files are named by what decides about the numbers in
them, the weights below included, so that trials of a sweep that begin at the same block find them there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alast_tune.data import Batch, Images, prepare
from alast_tune.data.decoded import share_array
from alast_tune.data.loading import whole_loader
from alast_tune.errors import ConfigError
from alast_tune.methods.base import Constant, Method
from alast_tune.models import architecture_name
from alast_tune.models.backbone import Backbone, predict_tokens
from alast_tune.models.reading import PREFIX, has_reader

Wish = Literal["none", "cache", "auto"]


@dataclass(frozen=True)
class Features:
    """Features of a run's images, in place of the images."""

    views: tuple[Images, ...]
    """Of the training images, epochs take turns."""
    validation: Images


def begin_with_features(method: Method, wish: Wish) -> int:
    """Let a method's steps begin at the first block that trains, where :func:`features_start` finds one."""
    start = features_start(method, wish)
    if isinstance(method, Constant):
        method.begin_at(start)
    return start


def features_start(method: Method, wish: Wish) -> int:
    """Find the first block that trains, at which steps on features begin; 0: steps begin with images.

    Args:
        method: that trains.
        wish: ``data.features``.

    Raises:
        ConfigError: ``cache``, and what lies below is not the same at every step, or there is nothing below.
    """
    if wish == "none":
        return 0
    name, why_not, lowest = method.config.name, "", 0
    if not isinstance(method, Constant):
        why_not = f"{name} decides anew at every step; take none, or another method"
    elif not (lowest := method.lowest):
        why_not = f"{name} trains from the first block on; set method.from_block, or take none"
    elif not method.are_tokens_at(lowest):
        why_not = f"{name} lets more than tokens enter block {lowest}; take none"
    if not why_not:
        return lowest
    if wish == "auto":
        return 0
    raise ConfigError("data.features", "cache", why_not)


def compute_features(
    method: Constant, views: Sequence[Images], validation: Images, dtype: torch.dtype | None, batch: int
) -> Features:
    """Bring all images up to the block at which a method's steps begin, or find that somebody has.

    Args:
        method: with the start of its steps.
        views: of the training images, as they are augmented.
        validation: images.
        dtype: of autocast; None for none.
        batch: images at a time.

    Raises:
        ConfigError: the features cannot be kept.
    """
    model, start = method.model, method.plan.start
    device = next(model.parameters()).device
    weights = _hash_weights(model, start)

    def keep(images: Images, trunk: Callable[[Tensor], Any], *kind: object) -> Images:
        def run(images: Tensor | Batch) -> NDArray[np.float32]:
            images_BCHW = prepare(images, device)
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                features = trunk(images_BCHW)
            kept: NDArray[np.float32] = features.float().cpu().numpy()
            return kept

        def chunks() -> Iterator[NDArray[np.float32]]:
            return (run(part) for part, _ in whole_loader(images, batch, 0))

        products = torch.get_float32_matmul_precision() if device.type == "cuda" else "highest"
        of = (torch.__version__, device.type, dtype, products, start, has_reader(model), *kind)
        content = "\n".join([weights, str(of), images.drawing(), *(checksum for _, checksum in images.contents())])
        name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        shape = len(images), *run(images[0][0][None]).shape[1:]
        try:
            features = share_array(f"{name}-{start}", shape, chunks, np.float32)
        except OSError as error:
            needed = f"{4 * np.prod(shape) / 2**30:.1f} GiB"
            remedy = (
                f"{needed} of features cannot be kept in the cache folder ({error}); set XDG_CACHE_HOME, or take none"
            )
            raise ConfigError("data.features", "cache", remedy) from error
        return Images(images.source, images.indices, partial(_rows, features))

    was_training = model.training
    model.eval()
    tokens_L = method.plan.tokens_L[:start]
    drops = len(set(tokens_L)) > 1 or method.plan.tokens_L[min(start, len(model.blocks) - 1)] != tokens_L[0]
    trained = tuple(keep(images, method.trunk, tokens_L, method.config.name if drops else "") for images in views)
    features = Features(trained, keep(validation, partial(predict_tokens, model, start=start), tokens_L[:1], ""))
    model.train(was_training)
    return features


def _rows(features: NDArray[np.float32], batch: list[int]) -> Tensor:
    return torch.from_numpy(features[batch])


def _hash_weights(model: Backbone, start: int) -> str:
    """Hash the weights of the embedding and of the blocks below ``start``; all of them where a reader classifies.

    And the architecture's name: of the same weights QuickGELU, say, makes other features than GELU.
    """
    later = tuple(f"blocks.{block}." for block in range(start, len(model.blocks)))
    after = (PREFIX,) if has_reader(model) else ("norm.", "fc_norm.", "attn_pool.", "head.")
    digest = hashlib.blake2b(str(architecture_name(model)).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        if not name.startswith(later + after):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
