"""What a batch looks like when printed: one line (or table row) per array, with shape, dtype and statistics."""

from __future__ import annotations

import html as _html
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxrl.data.columns import FINAL_INDEX, FINAL_OBS, LAST_OBS, MASK, STATE_IN, leading_shape
from jaxrl.trees import size_bytes
from jaxrl.types import FINAL_PAD, PyTree


def text(columns: Mapping[str, PyTree], time_major: bool) -> str:
    """Columns as `{ 'rewards': np.ndarray((200,), dtype=float32, min=1.0, max=1.0, mean=1.0), ...}`, one a line.

    An array inside a pytree column is named by its keys: `'obs'['position']`. Statistics are those of valid rows. Never
    raises, whatever the leaves are.
    """
    lines = [f"{label}: {_line(leaf, used)}" for label, leaf, used in _leaves(columns, time_major)]
    return "{ " + ",\n  ".join(lines) + "}" if lines else "{}"


def html(columns: Mapping[str, PyTree], time_major: bool) -> str:
    """The table that a notebook shows: shape, dtype, min, max, mean and bytes of each array under a header line."""
    body = "".join(
        f"<tr><td style='text-align:left'>{_html.escape(label)}</td>"
        + "".join(f"<td>{_html.escape(cell)}</td>" for cell in _cells(leaf, used))
        + "</tr>"
        for label, leaf, used in _leaves(columns, time_major)
    )
    heads = "".join(f"<th>{head}</th>" for head in ("column", "shape", "dtype", "min", "max", "mean", "bytes"))
    title = _html.escape(f"SampleBatch {_extent(columns, time_major)}, {human_bytes(size_bytes(columns))}")
    return f"<div><b>{title}</b><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def human_bytes(size: int) -> str:
    """`1536` as `1.5 KiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _extent(columns: Mapping[str, PyTree], time_major: bool) -> str:
    try:
        shape = leading_shape(columns, time_major)
    except ValueError:
        return "of unknown shape"
    mask = _values(columns.get(MASK))
    rows = int(np.prod(shape))
    count = f"{rows if MASK not in columns else '?' if mask is None else int(mask.sum())} valid rows"
    return f"T={shape[0]} \u00d7 B={shape[1]}, {count}" if time_major else f"N={shape[0]}, {count}"


def _leaves(columns: Mapping[str, PyTree], time_major: bool) -> Iterator[tuple[str, Any, np.ndarray | None]]:
    """Label, leaf, and the bool array of entries that hold something (None: all)."""
    mask, index = _values(columns.get(MASK)), _values(columns.get(FINAL_INDEX))
    slots = None if index is None or index.ndim != 2 else index[:, 0] < FINAL_PAD
    for name, column in columns.items():
        used = None if name == MASK else slots if name in (FINAL_OBS, FINAL_INDEX) else mask
        if name in (STATE_IN, LAST_OBS):
            used = None
        if column is None:
            yield repr(name), None, None
        for path, leaf in jax.tree_util.tree_flatten_with_path(column)[0]:
            yield repr(name) + jax.tree_util.keystr(path), leaf, used


def _values(leaf: Any) -> np.ndarray | None:
    """The leaf as NumPy, or None if it is abstract, deleted or no array."""
    if isinstance(leaf, np.ndarray):
        return leaf
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    if leaf.is_deleted() or not leaf.is_fully_addressable or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return None
    return np.asarray(leaf)


def _statistics(leaf: Any, used: np.ndarray | None) -> tuple[str, str, str] | None:
    values = _values(leaf)
    if values is not None and used is not None and values.shape[: used.ndim] == used.shape:
        values = values[used]
    if values is None or not values.size or values.dtype.hasobject or values.dtype.names is not None:
        return None
    if values.dtype.kind not in "biufV":
        return None
    wide = values.astype(np.float32) if values.dtype.kind == "V" else values
    with np.errstate(all="ignore"):
        numbers = wide.min(), wide.max(), wide.mean(dtype=np.float64)
    low, high, mean = (str(round(float(number), 3)) for number in numbers)
    return low, high, mean


def _kind(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):
        return "np.ndarray"
    if isinstance(leaf, Tracer):
        return "Tracer"
    return "jax.Array" if isinstance(leaf, jax.Array) else type(leaf).__name__


def _line(leaf: Any, used: np.ndarray | None) -> str:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return "None" if leaf is None else type(leaf).__name__
    parts = [str(tuple(leaf.shape)), f"dtype={leaf.dtype}"]
    statistics = _statistics(leaf, used)
    if statistics is not None:
        parts += [f"{name}={value}" for name, value in zip(("min", "max", "mean"), statistics, strict=True)]
    elif isinstance(leaf, np.ndarray) and leaf.dtype.hasobject and leaf.size:
        parts.append(f"head={type(leaf.flat[0]).__name__}")
    return f"{_kind(leaf)}({', '.join(parts)})"


def _cells(leaf: Any, used: np.ndarray | None) -> tuple[str, ...]:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return "", "None" if leaf is None else type(leaf).__name__, "", "", "", ""
    return (
        str(tuple(leaf.shape)),
        str(leaf.dtype),
        *(_statistics(leaf, used) or ("", "", "")),
        f"{size_bytes([leaf]):,}",
    )
