"""What an environment gives, against its space: structure, shapes, dtypes and numbers, before and after a cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from jaxrl.envs.leaves import Leaf, bounds, is_array_space, leaf_spaces, leaves

_DTYPES = [np.dtype(code) for code in np.typecodes["All"] if np.dtype(code).kind in "biufc"]


class MisfitError(ValueError):
    """A value that is none of its space's: which part of it, what was expected and what came."""


def fitter(space: spaces.Space, path: str = "obs", *, batch: int | None = None) -> Callable[[Any], list[Any]]:
    """Returns `fit(value)`: the leaves of one value of the space, as rows take them.

    Args:
        space: the space.
        path: what errors call the value.
        batch: B, for values of a batch: leaves `[B, ...]`; None: of one.

    Raises:
        MisfitError: (`fit`) the value is none of the space's, or casting would change it.
    """
    leading = () if batch is None else (batch,)
    kinds = [leaf._replace(shape=(*leading, *leaf.shape)) for leaf in leaf_spaces(space)]
    fits = [leaf_fitter(leaf, f"{path}{leaf.path}") for leaf in kinds]
    if is_array_space(space):
        (fit,) = fits
        return lambda value: [fit(value)]

    def look(node: Any, value: Any, at: str) -> None:
        check_container(node, value, at)
        parts = node.spaces.items() if isinstance(node, spaces.Dict) else enumerate(node.spaces)
        for key, child in parts:
            if not is_array_space(child):
                look(child, value[key], f"{at}[{key!r}]")

    def fit_all(value: Any) -> list[Any]:
        look(space, value, path)
        return [fit(leaf) for fit, leaf in zip(fits, leaves(space, value), strict=True)]

    return fit_all


def check_container(space: Any, value: Any, path: str) -> None:
    """Raises MisfitError unless `value` has the parts of a Dict or Tuple space; the parts are not looked at."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or value.keys() != space.spaces.keys():
            got = f"keys {sorted(map(str, value))}" if isinstance(value, dict) else short(value)
            raise MisfitError(f"{path}: expected a dict with keys {sorted(map(str, space.spaces))}, got {got}")
    elif not isinstance(value, tuple | list) or len(value) != len(space.spaces):
        raise MisfitError(f"{path}: expected a tuple of {len(space.spaces)}, got {short(value)}")


def exact_dtype(leaf: Leaf) -> np.dtype | None:
    """The dtype whose arrays go into the rows as they are, but for digits of a float; None where there is none."""
    own = np.dtype(leaf.space.dtype)
    return own if own in _harmless(leaf) else None


def leaf_fitter(leaf: Leaf, path: str) -> Callable[[Any], Any]:
    """Returns `fit(value)`: the value of one leaf, as an array that its row takes without changing a number.

    Only digits of a float may be lost. Whole numbers are never cut to the dtype's bits, nor fractions off.

    Args:
        leaf: the leaf.
        path: what errors call it.

    Raises:
        MisfitError: (`fit`) no array of the leaf's shape, or of a dtype whose values change when they are cast.
    """
    shape, dtype, harmless = leaf.shape, leaf.dtype, _harmless(leaf)

    def fit(value: Any) -> Any:
        array = value if value.__class__ is np.ndarray else _as_array(value, shape, path)
        if array.dtype not in harmless:
            array = _cast(array, value)
        if array.shape != shape:
            hint = "; is this the tuple (obs, info) of another API?" if isinstance(value, tuple) else ""
            raise MisfitError(
                f"{path}: expected shape {shape} (observation_space {leaf.space}), got {array.shape}{hint}"
            )
        return array

    def _cast(array: np.ndarray, value: Any) -> np.ndarray:
        if array.dtype.kind not in "biufc":
            raise MisfitError(f"{path}: expected an array of dtype {leaf.space.dtype}, got {short(value)}")
        if array.dtype.kind in "fc":
            raise MisfitError(
                f"{path}: expected dtype {leaf.space.dtype}, got {array.dtype}; cast it in the environment, or declare "
                f"a {'float' if array.dtype.kind == 'f' else 'complex'} observation_space"
            )
        cast = array.astype(dtype)
        if np.count_nonzero(cast != array):
            at = first_index(np.asarray(cast != array))
            low, high = _integer_bounds(leaf)
            raise MisfitError(
                f"{path}: expected values within [{_pick(low, at)}, {_pick(high, at)}], got {array[at]} at index {at}; "
                + _advice(leaf)
            )
        return cast

    return fit


def wrong_number(
    leaf: Leaf, column: np.ndarray, leading: int, *, finite: bool = True
) -> tuple[tuple[int, ...], str] | None:
    """The first number of a column that is not finite or outside its space; None where all are right.

    Args:
        leaf: the leaf of the space.
        column: array `[*leading axes, *leaf.shape]`, of any dtype that fits.
        leading: how many leading axes there are.
        finite: numbers must be finite; else those that are not are passed over.

    Returns:
        Its place among the leading axes, and a message.
    """
    if finite and column.dtype.kind in "fc" and not np.isfinite(column).all():
        at = first_index(~np.isfinite(column))
        kept = np.isinf(column[at]) and np.dtype(leaf.space.dtype) != column.dtype
        hint = f" (numbers are kept as {column.dtype}; larger ones become infinite)" if kept else ""
        return at[:leading], f"expected finite numbers, got {column[at]} at index {at[leading:]}{hint}"
    low, high = bounds(leaf.space)
    if low is None or _unbounded(low, high, column.dtype):
        return None
    outside = (column < low) | (column > high)
    if not finite and column.dtype.kind == "f":
        outside &= np.isfinite(column)
    if not outside.any():
        return None
    at = first_index(outside)
    if leaf.dtype.kind in "iu":
        low, high = _integer_bounds(leaf)
    inner = at[leading:]
    return at[:leading], (
        f"expected values within [{_pick(low, inner)}, {_pick(high, inner)}], got {column[at]} at index {inner}; "
        + _advice(leaf)
    )


def _harmless(leaf: Leaf) -> frozenset[np.dtype]:
    """Dtypes that are cast to the row's without changing a number, but for digits of a float."""
    kind = leaf.dtype.kind
    if kind in "iub":
        return frozenset(dtype for dtype in _DTYPES if np.can_cast(dtype, leaf.dtype, "safe"))
    return frozenset(dtype for dtype in _DTYPES if dtype.kind in ("biuf" if kind == "f" else "biufc"))


def _as_array(value: Any, shape: tuple[int, ...], path: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # ragged lists; objects whose conversion raises
        raise MisfitError(f"{path}: expected an array of shape {shape}, got {short(value)}") from error


def _integer_bounds(leaf: Leaf) -> tuple[Any, Any]:
    """The space's bounds, as far as the row's dtype can hold them."""
    low, high = bounds(leaf.space)
    if leaf.dtype.kind == "b":
        return (0, 1) if low is None else (low, high)
    info = np.iinfo(leaf.dtype)
    low, high = (info.min, info.max) if low is None else (low, high)
    return np.maximum(low, info.min), np.minimum(high, info.max)


def _unbounded(low: Any, high: Any, dtype: np.dtype) -> bool:
    if dtype.kind == "f":
        return bool(np.all(low == -np.inf) and np.all(high == np.inf))
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return bool(np.all(low <= info.min) and np.all(high >= info.max))
    return False


def _advice(leaf: Leaf) -> str:
    if np.dtype(leaf.space.dtype) != leaf.dtype and leaf.dtype.kind in "iu":
        low, high = bounds(leaf.space)
        if low is not None and _unbounded(low, high, leaf.dtype):
            return (
                "integers are kept in 32 bits: scale or split them in the environment, or declare a float32 "
                "observation_space"
            )
    return "widen the observation_space or clip the observation in the environment"


def first_index(mask: np.ndarray) -> tuple[int, ...]:
    """Index of the first True."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _pick(bound: Any, at: tuple[int, ...]) -> Any:
    return bound[at[len(at) - np.ndim(bound) :]] if np.ndim(bound) else bound


def short(value: Any) -> str:
    """The type of a value, and what it is, cut where it is long."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
