"""Rows of observations and actions, laid out by a gymnasium space: allocate, write, copy, split.

A row array holds one leaf of the space for many environments, `[B, ...]`. Dtypes are the space's own, except that
64-bit ones become 32-bit. What an environment gives is looked at before it is cast (`jaxrl.envs.fitting`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from jaxrl.envs.fitting import check_container, exact_dtype, fitter, leaf_fitter
from jaxrl.envs.leaves import is_array_space, leaf_spaces, leaves, unflatten

Rows = Any
Writer = Callable[[Rows, int, Any], None]


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


def row_writer(space: spaces.Space, path: str = "obs") -> Writer:
    """Returns `write(rows, b, value)`, which casts and copies one environment's value into row `b`.

    Args:
        space: its space.
        path: what errors call the value.

    Raises:
        MisfitError: (`write`) the value is none of the space's, or casting would change it.
    """
    if isinstance(space, spaces.Dict):
        writers = [(key, row_writer(child, f"{path}[{key!r}]")) for key, child in space.spaces.items()]

        def write_dict(rows: Rows, b: int, value: Any) -> None:
            check_container(space, value, path)
            for key, write in writers:
                write(rows[key], b, value[key])

        return write_dict
    if isinstance(space, spaces.Tuple):
        children = [(i, row_writer(child, f"{path}[{i}]")) for i, child in enumerate(space.spaces)]

        def write_tuple(rows: Rows, b: int, value: Any) -> None:
            check_container(space, value, path)
            for i, write in children:
                write(rows[i], b, value[i])

        return write_tuple
    (leaf,) = leaf_spaces(space)
    fit, shape, exact = leaf_fitter(leaf, path), leaf.shape, exact_dtype(leaf)

    def write_array(rows: Rows, b: int, value: Any) -> None:
        if value.__class__ is not np.ndarray or value.dtype is not exact or value.shape != shape:
            value = fit(value)
        rows[b] = value

    def write_scalar(rows: Rows, b: int, value: Any) -> None:
        rows[b] = fit(value)

    return write_array if shape else write_scalar


def row_copier(space: spaces.Space, path: str = "obs") -> Callable[[Any], Any]:
    """Returns `copy(value)`: one environment's value as a pytree of owned arrays of the row dtypes.

    Args:
        space: its space.
        path: what errors call the value.

    Raises:
        MisfitError: (`copy`) as of `row_writer`.
    """
    if not is_array_space(space):
        kinds, fit_all = [leaf.dtype for leaf in leaf_spaces(space)], fitter(space, path)
        return lambda value: unflatten(
            space, [np.array(leaf, dtype=kind) for leaf, kind in zip(fit_all(value), kinds, strict=True)]
        )
    (leaf,) = leaf_spaces(space)
    fit, kind = leaf_fitter(leaf, path), leaf.dtype
    return lambda value: np.array(fit(value), dtype=kind)


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
