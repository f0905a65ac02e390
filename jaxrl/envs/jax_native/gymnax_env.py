"""Environments of gymnax (Lange, 2022, https://github.com/RobertTLange/gymnax)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep
from jaxrl.envs.jax_native.foreign import as_space_says, form_of, raw_key, settle
from jaxrl.types import Array, PyTree, UnsupportedSpaceError

_NO_LIMIT = 2**31 - 1


def from_gymnax(env: Any, params: Any = None, *, name: str | None = None) -> JaxEnv:
    """Makes a gymnax environment a JaxEnv.

    gymnax 1 tells the two kinds of ends apart. Before, it had one flag for both: there a step is terminated where it
    would end the episode without the time limit too (`params.max_steps_in_episode`), else truncated.

    Args:
        env: a gymnax environment.
        params: its parameters; None: the default ones.
        name: what results call it; None: `gymnax/` and its own name.

    Returns:
        The JaxEnv.

    Raises:
        UnsupportedSpaceError: a space of a kind that gymnasium does not have.

    Example:
        >>> from_gymnax(*gymnax.make("CartPole-v1"))                              # doctest: +SKIP
    """
    params = env.default_params if params is None else params
    name = name or f"gymnax/{env.name}"
    limit = getattr(params, "max_steps_in_episode", None)
    endless = params if limit is None else params.replace(max_steps_in_episode=_NO_LIMIT)
    observation_space = _space(env.observation_space(params), name)

    def first(key: Array) -> PyTree:
        return env.reset_env(raw_key(key), params)

    form = form_of(lambda key: first(key)[1], np.zeros(2, np.uint32))

    def reset(key: Array) -> tuple[PyTree, PyTree]:
        obs, state = first(key)
        return settle(state, form), as_space_says(observation_space, obs)

    tells_apart = callable(getattr(env, "is_truncated", None))

    def step(key: Array, state: PyTree, action: PyTree) -> JaxStep:
        obs, after, reward, done, _ = env.step_env(raw_key(key), state, action, params)
        terminated = done = jnp.asarray(done, jnp.bool_)
        truncated = jnp.zeros_like(done)
        if tells_apart:
            truncated = jnp.asarray(env.is_truncated(after, params), jnp.bool_)
        elif limit is not None:
            # What both calls compute alike is computed once: the compiler sees that it is the same.
            terminated = done & env.step_env(raw_key(key), state, action, endless)[3]
            truncated = done & ~terminated
        return JaxStep(
            settle(after, form),
            as_space_says(observation_space, obs),
            jnp.asarray(reward, jnp.float32).reshape(()),
            terminated,
            truncated,
        )

    action_space = _space(env.action_space(params), name)
    steps = None if limit is None else int(limit)
    # Without a limit there is no flag but the one for both kinds of ends, or `is_truncated` looks at something else.
    truncates = limit is None and tells_apart
    return JaxEnv(name, reset, step, observation_space, action_space, max_episode_steps=steps, truncates=truncates)


def _space(space: Any, name: str) -> gym.Space:
    kind = type(space).__name__
    if kind == "Discrete":
        return gym.spaces.Discrete(int(space.n))
    if kind == "Box":
        dtype = np.dtype(space.dtype)
        low, high = (np.broadcast_to(np.asarray(bound, dtype), space.shape) for bound in (space.low, space.high))
        return gym.spaces.Box(low, high, tuple(space.shape), dtype.type)
    if kind == "Dict":
        return gym.spaces.Dict({key: _space(child, name) for key, child in space.spaces.items()})
    if kind == "Tuple":
        return gym.spaces.Tuple([_space(child, name) for child in space.spaces])
    raise UnsupportedSpaceError(f"{name}: expected spaces of Discrete, Box, Dict and Tuple, got gymnax's {kind}")
