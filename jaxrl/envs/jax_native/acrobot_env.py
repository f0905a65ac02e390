"""Acrobot-v1 (Sutton, 1996, https://proceedings.neurips.cc/paper/1995/hash/8f1d43620bc6bb580df6e80b0dc05c48-Abstract.html).

Gymnasium's AcrobotEnv, in float32: the book's dynamics, integrated by one Runge-Kutta step of fourth order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, time_limit
from jaxrl.envs.jax_native.options import made_once, take_options
from jaxrl.envs.jax_native.pendulum_env import wrap_angle
from jaxrl.envs.jax_native.pictures import draw_with
from jaxrl.types import Array

_DT = 0.2  # seconds of one step
_GRAVITY = 9.8
_MAX_SPEED_1 = 4 * np.pi
_MAX_SPEED_2 = 9 * np.pi
_HIGH = np.array([1.0, 1.0, 1.0, 1.0, _MAX_SPEED_1, _MAX_SPEED_2], np.float32)


class AcrobotState(NamedTuple):
    """Angle of the first link from hanging, of the second from the first, and their velocities; float32 scalars."""

    theta1: Array
    theta2: Array
    theta1_dot: Array
    theta2_dot: Array


@made_once
def acrobot(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """Acrobot-v1: swing the tip above the bar; reward -1 for each step before, 500 steps.

    Args:
        env_config: `max_episode_steps` (default 500).
    """
    options = take_options("jax/Acrobot-v1", env_config, max_episode_steps=500)
    env = JaxEnv(
        name="jax/Acrobot-v1",
        reset=_reset,
        step=_step,
        observation_space=Box(-_HIGH, _HIGH, dtype=np.float32),
        action_space=Discrete(3),
        render=draw_with("Acrobot-v1", _show),
        reward_threshold=-100.0,
        truncates=False,
    )
    return time_limit(env, options["max_episode_steps"])


def _step(key: Array, state: AcrobotState, action: Array) -> JaxStep:
    torque = jnp.asarray(action, jnp.float32) - 1.0
    k1 = _derivative(state, torque)
    k2 = _derivative(_ahead(state, k1, _DT / 2), torque)
    k3 = _derivative(_ahead(state, k2, _DT / 2), torque)
    k4 = _derivative(_ahead(state, k3, _DT), torque)
    moved = [y + _DT / 6 * (a + 2 * b + 2 * c + d) for y, a, b, c, d in zip(state, k1, k2, k3, k4, strict=True)]
    state = AcrobotState(
        wrap_angle(moved[0]),
        wrap_angle(moved[1]),
        jnp.clip(moved[2], -_MAX_SPEED_1, _MAX_SPEED_1),
        jnp.clip(moved[3], -_MAX_SPEED_2, _MAX_SPEED_2),
    )
    up = -jnp.cos(state.theta1) - jnp.cos(state.theta1 + state.theta2) > 1.0
    return JaxStep(state, _observe(state), jnp.where(up, 0.0, -1.0), up, jnp.zeros_like(up))


def _derivative(state: AcrobotState, torque: Array) -> AcrobotState:
    """The equations of motion: links of length and mass 1, centres in the middle, moments of inertia 1.

    Sutton & Barto, Reinforcement Learning (2018), figure 11.4 of the first edition; cos(x - pi/2) is written sin(x).
    """
    theta1, theta2, w1, w2 = state
    cos2, sin2 = jnp.cos(theta2), jnp.sin(theta2)
    d1 = 3.5 + cos2
    d2 = 1.25 + 0.5 * cos2
    phi2 = 0.5 * _GRAVITY * jnp.sin(theta1 + theta2)
    phi1 = -0.5 * w2**2 * sin2 - w2 * w1 * sin2 + 1.5 * _GRAVITY * jnp.sin(theta1) + phi2
    acc2 = (torque + d2 / d1 * phi1 - 0.5 * w1**2 * sin2 - phi2) / (1.25 - d2**2 / d1)
    acc1 = -(d2 * acc2 + phi1) / d1
    return AcrobotState(w1, w2, acc1, acc2)


def _ahead(state: AcrobotState, slope: AcrobotState, dt: float) -> AcrobotState:
    return AcrobotState(*(y + dt * dy for y, dy in zip(state, slope, strict=True)))


def _observe(state: AcrobotState) -> Array:
    angles = [f(x) for x in (state.theta1, state.theta2) for f in (jnp.cos, jnp.sin)]
    return jnp.stack([*angles, state.theta1_dot, state.theta2_dot])


def _reset(key: Array) -> tuple[AcrobotState, Array]:
    drawn = jax.random.uniform(key, (4,), jnp.float32, -0.1, 0.1)
    state = AcrobotState(drawn[0], drawn[1], drawn[2], drawn[3])
    return state, _observe(state)


def _show(env: Any, state: AcrobotState) -> None:
    env.state = np.array(state, np.float64)
