"""A loss with weights of classes is that of the whole batch, whatever the parts in which it is computed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from alast_tune.class_weights import balanced_weights, part_of_loss, weight_of_batch


@given(st.lists(st.sampled_from([0, 1, 2, 4]), min_size=1, max_size=50))
def test_weights_are_scikit_learn_s_and_a_class_without_images_has_none(labels: list[int]) -> None:
    there = np.unique(labels)
    expected = np.zeros(5)
    expected[there] = compute_class_weight("balanced", classes=there, y=labels)
    assert balanced_weights(torch.tensor(labels), 5).tolist() == pytest.approx(expected.tolist())


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_parts_of_a_batch_make_up_its_weighted_mean(labels: list[int], parts: int, dtype: torch.dtype) -> None:
    labels_B = torch.tensor(labels)
    weights_K = balanced_weights(torch.tensor([0, 1, 1, 2, 2, 2, 2, 3]), 4)
    logits_BK = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(len(labels))).to(dtype)
    whole = weight_of_batch(labels_B, weights_K, len(labels))
    pairs = zip(logits_BK.tensor_split(parts), labels_B.tensor_split(parts), strict=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = sum(part_of_loss(logits, of, whole, weights_K) for logits, of in pairs if len(of))
    expected = F.cross_entropy(logits_BK.float(), labels_B, weight=weights_K)
    torch.testing.assert_close(loss, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_without_weights_an_image_counts_as_an_image() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = part_of_loss(logits[:4], labels[:4], 6, None) + part_of_loss(logits[4:], labels[4:], 6, None)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
