"""Product of distributions, for Tuple and Dict actions of any nesting."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.distributions.distribution import DistClass, as_inputs
from jaxrl.types import Array, PyTree


@struct.dataclass
class Joint:
    """Independent distributions, one per leaf of a nested action; log-probability, entropy and divergence are sums.

    Attributes:
        parts: distributions, in the order in which JAX flattens the action (dict keys sorted).
        treedef: structure of an action, nested tuples and dicts as in the space (static).
    """

    parts: tuple[Any, ...]
    treedef: Any = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.parts[0].batch_shape

    def sample(self, key: Array) -> PyTree:
        """Draws actions, nested as the space; each leaf `[..., *leaf_shape]`."""
        keys = jax.random.split(key, len(self.parts))
        return self._nest(part.sample(k) for part, k in zip(self.parts, keys, strict=True))

    def sample_and_log_prob(self, key: Array) -> tuple[PyTree, Array]:
        """Draws actions, nested as the space, and their log-probability `[...]`."""
        keys = jax.random.split(key, len(self.parts))
        drawn = [part.sample_and_log_prob(k) for part, k in zip(self.parts, keys, strict=True)]
        return self._nest(actions for actions, _ in drawn), _total(log_prob for _, log_prob in drawn)

    def mode(self) -> PyTree:
        """Each part's mode, nested as the space."""
        return self._nest(part.mode() for part in self.parts)

    def log_prob(self, actions: PyTree) -> Array:
        """Log-probability `[...]` of actions nested as the space."""
        leaves = self.treedef.flatten_up_to(actions)
        return _total(part.log_prob(leaf) for part, leaf in zip(self.parts, leaves, strict=True))

    def entropy(self) -> Array:
        """Entropy `[...]` in nats."""
        return _total(part.entropy() for part in self.parts)

    def kl(self, other: Joint) -> Array:
        """KL(self || other) `[...]` in nats."""
        return _total(p.kl(q) for p, q in zip(self.parts, other.parts, strict=True))

    def _nest(self, leaves: Any) -> PyTree:
        return jax.tree.unflatten(self.treedef, leaves)


def _total(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


@functools.cache
def _joint(parts: tuple[DistClass, ...], treedef: Any) -> DistClass:
    sizes = [part.input_size for part in parts]
    size, cuts = sum(sizes), np.cumsum(sizes)[:-1].tolist()
    places = jax.tree.unflatten(treedef, range(len(parts)))

    def from_inputs(inputs: Array) -> Joint:
        pieces = jnp.split(as_inputs("Joint", inputs, size), cuts, axis=-1)
        return Joint(tuple(part(piece) for part, piece in zip(parts, pieces, strict=True)), treedef)

    def mask_inputs(inputs: Array, action_mask: PyTree) -> Array:
        masks: dict[int, Any] = {}
        _align(places, action_mask, "action_mask", masks)
        pieces = jnp.split(as_inputs("Joint", inputs, size), cuts, axis=-1)
        for place, mask in masks.items():
            masker = parts[place].mask_inputs
            if masker is None:
                raise ValueError(f"action_mask: {parts[place].name} actions cannot be masked; leave their entry out")
            pieces[place] = masker(pieces[place], mask)
        return jnp.concatenate(pieces, axis=-1)

    name = f"Joint({', '.join(part.name for part in parts)})"
    masked = any(part.mask_inputs is not None for part in parts)
    return DistClass(name, size, from_inputs, mask_inputs if masked else None)


def joint(tree: PyTree) -> DistClass:
    """Class of `Joint` over nested actions.

    Args:
        tree: nested tuples and dicts of `DistClass`, as the space is nested.

    Returns:
        The class. Inputs are the parts' inputs, concatenated in the order in which JAX flattens the action. A mask is
        nested like the action; entries that are None or left out of a dict mask nothing.
    """
    parts, treedef = jax.tree.flatten(tree, is_leaf=lambda node: isinstance(node, DistClass))
    return _joint(tuple(parts), treedef)


def _align(places: PyTree, mask: PyTree, path: str, masks: dict[int, Any]) -> None:
    """Collects the masks that there are by the place of their part."""
    if mask is None:
        return
    if isinstance(places, dict):
        if not isinstance(mask, Mapping) or not set(mask) <= set(places):
            got = sorted(mask) if isinstance(mask, Mapping) else type(mask).__name__
            raise ValueError(
                f"{path}: expected a dict with keys among {sorted(places)}, as the action space has, got {got}"
            )
        for key, inner in mask.items():
            _align(places[key], inner, f"{path}[{key!r}]", masks)
    elif isinstance(places, tuple):
        if not isinstance(mask, tuple | list) or len(mask) != len(places):
            raise ValueError(
                f"{path}: expected a tuple of {len(places)}, as the action space is, got {type(mask).__name__}"
            )
        for number, inner in enumerate(mask):
            _align(places[number], inner, f"{path}[{number}]", masks)
    else:
        masks[places] = mask
