"""What a fragment's rows mean to a replay buffer: which are valid, which follow one another, which end or go on."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.data.columns import FINAL_INDEX, FINAL_OBS, LAST_OBS
from jaxrl.replay import frames
from jaxrl.replay.storage import NOT_STORED, ReplayError, ReplaySpec, ReplayState, leaves
from jaxrl.types import PyTree


class Rows(NamedTuple):
    """The valid rows of a fragment `[T, B]`; a row's number is its place in order of t, then b.

    Attributes:
        chain: numbers of the rows in order of b, then t: a row's successor is the next one, where the column goes on.
        source: place in the flattened fragment of each entry of `chain`.
        column: column of each entry of `chain`.
        last: bool `[N]`, whether an entry of `chain` is its column's last row.
        keep: places in the flattened fragment of the rows in order of their numbers; None: all.
    """

    chain: np.ndarray
    source: np.ndarray
    column: np.ndarray
    last: np.ndarray
    keep: np.ndarray | None


@functools.lru_cache(maxsize=64)
def all_rows(steps: int, width: int) -> Rows:
    """The rows of a fragment `[steps, width]` without a mask."""
    chain = np.arange(steps * width).reshape(steps, width).T.reshape(-1)
    column = np.repeat(np.arange(width), steps)
    last = np.arange(steps * width) % steps == steps - 1
    return Rows(chain, chain, column, last, None)


def valid_rows(mask: np.ndarray) -> Rows:
    """The rows of a fragment where its `mask [T, B]` is True."""
    width = mask.shape[1]
    column, t = mask.T.nonzero()
    source = t * width + column
    numbers = np.cumsum(mask.reshape(-1)) - 1
    last = np.ones(len(column), bool)
    last[:-1] = column[1:] != column[:-1]
    return Rows(numbers[source], source, column, last, mask.reshape(-1).nonzero()[0])


class Plan(NamedTuple):
    """What adding a fragment will do; nothing is changed before the plan stands.

    Segments are runs of rows that follow one another. `starts` and `stops` are places in `rows.chain`.

    Attributes:
        continues: for each segment the slot of the row before its first one, or -1.
        begins: for each segment whether an episode starts with it.
        lanes: segments whose episode goes on in the next fragment.
        finals: (place in final_obs, segment) of those whose last row has a final observation.
        broken: segments whose last row has no known successor.
        keys: (eps_id, agent_index) of each segment.
    """

    rows: Rows
    starts: np.ndarray
    stops: np.ndarray
    continues: list[int]
    begins: list[bool]
    lanes: list[int]
    finals: list[tuple[int, int]]
    broken: list[int]
    keys: list[tuple[int, int]]


def checked_columns(state: ReplayState, fragment: SampleBatch) -> dict[str, PyTree]:
    """The fragment's columns as NumPy, checked against what the buffer stores."""
    if not fragment.time_major:
        raise ReplayError("replay: expected a time-major fragment [T, B], got a flat batch; add it before flatten()")
    columns: dict[str, PyTree] = {}
    for name in fragment:
        column = fragment[name]
        columns[name] = column if isinstance(column, np.ndarray) else jax.tree.map(np.asarray, column)
    for name, stored in state.columns.items():
        if name not in columns:
            raise ReplayError(f"replay: the fragment has no column {name!r}, which the buffer stores")
        column = columns[name]
        if isinstance(stored, np.ndarray) and isinstance(column, np.ndarray):
            if column.dtype != stored.dtype or column.shape[2:] != stored.shape[1:]:
                raise _differs(name, column, stored.dtype, stored.shape[1:])
        else:
            _check_tree(name, column, stored)
    if len(columns) > len(state.columns) + 1:
        for name in columns:
            if name not in state.columns and name not in NOT_STORED:
                raise ReplayError(f"replay: the fragment has the column {name!r}, which the buffer was not made for")
    for name in ("obs", LAST_OBS, FINAL_OBS):
        if name in columns:
            _check_obs(state, name, columns[name])
        elif name != FINAL_OBS:
            raise ReplayError(f"replay: the fragment has no column {name!r}")
    return columns


def _check_tree(name: str, column: PyTree, stored: PyTree) -> None:
    if jax.tree.structure(column) != jax.tree.structure(stored):
        raise ReplayError(
            f"replay: column {name!r} has structure {jax.tree.structure(column)}, the buffer stores "
            f"{jax.tree.structure(stored)}; a buffer holds the experience of one policy"
        )
    for leaf, into in zip(jax.tree.leaves(column), jax.tree.leaves(stored), strict=True):
        if leaf.dtype != into.dtype or leaf.shape[2:] != into.shape[1:]:
            raise _differs(name, leaf, into.dtype, into.shape[1:])


def _check_obs(state: ReplayState, name: str, column: PyTree) -> None:
    found = leaves(column)
    lead = 2 if name == "obs" else 1
    if len(found) != len(state.obs) or (state.obs_tree is not None and jax.tree.structure(column) != state.obs_tree):
        raise ReplayError(
            f"replay: {name} has structure {jax.tree.structure(column)}, the buffer stores {state.obs_tree}"
        )
    for leaf, stored, stacked in zip(found, state.obs, state.stacked, strict=True):
        shape = leaf.shape[lead:-1] if stacked else leaf.shape[lead:]
        if leaf.dtype != stored.dtype or shape != stored.shape[1:]:
            raise _differs(name, leaf, stored.dtype, stored.shape[1:])


def _differs(name: str, leaf: Any, dtype: Any, shape: tuple[int, ...]) -> ReplayError:
    return ReplayError(
        f"replay: column {name!r} is {leaf.dtype} {list(leaf.shape)}, the buffer stores {dtype} rows of shape "
        f"{list(shape)}; a buffer holds the experience of one policy"
    )


def rows_of(leaf: np.ndarray, rows: Rows) -> np.ndarray:
    """Valid rows `[N, ...]` of a leaf `[T, B, ...]`, in order of their numbers."""
    flat = leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
    return flat if rows.keep is None else flat[rows.keep]


def make_plan(spec: ReplaySpec, state: ReplayState, columns: dict[str, PyTree], rows: Rows, count: int) -> Plan:
    """Finds out what a fragment's rows are, against the episodes that are open in the buffer."""
    source = rows.source
    eps, t = columns["eps_id"].reshape(-1)[source], columns["t"].reshape(-1)[source]
    terminated = columns["terminateds"].reshape(-1)[source]
    ended = np.logical_or(terminated, columns["truncateds"].reshape(-1)[source])
    agent = columns["agent_index"].reshape(-1)[source] if "agent_index" in columns else None
    stop = np.logical_or(ended, rows.last)
    stop[:-1] |= (eps[1:] != eps[:-1]) | (t[1:] != t[:-1] + 1)
    if agent is not None:
        stop[:-1] |= agent[1:] != agent[:-1]
    stops = stop.nonzero()[0]
    starts = np.zeros_like(stops)
    starts[1:] = stops[:-1] + 1
    where = _final_places(columns) if ended.any() else {}
    agents = [0] * len(starts) if agent is None else agent[starts].tolist()
    keys = list(zip(eps[starts].tolist(), agents, strict=True))
    plan = Plan(rows, starts, stops, [], [], [], [], [], keys)
    over = state.size + count - spec.capacity
    taken: set[int] = set()
    ends = zip(keys, t[starts].tolist(), ended[stops].tolist(), rows.last[stops].tolist(), strict=True)
    for segment, (key, first_t, over_now, at_edge) in enumerate(ends):
        before = state.lanes.get(key, -1) if first_t else -1
        if before >= 0 and (
            int(state.columns["t"][before]) + 1 != first_t
            or before in taken
            or (over > 0 and (before - state.head + state.size) % spec.capacity < over)
        ):
            before = -1
        taken.add(before)
        plan.continues.append(before)
        plan.begins.append(first_t == 0)
        if not over_now:
            if at_edge:
                plan.lanes.append(segment)
            else:
                plan.broken.append(segment)
            continue
        final = where.get(int(source[stops[segment]]))
        if final is not None:
            plan.finals.append((final, segment))
        elif not terminated[stops[segment]]:
            place = divmod(int(source[stops[segment]]), columns["rewards"].shape[1])
            raise ReplayError(
                f"replay: row (t, b) = {place} is truncated and has no final observation, so what followed it is not "
                f"known; give {FINAL_OBS} and {FINAL_INDEX} with the fragment"
            )
    return plan


def _final_places(columns: dict[str, PyTree]) -> dict[int, int]:
    """Place in final_obs by place in the flattened fragment."""
    if FINAL_INDEX not in columns:
        return {}
    steps, width = columns["rewards"].shape
    index = columns[FINAL_INDEX]
    used = (index[:, 0] < steps).nonzero()[0]
    flat = index[used, 0] * width + index[used, 1]
    return dict(zip(flat.tolist(), used.tolist(), strict=True))


def check_frames(
    spec: ReplaySpec, state: ReplayState, columns: dict[str, PyTree], plan: Plan, obs: list[np.ndarray]
) -> None:
    """Checks that the rows' observations `obs` are stacks of frames."""
    chain = plan.rows.chain
    follows = np.ones(len(chain), bool)
    follows[plan.stops] = False
    at = follows.nonzero()[0]
    starts = chain[plan.starts]
    firsts = starts[np.asarray(plan.begins, bool)]
    continued = [(int(row), slot) for row, slot in zip(starts, plan.continues, strict=True) if slot >= 0]
    places = np.asarray([place for place, _ in plan.finals], np.intp)
    ends = chain[plan.stops[np.asarray([segment for _, segment in plan.finals], np.intp)]]
    finals = [
        (leaf[places], rows[ends])
        for leaf, rows in zip(leaves(columns.get(FINAL_OBS, columns[LAST_OBS])), obs, strict=True)
    ]
    frames.check_stacks(state, obs, (chain[at], chain[at + 1]), firsts, continued, finals, spec.debug)
