"""CartPole-v1, and CartPole without velocities (Barto, Sutton & Anderson, 1983, https://doi.org/10.1109/TSMC.1983.6313077).

The dynamics of Gymnasium's CartPoleEnv, in float32. The state is what is observed, float32 `[4]`: position and velocity
of the cart, angle and angular velocity of the pole. One array costs less than four in a compiled loop.
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

_GRAVITY = 9.8
_POLE_MASS = 0.1
_TOTAL_MASS = 1.1
_HALF_LENGTH = 0.5
_POLE_MOMENT = _POLE_MASS * _HALF_LENGTH
_FORCE = 10.0
_TAU = 0.02  # seconds of one step
_X_LIMIT = 2.4
_THETA_LIMIT = 12 * 2 * np.pi / 360
_HIGH = np.array([2 * _X_LIMIT, np.inf, 2 * _THETA_LIMIT, np.inf], np.float32)


@made_once
def cart_pole(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """CartPole-v1: reward 1 for each step in which the pole stands, 500 steps.

    Args:
        env_config: `max_episode_steps` (default 500), `sutton_barto_reward` (default False: reward 0, and -1 for the
            fall).
    """
    options = take_options("jax/CartPole-v1", env_config, max_episode_steps=500, sutton_barto_reward=False)
    sutton_barto = bool(options["sutton_barto_reward"])

    def step(key: Array, state: Array, action: Array) -> JaxStep:
        x, x_dot, theta, theta_dot = state
        force = jnp.where(action == 1, _FORCE, -_FORCE)
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        temp = (force + _POLE_MOMENT * theta_dot**2 * sin) / _TOTAL_MASS
        theta_acc = (_GRAVITY * sin - cos * temp) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * cos**2 / _TOTAL_MASS))
        x_acc = temp - _POLE_MOMENT * theta_acc * cos / _TOTAL_MASS
        x, theta = x + _TAU * x_dot, theta + _TAU * theta_dot
        state = jnp.stack([x, x_dot + _TAU * x_acc, theta, theta_dot + _TAU * theta_acc])
        fallen = (jnp.abs(x) > _X_LIMIT) | (jnp.abs(theta) > _THETA_LIMIT)
        reward = jnp.where(fallen, -1.0, 0.0) if sutton_barto else jnp.float32(1.0)
        return JaxStep(state, state, reward, fallen, jnp.zeros_like(fallen))

    env = JaxEnv(
        name="jax/CartPole-v1",
        reset=_reset,
        step=step,
        observation_space=Box(-_HIGH, _HIGH, dtype=np.float32),
        action_space=Discrete(2),
        render=draw_with("CartPole-v1", _show),
        reward_threshold=475.0,
        truncates=False,
    )
    return time_limit(env, options["max_episode_steps"])


@made_once
def stateless_cart_pole(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
    """CartPole-v1 whose observation is the position of the cart and the angle of the pole only; needs memory.

    Args:
        env_config: as for `cart_pole`.
    """
    env = cart_pole(env_config)

    def reset(key: Array) -> tuple[Any, Array]:
        state, obs = env.reset(key)
        return state, obs[::2]

    def step(key: Array, state: Any, action: Array) -> JaxStep:
        out = env.step(key, state, action)
        return out._replace(obs=out.obs[::2])

    space = Box(-_HIGH[::2], _HIGH[::2], dtype=np.float32)
    return env._replace(name="jax/StatelessCartPole", reset=reset, step=step, observation_space=space)


def _reset(key: Array) -> tuple[Array, Array]:
    state = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
    return state, state


def _show(env: Any, state: Array) -> None:
    env.state = np.array(state, np.float64)
