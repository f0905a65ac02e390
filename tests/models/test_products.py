"""Stacks of dense layers: values, gradients and second derivatives against the plain formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.models.products import dense_layers


def weights(key, sizes):
    keys = jax.random.split(key, len(sizes))
    return [
        (jax.random.normal(k, (n, m)) / np.sqrt(n), jax.random.normal(k, (m,)))
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


def plain(x, layers, activations):
    for (kernel, bias), act in zip(layers, activations, strict=True):
        x = act(x @ kernel + bias)
    return x


def standardized(x):
    return jnp.tanh(jax.nn.standardize(x))


@pytest.mark.parametrize("is_head", [True, False])
@pytest.mark.parametrize("leading", [(), (64,), (8, 5)])
@pytest.mark.parametrize(
    "activations", [[jnp.tanh, jax.nn.identity], [jax.nn.softmax, jax.nn.relu], [standardized, standardized]]
)
def test_values_and_gradients(leading, activations, is_head):
    # Without leading axes the kernels are larger than what they meet, and the plain form is taken.
    layers = weights(jax.random.key(0), (4, 6, 3))
    x = jax.random.normal(jax.random.key(1), (*leading, 4))

    def loss(function):
        return lambda x, layers: jnp.sum(jnp.sin(function(x, layers)) * jnp.arange(1.0, 4.0))

    ours = loss(lambda x, layers: dense_layers(x, layers, activations, is_head=is_head))
    theirs = loss(lambda x, layers: plain(x, layers, activations))
    np.testing.assert_allclose(ours(x, layers), theirs(x, layers), rtol=1e-5)
    for wrap in (lambda f: f, jax.jit):
        got = wrap(jax.grad(ours, argnums=(0, 1)))(x, layers)
        expected = jax.grad(theirs, argnums=(0, 1))(x, layers)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_forward_mode_and_second_derivatives():
    layers = weights(jax.random.key(0), (4, 6, 2))
    x = jax.random.normal(jax.random.key(1), (64, 4))
    activations = [jnp.tanh, jax.nn.identity]

    def hessian_vector(function):
        def loss(layers):
            return jnp.sum(jnp.square(function(x, layers)))

        return jax.jvp(jax.grad(loss), (layers,), (layers,))[1]

    got = hessian_vector(lambda x, layers: dense_layers(x, layers, activations, is_head=True))
    expected = hessian_vector(lambda x, layers: plain(x, layers, activations))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, expected)


def test_many_members_at_once():
    layers = jax.vmap(lambda key: weights(key, (4, 6, 2)))(jax.random.split(jax.random.key(0), 3))
    x = jax.random.normal(jax.random.key(1), (64, 4))
    activations = [jnp.tanh, jax.nn.identity]

    def grads(function):
        return jax.vmap(jax.grad(lambda layers: jnp.sum(jnp.square(function(x, layers)))))(layers)

    got = grads(lambda x, layers: dense_layers(x, layers, activations, is_head=True))
    expected = grads(lambda x, layers: plain(x, layers, activations))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_no_product_of_a_gradient_sums_over_the_rows_of_its_left_factor():
    """The slow form: XLA's CPU backend turns the left factor around, 256 x 64 numbers."""
    layers = weights(jax.random.key(0), (4, 64, 64, 2))
    x = jax.random.normal(jax.random.key(1), (256, 4))
    activations = [jnp.tanh, jnp.tanh, jax.nn.identity]

    def slow_products(function):
        program = jax.jit(jax.grad(lambda layers: jnp.sum(jnp.square(function(x, layers))))).lower(layers).compile()
        text = program.as_text() or ""
        return sum(" dot(" in line and "lhs_contracting_dims={0}" in line for line in text.splitlines())

    assert slow_products(lambda x, layers: plain(x, layers, activations)) >= 3
    assert slow_products(lambda x, layers: dense_layers(x, layers, activations, is_head=True)) == 0


def test_no_layers():
    x = jnp.ones((2, 3))
    assert dense_layers(x, [], []) is x
