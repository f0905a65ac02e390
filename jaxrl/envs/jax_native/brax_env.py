"""Environments of brax (https://arxiv.org/abs/2106.13281) and MuJoCo Playground (https://arxiv.org/abs/2502.08844)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, time_limit
from jaxrl.envs.jax_native.foreign import as_space_says, form_of, raw_key, settle
from jaxrl.types import Array, ConfigError, PyTree

# Wrappers that step a batch or reset by themselves, which a JaxEnv leaves to its caller.
_WHOLESALE = {"VmapWrapper", "AutoResetWrapper", "BraxAutoResetWrapper", "DomainRandomizationVmapWrapper"}


def from_brax(env: Any, *, max_episode_steps: int | None = 1000, name: str | None = None) -> JaxEnv:
    """Makes an environment of brax or MuJoCo Playground a JaxEnv.

    Args:
        env: as `brax.envs.get_environment(name)` or `mujoco_playground.registry.load(name)` gives it, without the
            wrappers of training. Under brax's EpisodeWrapper its own limit holds: then `max_episode_steps=None`.
        max_episode_steps: time limit (both libraries train with 1000 by default); None: none of ours.
        name: what results call it; None: the package's and the class's names, `brax/InvertedPendulum`.

    Returns:
        The JaxEnv; actions lie in [-1, 1].

    Raises:
        ConfigError: an environment that steps a batch or resets by itself.

    Example:
        >>> from_brax(brax.envs.get_environment("inverted_pendulum"))             # doctest: +SKIP
    """
    kind = type(env.unwrapped)
    name = name or f"{kind.__module__.partition('.')[0]}/{kind.__name__}"
    layer = env
    while layer is not None:
        if type(layer).__name__ in _WHOLESALE:
            raise ConfigError(
                f"{name}: expected an environment without {type(layer).__name__}, since batches and resets are the "
                "caller's; take brax.envs.get_environment(name) or mujoco_playground.registry.load(name)"
            )
        layer = vars(layer).get("env")
    observation_space = _obs_space(env.observation_size)

    def first(key: Array) -> PyTree:
        return env.reset(raw_key(key))

    form = form_of(first, np.zeros(2, np.uint32))

    def reset(key: Array) -> tuple[PyTree, PyTree]:
        state = settle(first(key), form)
        return state, _observe(observation_space, state.obs)

    def step(key: Array, state: Any, action: Array) -> JaxStep:
        after = settle(env.step(state, action), form)
        done = jnp.asarray(after.done, jnp.bool_)
        truncated = done & jnp.asarray(after.info.get("truncation", False), jnp.bool_)
        obs = _observe(observation_space, after.obs)
        return JaxStep(after, obs, jnp.asarray(after.reward, jnp.float32), done & ~truncated, truncated)

    action_space = gym.spaces.Box(-1.0, 1.0, (int(env.action_size),), np.float32)
    made = JaxEnv(name, reset, step, observation_space, action_space, truncates="truncation" in form.info)
    return made if max_episode_steps is None else time_limit(made, max_episode_steps)


def _obs_space(size: Any) -> gym.Space:
    if isinstance(size, Mapping):
        return gym.spaces.Dict({key: _obs_space(part) for key, part in size.items()})
    shape = (int(size),) if np.ndim(size) == 0 else tuple(int(n) for n in size)
    return gym.spaces.Box(-np.inf, np.inf, shape, np.float32)


def _observe(space: gym.Space, obs: Any) -> PyTree:
    return as_space_says(space, dict(obs) if isinstance(obs, Mapping) else obs)
