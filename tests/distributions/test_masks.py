"""Action masks: a masked action has probability 0, is never drawn, and leaves everything finite."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.distributions import MASK_VALUE, get_dist_class

DRAWS = 100_000


def masked(space, inputs, mask):
    dist_class = get_dist_class(space)
    assert dist_class.mask_inputs is not None
    return dist_class(dist_class.mask_inputs(inputs, mask))


def test_masked_action_is_never_drawn_whatever_its_logit():
    inputs = jnp.broadcast_to(jnp.array([0.0, 50.0, 1.0]), (DRAWS, 3))
    dist = masked(spaces.Discrete(3), inputs, jnp.array([True, False, True]))
    drawn = np.asarray(jax.jit(type(dist).sample)(dist, jax.random.key(0)))
    assert set(drawn) == {0, 2}
    np.testing.assert_array_equal(dist.probs[:, 1], 0.0)


def test_masked_is_the_distribution_over_what_remains():
    rng = np.random.default_rng(0)
    logits, other = rng.normal(size=(2, 5)).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 0], np.int8)
    kept = np.flatnonzero(mask)
    p, q = masked(spaces.Discrete(5), logits, mask), masked(spaces.Discrete(5), other, mask)
    small = get_dist_class(spaces.Discrete(3))
    np.testing.assert_allclose(p.log_prob(kept), small(logits[kept]).log_prob(jnp.arange(3)), rtol=1e-6)
    np.testing.assert_allclose(p.entropy(), small(logits[kept]).entropy(), rtol=1e-6)
    np.testing.assert_allclose(p.kl(q), small(logits[kept]).kl(small(other[kept])), rtol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 1]), spaces.MultiBinary(3)], ids=str)
@pytest.mark.parametrize("mask", [[True, False, True], [False, False, False]])
def test_values_and_gradients_stay_finite(space, mask):
    mask = jnp.array(mask)

    def total(inputs):
        dist = masked(space, inputs, mask)
        every = jnp.stack([jnp.asarray(a) for a in actions])
        q = masked(space, jnp.zeros(3), mask)
        ratio = jnp.exp(dist.log_prob(every) - jax.lax.stop_gradient(dist.log_prob(every)))
        return dist.log_prob(every).sum() + dist.entropy() + dist.kl(q) + q.kl(dist) + ratio.sum()

    actions = [
        space.sample() * 0,
        {"Discrete": 2, "MultiDiscrete": np.array([1, 0]), "MultiBinary": np.ones(3)}[type(space).__name__],
    ]
    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.array([0.3, -0.2, 0.1]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.any(np.asarray(gradient)[~np.asarray(mask)])


def test_ratio_of_a_masked_action_is_finite():
    # A padding row may hold an action that its mask forbids, under other logits than the behaviour policy's.
    mask = jnp.array([True, False])
    new = masked(spaces.Discrete(2), jnp.array([300.0, 0.0]), mask)
    old = masked(spaces.Discrete(2), jnp.array([0.0, 0.0]), mask)
    assert np.isfinite(jnp.exp(old.log_prob(1) - new.log_prob(1) - 300.0))
    assert MASK_VALUE < -1e6


def test_multi_discrete_mask_is_concatenated():
    space = spaces.MultiDiscrete([2, 3])
    dist = masked(space, jnp.zeros((DRAWS // 10, 5)), jnp.array([1, 0, 0, 1, 1]))
    drawn = np.asarray(dist.sample(jax.random.key(0)))
    assert set(drawn[:, 0]) == {0}
    assert set(drawn[:, 1]) == {1, 2}
    np.testing.assert_allclose(dist.log_prob(drawn), np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("mask", [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
def test_a_component_that_allows_nothing_counts_as_one_that_allows_all(mask):
    space = spaces.MultiDiscrete([2, 3])
    drawn = np.asarray(masked(space, jnp.zeros((2000, 5)), jnp.array(mask)).sample(jax.random.key(0)))
    for column, allowed in zip(drawn.T, (mask[:2], mask[2:]), strict=True):
        assert set(column) == set(np.flatnonzero(allowed) if any(allowed) else range(len(allowed)))


def test_a_state_that_allows_nothing_keeps_its_values():
    logits = jnp.array([3.0, -1.0, 2.0])
    np.testing.assert_array_equal(masked(spaces.Discrete(3), logits, jnp.zeros(3)).logits, logits)


def test_masked_bit_stays_zero():
    dist = masked(spaces.MultiBinary(2), jnp.full((DRAWS, 2), 9.0), jnp.array([True, False]))
    drawn = np.asarray(dist.sample(jax.random.key(0)))
    assert drawn[:, 0].mean() > 0.99
    assert not drawn[:, 1].any()


def test_joint_mask_is_nested_and_may_leave_parts_out():
    space = spaces.Dict(
        {
            "move": spaces.Discrete(2),
            "aim": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,)))),
        }
    )
    size = get_dist_class(space).input_size
    inputs = jnp.zeros((500, size))
    only = np.array([False, True])
    drawn = masked(space, inputs, {"move": only}).sample(jax.random.key(0))
    assert set(np.asarray(drawn["move"])) == {1}
    assert set(np.asarray(drawn["aim"][0])) == {0, 1, 2}
    drawn = masked(space, inputs, {"move": None, "aim": (jnp.array([1, 0, 0]), None)}).sample(jax.random.key(0))
    assert set(np.asarray(drawn["move"])) == {0, 1}
    assert set(np.asarray(drawn["aim"][0])) == {0}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"mvoe": np.ones(2)}, r"keys among \['aim', 'move'\].*got \['mvoe'\]"),
        (np.ones(2), "expected a dict"),
        ({"aim": (np.ones(3),)}, r"action_mask\['aim'\]: expected a tuple of 2"),
        ({"aim": (None, np.ones(2))}, "DiagGaussian actions cannot be masked"),
        ({"move": np.ones(3)}, r"expected \[\.\.\., 2\].*got shape \(3,\)"),
    ],
)
def test_bad_masks_say_what_was_expected(mask, message):
    space = spaces.Dict({"move": spaces.Discrete(2), "aim": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0)))})
    with pytest.raises(ValueError, match=message):
        masked(space, jnp.zeros(7), mask)


def test_continuous_actions_take_no_mask():
    assert get_dist_class(spaces.Box(-1.0, 1.0, (2,))).mask_inputs is None
    assert get_dist_class(spaces.Tuple((spaces.Box(-1.0, 1.0),))).mask_inputs is None
