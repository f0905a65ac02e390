"""The sum tree against running sums of a plain array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.replay import sum_tree

QUICK = settings(max_examples=50, deadline=None)


def consistent(tree, weights):
    assert np.array_equal(tree.sums[0][: len(weights)], weights)
    assert sum_tree.total(tree) == pytest.approx(weights.sum(), rel=1e-12)
    positive = weights[weights > 0]
    assert sum_tree.smallest(tree) == (positive.min() if len(positive) else np.inf)


@QUICK
@given(st.sampled_from([1, 2, 15, 16, 17, 300, 5000, 70_000]), st.integers(0, 2**16))
def test_it_is_a_running_sum(capacity, seed):
    rng = np.random.default_rng(seed)
    tree, weights = sum_tree.init(capacity), np.zeros(capacity)
    consistent(tree, weights)
    for _ in range(4):
        indexes = rng.integers(0, capacity, rng.integers(1, 50))
        values = rng.integers(0, 5, len(indexes)).astype(float)
        tree = sum_tree.set(tree, indexes, values)
        for index, value in zip(indexes, values, strict=True):  # of two values for one leaf, the last
            weights[index] = value
        start = rng.integers(0, capacity)
        stop = rng.integers(start + 1, capacity + 1)
        tree = sum_tree.fill(tree, start, stop, 2.0)
        weights[start:stop] = 2.0
        consistent(tree, weights)
    # Whole weights: sums are exact, and so is what is found.
    targets = rng.integers(0, int(weights.sum()) * 4, 200) / 4
    assert (sum_tree.find(tree, targets) == weights.cumsum().searchsorted(targets, side="right")).all()


@QUICK
@given(st.integers(0, 2**16))
def test_rounding_never_finds_a_leaf_of_weight_zero(seed):
    rng = np.random.default_rng(seed)
    capacity = 5000
    weights = 10.0 ** rng.uniform(-12, 3, capacity) * (rng.random(capacity) < 0.1)
    weights[rng.integers(0, capacity)] = 1.0
    tree = sum_tree.set(sum_tree.init(capacity), np.arange(capacity), weights)
    total = sum_tree.total(tree)
    ends = np.nextafter(weights.cumsum(), rng.choice([0.0, np.inf]))
    targets = np.concatenate([rng.random(100) * total, [0.0, np.nextafter(total, 0), total * (1 + 1e-12)], ends])
    found = sum_tree.find(tree, targets)
    assert ((found >= 0) & (found < capacity)).all() and (weights[found] > 0).all()


def test_leaves_are_found_as_often_as_they_weigh():
    rng = np.random.default_rng(7)
    weights = rng.random(400) * (rng.random(400) < 0.8)
    tree = sum_tree.set(sum_tree.init(400), np.arange(400), weights)
    draws = 400_000
    counts = np.bincount(sum_tree.find(tree, rng.random(draws) * sum_tree.total(tree)), minlength=400)
    expected = draws * weights / weights.sum()
    there = weights > 0
    chi_square = ((counts - expected)[there] ** 2 / expected[there]).sum()
    degrees = there.sum() - 1
    assert counts[~there].sum() == 0
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)
