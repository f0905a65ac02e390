"""States of JAX environments on the host: saved as arrays, brought back, looked at; and the seeds of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array, PyTree


def to_host(tree: PyTree) -> PyTree:
    """Returns the tree with NumPy arrays; typed keys stay keys, which have no NumPy form."""
    return jax.tree.map(lambda leaf: leaf if _is_key(leaf) else np.asarray(leaf), tree)


def save_leaves(tree: PyTree) -> list[np.ndarray]:
    """Returns the leaves as arrays that a checkpoint can hold: keys as their data."""
    return [np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for leaf in jax.tree.leaves(tree)]


def load_leaves(form: PyTree, kept: Sequence[Any], *leading: int) -> PyTree:
    """Brings a tree back from `save_leaves`.

    Args:
        form: a tree of the same structure, of arrays or `jax.ShapeDtypeStruct`.
        kept: what `save_leaves` returned.
        *leading: axes that the saved leaves have before those of `form`.

    Raises:
        ValueError: another number of leaves, or another shape or dtype of one.
    """
    wanted, structure = jax.tree.flatten(form)
    if len(wanted) != len(kept):
        raise ValueError(f"expected a saved state of {len(wanted)} arrays, got {len(kept)}")
    restored: list[Array] = []
    for i, (leaf, value) in enumerate(zip(wanted, kept, strict=True)):
        is_key = _is_key(leaf)
        plain: Any = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        value = np.asarray(value)
        shape = (*leading, *plain.shape)
        if value.shape != shape or value.dtype != plain.dtype:
            raise ValueError(
                f"expected array {i} of the saved state to be {plain.dtype}{list(shape)}, got "
                f"{value.dtype}{list(value.shape)}"
            )
        array = jnp.asarray(value)
        # Keys within states are derived from those that `reset` gets, which are of JAX's configured kind.
        restored.append(jax.random.wrap_key_data(array) if is_key else array)
    return jax.tree.unflatten(structure, restored)


def new_seeds(seeds: Sequence[int] | None, count: int) -> np.ndarray:
    """Returns uint32 `[count]`: the given seeds, their lowest 32 bits, or unpredictable ones."""
    if seeds is None:
        return np.random.SeedSequence().generate_state(count, np.uint32)
    return np.array([int(seed) % 2**32 for seed in seeds], np.uint32)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
