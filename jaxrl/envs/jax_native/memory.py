"""RepeatAfterMe, which only an agent with memory solves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnasium.spaces import Discrete

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, time_limit
from jaxrl.envs.jax_native.options import made_once, take_options
from jaxrl.types import Array, ConfigError


class RepeatAfterMeState(NamedTuple):
    """Seed of the episode's tokens (uint32 scalar), and how many steps were taken (int32 scalar)."""

    seed: Array
    t: Array


@made_once
def repeat_after_me(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """Repeat the token seen `repeat_delay` steps ago: reward 1, else -1; the tokens before the first count as 0.

    An episode's tokens are a function of its seed and their number, so that neither a history nor a random number per
    step is needed.

    Args:
        env_config: `repeat_delay` (default 1), `episode_len` (default 100).
    """
    options = take_options("jax/RepeatAfterMe", env_config, repeat_delay=1, episode_len=100)
    delay = options["repeat_delay"]
    if delay < 1:
        raise ConfigError(f"jax/RepeatAfterMe: repeat_delay: expected at least 1, got {delay}")

    def step(key: Array, state: RepeatAfterMeState, action: Array) -> JaxStep:
        wanted = jnp.where(state.t >= delay, token(state.seed, state.t - delay), 0)
        reward = jnp.where(action == wanted, 1.0, -1.0)
        t = state.t + 1
        no = jnp.zeros((), jnp.bool_)
        return JaxStep(RepeatAfterMeState(state.seed, t), token(state.seed, t), reward, no, no)

    env = JaxEnv("jax/RepeatAfterMe", _reset, step, Discrete(2), Discrete(2), truncates=False)
    # The agent does not see the time, so the end is a cut.
    return time_limit(env, options["episode_len"])


def token(seed: Array, number: Array) -> Array:
    """The token of that number: a bit of a hash of (seed, number).

    The hash is the finaliser `lowbias32` (https://nullprogram.com/blog/2018/07/31/) over a Weyl sequence.

    Args:
        seed: uint32.
        number: int32, from 0.

    Returns:
        int32, 0 or 1.
    """
    x = seed + jnp.asarray(number, jnp.uint32) * jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return jnp.asarray(x >> 31, jnp.int32)


def _reset(key: Array) -> tuple[RepeatAfterMeState, Array]:
    state = RepeatAfterMeState(jax.random.bits(key, (), jnp.uint32), jnp.int32(0))
    return state, token(state.seed, state.t)
