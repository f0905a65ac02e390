"""Columns of a batch as a plain dict: which are rows, what is refused, and what is derived (`dones`, `new_obs`)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.core import Tracer

from jaxrl.types import COLUMNS, LossError, PyTree

STATE_IN, LAST_OBS, FINAL_OBS, FINAL_INDEX, MASK = "state_in", "last_obs", "final_obs", "final_index", "mask"

# Columns that describe the rectangle rather than its rows: they have no [T, B] axes.
STRUCTURAL = frozenset({STATE_IN, LAST_OBS, FINAL_OBS, FINAL_INDEX})

_SMALL_DTYPES = frozenset(
    np.dtype(dtype)
    for dtype in (
        *(np.bool_, np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32, np.float16, np.float32),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    )
)


class UnknownColumnError(LossError, KeyError):
    """A column was read that the batch neither stores nor can derive."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


def backend(*trees: PyTree) -> Any:
    """Returns `jax.numpy` if any leaf is a JAX array or tracer, else `numpy`."""
    for tree in trees:
        if isinstance(tree, np.ndarray):
            continue
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
            return jnp
    return np


def is_tracer(x: Any) -> bool:
    """True if `x` is an abstract value inside a JAX transformation."""
    return isinstance(x, Tracer)


def map_leaves(fn: Any, column: PyTree) -> PyTree:
    """Applies `fn` to each leaf; a column that is one NumPy array skips the pytree machinery (1 us of 2)."""
    return fn(column) if isinstance(column, np.ndarray) else jax.tree.map(fn, column)


def leaves_of(column: PyTree) -> list[Any]:
    """The leaves of a column."""
    return [column] if isinstance(column, np.ndarray) else jax.tree.leaves(column)


def row_items(columns: Mapping[str, PyTree]) -> Iterator[tuple[str, PyTree]]:
    """Pairs of name and column of those columns that have one entry per row."""
    return ((name, column) for name, column in columns.items() if name not in STRUCTURAL)


def leading_shape(columns: Mapping[str, PyTree], time_major: bool) -> tuple[int, ...]:
    """`(T, B)` of time-major columns, `(N,)` of flat ones, from the first leaf that has these axes."""
    ndim = 2 if time_major else 1
    for _, column in row_items(columns):
        for leaf in leaves_of(column):
            shape = getattr(leaf, "shape", ())
            if len(shape) >= ndim:
                return tuple(shape[:ndim])
    raise ValueError(f"SampleBatch: no column has {'[T, B]' if time_major else '[N]'} axes to take the shape from")


# ---------------------------------------------------------------- validation


def validate(columns: Mapping[str, PyTree], time_major: bool, leading: tuple[int, ...] | None = None) -> None:
    """Checks dtypes and leading shapes of `columns`; with `leading` given, against that shape.

    Raises:
        TypeError: a leaf is no array, or its dtype is 64-bit, object or another that never enters a device.
        ValueError: no rows, or leading shapes that disagree.
    """
    axes = "[T, B]" if time_major else "[N]"
    ndim = 2 if time_major else 1
    first = None
    for name, column in columns.items():
        leaves = leaves_of(column)
        for leaf in leaves:
            _check_leaf(name, leaf)
        if name in STRUCTURAL:
            continue
        if not leaves:
            raise ValueError(f"SampleBatch: column {name!r} holds no array; leave it out or give it {axes} rows")
        for leaf in leaves:
            if leading is None:
                leading, first = tuple(leaf.shape[:ndim]), name
            if len(leaf.shape) < ndim or tuple(leaf.shape[:ndim]) != leading:
                against = f"column {first!r}" if first else "the batch"
                raise ValueError(
                    f"SampleBatch: column {name!r} has shape {tuple(leaf.shape)}, but {against} has {axes} = "
                    f"{list(leading)}; give every column one entry per row"
                )
    if leading is None:
        raise ValueError("SampleBatch: no columns with rows; give at least one, such as obs")
    if 0 in leading or len(leading) != ndim:
        raise ValueError(f"SampleBatch: {axes} = {list(leading)} holds no rows; leave empty batches out")
    if MASK in columns and (np.dtype(columns[MASK].dtype) != np.bool_ or len(columns[MASK].shape) != ndim):
        raise TypeError(f"SampleBatch: mask must be bool {axes}, got {_describe(columns[MASK])}")
    _validate_structural(columns, time_major, leading)


def _check_leaf(name: str, leaf: Any) -> None:
    dtype = getattr(leaf, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype in _SMALL_DTYPES and hasattr(leaf, "shape"):
        return
    if dtype is None or not hasattr(leaf, "shape"):
        raise TypeError(
            f"SampleBatch: column {name!r} holds {type(leaf).__name__} objects, expected arrays; "
            "convert it, e.g. np.asarray(values, np.float32)"
        )
    if dtype == np.float64:
        advice = "convert it with .astype(np.float32)"
    elif dtype in (np.int64, np.uint64):
        advice = "convert it with .astype(np.int32); keep bigger counters on the host"
    else:
        advice = "rows hold bool, or numbers of at most 32 bits; leave the column out (infos never enter a batch)"
    raise TypeError(f"SampleBatch: column {name!r} has dtype {dtype}, expected at most 32 bits; {advice}")


def _validate_structural(columns: Mapping[str, PyTree], time_major: bool, leading: tuple[int, ...]) -> None:
    present = STRUCTURAL.intersection(columns)
    if not present:
        return
    if not time_major:
        raise ValueError(
            f"SampleBatch: {sorted(present)} belong to time-major [T, B] batches; a flat batch stores new_obs itself"
        )
    for name in (STATE_IN, LAST_OBS):
        for leaf in leaves_of(columns.get(name, ())):
            if tuple(leaf.shape[:1]) != leading[1:]:
                raise ValueError(
                    f"SampleBatch: {name} must be [B, ...] with B = {leading[1]}, got shape {tuple(leaf.shape)}"
                )
    if (FINAL_OBS in present) != (FINAL_INDEX in present):
        raise ValueError("SampleBatch: final_obs and final_index come together; give both or neither")
    if FINAL_INDEX in present:
        index = columns[FINAL_INDEX]
        if len(index.shape) != 2 or index.shape[1] != 2 or index.dtype != np.int32:
            raise ValueError(f"SampleBatch: final_index must be int32 [K, 2] of (t, b), got {_describe(index)}")
        for leaf in leaves_of(columns[FINAL_OBS]):
            if tuple(leaf.shape[:1]) != (index.shape[0],):
                raise ValueError(
                    f"SampleBatch: final_obs must be [K, ...] with K = {index.shape[0]} as final_index, "
                    f"got shape {tuple(leaf.shape)}"
                )
    if present - {STATE_IN} and "obs" not in columns:
        raise ValueError(f"SampleBatch: {sorted(present - {STATE_IN})} need the column obs, whose successors they are")
    for name in (LAST_OBS, FINAL_OBS):
        if name in present and jax.tree.structure(columns[name]) != jax.tree.structure(columns["obs"]):
            raise ValueError(
                f"SampleBatch: {name} must have the structure of obs, {jax.tree.structure(columns['obs'])}, "
                f"got {jax.tree.structure(columns[name])}"
            )


def _describe(array: Any) -> str:
    return f"{getattr(array, 'dtype', type(array).__name__)} {list(getattr(array, 'shape', ()))}"


# ---------------------------------------------------------------- derived columns


def read(columns: Mapping[str, PyTree], name: str) -> PyTree:
    """The stored or derived column `name`; UnknownColumnError if there is neither."""
    if name in columns:
        return columns[name]
    if derivable(columns, name):
        return columns["terminateds"] | columns["truncateds"] if name == "dones" else successors(columns)
    raise unknown_column(name, columns)


def derivable(columns: Mapping[str, PyTree], name: str) -> bool:
    """True if `name` is a derived column whose sources are all in `columns`."""
    if name == "dones":
        return "terminateds" in columns and "truncateds" in columns
    return name == "new_obs" and "obs" in columns and LAST_OBS in columns


def next_valid(mask: Any) -> Any:
    """Index of the first valid row at or after each row, `T` if there is none: `[T, B]` bool to `[T + 1, B]` int32."""
    xp = backend(mask)
    steps, width = mask.shape
    rows = xp.where(mask, xp.arange(steps, dtype=np.int32)[:, None], np.int32(steps))
    rows = xp.concatenate([rows, xp.full((1, width), steps, np.int32)])
    if xp is np:
        return np.minimum.accumulate(rows[::-1], axis=0)[::-1]
    return jax.lax.cummin(rows, axis=0, reverse=True)


def successors(columns: Mapping[str, PyTree]) -> PyTree:
    """True successor observation of each row, `[T, B, ...]`.

    It is the observation of the column's next valid row, `last_obs` after its last one, and the stored final
    observation where an episode ended, so that no reset observation ever stands in for a successor.
    """
    mask = columns.get(MASK)
    following = None if mask is None else next_valid(mask)[1:]
    index = columns.get(FINAL_INDEX)

    def leaf_successors(obs: Any, last: Any, final: Any) -> Any:
        xp = backend(obs, last, final, mask, index)
        steps, width = obs.shape[:2]
        extended = xp.concatenate([obs, last[None]])
        out = extended[1:] if following is None else extended[following, xp.arange(width)]
        if index is None:
            return out
        if xp is np:
            stored = index[:, 0] < steps
            out[index[stored, 0], index[stored, 1]] = final[stored]
            return out
        return out.at[index[:, 0], index[:, 1]].set(final, mode="drop")

    obs = columns["obs"]
    return jax.tree.map(leaf_successors, obs, columns[LAST_OBS], columns.get(FINAL_OBS, obs))


def observation_at(columns: Mapping[str, PyTree], ends: list[int]) -> PyTree:
    """Observation of the first valid row at or after each of `ends`, else `last_obs`: `[len(ends), B, ...]`."""
    mask = columns.get(MASK)
    rows = None if mask is None else next_valid(mask)[np.asarray(ends)]

    def pick(obs: Any, last: Any) -> Any:
        steps, width = obs.shape[:2]
        xp = backend(obs, last, mask)
        if rows is None:
            return xp.stack([obs[end] if end < steps else last for end in ends])
        picked = xp.asarray(obs)[xp.minimum(rows, steps - 1), xp.arange(width)]
        return xp.where((rows < steps).reshape(rows.shape + (1,) * (obs.ndim - 2)), picked, last)

    return jax.tree.map(pick, columns["obs"], columns[LAST_OBS])


def masked_sum(x: Any, mask: Any | None, leading: tuple[int, ...]) -> tuple[Any, Any]:
    """Sum (float32) and number of the entries of `x [*leading, ...]` in valid rows; `mask` is `[*leading]` or None."""
    xp = backend(x, mask)
    x = xp.asarray(x)
    if x.shape[: len(leading)] != leading:
        raise ValueError(
            f"SampleBatch.mean/sum: expected one entry per row, leading axes {list(leading)}, got shape "
            f"{list(x.shape)}; reshape x, or flatten() both"
        )
    if mask is None:
        return x.sum(dtype=np.float32), x.size
    weight = mask.reshape(leading + (1,) * (x.ndim - len(leading)))
    # where, not a product: a masked NaN must not spoil the sum.
    total = xp.where(weight, x, xp.zeros((), x.dtype)).sum(dtype=np.float32)
    return total, mask.sum() * math.prod(x.shape[len(leading) :])


def unknown_column(name: str, columns: Mapping[str, PyTree]) -> UnknownColumnError:
    """The error for reading column `name`: the nearest names and what there is."""
    known = sorted({*columns, *(derived for derived in ("dones", "new_obs") if derivable(columns, derived))})
    text = f"no column {name!r} in this batch"
    if name == "new_obs" and "obs" in columns:
        text += "; new_obs is derived from last_obs: keep it when flattening with flatten(columns=[..., 'new_obs'])"
    elif name == "dones":
        text += "; dones is derived from terminateds and truncateds, which both must be there"
    elif near := difflib.get_close_matches(str(name), known, n=1):
        text += f"; did you mean {near[0]!r}"
    elif name in COLUMNS:
        text += f" ({COLUMNS[name]}); nothing has filled it yet"
    return UnknownColumnError(f"{text}{'?' if 'did you mean' in text else '.'} It has: {', '.join(known)}")


def check_same_names(batches: Iterable[Mapping[str, PyTree]]) -> None:
    """Raises ValueError naming the columns (other than `mask`) that not all of `batches` have."""
    names = [frozenset(batch.keys()) - {MASK} for batch in batches]
    differing = frozenset().union(*names) - frozenset.intersection(*names)
    if differing:
        listed = ", ".join(
            f"{name!r} (in {sum(name in one for one in names)} of {len(names)})" for name in sorted(differing)
        )
        raise ValueError(
            f"concat: the batches differ in columns: {listed}; drop these or fill them in every batch first"
        )
