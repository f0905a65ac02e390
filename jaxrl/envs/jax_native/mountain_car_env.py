"""MountainCar-v0 and MountainCarContinuous-v0 (Moore, 1990, https://www.cl.cam.ac.uk/techreports/UCAM-CL-TR-209.pdf).

The dynamics of Gymnasium's MountainCarEnv and Continuous_MountainCarEnv, in float32. The state is what is observed,
float32 `[2]`: position and velocity of the car.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, time_limit
from jaxrl.envs.jax_native.options import made_once, take_options
from jaxrl.envs.jax_native.pictures import draw_with
from jaxrl.types import Array

_LEFT, _RIGHT = -1.2, 0.6
_MAX_SPEED = 0.07
_GRAVITY = 0.0025
_LOW = np.array([_LEFT, -_MAX_SPEED], np.float32)
_HIGH = np.array([_RIGHT, _MAX_SPEED], np.float32)


@made_once
def mountain_car(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """MountainCar-v0: push left, not at all, or right; reward -1 for each step before the flag at 0.5, 200 steps.

    Args:
        env_config: `max_episode_steps` (default 200), `goal_velocity` (default 0.0).
    """
    options = take_options("jax/MountainCar-v0", env_config, max_episode_steps=200, goal_velocity=0.0)
    goal_velocity = options["goal_velocity"]

    def step(key: Array, state: Array, action: Array) -> JaxStep:
        state = _roll(state, 0.001 * (jnp.asarray(action, jnp.float32) - 1.0))
        arrived = (state[0] >= 0.5) & (state[1] >= goal_velocity)
        return JaxStep(state, state, jnp.float32(-1.0), arrived, jnp.zeros_like(arrived))

    env = JaxEnv(
        name="jax/MountainCar-v0",
        reset=_reset,
        step=step,
        observation_space=Box(_LOW, _HIGH, dtype=np.float32),
        action_space=Discrete(3),
        render=draw_with("MountainCar-v0", _show),
        reward_threshold=-110.0,
        truncates=False,
    )
    return time_limit(env, options["max_episode_steps"])


@made_once
def mountain_car_continuous(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """MountainCarContinuous-v0: a force in [-1, 1]; reward 100 at the flag at 0.45, -force^2 / 10 a step, 999 steps.

    Args:
        env_config: `max_episode_steps` (default 999), `goal_velocity` (default 0.0).
    """
    options = take_options("jax/MountainCarContinuous-v0", env_config, max_episode_steps=999, goal_velocity=0.0)
    goal_velocity = options["goal_velocity"]

    def step(key: Array, state: Array, action: Array) -> JaxStep:
        state = _roll(state, 0.0015 * jnp.clip(action[0], -1.0, 1.0))
        arrived = (state[0] >= 0.45) & (state[1] >= goal_velocity)
        reward = jnp.where(arrived, 100.0, 0.0) - 0.1 * action[0] ** 2
        return JaxStep(state, state, reward, arrived, jnp.zeros_like(arrived))

    env = JaxEnv(
        name="jax/MountainCarContinuous-v0",
        reset=_reset,
        step=step,
        observation_space=Box(_LOW, _HIGH, dtype=np.float32),
        action_space=Box(-1.0, 1.0, (1,), np.float32),
        render=draw_with("MountainCarContinuous-v0", _show),
        reward_threshold=90.0,
        truncates=False,
    )
    return time_limit(env, options["max_episode_steps"])


def _roll(state: Array, push: Array) -> Array:
    """The car's next position and velocity; the left wall stops it."""
    velocity = state[1] + push - _GRAVITY * jnp.cos(3 * state[0])
    velocity = jnp.clip(velocity, -_MAX_SPEED, _MAX_SPEED)
    position = jnp.clip(state[0] + velocity, _LEFT, _RIGHT)
    return jnp.stack([position, jnp.where((position <= _LEFT) & (velocity < 0), 0.0, velocity)])


def _reset(key: Array) -> tuple[Array, Array]:
    state = jnp.stack([jax.random.uniform(key, (), jnp.float32, -0.6, -0.4), jnp.float32(0.0)])
    return state, state


def _show(env: Any, state: Array) -> None:
    env.state = np.array(state, np.float64)
