"""What adapters of other libraries' JAX environments share: keys, dtypes, observation trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp

from jaxrl.envs.rows import leaf_spaces, leaves, unflatten
from jaxrl.types import Array, PyTree


def raw_key(key: Array) -> Array:
    """Returns the key as uint32 `[2]`: the form that the other libraries are written for."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def form_of(fn: Callable[..., Any], *args: Any) -> Any:
    """Returns the shapes and dtypes of what `fn(*args)` would return, without running it."""
    return jax.eval_shape(fn, *args)


def settle(tree: PyTree, form: PyTree) -> PyTree:
    """Casts a state to the dtypes that it had at reset.

    In the other libraries Python numbers stand in states, and an int may become a float in the first step; in a
    `lax.scan` no dtype may change.
    """
    return jax.tree.map(lambda x, leaf: jnp.asarray(x).astype(leaf.dtype), tree, form)


def as_space_says(space: gym.Space, obs: PyTree) -> PyTree:
    """Casts an observation to the dtypes of its space's rows (64-bit ones narrowed)."""
    cast = [jnp.asarray(x).astype(leaf.dtype) for x, leaf in zip(leaves(space, obs), leaf_spaces(space), strict=True)]
    return unflatten(space, cast)
