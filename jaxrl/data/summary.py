"""What a batch looks like when printed: one line (or table row) per array, with shape, dtype and statistics."""

from __future__ import annotations

import html as _html
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl.data.columns import MASK, leading_shape
from jaxrl.types import PyTree


def text(columns: Mapping[str, PyTree]) -> str:
    """Columns as `{ 'rewards': np.ndarray((200,), dtype=float32, min=1.0, max=1.0, mean=1.0), ...}`, one a line.

    An array inside a pytree column is named by its keys: `'obs'['position']`. Never raises, whatever the leaves are.
    """
    lines = [f"{name}: {_line(leaf)}" for name, leaf in _leaves(columns)]
    return "{ " + ",\n  ".join(lines) + "}" if lines else "{}"


def html(columns: Mapping[str, PyTree], time_major: bool) -> str:
    """The table that a notebook shows: shape, dtype, min, max, mean and bytes of each array under a header line."""
    leaves = list(_leaves(columns))
    size = sum(_bytes(leaf) for _, leaf in leaves)
    body = "".join(
        f"<tr><td style='text-align:left'>{_html.escape(name)}</td>"
        + "".join(f"<td>{_html.escape(cell)}</td>" for cell in _cells(leaf))
        + "</tr>"
        for name, leaf in leaves
    )
    heads = "".join(f"<th>{head}</th>" for head in ("column", "shape", "dtype", "min", "max", "mean", "bytes"))
    title = _html.escape(f"SampleBatch {_extent(columns, time_major)}, {human_bytes(size)}")
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


def _leaves(columns: Mapping[str, PyTree]) -> Iterator[tuple[str, Any]]:
    for name, column in columns.items():
        if column is None:
            yield repr(name), None
            continue
        for path, leaf in jax.tree_util.tree_flatten_with_path(column)[0]:
            yield repr(name) + jax.tree_util.keystr(path), leaf


def _values(leaf: Any) -> np.ndarray | None:
    """The leaf as NumPy, or None if it is abstract, deleted or no array."""
    if isinstance(leaf, np.ndarray):
        return leaf
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    if leaf.is_deleted() or not leaf.is_fully_addressable or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return None
    return np.asarray(leaf)


def _statistics(leaf: Any) -> tuple[str, str, str] | None:
    values = _values(leaf)
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
    if isinstance(leaf, jax.core.Tracer):
        return "Tracer"
    return "jax.Array" if isinstance(leaf, jax.Array) else type(leaf).__name__


def _line(leaf: Any) -> str:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return "None" if leaf is None else type(leaf).__name__
    parts = [str(tuple(leaf.shape)), f"dtype={leaf.dtype}"]
    statistics = _statistics(leaf)
    if statistics is not None:
        parts += [f"{name}={value}" for name, value in zip(("min", "max", "mean"), statistics, strict=True)]
    elif isinstance(leaf, np.ndarray) and leaf.dtype.hasobject and leaf.size:
        parts.append(f"head={type(leaf.flat[0]).__name__}")
    return f"{_kind(leaf)}({', '.join(parts)})"


def _cells(leaf: Any) -> tuple[str, ...]:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return "", "None" if leaf is None else type(leaf).__name__, "", "", "", ""
    return str(tuple(leaf.shape)), str(leaf.dtype), *(_statistics(leaf) or ("", "", "")), f"{_bytes(leaf):,}"


def _bytes(leaf: Any) -> int:
    itemsize = getattr(getattr(leaf, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(leaf, "shape", (0,)), dtype=np.int64)) * int(itemsize or 0)
