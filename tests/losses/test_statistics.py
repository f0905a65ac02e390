"""Standardisation and explained variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.data.sample_batch import SampleBatch


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_standardize(as_array):
    x = np.random.default_rng(0).normal(3.0, 2.0, (6, 4)).astype(np.float32)
    out = losses.standardize(as_array(x))
    assert type(out) is type(as_array(x))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (x - x.mean()) / x.std(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_standardize_ignores_absent_rows(as_array):
    x = np.random.default_rng(0).normal(3.0, 2.0, (6, 4)).astype(np.float32)
    mask = np.random.default_rng(1).random((6, 4)) < 0.6
    kept = x[mask]
    out = losses.standardize(as_array(np.where(mask, x, np.nan)), as_array(mask))
    np.testing.assert_allclose(out[mask], (kept - kept.mean()) / kept.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[~mask], 0.0)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(losses.standardize(as_array(x), as_array(np.zeros_like(mask))), 0.0)


def test_standardize_has_a_floor_and_works_under_jit():
    np.testing.assert_array_equal(losses.standardize(np.full(5, 2.0, np.float32)), 0.0)
    tiny = np.array([-1e-6, 1e-6], np.float32)
    np.testing.assert_allclose(jax.jit(losses.standardize)(tiny), [-1e-2, 1e-2], rtol=1e-4)


def test_explained_variance():
    y = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    batch = SampleBatch({"obs": y}, time_major=False)
    np.testing.assert_allclose(losses.explained_variance(y, y, batch), 1.0)
    np.testing.assert_allclose(losses.explained_variance(y, y + 5.0, batch), 1.0)
    np.testing.assert_allclose(losses.explained_variance(y, np.zeros(4, np.float32), batch), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses.explained_variance(y, 10.0 * y, batch), -1.0)
    constant = np.ones(4, np.float32)
    np.testing.assert_allclose(losses.explained_variance(constant, constant, batch), 1.0)
    np.testing.assert_allclose(losses.explained_variance(constant, y, batch), -1.0)
    # var(y) = 1.25, var(y - pred) = 0.3125.
    np.testing.assert_allclose(losses.explained_variance(y, y / 2, batch), 0.75)


def test_explained_variance_of_valid_rows_only():
    y = np.array([1.0, 2.0, 100.0], np.float32)
    batch = SampleBatch({"obs": y, "mask": np.array([True, True, False])}, time_major=False)
    np.testing.assert_allclose(losses.explained_variance(y, np.array([1.0, 2.0, -7.0], np.float32), batch), 1.0)
