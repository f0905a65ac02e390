"""Whether a state that came from a file is one that a replay buffer can have: nothing in it is found out later."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxrl.replay.jax_replay import JaxReplayState
from jaxrl.replay.sequence_replay import SequenceSpec, SequenceState
from jaxrl.replay.storage import LOST, NO_LINK, ReplaySpec, ReplayState
from jaxrl.types import CheckpointError, PyTree

_ROW_DTYPES = {"rewards": "f", "terminateds": "b", "truncateds": "b", "eps_id": "i", "t": "i"}


def check_state(state: ReplayState | SequenceState, where: str) -> None:
    """Checks shapes, ranges, links and priorities of a state against one another.

    Args:
        state: the state; its `spec` is the buffer's own.
        where: names its file.

    Raises:
        CheckpointError: the first thing in it that cannot be.
    """
    check = _Check(where)
    check.true(type(state.added) is int and 0 <= state.added < 2**62, "added is no count")
    check.true(type(state.size) is int and type(state.head) is int, "size and head are no counts")
    priority = state.max_priority
    check.true(isinstance(priority, float) and math.isfinite(priority) and priority >= 0, "max_priority is no priority")
    if isinstance(state, SequenceState):
        _check_sequences(state, state.spec, check)
    else:
        _check_transitions(state, state.spec, check)


class _Check:
    def __init__(self, where: str):
        self.where = where

    def true(self, holds: Any, otherwise: str) -> None:
        if not holds:
            raise CheckpointError(f"{self.where}: is no state of this replay buffer: {otherwise}; restore another one.")

    def rows(self, name: str, tree: PyTree, count: int) -> None:
        """Every leaf is an array of `count` rows."""
        for leaf in jax.tree.leaves(tree):
            self.true(isinstance(leaf, np.ndarray) and leaf.ndim, f"{name} is no array")
            self.true(len(leaf) == count, f"{name} has {len(leaf)} rows, expected {count}")

    def within(self, name: str, array: Any, dtype: Any, low: int, high: int, count: int) -> None:
        """A vector of integers in `[low, high)`."""
        self.true(isinstance(array, np.ndarray) and array.shape == (count,), f"{name} is no vector of {count}")
        self.true(array.dtype == dtype, f"{name} is of {array.dtype}, expected {np.dtype(dtype)}")
        if count:
            self.true(low <= array.min() and array.max() < high, f"{name} points outside [{low}, {high})")

    def places(self, name: str, used: Any, free: Any, count: int) -> None:
        """Places in use and free ones are in `[0, count)`, none of them twice."""
        self.true(isinstance(free, list) and all(type(place) is int for place in free), f"{name} are no places")
        everything = np.concatenate([np.asarray(used, np.int64), np.asarray(free, np.int64)])
        inside = not len(everything) or (everything.min() >= 0 and everything.max() < count)
        self.true(inside and len(np.unique(everything)) == len(everything), f"{name} are outside, or used twice")

    def priorities(self, tree: Any) -> None:
        weights = tree.sums[0]
        self.true(weights.min(initial=0.0) >= 0.0, "a priority is negative or no number")
        self.true(np.isfinite(tree.sums[-1].sum()), "priorities are infinite or no numbers")


def _check_columns(columns: Any, count: int, check: _Check) -> None:
    check.true(isinstance(columns, dict) and all(isinstance(name, str) for name in columns), "columns have no names")
    check.rows("a column", columns, count)
    for name, kind in _ROW_DTYPES.items():
        column = columns.get(name)
        check.true(
            isinstance(column, np.ndarray) and column.shape == (count,) and column.dtype.kind == kind,
            f"the column {name} is missing, or no vector of its kind",
        )
    check.true("actions" in columns, "the column actions is missing")


def _check_transitions(state: ReplayState, spec: ReplaySpec, check: _Check) -> None:
    capacity, size = spec.capacity, state.size
    check.true(size == min(state.added, capacity), "size is not that of the rows added")
    check.true(state.head == state.added % capacity, "head is not behind the newest row")
    _check_columns(state.columns, capacity, check)
    check.true(isinstance(state.obs, list) and state.obs, "there are no observations")
    check.rows("obs", state.obs, capacity)
    slots = len(state.side_back) if isinstance(state.side_back, np.ndarray) and state.side_back.ndim == 1 else -1
    check.true(isinstance(state.side, list) and len(state.side) == len(state.obs), "side has other leaves than obs")
    check.rows("side", state.side, slots)
    for leaf, side in zip(state.obs, state.side, strict=True):
        check.true(leaf.dtype == side.dtype and leaf.shape[1:] == side.shape[1:], "side is of another shape than obs")
    stacked = state.stacked
    check.true(isinstance(stacked, list) and all(type(x) is bool for x in stacked), "stacked says nothing")
    check.true(len(stacked) == len(state.obs) and any(stacked) == bool(spec.frame_stack), "stacked says nothing")
    linked = spec.n_step > 1 or spec.frame_stack > 1
    for name, there in (("back", linked), ("rewards_n", spec.n_step > 1), ("last_n", spec.n_step > 1)):
        check.true((getattr(state, name) is not None) == there, f"{name} does not fit the buffer")
    check.true(state.sampleable.dtype == bool and state.sampleable.shape == (capacity,), "sampleable says nothing")
    lost = int(np.count_nonzero(~state.sampleable[:size]))
    check.true(type(state.unsampleable) is int and state.unsampleable == lost, "unsampleable is miscounted")
    _check_links(state, spec, slots, check)
    check.true((state.tree is None) == (spec.alpha is None), "its priorities do not fit the buffer")
    if state.tree is not None:
        check.priorities(state.tree)
        check.true(not state.tree.sums[0][:size][~state.sampleable[:size]].any(), "a lost row has a priority")


def _check_links(state: ReplayState, spec: ReplaySpec, slots: int, check: _Check) -> None:
    capacity, size = spec.capacity, state.size
    known = state.link[:size][state.link[:size] != NO_LINK]
    check.within("link", state.link, np.int32, 0, NO_LINK + 1, capacity)
    inside = (known < size) | ((known >= capacity) & (known < capacity + slots))
    check.true(inside.all(), "link points outside")
    used = [known[known >= capacity] - capacity]
    check.within("side_back", state.side_back, np.int32, LOST, capacity + slots, slots)
    if state.back is not None:
        check.within("back", state.back, np.int32, LOST, capacity + slots, capacity)
        chain = state.back[:size][state.back[:size] >= capacity] - capacity
        for _ in range(spec.frame_stack - 1):  # so many older frames of a first row there are
            used.append(chain)
            chain = state.side_back[chain]
            chain = chain[chain >= capacity] - capacity
        check.true(not len(chain), "a chain of frames has no end")
    check.places("side slots", np.concatenate(used), state.free, slots)
    if state.last_n is not None and state.rewards_n is not None:
        check.within("last_n", state.last_n, np.int32, 0, max(1, size), capacity)
        check.true(state.rewards_n.dtype == np.float32 and state.rewards_n.shape == (capacity,), "rewards_n is amiss")
    agents = state.columns.get("agent_index")
    check.true(agents is None or (agents.shape == (capacity,) and agents.dtype.kind == "i"), "agent_index is amiss")
    for (episode, agent), row in state.lanes.items():
        check.true(0 <= row < size and capacity <= state.link[row] != NO_LINK, "an open episode has no newest row")
        own = (int(state.columns["eps_id"][row]), 0 if agents is None else int(agents[row]))
        check.true(own == (episode, agent), "an open episode is another one's")


def _check_sequences(state: SequenceState, spec: SequenceSpec, check: _Check) -> None:
    capacity = spec.capacity
    check.true(type(state.steps) is int and 0 < state.steps <= capacity, "steps is no length of a sequence")
    check.true(0 <= state.head < capacity, "head is outside")
    _check_columns(state.columns, capacity, check)
    check.true("obs" in state.columns, "the column obs is missing")
    places = len(state.start)
    finals = jax.tree.leaves(state.finals)
    check.true(finals and finals[0].ndim, "there are no final observations")
    check.rows("finals", state.finals, len(finals[0]))
    check.true(isinstance(state.bounds, dict) and "last_obs" in state.bounds, "bounds has no last_obs")
    check.rows("bounds", state.bounds, places)
    check.within("owner", state.owner, np.int32, -1, max(places, 0), capacity)
    check.within("final", state.final, np.int32, -1, len(finals[0]), capacity)
    check.within("start", state.start, np.int32, 0, capacity, places)
    check.within("length", state.length, np.int32, 0, state.steps + 1, places)
    check.within("born", state.born, np.int64, 0, max(1, state.added), places)
    sequences = np.repeat(np.arange(places), state.length)
    before = np.cumsum(state.length) - state.length
    rows = (state.start[sequences] + np.arange(len(sequences)) - before[sequences]) % capacity
    owned = int(np.count_nonzero(state.owner >= 0))
    check.true(state.size == owned == len(rows), "size is not that of its sequences")
    check.true((state.owner[rows] == sequences).all(), "a row belongs to another sequence")
    used = state.final[state.owner >= 0]
    check.places("final observations", used[used >= 0], state.finals_free, len(finals[0]))
    check.places("sequences", np.flatnonzero(state.length), state.free, places)
    check.priorities(state.tree)


def check_device_state(state: JaxReplayState, spec: ReplaySpec, where: str) -> None:
    """As `check_state`, of a state in JAX arrays whose shapes fit already."""
    check = _Check(where)
    size, head, added = (int(x) for x in (state.size, state.head, state.added))
    check.true(0 <= head < spec.capacity, "head is outside")
    check.true(0 <= size <= spec.capacity and size <= added, "size is not that of the rows added")
    check.true(size == spec.capacity or head == size, "head is not behind the newest row")
    check.true(math.isfinite(state.max_priority) and state.max_priority >= 0, "max_priority is no priority")
    if state.weights is not None:
        for weights in (state.weights.leaves, state.weights.sums):
            check.true(np.isfinite(weights).all() and (np.asarray(weights) >= 0).all(), "a priority is no number >= 0")
