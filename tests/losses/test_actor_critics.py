"""Deterministic and soft actor-critics' pieces: hand-worked numbers, gradients, entropy targets."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.distributions import MASK_VALUE, get_dist_class
from jaxrl.types import UnsupportedSpaceError


def test_deterministic_policy_climbs_the_value():
    def loss(mu):
        return losses.deterministic_policy_loss(-jnp.square(mu - 3.0)).mean()

    assert float(jax.grad(loss)(jnp.float32(1.0))) == pytest.approx(-4.0)  # descent raises mu towards 3


def test_smoothed_actions():
    actions, noise = jnp.array([[0.0, 0.9, -0.5]]), jnp.array([[2.0, 0.3, -0.1]])
    np.testing.assert_allclose(losses.smoothed_actions(actions, noise, 0.5, -1.0, 1.0), [[0.5, 1.0, -0.6]], rtol=1e-6)
    low, high = np.array([-2.0, 0.0, -0.55]), np.array([0.25, 2.0, 0.0])
    np.testing.assert_allclose(losses.smoothed_actions(actions, noise, 0.5, low, high), [[0.25, 1.2, -0.55]], rtol=1e-6)
    with pytest.raises(AssertionError):
        losses.smoothed_actions(actions, noise[0], 0.5, -1.0, 1.0)


def test_clipped_double_q():
    np.testing.assert_array_equal(losses.clipped_double_q(jnp.array([[1.0, 5.0], [2.0, 4.0]])), [1.0, 4.0])
    np.testing.assert_array_equal(losses.clipped_double_q(jnp.array([[1.0, 5.0]])), [1.0, 5.0])


def test_soft_values_and_policy_losses_by_hand():
    q, logp = jnp.array([1.0, 2.0]), jnp.array([-0.5, 0.25])
    np.testing.assert_allclose(losses.soft_values(q, logp, 0.2), [1.1, 1.95])
    np.testing.assert_allclose(losses.soft_policy_loss(q, logp, 0.2), [-1.1, -1.95])
    pi = np.array([[0.25, 0.75]])
    expected = 0.25 * (1.0 - 0.2 * np.log(0.25)) + 0.75 * (2.0 - 0.2 * np.log(0.75))
    got = losses.soft_values_discrete(jnp.array([[1.0, 2.0]]), jnp.log(pi), 0.2)
    np.testing.assert_allclose(got, [expected], rtol=1e-6)
    got = losses.soft_policy_loss_discrete(jnp.array([[1.0, 2.0]]), jnp.log(pi), 0.2)
    np.testing.assert_allclose(got, [-expected], rtol=1e-6)
    with pytest.raises(AssertionError):
        losses.soft_values(q, logp[:, None], 0.2)


@pytest.mark.parametrize("jit", [False, True])
def test_the_best_discrete_policy_is_the_softmax(jit):
    q, alpha = jnp.array([1.0, 0.5, -1.0]), 0.3

    def loss(logits):
        return losses.soft_policy_loss_discrete(q, jax.nn.log_softmax(logits), alpha)

    gradient = jax.jit(jax.grad(loss)) if jit else jax.grad(loss)
    np.testing.assert_allclose(gradient(q / alpha), np.zeros(3), atol=1e-6)
    assert np.abs(gradient(jnp.zeros(3))).max() > 0.1


def test_masked_actions_count_for_nothing():
    q = jnp.array([1.0, 50.0, -1.0])
    mask = jnp.array([True, False, True])

    def loss(logits):
        return losses.soft_policy_loss_discrete(q, jax.nn.log_softmax(jnp.where(mask, logits, MASK_VALUE)), 0.3)

    two = losses.soft_policy_loss_discrete(q[mask], jax.nn.log_softmax(jnp.zeros(2)), 0.3)
    assert float(loss(jnp.zeros(3))) == pytest.approx(float(two))
    gradient = jax.grad(loss)(jnp.zeros(3))
    assert np.isfinite(gradient).all() and float(gradient[1]) == 0.0


def test_temperature_moves_towards_the_target_entropy():
    gradient = jax.grad(lambda log_alpha, entropy: losses.temperature_loss(log_alpha, entropy, -1.0).mean())
    assert float(gradient(0.5, jnp.array([-2.0, -2.0]))) < 0.0  # too little entropy: descent raises the temperature
    assert float(gradient(0.5, jnp.array([1.0, 0.0]))) > 0.0
    assert float(gradient(0.5, jnp.array([-1.5, -0.5]))) == 0.0
    np.testing.assert_allclose(losses.temperature_loss(jnp.float32(0.5), jnp.array([1.0, -2.0]), -1.0), [1.0, -0.5])


def test_default_target_entropies():
    assert losses.default_target_entropy(spaces.Box(-1.0, 1.0, (3,))) == -3.0
    assert losses.default_target_entropy(spaces.Box(-1.0, 1.0, (2, 2))) == -4.0
    assert losses.default_target_entropy(spaces.Discrete(4)) == pytest.approx(0.98 * np.log(4))
    assert losses.default_target_entropy(spaces.Discrete(4), 0.5) == pytest.approx(0.5 * np.log(4))
    assert losses.default_target_entropy(spaces.MultiDiscrete([2, 3])) == pytest.approx(0.98 * np.log(6))
    assert losses.default_target_entropy(spaces.MultiBinary(3)) == pytest.approx(0.98 * np.log(8))
    both = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Tuple([spaces.Discrete(2)])})
    assert losses.default_target_entropy(both) == pytest.approx(-2.0 + 0.98 * np.log(2))
    assert losses.default_target_entropy(spaces.Box(-np.inf, np.inf, (2,))) == -2.0
    with pytest.raises(UnsupportedSpaceError, match="give a number"):
        losses.default_target_entropy(spaces.Text(3))


def test_the_target_entropy_means_the_same_in_other_units():
    inputs = jnp.array([0.3, -0.5])
    entropies = [
        float(get_dist_class(box, dist_type="squashed_gaussian")(inputs).entropy()) - losses.default_target_entropy(box)
        for box in (spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-2.0, 2.0, (1,)), spaces.Box(0.0, 10.0, (1,)))
    ]
    np.testing.assert_allclose(entropies, entropies[0], rtol=1e-5)
