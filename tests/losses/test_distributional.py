"""C51's projection with numbers worked by hand and by the paper's loop; quantile Huber by explicit double loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses

SUPPORT = losses.value_support(-1.0, 1.0, 5)  # -1, -0.5, 0, 0.5, 1


def target(rewards, discounts, probs, jit=False):
    fn = jax.jit(losses.categorical_td_target) if jit else losses.categorical_td_target
    return fn(jnp.asarray(rewards, jnp.float32), jnp.asarray(discounts, jnp.float32), jnp.asarray(probs), SUPPORT)


def projection_oracle(rewards, discounts, probs, v_min, v_max):
    """Algorithm 1 of the paper, with its floors and ceilings."""
    n = probs.shape[-1]
    dz = (v_max - v_min) / (n - 1)
    out = np.zeros(probs.shape)
    for row in range(len(probs)):
        for j in range(n):
            z = np.clip(rewards[row] + discounts[row] * (v_min + j * dz), v_min, v_max)
            b = (z - v_min) / dz
            low, high = int(np.floor(b)), int(np.ceil(b))
            if low == high:
                out[row, low] += probs[row, j]
            else:
                out[row, low] += probs[row, j] * (high - b)
                out[row, high] += probs[row, j] * (b - low)
    return out


def test_support():
    np.testing.assert_allclose(SUPPORT, [-1.0, -0.5, 0.0, 0.5, 1.0])
    assert losses.value_support(-10, 10, 51).shape == (51,)
    for v_min, v_max, atoms in ((0.0, 1.0, 1), (1.0, 1.0, 5), (1.0, 0.0, 5)):
        with pytest.raises(ValueError, match="v_min < v_max"):
            losses.value_support(v_min, v_max, atoms)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("reward", "discount", "probs", "expected"),
    [
        (0.0, 1.0, [0.1, 0.2, 0.3, 0.2, 0.2], [0.1, 0.2, 0.3, 0.2, 0.2]),  # itself
        (0.5, 1.0, [0.1, 0.2, 0.3, 0.2, 0.2], [0.0, 0.1, 0.2, 0.3, 0.4]),  # on atoms, the last two at the end
        (-0.5, 1.0, [0.1, 0.2, 0.3, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2, 0.0]),
        (0.2, 1.0, [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.4, 0.0]),  # 0.2 = 0.6 * 0 + 0.4 * 0.5
        (0.25, 0.5, [0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.25, 0.25, 0.25, 0.25]),  # at -0.25 and 0.75
        (0.7, 0.0, [0.1, 0.2, 0.3, 0.2, 0.2], [0.0, 0.0, 0.0, 0.6, 0.4]),  # terminated: all at the reward
        (9.0, 0.9, [0.1, 0.2, 0.3, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0, 1.0]),  # beyond the ends
        (-9.0, 0.9, [0.1, 0.2, 0.3, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_projection_by_hand(reward, discount, probs, expected, jit):
    np.testing.assert_allclose(target(reward, discount, probs, jit), expected, atol=1e-6)


def test_projection_is_the_papers_algorithm():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(51), size=64).astype(np.float32)
    rewards = rng.normal(0, 6, 64).astype(np.float32)
    discounts = rng.choice([0.0, 0.9, 0.99], 64).astype(np.float32)
    support = losses.value_support(-10.0, 10.0, 51)
    got = losses.categorical_td_target(jnp.asarray(rewards), jnp.asarray(discounts), jnp.asarray(probs), support)
    np.testing.assert_allclose(got, projection_oracle(rewards, discounts, probs, -10.0, 10.0), atol=1e-5)
    np.testing.assert_allclose(got.sum(-1), np.ones(64), rtol=1e-5)


def test_projection_keeps_the_mean_within_the_support_and_any_leading_axes():
    probs = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(7), size=(3, 2)), jnp.float32)
    target_support = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (3, 2, 7)), jnp.float32)
    projected = losses.project_distribution(probs, target_support, SUPPORT)
    assert projected.shape == (3, 2, 5)
    np.testing.assert_allclose(
        jnp.sum(projected * SUPPORT, -1), jnp.sum(probs * target_support, -1), rtol=1e-4, atol=1e-5
    )


def test_means_and_choices():
    logits = jnp.log(jnp.array([[[0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0, 0.0]]]) + 1e-20)
    np.testing.assert_allclose(losses.expected_values(logits, SUPPORT), [[0.0, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(losses.atoms_of_actions(logits, jnp.array([1])), logits[:, 1])
    np.testing.assert_array_equal(losses.atoms_of_actions(logits, jnp.array([4]), start=3), logits[:, 1])
    quantiles = jnp.swapaxes(logits, -1, -2)  # [B, N, A]
    np.testing.assert_array_equal(losses.quantiles_of_actions(quantiles, jnp.array([1])), logits[:, 1])
    with pytest.raises(AssertionError):
        losses.atoms_of_actions(logits, jnp.array([1, 1]))


def test_cross_entropy_and_its_gradient():
    logits, m = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.2, 0.0, 0.8])
    p = np.exp(logits) / np.exp(logits).sum()
    assert float(losses.cross_entropy(m, logits)) == pytest.approx(-(0.2 * np.log(p[0]) + 0.8 * np.log(p[2])))
    gradient = jax.grad(losses.cross_entropy, argnums=1)(m, logits)
    np.testing.assert_allclose(gradient, p - m, rtol=1e-5)


def test_midpoints():
    np.testing.assert_allclose(losses.quantile_midpoints(4), [0.125, 0.375, 0.625, 0.875])


def quantile_huber_oracle(theta, y, taus, kappa):
    total = 0.0
    for i, tau in enumerate(taus):
        for y_j in y:
            u = y_j - theta[i]
            huber = 0.5 * u**2 if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
            total += abs(tau - (1.0 if u < 0 else 0.0)) * huber / kappa / len(y)
    return total


@pytest.mark.parametrize("kappa", [1.0, 0.5])
@pytest.mark.parametrize("jit", [False, True])
def test_quantile_huber_is_the_double_loop(kappa, jit):
    rng = np.random.default_rng(3)
    theta, y, taus = rng.normal(0, 2, (6, 4)), rng.normal(0, 2, (6, 3)), rng.random((6, 4))

    def loss(theta, y, taus):
        return losses.quantile_huber(losses.quantile_td_errors(theta, y), taus, kappa)

    args = [jnp.asarray(x, jnp.float32) for x in (theta, y, taus)]
    expected = [quantile_huber_oracle(*row, kappa) for row in zip(theta, y, taus, strict=True)]
    np.testing.assert_allclose((jax.jit(loss) if jit else loss)(*args), expected, rtol=1e-5)
    shared = loss(args[0], args[1], args[2][0])
    np.testing.assert_allclose(shared[0], expected[0], rtol=1e-5)


def test_quantile_huber_finds_quantiles_and_has_no_nan_gradient():
    y = jnp.linspace(0.0, 100.0, 1001)
    taus = losses.quantile_midpoints(5)

    def loss(theta):
        return losses.quantile_huber(losses.quantile_td_errors(theta, y), taus, 1e-3)

    theta = 100.0 * taus
    assert np.abs(jax.grad(loss)(theta)).max() < 2e-3  # stationary there
    assert (np.abs(jax.grad(loss)(theta + 10.0)) > 0.05).all()
    at_zero = jax.grad(lambda errors: losses.quantile_huber(errors, taus))(jnp.zeros((5, 3)))
    np.testing.assert_array_equal(at_zero, np.zeros((5, 3)))


def test_errors_are_target_minus_quantile():
    errors = losses.quantile_td_errors(jnp.array([1.0, 2.0]), jnp.array([5.0, 7.0, 9.0]))
    np.testing.assert_array_equal(errors, [[4.0, 6.0, 8.0], [3.0, 5.0, 7.0]])
