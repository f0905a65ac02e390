"""Pendulum-v1: the dynamics of Gymnasium's PendulumEnv, in float32, with the angle kept within [-pi, pi]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, time_limit
from jaxrl.envs.jax_native.options import made_once, take_options
from jaxrl.envs.jax_native.pictures import draw_with
from jaxrl.types import Array

_MAX_SPEED = 8.0
_MAX_TORQUE = 2.0
_DT = 0.05  # seconds of one step
_HIGH = np.array([1.0, 1.0, _MAX_SPEED], np.float32)


class PendulumState(NamedTuple):
    """Angle from upright in [-pi, pi] and angular velocity, float32 scalars."""

    theta: Array
    theta_dot: Array


@made_once
def pendulum(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """Pendulum-v1: swing up and stand; reward -(theta^2 + theta_dot^2 / 10 + torque^2 / 1000), 200 steps.

    Args:
        env_config: `max_episode_steps` (default 200), `g` (default 10.0).
    """
    options = take_options("jax/Pendulum-v1", env_config, max_episode_steps=200, g=10.0)
    gravity = options["g"]

    def step(key: Array, state: PendulumState, action: Array) -> JaxStep:
        theta, theta_dot = state
        torque = jnp.clip(action[0], -_MAX_TORQUE, _MAX_TORQUE)
        cost = theta**2 + 0.1 * theta_dot**2 + 0.001 * torque**2
        theta_dot = theta_dot + (1.5 * gravity * jnp.sin(theta) + 3.0 * torque) * _DT
        theta_dot = jnp.clip(theta_dot, -_MAX_SPEED, _MAX_SPEED)
        state = PendulumState(wrap_angle(theta + theta_dot * _DT), theta_dot)
        no = jnp.zeros((), jnp.bool_)
        return JaxStep(state, _observe(state), -cost, no, no)

    env = JaxEnv(
        name="jax/Pendulum-v1",
        reset=_reset,
        step=step,
        observation_space=Box(-_HIGH, _HIGH, dtype=np.float32),
        action_space=Box(-_MAX_TORQUE, _MAX_TORQUE, (1,), np.float32),
        render=draw_with("Pendulum-v1", _show),
        truncates=False,
    )
    return time_limit(env, options["max_episode_steps"])


def wrap_angle(angle: Array) -> Array:
    """Returns the angle in [-pi, pi] that points the same way; cheaper than `%`, which divides and branches."""
    return angle - 2 * np.pi * jnp.floor((angle + np.pi) * (0.5 / np.pi))


def _observe(state: PendulumState) -> Array:
    return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta), state.theta_dot])


def _reset(key: Array) -> tuple[PendulumState, Array]:
    drawn = jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)
    state = PendulumState(np.pi * drawn[0], drawn[1])
    return state, _observe(state)


def _show(env: Any, state: PendulumState) -> None:
    env.state = np.array(state, np.float64)
    env.last_u = None  # the torque's arrow: the state does not hold the action that led to it
