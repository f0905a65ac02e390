"""What a JAX-native environment is: pure functions over one environment, batched by `jax.vmap`.

An environment written so can be stepped inside a compiled program (`auto_reset.vector_step` in a `lax.scan`), and
serves as an ordinary environment too (`gym_env.JaxGymEnv`, `vector.JaxVectorEnv`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array, ConfigError, PyTree


class JaxStep(NamedTuple):
    """What one step of one environment gives.

    Attributes:
        state: the next state, a pytree of arrays; its structure, shapes and dtypes are those of `reset`'s.
        obs: the true successor observation (also where the episode ends), a pytree as `observation_space` says.
        reward: float32 scalar.
        terminated: bool scalar: the episode ended in a terminal state.
        truncated: bool scalar: the episode was cut, e.g. by a time limit.
    """

    state: PyTree
    obs: PyTree
    reward: Array
    terminated: Array
    truncated: Array


class JaxEnv(NamedTuple):
    """A family of pure functions over one environment; they compose under `jit`, `vmap` and `scan`.

    Observations have their space's dtype, 64-bit ones narrowed to 32-bit (Discrete: an int32 scalar).

    Attributes:
        name: what results and errors call it.
        reset: `reset(key) -> (state, obs)`: a fresh episode.
        step: `step(key, state, action) -> JaxStep`. It never resets by itself; a time limit is part of it (see
            `time_limit`). Deterministic dynamics ignore `key`, so that XLA drops what makes it. The action lies in
            `action_space`: the caller clips.
        observation_space: of one environment.
        action_space: of one environment.
        render: `render(state) -> uint8 [height, width, 3]` on the host, of a state of NumPy arrays; None: no pictures.
        reward_threshold: the mean return from which the task counts as solved, or None.
        max_episode_steps: the time limit, where nothing else truncates episodes; else None. The compiled engine keeps
            as many final observations as this allows.
        truncates: False promises that `step` never truncates but by `max_episode_steps`.

    Example:
        >>> env = cart_pole()  # doctest: +SKIP
        >>> state, obs = env.reset(jax.random.key(0))  # doctest: +SKIP
        >>> env.step(jax.random.key(1), state, jnp.int32(1)).reward  # doctest: +SKIP
        Array(1., dtype=float32)
    """

    name: str
    reset: Callable[[Array], tuple[PyTree, PyTree]]
    step: Callable[[Array, PyTree, PyTree], JaxStep]
    observation_space: gym.Space
    action_space: gym.Space
    render: Callable[[PyTree], np.ndarray] | None = None
    reward_threshold: float | None = None
    max_episode_steps: int | None = None
    truncates: bool = True


class TimeLimitState(NamedTuple):
    """State of `time_limit`: the environment's own, and the steps of the episode so far (int32 scalar)."""

    inner: PyTree
    t: Array


def time_limit(env: JaxEnv, max_episode_steps: int) -> JaxEnv:
    """Truncates episodes after a number of steps, as `gymnasium.wrappers.TimeLimit` does.

    A last step that also reaches a terminal state is both terminated and truncated.

    Args:
        env: the environment.
        max_episode_steps: steps of the longest episode, at least 1.

    Returns:
        The environment with a counter in its state (`TimeLimitState`).

    Raises:
        ConfigError: fewer than one step.
    """
    if max_episode_steps < 1:
        raise ConfigError(f"{env.name}: max_episode_steps: expected at least 1, got {max_episode_steps}")
    render = env.render

    def reset(key: Array) -> tuple[TimeLimitState, PyTree]:
        state, obs = env.reset(key)
        return TimeLimitState(state, jnp.int32(0)), obs

    def step(key: Array, state: TimeLimitState, action: PyTree) -> JaxStep:
        out = env.step(key, state.inner, action)
        t = state.t + 1
        return out._replace(state=TimeLimitState(out.state, t), truncated=out.truncated | (t >= max_episode_steps))

    limits = [max_episode_steps] if env.max_episode_steps is None else [max_episode_steps, env.max_episode_steps]
    return env._replace(
        reset=reset,
        step=step,
        render=None if render is None else lambda state: render(state.inner),
        max_episode_steps=None if env.truncates else min(limits),
    )
