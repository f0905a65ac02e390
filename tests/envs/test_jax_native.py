"""The JAX environments beside the Gymnasium ones that they were modelled on, step for step; resets and time limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make_env_creator
from jaxrl.envs.examples.memory import RepeatAfterMe
from jaxrl.envs.jax_native import (
    AcrobotState,
    JaxEnv,
    PendulumState,
    ProbeState,
    RepeatAfterMeState,
    TimeLimitState,
    acrobot,
    action_probe,
    cart_pole,
    discount_probe,
    draw_resets,
    mountain_car,
    mountain_car_continuous,
    observation_action_probe,
    observation_probe,
    pendulum,
    repeat_after_me,
    stateless_cart_pole,
    time_limit,
    value_probe,
    vector_step,
)
from jaxrl.envs.jax_native.memory import token
from jaxrl.envs.probes import ProbeEnv
from jaxrl.types import ConfigError

STEPS = 10_000


class Pair(NamedTuple):
    """A JAX environment and its original.

    Attributes:
        env: ours.
        original: what creates the original.
        read: the original (unwrapped) and the steps of its episode, as a state of ours.
        drive: an action that gets somewhere, taken in each second episode; random actions seldom end some tasks.
        in_step: chaotic: take the original's state over in each step rather than at resets alone.
    """

    env: JaxEnv
    original: Any
    read: Callable[[Any, int], Any]
    drive: Callable[[Any], Any] | None = None
    in_step: bool = False


def number(value: Any, dtype: Any) -> Any:
    """In NumPy: ten thousand small JAX arrays would take as long as all the rest."""
    return np.asarray(value, dtype)


def floats(original: Any, t: int) -> TimeLimitState:
    """Reads a time-limited environment's state, numbers in the original's order."""
    return TimeLimitState(number(original.state, np.float32), number(t, np.int32))


def acrobot_state(original: Any, t: int) -> TimeLimitState:
    return TimeLimitState(AcrobotState(*number(original.state, np.float32)), number(t, np.int32))


def pendulum_state(original: Any, t: int) -> TimeLimitState:
    theta, theta_dot = original.state
    wrapped = (theta + np.pi) % (2 * np.pi) - np.pi
    return TimeLimitState(
        PendulumState(number(wrapped, np.float32), number(theta_dot, np.float32)), number(t, np.int32)
    )


class Tokens:
    """Stands in for a random generator: the tokens of one of our episodes."""

    def __init__(self, seed: int) -> None:
        self.tokens = iter(np.asarray(TOKENS(jnp.uint32(seed))).tolist())

    def integers(self, high: int) -> int:
        return next(self.tokens)


TOKENS = jax.jit(lambda seed: token(seed, jnp.arange(102)))


class RepeatOurTokens(RepeatAfterMe):
    """The original, with our tokens."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        if seed is not None:
            self.seeds = np.random.default_rng(seed)
        self.seed = int(self.seeds.integers(2**32))
        self.np_random = cast(Any, Tokens(self.seed))
        return RepeatAfterMe.reset(self)


def repeat_state(original: Any, t: int) -> TimeLimitState:
    return TimeLimitState(
        RepeatAfterMeState(number(original.seed, np.uint32), number(t, np.int32)), number(t, np.int32)
    )


def probe_state(original: Any, t: int) -> ProbeState:
    return ProbeState(number(original.obs, np.float32), number(t, np.int32))


PROBES = {
    "ValueProbe": value_probe,
    "ObservationProbe": observation_probe,
    "DiscountProbe": discount_probe,
    "ActionProbe": action_probe,
    "ObservationActionProbe": observation_action_probe,
}

CONTINUOUS = {"continuous": True}

PAIRS: dict[str, Pair] = {
    "CartPole-v1": Pair(cart_pole(), "CartPole-v1", floats),
    "CartPole-v1, balanced": Pair(
        cart_pole(), "CartPole-v1", floats, lambda obs: int(obs[2] + obs[3] > 0), in_step=True
    ),
    "StatelessCartPole": Pair(stateless_cart_pole(), "StatelessCartPole", floats),
    "Pendulum-v1": Pair(pendulum(), "Pendulum-v1", pendulum_state, in_step=True),
    "Acrobot-v1": Pair(acrobot(), "Acrobot-v1", acrobot_state, lambda obs: 2 if obs[4] < 0 else 0, in_step=True),
    "MountainCar-v0": Pair(mountain_car(), "MountainCar-v0", floats, lambda obs: 2 if obs[1] > 0 else 0),
    "MountainCarContinuous-v0": Pair(
        mountain_car_continuous(),
        "MountainCarContinuous-v0",
        floats,
        lambda obs: np.sign(obs[1:] + 1e-6),
    ),
    "RepeatAfterMe": Pair(repeat_after_me(), RepeatOurTokens, repeat_state),
    "RepeatAfterMe, delay 3": Pair(
        repeat_after_me({"repeat_delay": 3, "episode_len": 20}),
        lambda: RepeatOurTokens({"repeat_delay": 3, "episode_len": 20}),
        repeat_state,
    ),
    **{name: Pair(make(), name, probe_state) for name, make in PROBES.items()},
    **{
        f"{name}, continuous": Pair(
            make({"continuous": True}), lambda name=name: ProbeEnv(name, CONTINUOUS), probe_state
        )
        for name, make in PROBES.items()
    },
}
CLASSIC = [name for name in PAIRS if name in gym.registry]


@pytest.mark.parametrize("name", PAIRS)
def test_ten_thousand_random_steps_beside_the_original(name):
    env, make, read, drive, in_step = PAIRS[name]
    original = make_env_creator(make)({})
    assert env.observation_space == original.observation_space
    assert env.action_space == original.action_space
    original.action_space.seed(1)
    obs, _ = original.reset(seed=1)
    state = read(original.unwrapped, 0)
    kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    # Our state carries over from step to step; where `given`, the original's replaces it: resets draw other numbers.
    elapsed, ends, given, steps, theirs = 0, 0, True, [], []
    for _ in range(STEPS):
        driven = drive is not None and ends % 2 == 1
        action = drive(obs) if drive is not None and driven else original.action_space.sample()
        steps.append((given, state, action))
        obs, reward, terminated, truncated, _ = original.step(action)
        theirs.append((obs, reward, terminated, truncated))
        elapsed += 1
        if terminated or truncated:
            ends, elapsed = ends + 1, 0
            obs, _ = original.reset()
        given = terminated or truncated or in_step
        state = read(original.unwrapped, elapsed) if given else state
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] == kinds

    def step(state, xs):
        given, fresh, action = xs
        out = env.step(jax.random.key(0), jax.tree.map(lambda x, y: jnp.where(given, x, y), fresh, state), action)
        return out.state, out[1:]

    _, ours = jax.jit(lambda xs: jax.lax.scan(step, state, xs))(jax.tree.map(lambda *x: np.array(x), *steps))
    dtype = jnp.int32 if env.observation_space.shape == () else jnp.float32
    assert [leaf.dtype for leaf in ours] == [dtype, jnp.float32, jnp.bool_, jnp.bool_]
    our_obs, our_rewards, *our_ends = (np.asarray(column) for column in ours)
    obs, rewards, *ends_of_both_kinds = (np.array(column) for column in zip(*theirs, strict=True))
    np.testing.assert_array_equal(our_ends, ends_of_both_kinds)
    np.testing.assert_allclose(our_obs, obs, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(our_rewards, rewards, rtol=1e-5, atol=1e-5)
    assert ends >= 10
    assert np.sum(ends_of_both_kinds[0]) >= 5 or name.startswith(("Pendulum", "RepeatAfterMe"))
    original.close()


@pytest.mark.parametrize("name", PAIRS)
def test_resets_draw_what_the_original_draws(name):
    env, original = PAIRS[name].env, make_env_creator(PAIRS[name].original)({})
    original.reset(seed=0)
    theirs = np.array([original.reset()[0] for _ in range(2000)], np.float64)
    _, obs = draw_resets(env, jax.random.key(0), (2000,))
    ours = np.asarray(obs, np.float64)
    assert all(original.observation_space.contains(one.astype(original.observation_space.dtype)) for one in ours[:50])
    spread = theirs.std(0).max() + 1e-9
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.15 * spread + 1e-6)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.1 * spread)
    np.testing.assert_allclose(ours.min(0), theirs.min(0), atol=0.1 * spread + 1e-6)
    np.testing.assert_allclose(ours.max(0), theirs.max(0), atol=0.1 * spread + 1e-6)
    original.close()


@pytest.mark.parametrize("name", CLASSIC)
def test_limits_and_thresholds_are_the_original_ones(name):
    env, spec = PAIRS[name].env, gym.spec(name)
    assert (env.max_episode_steps, env.reward_threshold) == (spec.max_episode_steps, spec.reward_threshold)


@pytest.mark.parametrize("name", CLASSIC)
def test_pictures_are_the_original_ones(name):
    env, read = PAIRS[name].env, PAIRS[name].read
    original = make_env_creator(name)({"render_mode": "rgb_array"})
    original.reset(seed=3)
    state = jax.tree.map(np.asarray, read(original.unwrapped, 0))
    assert env.render is not None
    frame = env.render(state)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, original.render())
    original.close()


@pytest.mark.parametrize("name", PAIRS)
def test_a_vector_step_is_the_step_of_each_row(name):
    env = PAIRS[name].env
    keys = jax.random.split(jax.random.key(0), 3)
    states, _ = draw_resets(env, keys[0], (4,))
    fresh = draw_resets(env, keys[1], (4,))
    actions = np.array([env.action_space.sample() for _ in range(4)])
    row_keys = jax.random.split(keys[2], 4)
    got = jax.jit(lambda *args: vector_step(env, *args))(keys[2], states, actions, fresh)
    for b in range(4):
        state, action = jax.tree.map(lambda leaf, b=b: leaf[b], (states, actions))
        one = env.step(row_keys[b], state, action)
        np.testing.assert_allclose(got.final_obs[b], one.obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got.rewards[b], one.reward, rtol=1e-6, atol=1e-6)
        over = bool(one.terminated | one.truncated)
        assert (bool(got.terminateds[b]), bool(got.truncateds[b])) == (bool(one.terminated), bool(one.truncated))
        np.testing.assert_allclose(got.obs[b], fresh[1][b] if over else one.obs, rtol=1e-6, atol=1e-6)


def test_an_ended_row_takes_the_fresh_state_and_keeps_its_successor():
    env = time_limit(cart_pole(), 3)
    state, obs = draw_resets(env, jax.random.key(0), (2,))
    # Row 0 has fallen two steps from now at the latest: its pole leans at the limit already.
    leaning = state.inner.inner.at[:, 2:].set(jnp.array([[0.2094, 2.0], [0.0, 0.0]]))
    state = state._replace(inner=state.inner._replace(inner=leaning))
    ends = []
    for t in range(3):
        fresh = draw_resets(env, jax.random.key(t + 1), (2,))
        out = vector_step(env, jax.random.key(9), state, jnp.array([1, t % 2]), fresh)
        for b in np.flatnonzero(out.terminateds | out.truncateds):
            ends.append((t, int(b), bool(out.terminateds[b]), bool(out.truncateds[b])))
            assert np.array_equal(out.obs[b], fresh[1][b])
            assert not np.allclose(out.final_obs[b], out.obs[b])
            assert int(out.states.t[b]) == 0
        state = out.states
    assert ends[0] == (0, 0, True, False)
    assert (2, 1, False, True) in ends
    assert obs.shape == (2, 4)


def test_a_deterministic_step_makes_no_random_numbers():
    env = cart_pole()
    states, _ = draw_resets(env, jax.random.key(0), (4,))
    fresh = draw_resets(env, jax.random.key(1), (4,))
    step = jax.jit(lambda *args: vector_step(env, *args))
    compiled = step.lower(jax.random.key(2), states, jnp.zeros(4, jnp.int32), fresh).compile().as_text()
    assert compiled is not None
    assert "xor" not in compiled


def test_drawn_resets_differ_and_repeat():
    states, obs = draw_resets(cart_pole(), jax.random.key(0), (5, 3))
    again, _ = draw_resets(cart_pole(), jax.random.key(0), (5, 3))
    assert obs.shape == (5, 3, 4)
    assert len(np.unique(np.asarray(obs).reshape(15, 4), axis=0)) == 15
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(again), strict=True))


def test_a_limit_is_stated_only_where_nothing_else_truncates():
    env = cart_pole()
    assert not env.truncates and time_limit(env, 900).max_episode_steps == 500
    assert time_limit(env, 9).max_episode_steps == 9
    other = env._replace(truncates=True, max_episode_steps=None)
    assert time_limit(other, 9).max_episode_steps is None


def test_options_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'max_episode_steps'"):
        cart_pole({"max_episode_step": 10})
    with pytest.raises(ConfigError, match=r"expected int, got '10'"):
        cart_pole({"max_episode_steps": "10"})
    with pytest.raises(ConfigError, match="expected at least 1"):
        time_limit(cart_pole(), 0)
    assert cart_pole({"max_episode_steps": 10, "render_mode": "rgb_array"}).max_episode_steps == 10
