"""Uniformly random actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from jaxrl.distributions.distribution import MASK_VALUE
from jaxrl.exploration.exploration import Exploration
from jaxrl.types import Array, PyTree, UnsupportedSpaceError


def random_actions(action_space: gymnasium.Space) -> Exploration:
    """Draws actions uniformly from the action space; without exploration, takes the distribution's mode.

    Actions that the distribution masks are not drawn. Entries of a nested space are drawn independently.

    Args:
        action_space: Discrete, MultiDiscrete, MultiBinary, bounded Box, and any nesting of Dict and Tuple.

    Returns:
        An exploration that returns its own log-probability: `[B]`, in nats, 0 for the mode.

    Raises:
        UnsupportedSpaceError: for a Box without bounds or another kind of space.
    """
    _validate(action_space, "action space")

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array, PyTree]:
        del t, coeffs
        if not explore:
            return dist.mode(), jnp.zeros(dist.batch_shape), state
        actions, logp = _draw(action_space, dist, dist.batch_shape, key)
        return actions, logp, state

    return Exploration(sample)


def _validate(space: gymnasium.Space, where: str) -> None:
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            _validate(child, f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for i, child in enumerate(space.spaces):
            _validate(child, f"{where}[{i}]")
    elif isinstance(space, spaces.Box):
        if not space.is_bounded():
            raise UnsupportedSpaceError(f"Random exploration, {where}: expected a Box with finite bounds, got {space}")
    elif not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise UnsupportedSpaceError(
            f"Random exploration, {where}: expected Discrete, MultiDiscrete, MultiBinary, Box, Dict or Tuple, got {space}"
        )


def _draw(space: gymnasium.Space, dist: Any, batch_shape: tuple[int, ...], key: Array) -> tuple[PyTree, Array]:
    """Actions and their log-probability `[B]`."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        names = list(space.spaces) if isinstance(space, spaces.Dict) else list(range(len(space.spaces)))
        keys = jax.random.split(key, max(len(names), 1))
        drawn = {name: _draw(space[name], None, batch_shape, keys[i]) for i, name in enumerate(names)}
        logp = sum((logp for _, logp in drawn.values()), jnp.zeros(batch_shape))
        actions = {name: leaf for name, (leaf, _) in drawn.items()}
        return (actions if isinstance(space, spaces.Dict) else tuple(actions.values())), logp
    if isinstance(dist, (Categorical, MultiCategorical, Bernoulli)):
        # The same distribution with equal logits over the actions that it allows.
        logits = jnp.where(dist.logits > MASK_VALUE, 0.0, MASK_VALUE)
        return dataclasses.replace(dist, logits=logits).sample_and_log_prob(key)
    return _draw_leaf(space, batch_shape, key)


def _draw_leaf(space: gymnasium.Space, batch_shape: tuple[int, ...], key: Array) -> tuple[Array, Array]:
    shape = (*batch_shape, *(space.shape or ()))
    if isinstance(space, spaces.Discrete):
        low, count = np.asarray(int(space.start)), np.asarray(int(space.n))
    elif isinstance(space, spaces.MultiDiscrete):
        low, count = np.asarray(space.start), np.asarray(space.nvec)
    elif isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f":
        width = np.asarray(space.high, np.float32) - np.asarray(space.low, np.float32)
        actions = space.low + width * jax.random.uniform(key, shape)
        return actions, jnp.full(batch_shape, -np.log(width).sum(), jnp.float32)
    elif isinstance(space, spaces.Box):
        low = space.low.astype(np.int64)
        count = space.high.astype(np.int64) - low + 1
    else:
        low, count = np.asarray(0), np.full(space.shape or (), 2)
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    low, count = low.astype(np.int32), count.astype(np.int32)
    actions = jax.random.randint(key, shape, low, low + count).astype(dtype)
    return actions, jnp.full(batch_shape, -np.log(count).sum(), jnp.float32)
