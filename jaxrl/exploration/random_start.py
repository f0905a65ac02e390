"""Uniformly random actions at the start of training, before another exploration takes over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp

from jaxrl.exploration.annealing import number
from jaxrl.exploration.exploration import Exploration
from jaxrl.exploration.random import random_actions
from jaxrl.schedules import PiecewiseSchedule
from jaxrl.types import Array, PyTree, UnsupportedSpaceError

RANDOM_ACTIONS = "random_actions"
"""Coeff: 1 while actions are drawn uniformly from the space, 0 afterwards."""


def random_start(
    exploration: Exploration, action_space: gymnasium.Space, random_timesteps: float, where: str
) -> Exploration:
    """Lets an exploration begin with uniformly random actions.

    Whether it is over is the coeff `random_actions`, a step function of env steps. Like all coeffs it changes between
    fragments: a fragment that crosses `random_timesteps` is random to its end.

    Args:
        exploration: what explores afterwards. Its state goes on from the first step.
        action_space: what random actions are drawn from (bounded, see `random_actions`).
        random_timesteps: env steps of the run before which actions are random; 0: none are.
        where: name of the exploration, for messages.

    Returns:
        The exploration; the same object if `random_timesteps` is 0. It does not sample the policy's own distribution:
        it returns a log-probability if `exploration` does.

    Raises:
        UnsupportedSpaceError: for a space without a uniform distribution.
    """
    if not number(f"{where}: random_timesteps", random_timesteps):
        return exploration
    try:
        uniform = random_actions(action_space)
    except UnsupportedSpaceError as error:
        raise UnsupportedSpaceError(f"{where}: random_timesteps={random_timesteps}: {error}; or set it to 0") from None

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array | None, PyTree]:
        if not explore:
            return exploration.sample(dist, state, key, t, coeffs, explore)
        # One key for both, since a step uses one draw alone: split, it makes an act of a 256x256 net on the CPU take
        # 100 us instead of 30.
        later, later_logp, state = exploration.sample(dist, state, key, t, coeffs, explore)
        drawn, drawn_logp, _ = uniform.sample(dist, (), key, t, coeffs, explore)
        now = coeffs[RANDOM_ACTIONS] > 0
        actions = jax.tree.map(lambda a, b: jnp.where(now, a, b), drawn, later)
        if drawn_logp is None or later_logp is None:
            return actions, None, state
        return actions, jnp.where(now, drawn_logp, later_logp), state

    step = PiecewiseSchedule(((0, 1.0), (random_timesteps, 1.0), (random_timesteps, 0.0)))
    return exploration._replace(
        sample=sample,
        samples_policy=False,
        coeffs={**exploration.coeffs, RANDOM_ACTIONS: 1.0},
        schedules={**exploration.schedules, RANDOM_ACTIONS: step},
    )
