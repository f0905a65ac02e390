"""Temporal differences by hand, Huber and the value rescaling against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses

Q = jnp.array([[1.0, 5.0, 3.0], [-2.0, 0.0, -1.0]])


def huber_oracle(x, delta):
    return 0.5 * x**2 if abs(x) <= delta else delta * (abs(x) - 0.5 * delta)


def h(x, eps):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def h_inverse(x, eps):
    return np.sign(x) * (((np.sqrt(1 + 4 * eps * (np.abs(x) + 1 + eps)) - 1) / (2 * eps)) ** 2 - 1)


@pytest.mark.parametrize("delta", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("jit", [False, True])
def test_huber(delta, jit):
    x = jnp.linspace(-4, 4, 33)
    huber = jax.jit(losses.huber) if jit else losses.huber
    np.testing.assert_allclose(huber(x, delta), [huber_oracle(v, delta) for v in x], rtol=1e-6)
    gradient = jax.vmap(jax.grad(huber), (0, None))(x, delta)
    np.testing.assert_allclose(gradient, np.clip(x, -delta, delta), rtol=1e-6)  # 0 at 0, no NaN


def test_values_of_actions_and_their_gradient():
    actions = jnp.array([2, 0])
    np.testing.assert_array_equal(losses.q_of_actions(Q, actions), [3.0, -2.0])
    np.testing.assert_array_equal(losses.q_of_actions(Q, actions + 7, start=7), [3.0, -2.0])
    time_major = losses.q_of_actions(jnp.stack([Q, 2 * Q]), jnp.stack([actions, actions]))
    np.testing.assert_array_equal(time_major, [[3.0, -2.0], [6.0, -4.0]])
    gradient = jax.grad(lambda q: losses.q_of_actions(q, actions).sum())(Q)
    np.testing.assert_array_equal(gradient, [[0, 0, 1], [1, 0, 0]])
    infinite = losses.q_of_actions(jnp.array([-jnp.inf, 1.0]), jnp.array(1))
    assert float(infinite) == 1.0


def test_values_of_actions_refuse_other_shapes():
    with pytest.raises(AssertionError):
        losses.q_of_actions(Q, jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(AssertionError):
        losses.q_of_actions(Q, jnp.zeros(3, jnp.int32))
    with pytest.raises(AssertionError):
        losses.q_of_actions(Q, jnp.zeros(2))


def test_double_q_chooses_with_one_and_values_with_the_other():
    target = jnp.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    np.testing.assert_array_equal(losses.double_q_values(target, Q), [20.0, 50.0])
    np.testing.assert_array_equal(losses.double_q_values(target, target), [30.0, 60.0])  # Q-learning
    mask = jnp.array([[True, False, True], [True, False, False]])
    np.testing.assert_array_equal(losses.double_q_values(target, Q, mask), [30.0, 40.0])
    masked = jnp.where(mask, Q, -1e7)
    np.testing.assert_array_equal(losses.double_q_values(target, masked), [30.0, 40.0])


def test_target_and_error():
    target = losses.td_target(jnp.array([1.0, 2.0]), jnp.array([0.9, 0.0]), jnp.array([10.0, 10.0]))
    np.testing.assert_allclose(target, [10.0, 2.0])
    np.testing.assert_allclose(losses.td_error(jnp.array([4.0, 4.0]), target), [6.0, -2.0])
    with pytest.raises(AssertionError):
        losses.td_target(jnp.ones(2), jnp.ones(()), jnp.ones(2))
    with pytest.raises(AssertionError):
        losses.td_error(jnp.ones(2), jnp.ones((2, 1)))


@pytest.mark.parametrize("eps", [1e-3, 1e-2])
def test_rescaling_matches_the_paper(eps):
    x = np.concatenate([np.linspace(-3, 3, 61), [-1e6, -500.0, 500.0, 1e6]])
    rescaled = losses.rescale_values(jnp.asarray(x, jnp.float32), eps)
    np.testing.assert_allclose(rescaled, h(x, eps), rtol=1e-6, atol=1e-7)
    y = np.concatenate([np.linspace(-3, 3, 61), [-300.0, 300.0]])
    unscaled = losses.unscale_values(jnp.asarray(y, jnp.float32), eps)
    np.testing.assert_allclose(unscaled, h_inverse(y, eps), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_rescaling_and_back(jit):
    def there_and_back(x):
        return losses.unscale_values(losses.rescale_values(x))

    x = np.array([-1e5, -20.0, -1.0, -1e-4, 0.0, 1e-6, 1e-2, 0.5, 3.0, 1e3, 1e6], np.float32)
    np.testing.assert_allclose((jax.jit(there_and_back) if jit else there_and_back)(x), x, rtol=3e-6)
    slope = jax.vmap(jax.grad(there_and_back))(x)
    np.testing.assert_allclose(slope, np.ones_like(x), rtol=1e-4)


def test_rescaling_is_odd_and_steep_at_zero():
    assert float(losses.rescale_values(jnp.float32(3.0))) == pytest.approx(1.003)
    assert float(losses.rescale_values(jnp.float32(-3.0))) == pytest.approx(-1.003)
    assert float(jax.grad(losses.rescale_values)(0.0)) == pytest.approx(0.501)
    assert float(jax.grad(losses.unscale_values)(0.0)) == pytest.approx(1 / 0.501)
