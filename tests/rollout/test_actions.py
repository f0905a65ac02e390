"""Actions on their way to the environment: always inside its space, of its dtype; NumPy and compiled alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.distributions import Simplex, get_dist_class, inner_bounds, middle_and_half
from jaxrl.exploration import make_exploration
from jaxrl.rollout.actions import action_transform, inverse_transform, policy_action_space

WIDEST = float(np.finfo(np.float32).max)
DTYPES = (np.float16, np.float32, np.float64)
RAW = np.array([-np.inf, -3.0, -1.0, -0.3, 0.0, 1e-8, 0.7, 1.0, 2.5, np.inf], np.float32)


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    """Boxes of several entries, narrow and wide, some with equal bounds."""
    dtype = draw(st.sampled_from(DTYPES))
    most = min(float(np.finfo(dtype).max), 1e300 if dtype is np.float64 else WIDEST)
    width: Any = 8 * np.dtype(dtype).itemsize
    numbers = st.floats(-most, most, allow_nan=False, width=width)
    numbers = numbers.map(lambda x: 0.0 if abs(x) < 1e-4 else x)  # XLA takes what is nearly 0 as 0
    ends = [sorted(draw(st.tuples(numbers, numbers))) for _ in range(3)]
    low, high = np.array(ends, dtype).T
    return spaces.Box(low, high, dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(box=boxes(), normalize=st.booleans())
def test_inside_its_space_and_of_its_dtype(box: spaces.Box, normalize: bool) -> None:
    transform = action_transform(box, normalize=normalize, clip=True)
    assert transform is not None
    raw = np.broadcast_to(RAW[:, None], (len(RAW), 3))
    for actions in (transform(raw), transform(raw[3])):  # a batch, and one agent's
        assert actions.dtype == box.dtype
        for action in actions.reshape(-1, 3):
            assert box.contains(action), (box, action)
    if normalize:  # the ends are reached
        np.testing.assert_array_equal(transform(np.ones((1, 3), np.float32))[0], box.high)
        np.testing.assert_array_equal(transform(-np.ones((1, 3), np.float32))[0], box.low)


@settings(max_examples=15, deadline=None)
@given(box=boxes())
def test_compiled_actions_are_inside(box: spaces.Box) -> None:
    low, high = inner_bounds(box)
    transform = action_transform(box, normalize=True, clip=True)
    assert transform is not None
    actions = transform(jnp.broadcast_to(RAW[:, None], (len(RAW), 3)))
    assert actions.dtype == jax.dtypes.canonicalize_dtype(box.dtype)
    if (low <= high).all() and (low >= box.low).all() and (high <= box.high).all():  # some of 32 bits are inside
        assert all(box.contains(np.asarray(action, box.dtype)) for action in actions)


def test_the_example_that_left_its_box() -> None:
    box = spaces.Box(-1.4, 0.8, (1,))
    transform = action_transform(box, normalize=True, clip=True)
    assert transform is not None
    for one in (np.ones(1, np.float32), jnp.ones(1)):
        assert np.asarray(jax.jit(transform)(one) if isinstance(one, jax.Array) else transform(one)) == np.float32(0.8)


@settings(max_examples=25, deadline=None)
@given(box=boxes())
def test_the_inverse_gives_the_policys_action_back(box: spaces.Box) -> None:
    dtype: Any = np.promote_types(box.dtype, np.float32)
    box = spaces.Box(box.low.astype(dtype), box.high.astype(dtype), dtype=dtype)
    transform, inverse = action_transform(box, normalize=True, clip=True), inverse_transform(box, normalize=True)
    assert transform is not None and inverse is not None
    raw = np.array([[-1.0, -0.3, 0.9]], np.float32)
    with np.errstate(all="ignore"):
        resolution = np.spacing(np.maximum(np.abs(box.low), np.abs(box.high))) / middle_and_half(box.low, box.high)[1]
    wide = resolution < 1e-3  # elsewhere neighbouring actions are one number
    np.testing.assert_allclose(inverse(transform(raw))[0][wide], raw[0][wide], atol=5e-3)


def test_what_is_not_normalised() -> None:
    half_bounded = spaces.Box(0.0, np.inf, (2,))
    whole = spaces.Box(0, 3, (1,), np.int32)
    for space in (half_bounded, whole, Simplex(3), spaces.Discrete(3), spaces.Box(-np.inf, np.inf, (1,))):
        assert policy_action_space(space, normalize=True) is space
    nested = spaces.Dict({"a": spaces.Box(-3.0, 5.0, (1,)), "b": spaces.Tuple([half_bounded])})
    assert policy_action_space(nested, normalize=True)["a"] == spaces.Box(-1.0, 1.0, (1,))  # pyright: ignore
    transform = action_transform(nested, normalize=True, clip=True)
    assert transform is not None
    actions = transform({"a": np.ones((1, 1), np.float32), "b": (np.full((1, 2), -7.0, np.float32),)})
    np.testing.assert_array_equal(actions["a"], [[5.0]])
    np.testing.assert_array_equal(actions["b"][0], [[0.0, 0.0]])


WIDE = spaces.Box(
    np.array([-2e38, -WIDEST, 0.0, -1e300, -1.4, -0.1]),
    np.array([2e38, WIDEST, WIDEST, 1e300, 0.8, 0.1]),
    dtype=np.float64,
)


@pytest.mark.parametrize("name", ["squashed_gaussian", "beta"])
def test_bounded_distributions_stay_inside_however_wide(name: str) -> None:
    dist_class = get_dist_class(WIDE, dist_type=name)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(64, dist_class.input_size)) * 5.0, jnp.float32)

    def acted(inputs: jax.Array) -> tuple:
        dist = dist_class(inputs)
        actions, logp = dist.sample_and_log_prob(jax.random.key(0))
        return jnp.concatenate([actions, dist.mode()]), logp, dist.log_prob(actions), dist.entropy()

    actions, *numbers = jax.jit(acted)(inputs)
    assert all(WIDE.contains(np.asarray(action, WIDE.dtype)) for action in actions)
    assert all(np.isfinite(x).all() for x in numbers)


@pytest.mark.parametrize("kind", ["Random", "GaussianNoise", "OrnsteinUhlenbeckNoise"])
def test_exploration_stays_inside_however_wide(kind: str) -> None:
    options = {} if kind == "Random" else {"random_timesteps": 0}
    exploration = make_exploration({"type": kind, **options}, WIDE)
    ends = jnp.broadcast_to(inner_bounds(WIDE)[1], (64, 6))
    dist = get_dist_class(WIDE, dist_type="deterministic")(ends)
    state, key, coeffs = exploration.init(64), jax.random.key(0), dict.fromkeys(exploration.coeffs, 1.0)
    first, _, state = exploration.sample(dist, state, key, 0, coeffs, True)
    second, _, _ = exploration.sample(dist, state, jax.random.key(1), 1, coeffs, True)
    actions = np.concatenate([first, second])
    assert all(WIDE.contains(action.astype(WIDE.dtype)) for action in actions)
    # Gaussian noise is in units of the action: 0.1 is nothing where the box is wide.
    assert all(len(np.unique(column)) > 1 for column in actions.T[4 if kind == "GaussianNoise" else 0 :])
