"""Where replayed transitions lie: a ring of rows, in which every observation stands once.

A row does not hold its successor's observation but a *link* to it: the slot of the next row of its episode, or, where
there is none (yet), a side slot with one observation. Side slots hold the final observations of ended episodes, and for
every open episode (a *lane*) the observation after its newest row, until the row that was taken on it arrives.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.data.columns import FINAL_INDEX, FINAL_OBS, LAST_OBS, MASK, STRUCTURAL
from jaxrl.replay import sum_tree
from jaxrl.types import ConfigError, JaxrlError, PyTree

# Links: a row's slot, capacity + a side slot, or NO_LINK. `back`: the slot of the row before, capacity + a side slot,
# START (the episode starts with the row) or LOST (the row before was overwritten, or never came).
NO_LINK = 2**31 - 1
START, LOST = -1, -2

NEEDED = ("obs", "actions", "rewards", "terminateds", "truncateds", "eps_id", "t")
# Made anew when rows are read, or without meaning outside their fragment.
NOT_STORED = STRUCTURAL | {
    MASK, "obs", "new_obs", "dones", "unroll_id", "discounts", "weights", "batch_indexes",
}  # fmt: skip


class ReplayError(JaxrlError, ValueError):
    """A replay buffer was given a fragment, index or priority that it cannot take; its state is as before."""


class ReplaySpec(NamedTuple):
    """What a replay buffer of transitions was made with.

    Attributes:
        capacity: transitions kept.
        n_step: steps that `rewards` sums.
        gamma: discount per step.
        frame_stack: frames in an observation, of which only the newest is stored; 0: observations are stored whole.
        alpha: exponent of priorities; None: sampling is uniform.
        debug: every row's stack of frames is checked, not just some.
    """

    capacity: int
    n_step: int = 1
    gamma: float = 0.99
    frame_stack: int = 0
    alpha: float | None = None
    debug: bool = False


@dataclasses.dataclass(slots=True)
class ReplayState:
    """The contents of a replay buffer; `add` and `update` change it in place.

    Attributes:
        spec: what the buffer was made with.
        columns: stored row columns by name, leaves `[capacity, ...]`.
        obs: leaves of the observations (or newest frames) `[capacity, ...]`.
        stacked: for each leaf of `obs`, whether it holds newest frames.
        obs_tree: structure of observations; None: a single array.
        link: int32 `[capacity]`, where the observation after each row is.
        back: int32 `[capacity]`, where the row before is; None unless n-step sums or frame stacks need it.
        rewards_n: float32 `[capacity]`, sums of up to n rewards; None if n is 1.
        last_n: int32 `[capacity]`, the last row of each sum; None if n is 1.
        sampleable: bool `[capacity]`.
        unsampleable: rows stored that are not sampleable.
        side: leaves of observations in side slots.
        side_back: int32, for the side slots that hold frames before an episode's first row here: the frame before.
        free: side slots that are free.
        lanes: newest row of each open episode by (eps_id, agent_index).
        head: slot of the next row.
        size: rows stored.
        added: rows ever added.
        tree: priorities; None if sampling is uniform.
        max_priority: the largest priority so far.
    """

    spec: ReplaySpec
    columns: dict[str, PyTree]
    obs: list[np.ndarray]
    stacked: list[bool]
    obs_tree: Any
    link: np.ndarray
    back: np.ndarray | None
    rewards_n: np.ndarray | None
    last_n: np.ndarray | None
    sampleable: np.ndarray
    unsampleable: int
    side: list[np.ndarray]
    side_back: np.ndarray
    free: list[int]
    lanes: dict[tuple[int, int], int]
    head: int
    size: int
    added: int
    tree: sum_tree.SumTree | None
    max_priority: float


def leaves(column: PyTree) -> list[Any]:
    """The leaves of a column."""
    return [column] if isinstance(column, np.ndarray) else jax.tree.leaves(column)


def check_fragment_like(fragment: SampleBatch) -> None:
    """Raises ConfigError unless a fragment has what a replay buffer stores."""
    if not fragment.time_major:
        raise ConfigError("replay: expected a time-major fragment [T, B], got a flat batch; add it before flatten()")
    missing = [name for name in (*NEEDED, LAST_OBS) if name not in fragment]
    if missing:
        raise ConfigError(
            f"replay: the fragment has no column {missing[0]!r}; a buffer needs {NEEDED} and {LAST_OBS!r}"
        )
    if (FINAL_OBS in fragment) != (FINAL_INDEX in fragment):
        raise ConfigError(f"replay: {FINAL_OBS} and {FINAL_INDEX} come together; the fragment has one of them")


def empty(spec: ReplaySpec, fragment: SampleBatch, tree: sum_tree.SumTree | None) -> ReplayState:
    """An empty state for fragments like `fragment` (arrays, or anything with shapes and dtypes)."""
    check_fragment_like(fragment)
    capacity, n = spec.capacity, spec.n_step

    def rows(leaf: Any) -> np.ndarray:
        return np.zeros((capacity, *leaf.shape[2:]), leaf.dtype)

    obs = fragment["obs"]
    plain = hasattr(obs, "shape")
    obs_leaves = jax.tree.leaves(obs)
    stacked = _stacked_leaves([leaf.shape[2:] for leaf in obs_leaves], spec.frame_stack, plain)
    entry = [leaf.shape[2:-1] if frames else leaf.shape[2:] for leaf, frames in zip(obs_leaves, stacked, strict=True)]
    dtypes = [leaf.dtype for leaf in obs_leaves]
    columns = {name: jax.tree.map(rows, fragment[name]) for name in fragment if name not in NOT_STORED}
    linked = n > 1 or spec.frame_stack > 1
    return ReplayState(
        spec=spec,
        columns=columns,
        obs=[np.zeros((capacity, *shape), dtype) for shape, dtype in zip(entry, dtypes, strict=True)],
        stacked=stacked,
        obs_tree=None if plain else jax.tree.structure(obs),
        link=np.zeros(capacity, np.int32),
        back=np.zeros(capacity, np.int32) if linked else None,
        rewards_n=np.zeros(capacity, np.float32) if n > 1 else None,
        last_n=np.zeros(capacity, np.int32) if n > 1 else None,
        sampleable=np.zeros(capacity, bool),
        unsampleable=0,
        side=[np.zeros((0, *shape), dtype) for shape, dtype in zip(entry, dtypes, strict=True)],
        side_back=np.zeros(0, np.int32),
        free=[],
        lanes={},
        head=0,
        size=0,
        added=0,
        tree=tree,
        max_priority=1.0,
    )


def _stacked_leaves(shapes: list[tuple[int, ...]], k: int, plain: bool) -> list[bool]:
    if not k:
        return [False] * len(shapes)
    stacked = [len(shape) >= (1 if plain else 2) and shape[-1] == k for shape in shapes]
    if not any(stacked):
        raise ConfigError(
            f"replay: frame_stack={k} expects observations [..., {k}], the newest frame last, got shapes {shapes}; "
            f"stack frames on the last axis, or set frame_stack=0"
        )
    return stacked


def nbytes(state: ReplayState) -> int:
    """Bytes of a state, everything included."""
    arrays = [leaf for column in state.columns.values() for leaf in jax.tree.leaves(column)]
    arrays += [*state.obs, *state.side, state.side_back, state.link, state.sampleable]
    arrays += [array for array in (state.back, state.rewards_n, state.last_n) if array is not None]
    total = sum(array.nbytes for array in arrays) + (sum_tree.nbytes(state.tree) if state.tree is not None else 0)
    lane = sys.getsizeof((0, 0)) + 3 * sys.getsizeof(2**20)
    return total + sys.getsizeof(state.lanes) + len(state.lanes) * lane + sys.getsizeof(state.free)


# ---------------------------------------------------------------- side slots


def reserve_side(state: ReplayState, count: int) -> list[int]:
    """Takes `count` side slots, making more (twice as many) where there are too few."""
    have = len(state.side_back)
    if len(state.free) < count:
        more = max(8, have, count - len(state.free))
        state.side = [np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) for x in state.side]
        state.side_back = np.concatenate([state.side_back, np.zeros(more, np.int32)])
        state.free.extend(range(have + more - 1, have - 1, -1))
    taken = state.free[len(state.free) - count :]
    del state.free[len(state.free) - count :]
    return taken


def evict(spec: ReplaySpec, state: ReplayState, start: int, stop: int) -> None:
    """Makes the slots `start:stop` ready to be overwritten: frees what only their rows used."""
    capacity, links = spec.capacity, state.link[start:stop]
    if state.unsampleable:
        state.unsampleable -= int(np.count_nonzero(~state.sampleable[start:stop]))
    outside = links >= capacity
    if outside.any():
        _free_successors(state, capacity, (outside.nonzero()[0] + start).tolist())
    if state.back is None:
        return
    inside = _followers(state, np.arange(start, stop))
    state.back[inside] = LOST
    backs = state.back[start:stop]
    for first in backs[backs >= capacity].tolist():
        while first >= capacity:
            state.free.append(first - capacity)
            first = int(state.side_back[first - capacity])
    if spec.frame_stack > 1:
        _lose_frames(spec, state, inside, start, stop)


def _free_successors(state: ReplayState, capacity: int, rows: list[int]) -> None:
    columns, agents = state.columns, state.columns.get("agent_index")
    for row in rows:
        link = int(state.link[row])
        if link == NO_LINK:
            continue
        state.free.append(link - capacity)
        if not (columns["terminateds"][row] or columns["truncateds"][row]):
            key = (int(columns["eps_id"][row]), 0 if agents is None else int(agents[row]))
            if state.lanes.get(key) == row:
                del state.lanes[key]


def _followers(state: ReplayState, rows: np.ndarray) -> np.ndarray:
    """The rows that come after `rows` and look back to them."""
    assert state.back is not None
    following = state.link[rows]
    inside = following < len(state.link)
    rows, following = rows[inside], following[inside]
    return following[state.back[following] == rows]


def _lose_frames(spec: ReplaySpec, state: ReplayState, rows: np.ndarray, start: int, stop: int) -> None:
    """Rows within k - 1 steps of an overwritten one cannot be rebuilt: they are sampled no more."""
    for _ in range(spec.frame_stack - 1):
        rows = rows[(rows < start) | (rows >= stop)]
        lost = rows[state.sampleable[rows]]
        if len(lost):
            state.sampleable[lost] = False
            state.unsampleable += len(lost)
            if state.tree is not None:
                sum_tree.set(state.tree, lost, 0.0)
        rows = _followers(state, rows)
