"""Environments of jumanji (Bonnet et al., 2023, https://arxiv.org/abs/2306.09884)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep
from jaxrl.envs.jax_native.foreign import as_space_says, form_of, raw_key, settle
from jaxrl.types import Array, PyTree, UnsupportedSpaceError

_LAST = 2  # dm_env.StepType.LAST


def from_jumanji(env: Any, *, name: str | None = None) -> JaxEnv:
    """Makes a jumanji environment a JaxEnv: a last step of discount 0 is terminated, of another one truncated.

    Observations of several parts become dicts by their names, so that `action_mask` masks discrete actions.

    Args:
        env: as `jumanji.make(name)` gives it, of one agent (`jumanji.wrappers.MultiToSingleWrapper`).
        name: what results call it; None: `jumanji/` and the class's name.

    Returns:
        The JaxEnv.

    Raises:
        UnsupportedSpaceError: rewards that are no scalars, or a spec that has no space.

    Example:
        >>> from_jumanji(jumanji.make("Snake-v1"))                                # doctest: +SKIP
    """
    name = name or f"jumanji/{type(env.unwrapped).__name__}"
    observation_space = _space(env.observation_spec, name)
    action_space = _space(env.action_spec, name)
    form, timestep = form_of(lambda key: env.reset(key), np.zeros(2, np.uint32))
    if timestep.reward.shape != ():
        raise UnsupportedSpaceError(
            f"{name}: expected one reward a step, got rewards {list(timestep.reward.shape)} of several agents; wrap it "
            "in jumanji.wrappers.MultiToSingleWrapper"
        )

    def observe(timestep: Any) -> PyTree:
        return as_space_says(observation_space, _plain(observation_space, timestep.observation))

    def reset(key: Array) -> tuple[PyTree, PyTree]:
        state, timestep = env.reset(raw_key(key))
        return settle(state, form), observe(timestep)

    def step(key: Array, state: PyTree, action: PyTree) -> JaxStep:
        state, timestep = env.step(state, action)
        last = timestep.step_type == _LAST
        terminated = last & (timestep.discount == 0)
        reward = jnp.asarray(timestep.reward, jnp.float32)
        return JaxStep(settle(state, form), observe(timestep), reward, terminated, last & ~terminated)

    return JaxEnv(name, reset, step, observation_space, action_space)


def _space(spec: Any, name: str) -> gym.Space:
    kind = type(spec).__name__
    if kind == "DiscreteArray":
        return gym.spaces.Discrete(int(spec.num_values))
    if kind == "MultiDiscreteArray":
        return gym.spaces.MultiDiscrete(np.asarray(spec.num_values))
    if kind in ("BoundedArray", "Array"):
        dtype = np.dtype(spec.dtype)
        if kind == "BoundedArray":
            bounds = (spec.minimum, spec.maximum)
        elif dtype.kind == "b":
            bounds = (0, 1)
        else:
            bounds = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        low, high = (np.array(np.broadcast_to(np.asarray(bound, dtype), spec.shape)) for bound in bounds)
        return gym.spaces.Box(low, high, tuple(spec.shape), dtype.type)
    parts = {key: part for key, part in vars(spec).items() if hasattr(part, "generate_value")}
    if not parts:
        raise UnsupportedSpaceError(f"{name}: expected specs of arrays, discrete values or parts, got jumanji's {kind}")
    return gym.spaces.Dict({key: _space(part, name) for key, part in parts.items()})


def _plain(space: gym.Space, obs: Any) -> PyTree:
    """An observation as the space's nested dicts."""
    if not isinstance(space, gym.spaces.Dict):
        return obs
    return {key: _plain(child, getattr(obs, key)) for key, child in space.spaces.items()}
