"""Epsilon-greedy exploration of discrete actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp

from jaxrl.distributions.discrete import Categorical, MultiCategorical
from jaxrl.distributions.distribution import MASK_VALUE
from jaxrl.exploration.annealing import annealed
from jaxrl.exploration.exploration import Exploration
from jaxrl.exploration.per_worker import per_worker
from jaxrl.types import Array, PyTree, UnsupportedSpaceError

EPSILON = "epsilon"
"""Coeff: the share of random actions."""


def epsilon_greedy(
    action_space: gymnasium.Space,
    *,
    initial_epsilon: float = 1.0,
    final_epsilon: float = 0.05,
    epsilon_timesteps: int = 100_000,
    epsilon_schedule: Any = None,
) -> Exploration:
    """Takes a random action with probability epsilon, else the greedy one.

    Mnih et al. 2015, https://doi.org/10.1038/nature14236: `P(a) = (1 - eps) 1{a = argmax Q} + eps / n`, over the `n`
    actions that are not masked. Each component of a MultiDiscrete action explores on its own.

    Args:
        action_space: Discrete or MultiDiscrete.
        initial_epsilon: epsilon at the start.
        final_epsilon: epsilon from `epsilon_timesteps` on.
        epsilon_timesteps: env steps over which it falls, straight.
        epsilon_schedule: takes the place of these three.

    Returns:
        An exploration with the coeff `epsilon` that returns the log-probability of its actions; 0 without exploration.

    Raises:
        UnsupportedSpaceError: for another kind of space.
        ConfigError: a number out of range, or no schedule.
    """
    check_discrete(action_space, "EpsilonGreedy")
    schedule = annealed(
        "EpsilonGreedy", "epsilon", initial_epsilon, final_epsilon, epsilon_timesteps, epsilon_schedule, high=1.0
    )

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array, PyTree]:
        del t
        if not explore:
            return dist.mode(), jnp.zeros(dist.batch_shape), state
        logits, epsilon = logits_of(dist, "EpsilonGreedy"), coeffs[EPSILON]
        uniform = jax.nn.softmax(jnp.where(logits > MASK_VALUE, 0.0, MASK_VALUE), axis=-1)
        greedy = jnp.argmax(logits, axis=-1)[..., None] == jnp.arange(logits.shape[-1])
        # One draw from the mixture costs less than a coin and a uniform draw.
        mixture = (1.0 - epsilon) * greedy + epsilon * uniform
        mixed = dataclasses.replace(dist, logits=jnp.where(mixture > 0.0, jnp.log(mixture), MASK_VALUE))
        return *mixed.sample_and_log_prob(key), state

    return Exploration(sample, coeffs={EPSILON: schedule(0)}, schedules={EPSILON: schedule})


def per_worker_epsilon_greedy(
    action_space: gymnasium.Space,
    *,
    initial_epsilon: float = 1.0,
    final_epsilon: float = 0.05,
    epsilon_timesteps: int = 100_000,
    epsilon_schedule: Any = None,
) -> Exploration:
    """Epsilon-greedy with a constant epsilon for each worker, `0.4^(1 + 7 i / (N - 1))` (Ape-X, see `worker_value`).

    Args:
        action_space: Discrete or MultiDiscrete.
        initial_epsilon: this option and the others as in `epsilon_greedy`: they count without rollout workers.
        final_epsilon: epsilon from `epsilon_timesteps` on.
        epsilon_timesteps: env steps over which it falls.
        epsilon_schedule: takes the place of these three.

    Returns:
        An exploration with the coeff `epsilon` that returns the log-probability of its actions.

    Raises:
        UnsupportedSpaceError: for another kind of space.
        ConfigError: a number out of range, or no schedule.
    """
    exploration = epsilon_greedy(
        action_space,
        initial_epsilon=initial_epsilon,
        final_epsilon=final_epsilon,
        epsilon_timesteps=epsilon_timesteps,
        epsilon_schedule=epsilon_schedule,
    )
    return per_worker(exploration, EPSILON)


def check_discrete(action_space: gymnasium.Space, name: str) -> None:
    """Refuses a space other than Discrete and MultiDiscrete.

    Args:
        action_space: the space of actions.
        name: the exploration, for the message.

    Raises:
        UnsupportedSpaceError: if it is refused.
    """
    if not isinstance(action_space, (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete)):
        raise UnsupportedSpaceError(
            f"{name}: expected a Discrete or MultiDiscrete action space, got {action_space}; "
            "for a Box use GaussianNoise or OrnsteinUhlenbeckNoise, for a distribution StochasticSampling"
        )


def logits_of(dist: Any, name: str) -> Array:
    """Logits `[B, n]` or `[B, K, n]` of a categorical distribution.

    Args:
        dist: the action distribution.
        name: the exploration, for the message.

    Returns:
        The logits; Q-values, where a Q-function is the policy.

    Raises:
        UnsupportedSpaceError: for another family.
    """
    if not isinstance(dist, (Categorical, MultiCategorical)):
        raise UnsupportedSpaceError(
            f"{name}: expected a Categorical or MultiCategorical action distribution, got {type(dist).__name__}"
        )
    return dist.logits
