"""Boltzmann exploration: actions drawn by the softmax of their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax.numpy as jnp

from jaxrl.distributions.distribution import MASK_VALUE
from jaxrl.exploration.epsilon_greedy import check_discrete, logits_of
from jaxrl.exploration.exploration import Exploration
from jaxrl.schedules import make_schedule
from jaxrl.types import Array, ConfigError, PyTree

TEMPERATURE = "softq_temperature"
"""Coeff: what values are divided by."""


def soft_q(action_space: gymnasium.Space, *, temperature: Any = 1.0) -> Exploration:
    """Draws actions by the softmax of their values, `P(a) ~ exp(Q(s, a) / temperature)`.

    Sutton and Barto 2018, http://incompleteideas.net/book/the-book-2nd.html, equation 2.11.

    Args:
        action_space: Discrete or MultiDiscrete.
        temperature: > 0; low is greedy, high is uniform. A number, or a schedule over env steps.

    Returns:
        An exploration with the coeff `softq_temperature` that returns the log-probability of its actions; 0 without
        exploration.

    Raises:
        UnsupportedSpaceError: for another kind of space.
        ConfigError: no schedule, or a temperature that does not start above 0.
    """
    check_discrete(action_space, "SoftQ")
    schedule = make_schedule(temperature, "exploration_config: SoftQ: temperature")
    if not schedule(0) > 0.0:
        raise ConfigError(f"exploration_config: SoftQ: temperature: expected a number > 0, got {temperature!r}")

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array, PyTree]:
        del t
        if not explore:
            return dist.mode(), jnp.zeros(dist.batch_shape), state
        logits = logits_of(dist, "SoftQ")
        scaled = jnp.where(logits > MASK_VALUE, logits / coeffs[TEMPERATURE], MASK_VALUE)
        return *dataclasses.replace(dist, logits=scaled).sample_and_log_prob(key), state

    return Exploration(sample, coeffs={TEMPERATURE: schedule(0)}, schedules={TEMPERATURE: schedule})
