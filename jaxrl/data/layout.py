"""Slicing, cutting, padding and joining of columns, as functions from dicts of columns to dicts of columns.

Each keeps `last_obs`, `final_obs` and `final_index` such that the derived `new_obs` of every kept row stays what it
was. All but `split_episodes` have static output shapes and run under `jax.jit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data.columns import (
    FINAL_INDEX,
    FINAL_OBS,
    LAST_OBS,
    MASK,
    STATE_IN,
    backend,
    check_same_names,
    leading_shape,
    leaves_of,
    map_leaves,
    next_valid,
    observation_at,
    row_items,
)
from jaxrl.types import FINAL_PAD, PyTree

Columns = dict[str, PyTree]


def flat_rows(columns: Mapping[str, PyTree]) -> Columns:
    """Row columns `[T, B, ...]` as `[T * B, ...]` (row `t * B + b`); structural columns are left out."""
    return {name: map_leaves(_merge_two, column) for name, column in row_items(columns)}


def _merge_two(x: Any) -> Any:
    return x.reshape((x.shape[0] * x.shape[1], *x.shape[2:]))


def slice_rows(columns: Mapping[str, PyTree], start: int, stop: int) -> Columns:
    """Rows `start:stop` along the first axis of the row columns (flat batches)."""
    return {name: map_leaves(lambda x: x[start:stop], column) for name, column in row_items(columns)}


def slice_time(columns: Mapping[str, PyTree], start: int, stop: int, state_in: PyTree | None) -> Columns:
    """Rows `start:stop` along T of time-major columns; see `SampleBatch.slice`."""
    steps, _ = leading_shape(columns, True)
    out = slice_rows(columns, start, stop)
    if state_in is not None:
        out[STATE_IN] = state_in
    elif STATE_IN in columns:
        if start and leaves_of(columns[STATE_IN]):
            raise ValueError(
                f"slice({start}, {stop}): state_in is the model state before row 0, not before row {start}; "
                "give slice(..., state_in=) or drop('state_in') first"
            )
        out[STATE_IN] = columns[STATE_IN]
    if LAST_OBS in columns:
        if stop >= steps:
            out[LAST_OBS] = columns[LAST_OBS]
        else:
            out[LAST_OBS] = jax.tree.map(lambda x: x[0], observation_at(columns, [stop]))
    if FINAL_INDEX in columns:
        index = columns[FINAL_INDEX]
        kept = (index[:, 0] >= start) & (index[:, 0] < stop)
        out[FINAL_OBS] = columns[FINAL_OBS]
        out[FINAL_INDEX] = _final_index(kept, index[:, 0] - start, index[:, 1])
    return out


def _final_index(kept: Any, t: Any, b: Any) -> Any:
    """`[K, 2]` of `(t, b)`, with the slots that are not `kept` marked as unused."""
    xp = backend(kept, t, b)
    return xp.stack([xp.where(kept, t, FINAL_PAD), xp.where(kept, b, 0)], axis=-1).astype(np.int32)


def pad_rows(columns: Mapping[str, PyTree], extra: int, time_major: bool) -> Columns:
    """Appends `extra` masked rows of zeros along the first axis; adds a mask if there was none."""
    out = dict(columns)
    if MASK not in out:
        xp = backend(*columns.values())
        out[MASK] = xp.ones(leading_shape(columns, time_major), bool)
    if not extra:
        return out
    for name, column in row_items(out):
        out[name] = map_leaves(lambda x: _pad_zeros(x, extra), column)
    return out


def _pad_zeros(x: Any, extra: int) -> Any:
    xp = backend(x)
    return xp.concatenate([x, xp.zeros((extra, *x.shape[1:]), x.dtype)])


def cut_sequences(columns: Mapping[str, PyTree], length: int, states: PyTree | None) -> Columns:
    """Cuts `[T, B]` into sequences `[length, ceil(T / length) * B]`, sequence `c` of column `b` at `c * B + b`."""
    steps, width = leading_shape(columns, True)
    pieces = -(-steps // length)
    starts = [piece * length for piece in range(pieces)]
    if states is not None:
        for leaf in leaves_of(states):
            if tuple(leaf.shape[:2]) != (steps, width):
                raise ValueError(
                    f"cut({length}): states must be [T, B, ...] with [T, B] = {[steps, width]} (the state before each "
                    f"row), got shape {tuple(leaf.shape)}"
                )
    elif pieces > 1 and leaves_of(columns.get(STATE_IN, ())):
        raise ValueError(
            f"cut({length}): state_in is the state before row 0 only; give cut(..., states=) with the state before "
            "each row, or drop('state_in') first"
        )
    padded = columns if pieces * length == steps else pad_rows(columns, pieces * length - steps, True)

    def to_sequences(x: Any) -> Any:
        x = x.reshape((pieces, length, *x.shape[1:])).swapaxes(0, 1)
        return x.reshape((length, pieces * width, *x.shape[3:]))

    out = {name: map_leaves(to_sequences, column) for name, column in row_items(padded)}
    if states is not None:
        out[STATE_IN] = jax.tree.map(lambda x: _merge_two(x[np.asarray(starts)]), states)
    elif STATE_IN in columns:
        out[STATE_IN] = columns[STATE_IN]
    if LAST_OBS in columns:
        ends = [min(start + length, steps) for start in starts]
        out[LAST_OBS] = jax.tree.map(_merge_two, observation_at(columns, ends))
    if FINAL_INDEX in columns:
        t, b = columns[FINAL_INDEX][:, 0], columns[FINAL_INDEX][:, 1]
        out[FINAL_OBS] = columns[FINAL_OBS]
        out[FINAL_INDEX] = _final_index(t < steps, t % length, (t // length) * width + b)
    return out


def take_rows(columns: Mapping[str, PyTree], index: Any, valid: Any | None) -> Columns:
    """Rows `index` of flat columns; where `valid` is False the row is masked."""
    out = {name: map_leaves(lambda x: _gather(x, index, 0), column) for name, column in row_items(columns)}
    if valid is not None:
        out[MASK] = out[MASK] & valid if MASK in out else valid
    return out


def take_columns(columns: Mapping[str, PyTree], index: Any, valid: Any | None) -> Columns:
    """Columns (axis B) `index` of time-major columns; where `valid` is False the whole column is masked."""
    steps, width = leading_shape(columns, True)
    out = {name: map_leaves(lambda x: _gather(x, index, 1), column) for name, column in row_items(columns)}
    if valid is not None:
        xp = backend(valid, out.get(MASK, ()))
        mask = out.get(MASK, True)
        out[MASK] = xp.broadcast_to(valid, (steps, *valid.shape)) & mask
    for name in (STATE_IN, LAST_OBS):
        if name in columns:
            out[name] = map_leaves(lambda x: _gather(x, index, 0), columns[name])
    if FINAL_INDEX in columns:
        t, b = columns[FINAL_INDEX][:, 0], columns[FINAL_INDEX][:, 1]
        xp = backend(t, index, valid)
        # A slot that only pads must not claim the final observation of the column that it repeats.
        target = xp.asarray(index) if valid is None else xp.where(valid, index, width)
        places = xp.full(width + 1, -1, np.int32)
        where = xp.arange(target.shape[0], dtype=np.int32)
        if xp is np:
            places[target] = where
        else:
            places = places.at[target].set(where)
        places = places[:-1]
        moved = places[xp.clip(b, 0, width - 1)]
        out[FINAL_OBS] = columns[FINAL_OBS]
        out[FINAL_INDEX] = _final_index((t < steps) & (moved >= 0), t, moved)
    return out


def _gather(x: Any, index: Any, axis: int) -> Any:
    # On the device, "clip" is the gather as it is; jnp.take's own mode compares every index and fills with NaN.
    return np.take(x, index, axis=axis) if backend(x, index) is np else jnp.take(x, index, axis=axis, mode="clip")


def minibatch_indices(order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields `size` entries of `order` at a time and which of them are valid (None if `size` divides evenly)."""
    total = len(order)
    short = -total % size
    order = np.concatenate([order, np.repeat(order[:1], short)])
    valid = np.arange(total + short) < total
    for start in range(0, total, size):
        yield order[start : start + size], valid[start : start + size] if short else None


def iterate_rows(columns: Mapping[str, PyTree]) -> Iterator[Columns]:
    """Yields each valid row of flat NumPy columns as a dict without the mask."""
    mask = columns.get(MASK)
    bare = {name: column for name, column in columns.items() if name != MASK}
    for i in range(leading_shape(columns, False)[0]) if mask is None else np.flatnonzero(mask):
        yield {name: map_leaves(lambda x, row=i: x[row], column) for name, column in bare.items()}


def concat_columns(batches: Sequence[Mapping[str, PyTree]], time_major: bool, length: int | None) -> Columns:
    """Joins columns along B (time-major, padded to one T) or along N (flat); see `SampleBatch.concat`."""
    check_same_names(batches)
    if time_major:
        shapes = [leading_shape(batch, True) for batch in batches]
        longest = max(steps for steps, _ in shapes)
        target = longest
        if length is not None and length >= longest:
            target = length
        elif any(steps != longest for steps, _ in shapes):
            target = 1 << (longest - 1).bit_length()
        batches = [
            batch if steps == target else pad_rows(batch, target - steps, True)
            for batch, (steps, _) in zip(batches, shapes, strict=True)
        ]
        widths = [width for _, width in shapes]
    else:
        widths = [0] * len(batches)
    masked = any(MASK in batch for batch in batches)
    if masked:
        batches = [batch if MASK in batch else pad_rows(batch, 0, time_major) for batch in batches]
    out: Columns = {}
    for name in batches[0]:
        columns = [batch[name] for batch in batches]
        if name == FINAL_INDEX:
            columns = _offset_columns(columns, widths)
        axis = 1 if time_major and name not in (STATE_IN, LAST_OBS, FINAL_OBS, FINAL_INDEX) else 0
        out[name] = join(name, columns, axis)
    return out


def _offset_columns(indices: list[Any], widths: Sequence[int]) -> list[Any]:
    moved, before = [], 0
    for index, width in zip(indices, widths, strict=True):
        moved.append(_final_index(index[:, 0] < FINAL_PAD, index[:, 0], index[:, 1] + before))
        before += width
    return moved


def join(name: str, columns: Sequence[PyTree], axis: int) -> PyTree:
    """Concatenates one column of several batches; ValueError if structure, dtype or entry shape differ."""

    def join_leaves(*leaves: Any) -> Any:
        first = leaves[0]
        for leaf in leaves[1:]:
            # NumPy would promote int32 and float32 to float64.
            if leaf.dtype != first.dtype or _without_axis(leaf, axis) != _without_axis(first, axis):
                raise ValueError(
                    f"concat: column {name!r} is {first.dtype} {list(first.shape)} in one batch and {leaf.dtype} "
                    f"{list(leaf.shape)} in another; make them alike in dtype and entry shape"
                )
        return backend(*leaves).concatenate(leaves, axis=axis)

    if all(isinstance(column, np.ndarray) for column in columns):
        return join_leaves(*columns)
    structure = jax.tree.structure(columns[0])
    for column in columns[1:]:
        if jax.tree.structure(column) != structure:
            raise ValueError(
                f"concat: column {name!r} has structure {structure} in one batch and {jax.tree.structure(column)} in "
                "another; make the batches with one observation space and one model"
            )
    return jax.tree.map(join_leaves, *columns)


def _without_axis(array: Any, axis: int) -> tuple[int, ...]:
    return array.shape[:axis] + array.shape[axis + 1 :]


def split_episodes(columns: Mapping[str, PyTree], time_major: bool) -> list[Columns]:
    """Splits NumPy columns into one dict of columns per episode; see `SampleBatch.split_by_episode`."""
    if not time_major:
        return _split_flat(columns)
    _, width = leading_shape(columns, True)
    mask = columns.get(MASK)
    following = None if mask is None else next_valid(mask)
    pieces = []
    for b in range(width):
        rows = np.arange(columns["eps_id"].shape[0]) if mask is None else np.flatnonzero(mask[:, b])
        if not len(rows):
            continue
        changes = np.flatnonzero(np.diff(columns["eps_id"][rows, b])) + 1
        for number, piece in enumerate(np.split(rows, changes)):
            pieces.append(_one_episode(columns, piece, b, number == 0, following))
    return pieces


def _one_episode(columns: Mapping[str, PyTree], rows: Any, b: int, first: bool, following: Any | None) -> Columns:
    steps = columns["eps_id"].shape[0]
    out = {
        name: map_leaves(lambda x: x[rows, b][:, None], column) for name, column in row_items(columns) if name != MASK
    }
    if STATE_IN in columns:
        # A later piece starts an episode, where the model resets its state whatever stands here.
        out[STATE_IN] = map_leaves(lambda x: x[b : b + 1] if first else np.zeros_like(x[:1]), columns[STATE_IN])
    if LAST_OBS in columns:
        after = rows[-1] + 1 if following is None else following[rows[-1] + 1, b]
        out[LAST_OBS] = jax.tree.map(
            lambda obs, last: (obs[after, b] if after < steps else last[b])[None], columns["obs"], columns[LAST_OBS]
        )
    if FINAL_INDEX in columns:
        index = columns[FINAL_INDEX]
        slots = np.flatnonzero((index[:, 0] == rows[-1]) & (index[:, 1] == b))[:1]
        if len(slots):
            out[FINAL_INDEX] = np.asarray([[len(rows) - 1, 0]], np.int32)
            out[FINAL_OBS] = map_leaves(lambda x: x[slots], columns[FINAL_OBS])
        else:
            out[FINAL_INDEX] = np.asarray([[FINAL_PAD, 0]], np.int32)
            out[FINAL_OBS] = map_leaves(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), columns[FINAL_OBS])
    return out


def _split_flat(columns: Mapping[str, PyTree]) -> list[Columns]:
    mask = columns.get(MASK)
    keys = np.stack([columns["eps_id"], columns.get("agent_index", np.zeros_like(columns["eps_id"]))], axis=-1)
    rows = np.arange(len(keys)) if mask is None else np.flatnonzero(mask)
    if not len(rows):
        return []
    _, first, group = np.unique(keys[rows], axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    bare = {name: column for name, column in columns.items() if name != MASK}
    return [take_rows(bare, rows[group == number], None) for number in np.argsort(first, kind="stable")]
