"""Sampling the policy's own distribution: on-policy algorithms' exploration, and soft actor-critic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import jax.numpy as jnp

from jaxrl.exploration.exploration import Exploration
from jaxrl.exploration.random_start import random_start
from jaxrl.types import Array, PyTree


def stochastic_sampling(action_space: gymnasium.Space, *, random_timesteps: int = 0) -> Exploration:
    """Samples the action distribution; without exploration, takes its mode.

    Args:
        action_space: what random actions are drawn from; otherwise the distribution knows it.
        random_timesteps: env steps of the run before which actions are drawn uniformly from the space; 0: none are.

    Returns:
        An exploration without state. By default it samples the policy's own distribution, and has no coeffs; with a
        random start it has the coeff `random_actions` and returns the log-probability of its actions (0 for the mode).

    Raises:
        UnsupportedSpaceError: if there is a random start, for a space without a uniform distribution.
    """
    if random_timesteps != 0:
        return random_start(Exploration(_sample_and_log_prob), action_space, random_timesteps, "StochasticSampling")

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, None, PyTree]:
        del t, coeffs
        return dist.sample(key) if explore else dist.mode(), None, state

    return Exploration(sample, samples_policy=True)


def _sample_and_log_prob(
    dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
) -> tuple[PyTree, Array, PyTree]:
    del t, coeffs
    if not explore:
        return dist.mode(), jnp.zeros(dist.batch_shape), state
    return *dist.sample_and_log_prob(key), state
