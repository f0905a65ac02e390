"""Rows of observations and actions, laid out by a gymnasium space: allocate, write, copy, split.

A row array holds one leaf of the space for many environments, `[B, ...]`. Dtypes are the space's own, except that
64-bit ones become 32-bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from jaxrl.types import UnsupportedSpaceError

Rows = Any
Writer = Callable[[Rows, int, Any], None]

_NARROW = {"float64": "float32", "int64": "int32", "uint64": "uint32", "complex128": "complex64"}


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
    if isinstance(space, spaces.Dict):
        return [leaf for key, child in space.spaces.items() for leaf in leaf_spaces(child, f"{path}[{key!r}]")]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, child in enumerate(space.spaces) for leaf in leaf_spaces(child, f"{path}[{i}]")]
    if space.shape is None or space.dtype is None or isinstance(space, spaces.Text):
        raise UnsupportedSpaceError(
            f"space{path or ' of the environment'}: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple or "
            f"another space of fixed shape and dtype, got {type(space).__name__}; wrap the environment so that it "
            "encodes this part as an array"
        )
    return [Leaf(path, space, tuple(space.shape), row_dtype(space.dtype))]


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


def empty_rows(space: spaces.Space, *leading: int) -> Rows:
    """Allocates zeroed arrays `[*leading, ...]` for the space.

    Args:
        space: single observation (or action) space.
        *leading: leading axes, e.g. `T + 1, B`.

    Returns:
        A pytree of arrays in the space's structure.

    Raises:
        UnsupportedSpaceError: a leaf has no fixed shape and dtype.

    Example:
        >>> empty_rows(spaces.Discrete(3), 2, 4).shape
        (2, 4)
    """
    return unflatten(space, [np.zeros((*leading, *leaf.shape), leaf.dtype) for leaf in leaf_spaces(space)])


def row_writer(space: spaces.Space) -> Writer:
    """Returns `write(rows, b, value)`, which casts and copies one environment's value into row `b`."""
    if isinstance(space, spaces.Dict):
        writers = [(key, row_writer(child)) for key, child in space.spaces.items()]

        def write_dict(rows: Rows, b: int, value: Any) -> None:
            for key, write in writers:
                write(rows[key], b, value[key])

        return write_dict
    if isinstance(space, spaces.Tuple):
        children = [(i, row_writer(child)) for i, child in enumerate(space.spaces)]

        def write_tuple(rows: Rows, b: int, value: Any) -> None:
            for i, write in children:
                write(rows[i], b, value[i])

        return write_tuple
    shape = space.shape
    if shape == ():

        def write_scalar(rows: Rows, b: int, value: Any) -> None:
            rows[b] = value

        return write_scalar

    def write_array(rows: Rows, b: int, value: Any) -> None:
        # NumPy would broadcast a smaller value into the row without a word.
        if np.shape(value) != shape:
            raise ValueError(f"expected shape {shape}, got {np.shape(value)}")
        rows[b] = value

    return write_array


def row_copier(space: spaces.Space) -> Callable[[Any], Any]:
    """Returns `copy(value)`: one environment's value as a pytree of owned arrays of the row dtypes."""
    kinds = [leaf.dtype for leaf in leaf_spaces(space)]
    if is_array_space(space):
        kind = kinds[0]
        return lambda value: np.array(value, dtype=kind)
    return lambda value: unflatten(
        space, [np.array(leaf, dtype=kind) for leaf, kind in zip(leaves(space, value), kinds, strict=True)]
    )


def take_row(space: spaces.Space, rows: Rows, b: int) -> Any:
    """Copies row `b` out of a pytree of row arrays."""
    return unflatten(space, [np.array(leaf[b]) for leaf in leaves(space, rows)])


def copy_rows(space: spaces.Space, target: Rows, source: Rows) -> None:
    """Copies every row of `source` into `target` (pytrees of arrays of the same shapes)."""
    for into, out_of in zip(leaves(space, target), leaves(space, source), strict=True):
        into[...] = out_of


def action_splitter(space: spaces.Space) -> Callable[[Any], list[Any]]:
    """Returns `split(actions)`: a pytree of arrays `[B, ...]` as B actions that the environments may keep or change.

    Discrete actions come as Python ints (the cheapest to compare), array actions in the space's own dtype.
    """
    if isinstance(space, spaces.Dict):
        parts = [(key, action_splitter(child)) for key, child in space.spaces.items()]

        def split_dict(actions: Any) -> list[Any]:
            columns = [split(actions[key]) for key, split in parts]
            names = [key for key, _ in parts]
            return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

        return split_dict
    if isinstance(space, spaces.Tuple):
        children = [action_splitter(child) for child in space.spaces]
        return lambda actions: list(
            zip(*(split(part) for split, part in zip(children, actions, strict=True)), strict=True)
        )
    if isinstance(space, spaces.Discrete):
        return lambda actions: np.asarray(actions).tolist()
    dtype = space.dtype
    # A copy: an environment that scales its action in place must change neither the batch nor the resume log.
    return lambda actions: list(np.array(actions, dtype=dtype))


def action_copier(space: spaces.Space) -> Callable[[Any], Any]:
    """Returns `copy(action)`: one action that the environment may keep or change, in the forms of `action_splitter`."""
    if isinstance(space, spaces.Dict):
        parts = [(key, action_copier(child)) for key, child in space.spaces.items()]
        return lambda action: {key: copy(action[key]) for key, copy in parts}
    if isinstance(space, spaces.Tuple):
        children = [action_copier(child) for child in space.spaces]
        return lambda action: tuple(copy(part) for copy, part in zip(children, action, strict=True))
    if isinstance(space, spaces.Discrete):
        return int
    dtype = space.dtype
    return lambda action: np.array(action, dtype=dtype)
