"""Sampling the policy's own distribution: on-policy algorithms' exploration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from jaxrl.exploration.exploration import Exploration
from jaxrl.types import Array, PyTree


def stochastic_sampling(action_space: gymnasium.Space) -> Exploration:
    """Samples the action distribution; without exploration, takes its mode.

    Args:
        action_space: not used: the distribution knows it.

    Returns:
        An exploration without state or coeffs that samples the policy's own distribution.
    """
    del action_space

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, None, PyTree]:
        del t, coeffs
        return dist.sample(key) if explore else dist.mode(), None, state

    return Exploration(sample, samples_policy=True)
