import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.models import NoisyDense
from jaxrl.models.noisy import draw_noise, initialize_noisy

KEY = jax.random.key(0)


def test_layer_by_hand():
    x, params = (
        jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        {
            "kernel": jnp.array([[1.0], [2.0]]),
            "bias": jnp.array([0.5]),
            "sigma_kernel": jnp.array([[0.1], [0.2]]),
            "sigma_bias": jnp.array([0.3]),
        },
    )
    layer: Any = NoisyDense(1)
    np.testing.assert_allclose(layer.apply({"params": params}, x), [[5.5], [11.5]], rtol=1e-6)
    # f(4) = 2, f(-9) = -3, f(0.25) = 0.5: kernel + sigma * outer = [1.1, 1.7], bias 0.65.
    out = layer.apply({"params": params}, x, noise=jnp.array([4.0, -9.0, 0.25]))
    np.testing.assert_allclose(out, [[5.15], [10.75]], rtol=1e-6)


def test_keys():
    layer: Any = NoisyDense(4)
    x = jax.random.normal(KEY, (5, 3))
    params = layer.init(KEY, x)
    mean, one, again, other = (layer.apply(params, x, key) for key in (None, KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, mean) and not np.allclose(one, other)
    # One draw for all rows: the same row twice gives the same output.
    same = np.asarray(layer.apply(params, jnp.ones((2, 3)), KEY))
    np.testing.assert_array_equal(same[0], same[1])
    # The mean over many draws is the mean network.
    draws = jax.vmap(lambda key: layer.apply(params, x, key))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.05)


def test_few_rows_and_many_give_the_same():
    layer: Any = NoisyDense(4)
    x = jax.random.normal(KEY, (40, 3))
    params = layer.init(KEY, x)
    many, few = layer.apply(params, x, KEY), layer.apply(params, x[:5], KEY)
    np.testing.assert_allclose(many[:5], few, rtol=1e-5, atol=1e-6)


def test_first_values():
    layer: Any = NoisyDense(200, sigma0=0.4)
    alone = layer.init(KEY, jnp.zeros((1, 100)))["params"]
    together = initialize_noisy(KEY, {"layer": jax.tree.map(jnp.zeros_like, alone)}, 0.4)["layer"]
    for params in (alone, together):
        assert jnp.abs(params["kernel"]).max() <= 0.1 and jnp.abs(params["bias"]).max() <= 0.1
        np.testing.assert_allclose(params["kernel"].std(), 0.1 / math.sqrt(3), rtol=0.02)
        np.testing.assert_allclose(params["kernel"].mean(), 0.0, atol=2e-3)
        np.testing.assert_allclose(params["sigma_kernel"], 0.04, rtol=1e-6)
        np.testing.assert_allclose(params["sigma_bias"], 0.04, rtol=1e-6)


def test_noise_of_layers_and_other_layers_are_left_alone():
    first, second = draw_noise(KEY, [(3, 4), (4, 2)])
    assert first.shape == (7,) and second.shape == (6,)
    assert not np.allclose(first[:6], second)
    tree = {"a": {"kernel": jnp.ones((2, 2))}, "b": NoisyDense(2).init(KEY, jnp.zeros((1, 2)))["params"]}
    filled = initialize_noisy(KEY, tree, 0.5)
    np.testing.assert_array_equal(filled["a"]["kernel"], 1.0)
    assert jax.tree.structure(filled) == jax.tree.structure(tree)
