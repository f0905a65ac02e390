"""Discrete families against hand-worked numbers, NumPy and sampling frequencies."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl.distributions import get_dist_class

DRAWS = 20_000


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_categorical_by_hand():
    # Probabilities 1/4, 3/4.
    dist = get_dist_class(spaces.Discrete(2))(jnp.log(jnp.array([1.0, 3.0])))
    np.testing.assert_allclose(dist.log_prob(jnp.array([0, 1])), np.log([0.25, 0.75]), rtol=1e-6)
    np.testing.assert_allclose(dist.entropy(), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), rtol=1e-6)
    np.testing.assert_allclose(dist.probs, [0.25, 0.75], rtol=1e-6)
    assert dist.mode() == 1
    uniform = get_dist_class(spaces.Discrete(2))(jnp.zeros(2))
    np.testing.assert_allclose(dist.kl(uniform), 0.25 * np.log(0.5) + 0.75 * np.log(1.5), rtol=1e-6)
    np.testing.assert_allclose(uniform.kl(dist), 0.5 * np.log(2.0) + 0.5 * np.log(2.0 / 3.0), rtol=1e-6)


def test_categorical_stays_exact_for_large_logits():
    dist = get_dist_class(spaces.Discrete(2))(jnp.array([1e6, 1e6 + 1.0]))
    np.testing.assert_allclose(dist.log_prob(0), -np.log(1.0 + np.e), rtol=1e-6)


@pytest.mark.parametrize("start", [0, 5, -3])
def test_categorical_start_offsets_actions(start):
    space = spaces.Discrete(3, start=start)
    dist = get_dist_class(space)(jnp.log(jnp.array([0.2, 0.3, 0.5])))
    np.testing.assert_allclose(dist.log_prob(start + jnp.arange(3)), np.log([0.2, 0.3, 0.5]), rtol=1e-6)
    assert int(dist.mode()) == start + 2
    keys = jax.random.split(jax.random.key(0), 100)
    drawn = np.asarray(jax.vmap(dist.sample)(keys))
    assert drawn.dtype == np.int32
    assert set(drawn) == {start, start + 1, start + 2}
    assert all(space.contains(a) for a in drawn)


def test_categorical_frequencies():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    dist = get_dist_class(spaces.Discrete(4))(jnp.broadcast_to(jnp.log(probs), (DRAWS, 4)))
    counts = np.bincount(np.asarray(jax.jit(type(dist).sample)(dist, jax.random.key(1))), minlength=4)
    assert stats.chisquare(counts, probs * DRAWS).pvalue > 1e-3


@pytest.mark.parametrize("nvec", [[2, 3], [3, 3, 3], [[2, 4], [3, 1]]])
def test_multi_categorical_is_the_sum_of_its_components(nvec):
    nvec = np.array(nvec)
    space = spaces.MultiDiscrete(nvec)
    dist_class = get_dist_class(space)
    assert dist_class.input_size == nvec.sum()
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=(2, 7, nvec.sum())).astype(np.float32)
    actions = np.stack([space.sample() for _ in range(7)])
    dist, q = dist_class(jnp.asarray(logits)), dist_class(jnp.asarray(other))

    log_prob, entropy, kl, mode = np.zeros(7), np.zeros(7), np.zeros(7), []
    for k, (piece, piece_q) in enumerate(
        zip(*(np.split(x, np.cumsum(nvec.ravel())[:-1], axis=-1) for x in (logits, other)), strict=True)
    ):
        p, p_q = softmax(piece), softmax(piece_q)
        log_prob += np.log(p[np.arange(7), actions.reshape(7, -1)[:, k]])
        entropy -= (p * np.log(p)).sum(-1)
        kl += (p * np.log(p / p_q)).sum(-1)
        mode.append(p.argmax(-1))
    np.testing.assert_allclose(dist.log_prob(actions), log_prob, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dist.entropy(), entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dist.kl(q), kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(dist.mode(), np.stack(mode, -1).reshape(7, *nvec.shape))
    assert dist.batch_shape == (7,)


def test_multi_categorical_samples_every_action_and_no_padding():
    space = spaces.MultiDiscrete([1, 5], start=[2, -1])
    dist = get_dist_class(space)(jnp.zeros((2000, 6)))
    drawn = np.asarray(dist.sample(jax.random.key(0)))
    assert drawn.dtype == np.int32
    assert set(drawn[:, 0]) == {2}
    assert set(drawn[:, 1]) == {-1, 0, 1, 2, 3}
    np.testing.assert_allclose(dist.log_prob(drawn), -np.log(5.0), rtol=1e-6)


def test_bernoulli_by_hand():
    space = spaces.MultiBinary(2)
    p = np.array([0.25, 0.8])
    dist = get_dist_class(space)(jnp.log(p / (1 - p)))
    np.testing.assert_allclose(
        dist.log_prob(jnp.array([[0, 0], [1, 0], [1, 1]], jnp.int8)), np.log([0.15, 0.05, 0.2]), rtol=1e-5
    )
    np.testing.assert_allclose(dist.entropy(), -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(), rtol=1e-5)
    uniform = get_dist_class(space)(jnp.zeros(2))
    np.testing.assert_allclose(dist.kl(uniform), (p * np.log(2 * p) + (1 - p) * np.log(2 - 2 * p)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(dist.mode(), [0, 1])
    assert space.contains(np.asarray(dist.sample(jax.random.key(0))))


def test_bernoulli_frequencies():
    dist = get_dist_class(spaces.MultiBinary((2, 1)))(jnp.broadcast_to(jnp.array([-1.0, 2.0]), (DRAWS, 2)))
    drawn = np.asarray(dist.sample(jax.random.key(2)))
    assert drawn.shape == (DRAWS, 2, 1)
    for bit, logit in enumerate((-1.0, 2.0)):
        p = 1 / (1 + np.exp(-logit))
        ones = drawn[:, bit].sum()
        assert stats.chisquare([ones, DRAWS - ones], [p * DRAWS, (1 - p) * DRAWS]).pvalue > 1e-3


def test_half_precision_inputs_are_widened():
    dist = get_dist_class(spaces.Discrete(3))(jnp.zeros((4, 3), jnp.bfloat16))
    assert dist.log_prob(jnp.zeros(4, jnp.int32)).dtype == jnp.float32


def test_wrong_input_size_names_both():
    with pytest.raises(ValueError, match=r"expected inputs \[\.\.\., 3\], got shape \(4, 2\)"):
        get_dist_class(spaces.Discrete(3))(jnp.zeros((4, 2)))
