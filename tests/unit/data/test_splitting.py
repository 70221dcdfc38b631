"""Splits are disjoint, stratified and the seed's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alast_tune.data.splitting import balanced_subset, by_hash, stratified

LABELS = st.integers(2, 5).flatmap(
    lambda classes: st.lists(st.integers(3, 30), min_size=classes, max_size=classes).map(
        lambda counts: np.random.default_rng(len(counts)).permutation(np.repeat(np.arange(len(counts)), counts))
    )
)


class TestSplitting:
    @settings(deadline=None)
    @given(labels=LABELS, shares=st.sampled_from([(0.2,), (0.2, 0.2), (0.5, 0.4), (0.01,)]), seed=st.integers(0, 99))
    def test_parts_are_disjoint_complete_and_stratified(self, labels, shares, seed):
        parts = stratified(labels, shares, seed)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        counts = np.bincount(labels)
        for part, share in zip(parts, (*shares, 1 - sum(shares)), strict=True):
            found = np.bincount(labels[part], minlength=len(counts))
            assert found.min() >= 1
            assert np.abs(found - share * counts).max() <= len(shares) + 0.5
        assert all(np.array_equal(a, b) for a, b in zip(parts, stratified(labels, shares, seed), strict=True))

    def test_a_class_too_small(self):
        with pytest.raises(ValueError, match="1 images with label 1 for 2 parts"):
            stratified(np.array([0, 0, 1]), (0.2,), 0)

    @settings(deadline=None)
    @given(labels=LABELS, count=st.integers(1, 80), seed=st.integers(0, 99))
    def test_a_subset_is_as_balanced_as_the_classes_allow(self, labels, count, seed):
        chosen = balanced_subset(labels, count, seed)
        assert len(set(chosen)) == len(chosen) == min(count, len(labels))
        found, counts = np.bincount(labels[chosen], minlength=labels.max() + 1), np.bincount(labels)
        assert all(n == limit or n >= found.max() - 1 for n, limit in zip(found, counts, strict=True))

    @settings(deadline=None)
    @given(labels=LABELS, seed=st.integers(0, 99), new=st.integers(1, 50))
    def test_by_hash_images_that_are_added_move_no_other(self, labels, seed, new):
        keys = [f"{label}/{index}" for index, label in enumerate(labels)]
        parts = by_hash(keys, labels, (0.2, 0.2), seed)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        assert set(labels[parts[-1]]) == set(labels)
        more = by_hash([f"new/{n}" for n in range(new)] + keys, np.append(np.full(new, 99), labels), (0.2, 0.2), seed)
        assert [part.tolist() for part in parts] == [(part[part >= new] - new).tolist() for part in more]

    def test_by_hash_shares_are_met_on_average(self):
        labels = np.zeros(20000, np.int64)
        parts = by_hash([str(index) for index in range(20000)], labels, (0.3, 0.1), 0)
        assert np.allclose([len(part) / 20000 for part in parts], [0.3, 0.1, 0.6], atol=0.02)
        others = by_hash([str(index) for index in range(20000)], labels, (0.3, 0.1), 1)
        assert np.isclose(len(np.intersect1d(parts[0], others[0])) / 20000, 0.09, atol=0.02)
