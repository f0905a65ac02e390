"""The five probe environments of `jaxrl.envs.probes` as pure functions; their answers are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep
from jaxrl.envs.jax_native.options import made_once, take_options
from jaxrl.envs.probes import BEST, TASKS
from jaxrl.types import Array


class ProbeState(NamedTuple):
    """The observation (float32 scalar) and how many steps were taken (int32 scalar)."""

    obs: Array
    t: Array


def _one(obs: Array, action: Array, continuous: bool) -> Array:
    return jnp.ones_like(obs)


def _obs(obs: Array, action: Array, continuous: bool) -> Array:
    return obs


def _score(obs: Array, action: Array, continuous: bool) -> Array:
    """1 for the best action: BEST * obs, or 1 where obs is positive and 0 where not."""
    if continuous:
        return 1.0 - (action[0] - BEST * obs) ** 2
    return jnp.where((action == 1) == (obs > 0), 1.0, -1.0)


# Reward of the last step, of the observation and action.
_REWARDS: Mapping[str, Callable[[Array, Array, bool], Array]] = {
    "ValueProbe": _one,
    "ObservationProbe": _obs,
    "DiscountProbe": _one,
    # One best action, whatever the observation: that of observation 1.
    "ActionProbe": lambda obs, action, continuous: _score(jnp.ones_like(obs), action, continuous),
    "ObservationActionProbe": _score,
}


def _probe(task: str) -> Callable[..., JaxEnv]:
    starts, length = np.array(TASKS[task].starts, np.float32), TASKS[task].length
    pay = _REWARDS[task]

    def reset(key: Array) -> tuple[ProbeState, Array]:
        several = len(starts) > 1
        obs = jnp.where(jax.random.bits(key) >> 31, starts[1], starts[0]) if several else jnp.asarray(starts[0])
        return ProbeState(obs, jnp.int32(0)), obs[None]

    @made_once
    def create(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
        continuous = take_options(f"jax/{task}", env_config, continuous=False)["continuous"]

        def step(key: Array, state: ProbeState, action: Array) -> JaxStep:
            t = state.t + 1
            over = t >= length
            reward = jnp.where(over, pay(state.obs, action, continuous), 0.0)
            obs = jnp.ones_like(state.obs) if length > 1 else state.obs
            return JaxStep(ProbeState(obs, t), obs[None], reward, over, jnp.zeros_like(over))

        space = Box(-1.0, 1.0, (1,), np.float32)
        return JaxEnv(f"jax/{task}", reset, step, space, space if continuous else Discrete(2), truncates=False)

    create.__doc__ = f"{task}; see `jaxrl.envs.probes.ProbeEnv`. `env_config`: `continuous` (default False)."
    return create


value_probe = _probe("ValueProbe")
observation_probe = _probe("ObservationProbe")
discount_probe = _probe("DiscountProbe")
action_probe = _probe("ActionProbe")
observation_action_probe = _probe("ObservationActionProbe")
