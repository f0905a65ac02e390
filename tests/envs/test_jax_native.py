"""The JAX environments beside the Gymnasium ones that they were modelled on, step for step; resets and time limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.envs import make_env_creator
from jaxrl.envs.jax_native import (
    CartPoleState,
    JaxEnv,
    TimeLimitState,
    cart_pole,
    draw_resets,
    stateless_cart_pole,
    time_limit,
    vector_step,
)
from jaxrl.types import ConfigError

STEPS = 10_000


def elapsed(env: Any) -> int:
    """Steps of the episode so far, as the original's TimeLimit counts them."""
    while not hasattr(env, "_elapsed_steps"):
        env = env.env
    return env._elapsed_steps


def limited(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """State of a time-limited environment from its original."""
    return lambda env: TimeLimitState(read(env.unwrapped.state), jnp.int32(elapsed(env)))


def cart_pole_state(state: Any) -> CartPoleState:
    return CartPoleState(*jnp.asarray(state, jnp.float32))


# (JAX environment, its original, the original's state for ours, taken over in each step rather than at resets alone)
ORIGINALS: dict[str, tuple[JaxEnv, str, Callable[[Any], Any], bool]] = {
    "CartPole-v1": (cart_pole(), "CartPole-v1", limited(cart_pole_state), False),
    "StatelessCartPole": (stateless_cart_pole(), "StatelessCartPole", limited(cart_pole_state), False),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_ten_thousand_random_steps_beside_the_original(name):
    env, original_name, read_state, in_step = ORIGINALS[name]
    original = make_env_creator(original_name)({})
    assert env.observation_space == original.observation_space
    assert env.action_space == original.action_space
    original.action_space.seed(1)
    original.reset(seed=1)
    step, key = jax.jit(env.step), jax.random.key(0)
    state = read_state(original)
    ends = 0
    for t in range(STEPS):
        action = original.action_space.sample()
        obs, reward, terminated, truncated, _ = original.step(action)
        out = step(key, state, action)
        np.testing.assert_allclose(out.obs, np.asarray(obs), rtol=2e-5, atol=2e-5, err_msg=f"obs of step {t}")
        np.testing.assert_allclose(out.reward, reward, rtol=1e-5, atol=1e-5, err_msg=f"reward of step {t}")
        assert (bool(out.terminated), bool(out.truncated)) == (terminated, truncated), f"ends of step {t}"
        assert out.obs.dtype == (jnp.int32 if env.observation_space.shape == () else jnp.float32)
        assert out.reward.dtype == jnp.float32
        state = out.state
        if terminated or truncated:
            ends += 1
            original.reset()
        if terminated or truncated or in_step:
            state = read_state(original)
    assert ends >= 5
    original.close()


@pytest.mark.parametrize("name", ORIGINALS)
def test_resets_draw_what_the_original_draws(name):
    env, original_name, _, _ = ORIGINALS[name]
    original = make_env_creator(original_name)({})
    theirs = np.array([original.reset(seed=i)[0] for i in range(2000)], np.float64)
    _, obs = draw_resets(env, jax.random.key(0), (2000,))
    ours = np.asarray(obs, np.float64)
    assert all(original.observation_space.contains(one.astype(original.observation_space.dtype)) for one in ours[:50])
    spread = theirs.std(0).max() + 1e-9
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.15 * spread + 1e-6)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.1 * spread)
    np.testing.assert_allclose(ours.min(0), theirs.min(0), atol=0.1 * spread + 1e-6)
    np.testing.assert_allclose(ours.max(0), theirs.max(0), atol=0.1 * spread + 1e-6)
    original.close()


@pytest.mark.parametrize("name", ORIGINALS)
def test_limits_and_thresholds_are_the_original_ones(name):
    env, original_name, _, _ = ORIGINALS[name]
    if original_name in gym.registry:
        spec = gym.spec(original_name)
        assert (env.max_episode_steps, env.reward_threshold) == (spec.max_episode_steps, spec.reward_threshold)


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_vector_step_is_the_step_of_each_row(name):
    env = ORIGINALS[name][0]
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
    leaning = state.inner.inner._replace(theta=state.inner.inner.theta.at[0].set(0.2094), x=state.inner.inner.x)
    state = state._replace(inner=state.inner._replace(inner=leaning._replace(theta_dot=jnp.array([2.0, 0.0]))))
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


def test_options_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'max_episode_steps'"):
        cart_pole({"max_episode_step": 10})
    with pytest.raises(ConfigError, match=r"expected int, got '10'"):
        cart_pole({"max_episode_steps": "10"})
    with pytest.raises(ConfigError, match="expected at least 1"):
        time_limit(cart_pole(), 0)
    assert cart_pole({"max_episode_steps": 10, "render_mode": "rgb_array"}).max_episode_steps == 10
