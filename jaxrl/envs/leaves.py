"""The leaves of a space: one for each array that a value of it consists of."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from jaxrl.types import EnvError, UnsupportedSpaceError

_NARROW = {"float64": "float32", "int64": "int32", "uint64": "uint32", "complex128": "complex64"}
_NARROW |= {np.dtype(np.longdouble).name: "float32", np.dtype(np.clongdouble).name: "complex64"}


class Leaf(NamedTuple):
    """One array of a space: key path, the leaf space, its shape and the dtype of its rows."""

    path: str
    space: spaces.Space
    shape: tuple[int, ...]
    dtype: np.dtype


@functools.cache
def row_dtype(dtype: Any) -> np.dtype:
    """Returns the dtype that a column of this dtype gets: 64-bit kinds become 32-bit, others are kept."""
    name = np.dtype(dtype).name
    return np.dtype(_NARROW.get(name, name))


def is_array_space(space: spaces.Space) -> bool:
    """True where an observation of the space is one array (not a Dict or Tuple)."""
    return not isinstance(space, spaces.Dict | spaces.Tuple)


def leaf_spaces(space: spaces.Space, path: str = "") -> list[Leaf]:
    """Lists the leaves of a space with their key paths, in the order of `leaves`.

    Example:
        >>> space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([spaces.Discrete(3)])})
        >>> [leaf.path for leaf in leaf_spaces(space)]
        ["['a']", "['b'][0]"]
    """
    where = f"space{path or ' of the environment'}"
    if isinstance(space, spaces.Dict | spaces.Tuple) and not len(space.spaces):
        raise UnsupportedSpaceError(f"{where}: expected at least one part, got an empty {type(space).__name__}")
    if isinstance(space, spaces.Dict):
        try:
            sorted(space.spaces)
        except TypeError as error:
            raise UnsupportedSpaceError(
                f"{where}: expected keys that can be sorted, got {list(space.spaces)}; name its parts by strings"
            ) from error
        return [leaf for key, child in space.spaces.items() for leaf in leaf_spaces(child, f"{path}[{key!r}]")]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, child in enumerate(space.spaces) for leaf in leaf_spaces(child, f"{path}[{i}]")]
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None or isinstance(space, spaces.Text):
        raise UnsupportedSpaceError(
            f"{where}: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple or "
            f"another space of fixed shape and dtype, got {type(space).__name__}; wrap the environment so that it "
            "encodes this part as an array"
        )
    leaf = Leaf(path, space, tuple(shape), row_dtype(dtype))
    _check_leaf(leaf, where)
    return [leaf]


def checked_space(space: Any, name: str, where: str) -> spaces.Space:
    """Returns the space of an environment, if rows can hold its values.

    Args:
        space: what the environment calls so, or None.
        name: "observation_space" or "action_space", for the message.
        where: describes the environment, for the message.

    Raises:
        EnvError: the environment has none.
        UnsupportedSpaceError: it has parts that no row can hold.
    """
    if not isinstance(space, spaces.Space):
        raise EnvError(
            f"{where}: expected {name} to be a gymnasium space, got {type(space).__name__}; set self.{name} in the "
            "constructor (its class may be one of gym's, before gymnasium)"
        )
    leaf_spaces(space)
    return space


def leaves(space: spaces.Space, tree: Any) -> list[Any]:
    """Lists the leaves of a value of the space, in the space's order."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, child in space.spaces.items() for leaf in leaves(child, tree[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for child, value in zip(space.spaces, tree, strict=True) for leaf in leaves(child, value)]
    return [tree]


def unflatten(space: spaces.Space, flat: list[Any]) -> Any:
    """Rebuilds the pytree of the space from its leaves (the inverse of `leaves`)."""
    iterator = iter(flat)

    def build(node: spaces.Space) -> Any:
        if isinstance(node, spaces.Dict):
            return {key: build(child) for key, child in node.spaces.items()}
        if isinstance(node, spaces.Tuple):
            return tuple(build(child) for child in node.spaces)
        return next(iterator)

    return build(space)


def bounds(space: spaces.Space) -> tuple[Any, Any]:
    """Returns (low, high) of a leaf space, with room for rounding in float spaces; (None, None) where it has none."""
    if isinstance(space, spaces.Box):
        if np.dtype(space.dtype).kind == "f":
            slack = 1e-6 * np.maximum(1.0, np.minimum(np.abs(space.low), np.abs(space.high)), dtype=np.float64)
            return space.low - slack, space.high + slack
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    return None, None


def _check_leaf(leaf: Leaf, where: str) -> None:
    """Refuses what no row can hold: nothing at all, and integers that the space says need more than 32 bits."""
    if 0 in leaf.shape:
        raise UnsupportedSpaceError(
            f"{where}: expected at least one number, got {leaf.space} of shape {leaf.shape}; leave this part out of "
            "the space, or give it one number that is always 0"
        )
    own = np.dtype(leaf.space.dtype)
    if own == leaf.dtype or own.kind not in "iu":
        return
    low, high = bounds(leaf.space)
    if low is None:
        return
    # The dtype's own limits are how an unbounded space is declared; each value is then looked at as it comes.
    limits, row = np.iinfo(own.name), np.iinfo(leaf.dtype.name)
    low_fits = np.all((np.asarray(low) >= row.min) | (np.asarray(low) == limits.min))
    if not low_fits or not np.all((np.asarray(high) <= row.max) | (np.asarray(high) == limits.max)):
        raise UnsupportedSpaceError(
            f"{where}: expected integers within [{row.min}, {row.max}], as they are kept in 32 bits, got {leaf.space}; "
            "scale the numbers, split them into parts of 32 bits, or declare a float32 Box (whole numbers up to 2**24 "
            "are exact in it)"
        )
