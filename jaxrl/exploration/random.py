"""Uniformly random actions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.distributions.bounds import inner_bounds
from jaxrl.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from jaxrl.distributions.distribution import MASK_VALUE
from jaxrl.distributions.joint import Joint
from jaxrl.distributions.simplex import Simplex
from jaxrl.exploration.exploration import Exploration
from jaxrl.types import Array, PyTree, UnsupportedSpaceError


def random_actions(action_space: gymnasium.Space) -> Exploration:
    """Draws actions uniformly from the action space; without exploration, takes the distribution's mode.

    Actions that the distribution masks are not drawn. The parts of a nested action are drawn independently.

    Args:
        action_space: Discrete, MultiDiscrete, MultiBinary, bounded Box, Simplex, and any nesting of Dict and Tuple.

    Returns:
        An exploration that returns its own log-probability: `[B]`, in nats, 0 for the mode.

    Raises:
        UnsupportedSpaceError: for a Box without bounds or another kind of space.

    Example:
        >>> exploration = random_actions(gymnasium.spaces.Box(-2.0, 2.0, (1,)))
        >>> actions, logp, state = exploration.sample(dist, (), jax.random.key(0), 0, {}, True)
    """
    leaves, treedef = jax.tree.flatten(_as_tree(action_space, "action space"))

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array, PyTree]:
        del t, coeffs
        if not explore:
            return dist.mode(), jnp.zeros(dist.batch_shape), state
        parts = dist.parts if isinstance(dist, Joint) else (dist,)
        keys = jax.random.split(key, len(leaves)) if len(leaves) > 1 else [key]
        drawn = [_draw(*arguments, dist.batch_shape) for arguments in zip(leaves, parts, keys, strict=True)]
        actions = jax.tree.unflatten(treedef, [action for action, _ in drawn])
        return actions, sum((logp for _, logp in drawn), start=jnp.zeros(dist.batch_shape)), state

    return Exploration(sample)


def _as_tree(space: gymnasium.Space, where: str) -> PyTree:
    """The leaves of a space in plain dicts and tuples, which JAX flattens as it does actions; checks each."""
    if isinstance(space, spaces.Dict):
        return {key: _as_tree(child, f"{where}[{key!r}]") for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_as_tree(child, f"{where}[{i}]") for i, child in enumerate(space.spaces))
    if isinstance(space, spaces.Box) and not space.is_bounded():
        raise UnsupportedSpaceError(f"Random exploration, {where}: expected a Box with finite bounds, got {space}")
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise UnsupportedSpaceError(
            f"Random exploration, {where}: expected Discrete, MultiDiscrete, MultiBinary, Box, Dict or Tuple, "
            f"got {space}"
        )
    return space


def _draw(space: gymnasium.Space, dist: Any, key: Array, batch_shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Actions `[B, *space.shape]` of one leaf and their log-probability `[B]`."""
    if isinstance(dist, (Categorical, MultiCategorical, Bernoulli)):
        # The same distribution with equal logits over the actions that it allows.
        logits = jnp.where(dist.logits > MASK_VALUE, 0.0, MASK_VALUE)
        return dataclasses.replace(dist, logits=logits).sample_and_log_prob(key)
    event_shape = list(space.shape or ())
    if isinstance(space, Simplex):
        size, rows = event_shape[-1], event_shape[:-1]
        actions = jax.random.dirichlet(key, jnp.ones(size), (*batch_shape, *rows))
        return actions, jnp.full(batch_shape, math.prod(rows) * math.lgamma(size))
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f":
        low, high = inner_bounds(space)
        share = jax.random.uniform(key, (*batch_shape, *event_shape))
        # Each product is within the bounds, however wide they are; their sum may round to just outside.
        actions = jnp.clip(low * (1.0 - share) + high * share, low, high)
        # An entry with equal bounds is no freedom: it counts for nothing.
        span = high.astype(np.float64) - low
        return actions, jnp.full(batch_shape, -np.log(span[span > 0]).sum(), jnp.float32)
    low, count = _integers(space)
    actions = jax.random.randint(key, (*batch_shape, *event_shape), low, low + count)
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    return actions.astype(dtype), jnp.full(batch_shape, -np.log(np.broadcast_to(count, event_shape)).sum(), jnp.float32)


def _integers(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray]:
    """First value and number of values of each entry of a space of integers."""
    low: Any
    count: Any
    if isinstance(space, spaces.Discrete):
        low, count = space.start, space.n
    elif isinstance(space, spaces.MultiDiscrete):
        low, count = space.start, space.nvec
    elif isinstance(space, spaces.Box):
        low = space.low.astype(np.int64)
        count = space.high.astype(np.int64) - low + 1
    else:
        low, count = 0, 2
    return np.asarray(low, np.int32), np.asarray(count, np.int32)
