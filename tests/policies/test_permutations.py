"""Permutations without a sort: bijections of every length, drawn evenly."""

import jax
import numpy as np
import pytest

from jaxrl.policies.permutations import random_permutations


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 511, 1000, 1024, 4000])
def test_each_row_is_a_permutation(n):
    drawn = np.asarray(jax.jit(random_permutations, static_argnums=(1, 2))(jax.random.key(n), 3, n))
    assert drawn.dtype == np.int32
    assert (np.sort(drawn, axis=1) == np.arange(n)).all()


def test_permutations_differ_between_rows_and_keys():
    one, other = (np.asarray(random_permutations(jax.random.key(seed), 2, 300)) for seed in (0, 1))
    assert (one[0] != one[1]).mean() > 0.9
    assert (one != other).mean() > 0.9


@pytest.mark.parametrize("n", [50, 256, 300])
def test_every_place_gets_every_number_alike(n):
    draws = 20_000
    draw = jax.jit(jax.vmap(lambda key: random_permutations(key, 1, n)[0]))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(7), draws)))

    def chi2(values: np.ndarray, bins: int) -> float:
        counts = np.bincount(values, minlength=bins)
        return float(((counts - draws / bins) ** 2 / (draws / bins)).sum() / (bins - 1))

    for place in (0, 1, n // 2, n - 1):
        assert chi2(drawn[:, place], n) < 1.4
    # Neighbours are as far apart as any two.
    assert chi2((drawn[:, 1] - drawn[:, 0]) % n - 1, n - 1) < 1.4
