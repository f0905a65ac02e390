"""Adding a fragment to a replay buffer: its rows are written into the ring, linked, and summed over n steps."""

from __future__ import annotations

import jax
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.data.columns import FINAL_OBS, LAST_OBS, MASK, STATE_IN
from jaxrl.replay import frames, nstep, sum_tree
from jaxrl.replay.fragments import Plan, all_rows, check_frames, checked_columns, make_plan, rows_of, valid_rows
from jaxrl.replay.storage import LOST, NO_LINK, START, ReplayError, ReplaySpec, ReplayState, evict, leaves, reserve_side
from jaxrl.types import PyTree


def add(spec: ReplaySpec, state: ReplayState, fragment: SampleBatch) -> ReplayState:
    """Appends a fragment's valid rows, in order of t, then b; the oldest rows give way.

    Args:
        spec: what the buffer was made with.
        state: its state; changed in place.
        fragment: time-major, with the columns that the buffer was made for.

    Returns:
        The state.

    Raises:
        ReplayError: the fragment's columns are not those that the buffer stores; nothing is changed.
        ConfigError: observations are no stacks of frames; nothing is changed.
    """
    columns = checked_columns(state, fragment)
    mask = columns.get(MASK)
    steps, width = columns["rewards"].shape
    if mask is not None:
        valid = int(np.count_nonzero(mask))
        if valid == 0:
            return state
        rows = all_rows(steps, width) if valid == steps * width else valid_rows(mask)
    else:
        rows = all_rows(steps, width)
    count = len(rows.chain)
    if count > spec.capacity:
        return _add_in_parts(spec, state, fragment)
    plan = make_plan(spec, state, columns, rows, count)
    obs = [rows_of(leaf, rows) for leaf in leaves(columns["obs"])]
    if any(state.stacked):
        check_frames(spec, state, columns, plan, obs)
    over = state.size + count - spec.capacity
    if over > 0:
        oldest = (state.head - state.size) % spec.capacity
        evict(spec, state, oldest, min(oldest + over, spec.capacity))
        if oldest + over > spec.capacity:
            evict(spec, state, 0, oldest + over - spec.capacity)
    for name, stored in state.columns.items():
        if isinstance(stored, np.ndarray):
            _put(stored, state.head, rows_of(columns[name], rows))
        else:
            for into, leaf in zip(jax.tree.leaves(stored), jax.tree.leaves(columns[name]), strict=True):
                _put(into, state.head, rows_of(leaf, rows))
    for into, leaf, stacked in zip(state.obs, obs, state.stacked, strict=True):
        _put(into, state.head, leaf[..., -1] if stacked else leaf)
    _commit(spec, state, columns, plan, obs, count)
    return state


def _add_in_parts(spec: ReplaySpec, state: ReplayState, fragment: SampleBatch) -> ReplayState:
    """A fragment of more rows than the buffer holds, row by row of time."""
    if fragment.T == 1:
        raise ReplayError(
            f"replay: {fragment.count} environments step at once into a buffer of {spec.capacity} rows; "
            "set a capacity of many steps of all environments"
        )
    half = fragment.T // 2
    if STATE_IN in fragment:
        fragment = fragment.drop(STATE_IN)
    for start, stop in ((0, half), (half, fragment.T)):
        state = add(spec, state, fragment.slice(start, stop))
    return state


def _put(into: np.ndarray, head: int, values: np.ndarray) -> None:
    """Writes consecutive rows into a ring."""
    room = len(into) - head
    if len(values) <= room:
        into[head : head + len(values)] = values
    else:
        into[head:] = values[:room]
        into[: len(values) - room] = values[room:]


def _commit(
    spec: ReplaySpec, state: ReplayState, columns: dict[str, PyTree], plan: Plan, obs: list[np.ndarray], count: int
) -> None:
    """Links the rows that have just been written at `head`, and counts them."""
    capacity, head, chain = spec.capacity, state.head, plan.rows.chain
    slots = chain + head
    if head + count > capacity:
        slots %= capacity
    starts, stops = slots[plan.starts].tolist(), slots[plan.stops].tolist()
    continued = [segment for segment, before in enumerate(plan.continues) if before >= 0]
    backs = None if state.back is None else _backs(spec, state, plan, obs, slots)
    for segment in continued:
        state.free.append(int(state.link[plan.continues[segment]]) - capacity)
        del state.lanes[plan.keys[segment]]
    links = np.empty(count, np.int32)
    links[chain[:-1]] = slots[1:]
    links[chain[plan.stops]] = NO_LINK
    ends = [segment for _, segment in plan.finals] + plan.lanes
    if ends:
        side = reserve_side(state, len(ends))
        links[chain[plan.stops[ends]]] = np.asarray(side, np.int32) + np.int32(capacity)
        _write_side(state, columns, plan, side)
    for segment in plan.lanes:
        state.lanes[plan.keys[segment]] = stops[segment]
    _put(state.link, head, links)
    for segment in continued:
        state.link[plan.continues[segment]] = starts[segment]
    if state.back is not None and backs is not None:
        _put(state.back, head, backs)
    state.sampleable[head : head + count] = True
    state.sampleable[: max(0, head + count - capacity)] = True
    broken = [stops[segment] for segment in plan.broken]
    if broken:
        state.sampleable[broken] = False
        state.unsampleable += len(broken)
    if spec.n_step > 1:
        rows = slots
        if continued:
            before = nstep.tails(state, [plan.continues[segment] for segment in continued], spec.n_step - 1)
            rows = np.concatenate([before, slots])
        nstep.assemble(state, rows, spec.n_step, spec.gamma)
    if state.tree is not None:
        _prioritize(spec, state, head, count, broken)
    state.head = (head + count) % capacity
    state.size = min(state.size + count, capacity)
    state.added += count


def _write_side(state: ReplayState, columns: dict[str, PyTree], plan: Plan, side: list[int]) -> None:
    """Writes final observations, then those after the open episodes' newest rows, into side slots."""
    finals = len(plan.finals)
    places = [place for place, _ in plan.finals]
    open_columns = plan.rows.column[plan.stops[plan.lanes]] if plan.lanes else None
    last = leaves(columns[LAST_OBS])
    for i, (into, stacked) in enumerate(zip(state.side, state.stacked, strict=True)):
        if finals:
            final = leaves(columns[FINAL_OBS])[i][places]
            into[side[:finals]] = final[..., -1] if stacked else final
        if open_columns is not None:
            after = last[i][open_columns]
            into[side[finals:]] = after[..., -1] if stacked else after


def _backs(spec: ReplaySpec, state: ReplayState, plan: Plan, obs: list[np.ndarray], slots: np.ndarray) -> np.ndarray:
    """`back` of the new rows, in order of their numbers."""
    chain, k = plan.rows.chain, spec.frame_stack
    backs = np.empty(len(chain), np.int32)
    backs[chain[1:]] = slots[:-1]
    firsts = []
    for begins, before, start in zip(plan.begins, plan.continues, plan.starts.tolist(), strict=True):
        if begins:
            firsts.append(START)
        elif before >= 0 and (k < 2 or frames.intact(state, before, k - 1)):
            firsts.append(before)
        elif k > 1:
            firsts.append(_older_frames(spec, state, [leaf[chain[start]] for leaf in obs]))
        else:
            firsts.append(LOST)
    backs[chain[plan.starts]] = firsts
    return backs


def _older_frames(spec: ReplaySpec, state: ReplayState, row: list[np.ndarray]) -> int:
    """Stores the older frames of a row whose episode began elsewhere in side slots; returns where the newest is."""
    address = START
    for place, slot in enumerate(reserve_side(state, spec.frame_stack - 1)):
        for into, leaf, stacked in zip(state.side, row, state.stacked, strict=True):
            if stacked:
                into[slot] = leaf[..., place]
        state.side_back[slot] = address
        address = spec.capacity + slot
    return address


def _prioritize(spec: ReplaySpec, state: ReplayState, head: int, count: int, broken: list[int]) -> None:
    """New rows get the largest priority so far, those that cannot be sampled none."""
    assert state.tree is not None and spec.alpha is not None
    value = state.max_priority**spec.alpha
    stop = head + count
    sum_tree.fill(state.tree, head, min(stop, spec.capacity), value)
    if stop > spec.capacity:
        sum_tree.fill(state.tree, 0, stop - spec.capacity, value)
    if broken:
        sum_tree.set(state.tree, np.asarray(broken), 0.0)
