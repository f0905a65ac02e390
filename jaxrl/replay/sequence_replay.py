"""Replay of sequences, for recurrent policies: R2D2, https://openreview.net/forum?id=r1lyTjAqYX.

A sequence is a column of a fragment that was cut to one length (`SampleBatch.cut`), with the model state before its
first row (the paper's "stored state", section 3) and the observation after its last one. Its valid rows stand together
in a ring of rows; padding takes no room. Burn-in is the loss's affair: it leaves the first rows of each sequence out.
Sequences overlap if the fragments that are added do.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.data.columns import FINAL_INDEX, FINAL_OBS, LAST_OBS, MASK, STATE_IN, backend
from jaxrl.replay import sum_tree
from jaxrl.replay.replay_buffer import ReplayBuffer, check_alpha, check_count, checked_priorities, checked_uniforms
from jaxrl.replay.storage import NOT_STORED, ReplayError, check_fragment_like
from jaxrl.types import FINAL_PAD, ConfigError, PyTree

_NOT_ROWS = NOT_STORED - {"obs"}


class SequenceSpec(NamedTuple):
    """What a replay buffer of sequences was made with: rows kept, and the exponent of priorities."""

    capacity: int
    alpha: float = 0.6


@dataclasses.dataclass(slots=True)
class SequenceState:
    """The contents of a replay buffer of sequences; `add` and `update` change it in place.

    Attributes:
        spec: what the buffer was made with.
        steps: T, the longest sequence.
        columns: row columns, leaves `[capacity, ...]`.
        owner: int32 `[capacity]`, the sequence of each row; -1: none.
        final: int32 `[capacity]`, where the final observation of an ended row is; -1: nowhere.
        finals: final observations, leaves `[F, ...]`.
        finals_free: places of `finals` that are free.
        start, length, born: `[S]`, first row, rows and number of each sequence.
        bounds: `state_in` (if there is one) and `last_obs` of each sequence, leaves `[S, ...]`.
        free: sequences' places that are free.
        tree: priorities of sequences.
        head: the next row.
        size: rows of the sequences that are there.
        added: sequences ever added.
        max_priority: the largest priority so far.
    """

    spec: SequenceSpec
    steps: int
    columns: dict[str, PyTree]
    owner: np.ndarray
    final: np.ndarray
    finals: PyTree
    finals_free: list[int]
    start: np.ndarray
    length: np.ndarray
    born: np.ndarray
    bounds: dict[str, PyTree]
    free: list[int]
    tree: sum_tree.SumTree
    head: int
    size: int
    added: int
    max_priority: float


def sequence_replay(capacity: int, *, alpha: float = 0.6) -> ReplayBuffer:
    """A ring of sequences, drawn in proportion to priority^alpha; see `ReplayBuffer` for its functions.

    `add` takes time-major fragments `[T, B]` of one T, whose columns are sequences; rows that are masked are left out,
    so that a sequence's valid rows come first when it is sampled. `sample` gives a time-major batch `[T, n]` with
    `state_in`, `last_obs`, final observations, a `mask`, and `weights` and `batch_indexes` that are the same in all
    rows of a sequence. Masked rows are zeros, with t = -1. `update` takes one priority per sequence
    (`sequence_priorities`), `indexes` being `batch["batch_indexes"][0]`; `take` takes such indexes. Rewards are as they
    came: sums over n steps are the loss's affair. `state.added` counts sequences.

    Args:
        capacity: transitions kept, at least one sequence's. A sequence goes when its first row is overwritten.
        alpha: exponent of priorities, not negative; 0: every sequence is as likely as any other.

    Returns:
        The buffer's functions.

    Raises:
        ConfigError: an argument that cannot work.
    """
    check_count("capacity", capacity, 1)
    spec = SequenceSpec(int(capacity), check_alpha(alpha))
    return ReplayBuffer(
        init=functools.partial(_init, spec),
        add=functools.partial(_add, spec),
        sample=_sample,
        take=_take,
        update=functools.partial(_update, spec),
        size=_size,
        nbytes=_nbytes,
        spec=spec,
    )


def sequence_priorities(td_error: Any, mask: Any, eta: float = 0.9) -> Any:
    """Priority of each sequence: `eta max_t |td_t| + (1 - eta) mean_t |td_t|` (R2D2, section 2.3).

    Args:
        td_error: `[T, n]`.
        mask: bool `[T, n]`, False where a row does not count; a sequence without valid rows gets 0.
        eta: share of the largest error.

    Returns:
        Priorities `[n]`.
    """
    xp = backend(td_error, mask)
    error = xp.where(mask, xp.abs(td_error), 0.0)
    mean = error.sum(axis=0) / xp.maximum(xp.asarray(mask).sum(axis=0), 1)
    return eta * error.max(axis=0) + (1.0 - eta) * mean


def _init(spec: SequenceSpec, fragment: SampleBatch) -> SequenceState:
    check_fragment_like(fragment)
    steps, capacity = fragment.T, spec.capacity
    if capacity < steps:
        raise ConfigError(f"replay: capacity {capacity} is less than one sequence of {steps} rows; make it larger")

    def none_yet(leaf: Any) -> np.ndarray:
        return np.zeros((0, *leaf.shape[1:]), leaf.dtype)

    return SequenceState(
        spec=spec,
        steps=steps,
        columns={
            name: jax.tree.map(lambda leaf: np.zeros((capacity, *leaf.shape[2:]), leaf.dtype), fragment[name])
            for name in fragment
            if name not in _NOT_ROWS
        },
        owner=np.full(capacity, -1, np.int32),
        final=np.full(capacity, -1, np.int32),
        finals=jax.tree.map(none_yet, fragment[LAST_OBS]),
        finals_free=[],
        start=np.zeros(0, np.int32),
        length=np.zeros(0, np.int32),
        born=np.zeros(0, np.int64),
        bounds={name: jax.tree.map(none_yet, fragment[name]) for name in (STATE_IN, LAST_OBS) if name in fragment},
        free=[],
        tree=sum_tree.init(1),
        head=0,
        size=0,
        added=0,
        max_priority=1.0,
    )


def _size(state: SequenceState) -> int:
    return state.size


def _nbytes(state: SequenceState) -> int:
    arrays = jax.tree.leaves((state.columns, state.finals, state.bounds))
    arrays += [state.owner, state.final, state.start, state.length, state.born]
    lists = 8 * (len(state.free) + len(state.finals_free))
    return sum(array.nbytes for array in arrays) + sum_tree.nbytes(state.tree) + lists


# ---------------------------------------------------------------- adding


def _add(spec: SequenceSpec, state: SequenceState, fragment: SampleBatch) -> SequenceState:
    columns = _checked(state, fragment)
    mask = columns.get(MASK, np.ones(fragment.shape, bool))
    lengths = np.count_nonzero(mask, axis=0)
    # Of more than fits, the last columns; the sequences before them would be overwritten at once.
    fits = np.cumsum(lengths[::-1])[::-1] <= spec.capacity
    picked = (fits & (lengths > 0)).nonzero()[0]
    if not len(picked):
        return state
    place, t = mask.T[picked].nonzero()
    source, count = t * mask.shape[1] + picked[place], len(t)
    rows = (state.head + np.arange(count)) % spec.capacity
    lengths = lengths[picked]
    _evict(state, rows if fits.all() else np.arange(spec.capacity))
    sequences = np.asarray(_reserve(state, len(picked)))
    for name, stored in state.columns.items():
        _write(stored, rows, columns[name], lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[source])
    for name, stored in state.bounds.items():
        _write(stored, sequences, columns[name], lambda leaf: leaf[picked])
    state.owner[rows] = sequences[place]
    state.final[rows] = -1
    state.start[sequences] = rows[np.cumsum(lengths) - lengths]
    state.length[sequences] = lengths
    state.born[sequences] = state.added + np.arange(len(picked))
    _add_finals(state, columns, mask.shape[1], source, rows)
    sum_tree.set(state.tree, sequences, state.max_priority**spec.alpha)
    state.head = (state.head + count) % spec.capacity
    state.size += count
    state.added += len(picked)
    return state


def _write(stored: PyTree, places: np.ndarray, column: PyTree, pick: Any) -> None:
    for into, leaf in zip(jax.tree.leaves(stored), jax.tree.leaves(column), strict=True):
        into[places] = pick(leaf)


def _checked(state: SequenceState, fragment: SampleBatch) -> dict[str, PyTree]:
    if not fragment.time_major or state.steps != fragment.T:
        raise ReplayError(
            f"replay: expected sequences [{state.steps}, B], got {list(fragment.shape)}; cut fragments to one length, "
            "SampleBatch.cut(max_seq_len, states)"
        )
    columns = {name: jax.tree.map(np.asarray, fragment[name]) for name in fragment}
    for axes, expected in ((2, state.columns), (1, state.bounds), (1, {FINAL_OBS: state.finals})):
        for name, stored in expected.items():
            if name not in columns:
                if name == FINAL_OBS:
                    continue
                raise ReplayError(f"replay: the fragment has no column {name!r}, which the buffer stores")
            if jax.tree.structure(columns[name]) != jax.tree.structure(stored):
                raise ReplayError(
                    f"replay: column {name!r} has structure {jax.tree.structure(columns[name])}, the buffer stores "
                    f"{jax.tree.structure(stored)}"
                )
            for leaf, into in zip(jax.tree.leaves(columns[name]), jax.tree.leaves(stored), strict=True):
                if leaf.dtype != into.dtype or leaf.shape[axes:] != into.shape[1:]:
                    raise ReplayError(
                        f"replay: column {name!r} is {leaf.dtype} {list(leaf.shape)}, the buffer stores {into.dtype} "
                        f"rows of shape {list(into.shape[1:])}"
                    )
    for name in columns:
        if name not in state.columns and name not in _NOT_ROWS:
            raise ReplayError(f"replay: the fragment has the column {name!r}, which the buffer was not made for")
    return columns


def _evict(state: SequenceState, rows: np.ndarray) -> None:
    """Drops the sequences that have rows among `rows`, whole."""
    owners = np.unique(state.owner[rows])
    for sequence in owners[owners >= 0].tolist():
        length = int(state.length[sequence])
        own = (int(state.start[sequence]) + np.arange(length)) % len(state.owner)
        finals = state.final[own]
        state.finals_free.extend(finals[finals >= 0].tolist())
        state.owner[own] = -1
        state.size -= length
        state.length[sequence] = 0
        state.free.append(sequence)
        sum_tree.fill(state.tree, sequence, sequence + 1, 0.0)


def _grown(tree: PyTree, more: int) -> PyTree:
    return jax.tree.map(lambda x: np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]), tree)


def _reserve(state: SequenceState, count: int) -> list[int]:
    """Takes places for `count` sequences, making more (twice as many) where there are too few."""
    have = len(state.start)
    if len(state.free) < count:
        more = max(8, have, count - len(state.free))
        state.start, state.length = _grown(state.start, more), _grown(state.length, more)
        state.born, state.bounds = _grown(state.born, more), _grown(state.bounds, more)
        state.free[:0] = range(have + more - 1, have - 1, -1)
        weights, state.tree = state.tree.sums[0][:have], sum_tree.init(have + more)
        if have:
            sum_tree.fill(state.tree, 0, have, weights)
    taken = state.free[len(state.free) - count :][::-1]
    del state.free[len(state.free) - count :]
    return taken


def _add_finals(
    state: SequenceState, columns: dict[str, PyTree], width: int, source: np.ndarray, rows: np.ndarray
) -> None:
    if FINAL_INDEX not in columns:
        return
    index = columns[FINAL_INDEX]
    used = (index[:, 0] < state.steps).nonzero()[0]
    row_of = np.full(state.steps * width, -1, np.int64)
    row_of[source] = rows
    at = row_of[index[used, 0] * width + index[used, 1]]
    used, at = used[at >= 0], at[at >= 0]
    have = len(jax.tree.leaves(state.finals)[0])
    short = len(used) - len(state.finals_free)
    if short > 0:
        more = max(8, have, short)
        state.finals = _grown(state.finals, more)
        state.finals_free[:0] = range(have + more - 1, have - 1, -1)
    places = [state.finals_free.pop() for _ in range(len(used))]
    if places:
        _write(state.finals, np.asarray(places), columns[FINAL_OBS], lambda leaf: leaf[used])
        state.final[at] = places


# ---------------------------------------------------------------- sampling


def _sample(state: SequenceState, uniforms: Any, beta: float = 0.0) -> SampleBatch:
    uniforms = checked_uniforms(uniforms)
    if not state.size:
        raise ReplayError("replay: there is nothing to sample yet; add fragments first")
    total = sum_tree.total(state.tree)
    if total <= 0.0:
        raise ReplayError("replay: all priorities are 0, so nothing can be sampled; give |td_error| + eps as priority")
    sequences = sum_tree.find(state.tree, uniforms * total)
    weights = np.ones(len(sequences), np.float32)
    if beta:
        weights = ((sum_tree.smallest(state.tree) / state.tree.sums[0][sequences]) ** beta).astype(np.float32)
    return _sequences(state, sequences, weights)


def _take(state: SequenceState, indexes: Any) -> SampleBatch:
    indexes = _checked_indexes(state, indexes)
    return _sequences(state, indexes, np.ones(len(indexes), np.float32))


def _checked_indexes(state: SequenceState, indexes: Any) -> np.ndarray:
    indexes = np.asarray(indexes)
    if indexes.ndim != 1 or indexes.dtype.kind not in "iu":
        raise ReplayError(f"replay: expected integer indexes [n], got {indexes.dtype} {list(indexes.shape)}")
    bad = (indexes < 0) | (indexes >= len(state.start))
    if bad.any():
        raise ReplayError(f"replay: indexes[{bad.argmax()}] is {indexes[bad.argmax()]}, and there is no such sequence")
    return indexes.astype(np.intp)


def _sequences(state: SequenceState, sequences: np.ndarray, weights: np.ndarray) -> SampleBatch:
    steps, n = state.steps, len(sequences)
    t = np.arange(steps)[:, None]
    rows = (state.start[sequences] + t) % len(state.owner)
    mask = t < state.length[sequences]
    absent = None if mask.all() else ~mask

    def gather(leaf: np.ndarray) -> np.ndarray:
        out = leaf.take(rows, axis=0)
        if absent is not None:
            out[absent] = 0
        return out

    columns: dict[str, PyTree] = {name: jax.tree.map(gather, stored) for name, stored in state.columns.items()}
    if absent is not None:
        columns["t"][absent] = -1  # t == 0 resets a model's state
    for name, stored in state.bounds.items():
        columns[name] = jax.tree.map(lambda leaf: leaf.take(sequences, axis=0), stored)
    finals = np.where(mask, state.final[rows], -1)
    at = np.argwhere(finals >= 0)
    slots = n if len(at) <= n else steps * n  # two sizes only: each new one compiles what reads it anew
    index = np.full((slots, 2), FINAL_PAD, np.int32)
    index[:, 1] = 0
    index[: len(at)] = at
    picked = finals[at[:, 0], at[:, 1]]

    def final_rows(leaf: np.ndarray) -> np.ndarray:
        out = np.zeros((slots, *leaf.shape[1:]), leaf.dtype)
        out[: len(at)] = leaf[picked]
        return out

    columns[FINAL_OBS], columns[FINAL_INDEX] = jax.tree.map(final_rows, state.finals), index
    columns[MASK] = mask
    columns["weights"] = np.broadcast_to(weights, (steps, n)).copy()
    columns["batch_indexes"] = np.broadcast_to(sequences.astype(np.int32), (steps, n)).copy()
    return SampleBatch._make(columns)


def _update(
    spec: SequenceSpec, state: SequenceState, indexes: Any, priorities: Any, added: int | None = None
) -> SequenceState:
    indexes = _checked_indexes(state, indexes)
    priorities = checked_priorities(priorities, indexes)
    keep = state.length[indexes] > 0
    if added is not None:
        keep &= state.born[indexes] < added
    indexes, priorities = indexes[keep], priorities[keep]
    if len(indexes):
        state.max_priority = max(state.max_priority, float(priorities.max()))
        sum_tree.set(state.tree, indexes, priorities**spec.alpha)
    return state
