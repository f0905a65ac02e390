"""Replay buffers of single transitions, with n-step sums and prioritised sampling."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.replay import frames, insertion, nstep, storage, sum_tree
from jaxrl.replay.storage import NO_LINK, ReplayError, ReplaySpec, ReplayState
from jaxrl.types import ConfigError, PyTree


class ReplayBuffer(NamedTuple):
    """Functions over the state of a replay buffer; `add` and `update` consume the state they are given.

    Randomness stays outside: `sample` is a function of the uniform numbers that it is given.

    Attributes:
        init: `init(fragment_like) -> state`: an empty state for fragments like this one, of which only structure,
            shapes and dtypes count.
        add: `add(state, fragment) -> state`: appends the valid rows of a time-major fragment; the oldest give way.
        sample: `sample(state, uniforms, beta=0.0) -> SampleBatch`: one row (or sequence) per number in `[0, 1)`.
        take: `take(state, indexes) -> SampleBatch`: the rows (or sequences) stored at `indexes`.
        update: `update(state, indexes, priorities, added=None) -> state`: gives rows (or sequences) new priorities.
            With `added`, which `state.added` was when they were sampled, those overwritten since are left alone.
        size: `size(state) -> int`: transitions stored.
        nbytes: `nbytes(state) -> int`: bytes of the state.
        spec: what the buffer was made with.
    """

    init: Callable[[SampleBatch], Any]
    add: Callable[[Any, SampleBatch], Any]
    sample: Callable[..., SampleBatch]
    take: Callable[[Any, Any], SampleBatch]
    update: Callable[..., Any]
    size: Callable[[Any], int]
    nbytes: Callable[[Any], int]
    spec: Any


def uniform_replay(
    capacity: int, *, n_step: int = 1, gamma: float = 0.99, frame_stack: int = 0, debug: bool = False
) -> ReplayBuffer:
    """A ring of transitions, each as likely to be sampled as any other.

    Observations are stored once: a successor is the next row of its episode. Every row can be sampled at once, the
    newest of an open episode with as many rewards as there are; when its episode goes on in a later fragment, known by
    `eps_id`, `agent_index` and `t`, the sums are made anew.

    Sampled batches are flat, with the stored columns and
    - `rewards`: sum of gamma^k r over m steps: `n_step`, or fewer where the episode or what is known of it ends;
    - `new_obs`: the true observation after these m steps;
    - `terminateds`, `truncateds`: whether the episode ended with the last of them;
    - `discounts`: gamma^m, 0 where it terminated: the factor of the bootstrap value;
    - `weights`: importance weights, here ones; `batch_indexes`: where the rows are stored.

    Args:
        capacity: transitions kept.
        n_step: most steps that `rewards` sums.
        gamma: discount per step, in `[0, 1]`.
        frame_stack: k > 0: observations (or the leaves of at least two axes of a nested one) are stacks `[..., k]` of
            the episode's last k frames, newest last, the first one repeated at the start. Only the newest frame of each
            row is stored. A row whose older frames were overwritten is not sampled. Sampled stacks are NumPy views with
            the frame axis last.
        debug: with frame_stack, check the stacks of all rows that are added, not just of some.

    Returns:
        The buffer's functions.

    Raises:
        ConfigError: an argument that cannot work.

    Example:
        >>> buffer = uniform_replay(capacity=10_000, n_step=3)
        >>> state = buffer.add(buffer.init(fragment), fragment)
        >>> batch = buffer.sample(state, np.random.default_rng(0).random(32))
    """
    return _make(ReplaySpec(capacity, n_step, gamma, frame_stack, None, debug))


def prioritized_replay(
    capacity: int,
    *,
    alpha: float = 0.6,
    n_step: int = 1,
    gamma: float = 0.99,
    frame_stack: int = 0,
    debug: bool = False,
) -> ReplayBuffer:
    """`uniform_replay` with prioritised sampling (https://arxiv.org/abs/1511.05952).

    A row of priority p is drawn in proportion to p^alpha (eq. 1), and weighs (N P)^-beta, divided by the largest such
    weight of the buffer (section 3.4). New rows get the largest priority that was ever given, at first 1.

    Args:
        capacity: transitions kept.
        alpha: exponent of priorities, not negative; 0 is uniform.
        n_step, gamma, frame_stack, debug: see `uniform_replay`.

    Returns:
        The buffer's functions.

    Raises:
        ConfigError: an argument that cannot work.
    """
    return _make(ReplaySpec(capacity, n_step, gamma, frame_stack, alpha, debug))


def checked_spec(spec: ReplaySpec) -> ReplaySpec:
    """`spec` with plain Python numbers; ConfigError naming the argument that cannot work."""
    check_count("capacity", spec.capacity, 1)
    check_count("n_step", spec.n_step, 1)
    check_count("frame_stack", spec.frame_stack, 0)
    if not isinstance(spec.gamma, numbers.Real) or not 0.0 <= spec.gamma <= 1.0:
        raise ConfigError(f"replay: gamma: expected a number in [0, 1], got {spec.gamma!r}")
    if spec.capacity >= 2**30:
        raise ConfigError(f"replay: capacity: expected less than 2^30 transitions, got {spec.capacity}")
    if spec.capacity < spec.frame_stack:
        raise ConfigError(
            f"replay: capacity {spec.capacity} is less than frame_stack {spec.frame_stack}; make it larger"
        )
    alpha = None if spec.alpha is None else check_alpha(spec.alpha)
    return ReplaySpec(
        int(spec.capacity), int(spec.n_step), float(spec.gamma), int(spec.frame_stack), alpha, bool(spec.debug)
    )


def check_alpha(alpha: Any) -> float:
    """The exponent of priorities; ConfigError unless it is a number of at least 0."""
    if not isinstance(alpha, numbers.Real) or not math.isfinite(alpha) or alpha < 0:
        raise ConfigError(f"replay: alpha: expected a number >= 0, got {alpha!r}")
    return float(alpha)


def _make(spec: ReplaySpec) -> ReplayBuffer:
    spec = checked_spec(spec)
    discounts = nstep.powers(spec.gamma, spec.n_step)
    return ReplayBuffer(
        init=functools.partial(_init, spec),
        add=functools.partial(insertion.add, spec),
        sample=functools.partial(_sample, spec, discounts),
        take=functools.partial(_take, spec, discounts),
        update=functools.partial(_update, spec),
        size=_size,
        nbytes=storage.nbytes,
        spec=spec,
    )


def check_count(name: str, value: Any, least: int) -> None:
    """Raises ConfigError unless `value` is an integer of at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"replay: {name}: expected an integer >= {least}, got {value!r}")


def _init(spec: ReplaySpec, fragment: SampleBatch) -> ReplayState:
    return storage.empty(spec, fragment, None if spec.alpha is None else sum_tree.init(spec.capacity))


def _size(state: ReplayState) -> int:
    return state.size


# ---------------------------------------------------------------- sampling


def _sample(
    spec: ReplaySpec, discounts: np.ndarray, state: ReplayState, uniforms: Any, beta: float = 0.0
) -> SampleBatch:
    uniforms = checked_uniforms(uniforms)
    if state.size == state.unsampleable:
        raise ReplayError("replay: there is nothing to sample yet; add fragments first")
    if state.tree is None:
        return _rows(spec, discounts, state, _draw_uniform(state, uniforms), None)
    total = sum_tree.total(state.tree)
    if total <= 0.0:
        raise ReplayError("replay: all priorities are 0, so nothing can be sampled; give |td_error| + eps as priority")
    indexes = sum_tree.find(state.tree, uniforms * total)
    weights = None
    if beta:
        # (N P)^-beta / (N P_min)^-beta: N and the sum of priorities cancel.
        smallest = sum_tree.smallest(state.tree)
        weights = ((smallest / state.tree.sums[0][indexes]) ** beta).astype(np.float32)
    return _rows(spec, discounts, state, indexes, weights)


def checked_uniforms(uniforms: Any) -> np.ndarray:
    """Uniform numbers as float64 `[n]`; ReplayError if they are no vector or outside `[0, 1)`."""
    uniforms = np.asarray(uniforms, np.float64)
    if uniforms.ndim != 1 or not len(uniforms):
        raise ReplayError(f"replay: expected uniform numbers [n], n >= 1, got shape {list(uniforms.shape)}")
    if not (uniforms.min() >= 0.0 and uniforms.max() < 1.0):
        raise ReplayError("replay: uniform numbers must be in [0, 1); draw them with Generator.random(n)")
    return uniforms


def _draw_uniform(state: ReplayState, uniforms: np.ndarray) -> np.ndarray:
    scaled = uniforms * state.size
    indexes = np.minimum(scaled.astype(np.intp), state.size - 1)
    if state.unsampleable:
        bad = ~state.sampleable[indexes]
        if bad.any():  # what the number has left beyond its first digits is uniform too
            good = state.sampleable[: state.size].nonzero()[0]
            again = (scaled[bad] - np.floor(scaled[bad])) * len(good)
            indexes[bad] = good[np.minimum(again.astype(np.intp), len(good) - 1)]
    return indexes


def _take(spec: ReplaySpec, discounts: np.ndarray, state: ReplayState, indexes: Any) -> SampleBatch:
    return _rows(spec, discounts, state, _checked_indexes(state, indexes), None)


def _checked_indexes(state: ReplayState, indexes: Any) -> np.ndarray:
    indexes = np.asarray(indexes)
    if indexes.ndim != 1 or indexes.dtype.kind not in "iu":
        raise ReplayError(f"replay: expected integer indexes [n], got {indexes.dtype} {list(indexes.shape)}")
    if len(indexes) and not (indexes.min() >= 0 and indexes.max() < state.size):
        bad = int(((indexes < 0) | (indexes >= state.size)).argmax())
        raise ReplayError(f"replay: indexes[{bad}] is {indexes[bad]}, and {state.size} rows are stored")
    return indexes.astype(np.intp)


def _rows(
    spec: ReplaySpec, discounts: np.ndarray, state: ReplayState, indexes: np.ndarray, weights: np.ndarray | None
) -> SampleBatch:
    columns: dict[str, PyTree] = {}
    for name, stored in state.columns.items():
        if isinstance(stored, np.ndarray):
            columns[name] = stored.take(indexes, axis=0)
        else:
            columns[name] = jax.tree.map(lambda leaf: leaf.take(indexes, axis=0), stored)
    if state.rewards_n is None or state.last_n is None:
        last, steps = indexes, 1
    else:
        columns["rewards"] = state.rewards_n.take(indexes)
        last = state.last_n.take(indexes)
        steps = state.columns["t"].take(last) - columns["t"] + 1
        columns["terminateds"] = state.columns["terminateds"].take(last)
        columns["truncateds"] = state.columns["truncateds"].take(last)
    columns["discounts"] = np.where(columns["terminateds"], np.float32(0.0), discounts[steps])
    columns["obs"], columns["new_obs"] = _observations(state, indexes, last, spec.frame_stack)
    columns["weights"] = np.ones(len(indexes), np.float32) if weights is None else weights
    columns["batch_indexes"] = indexes.astype(np.int32)
    return SampleBatch._make(columns, time_major=False)


def _observations(state: ReplayState, rows: np.ndarray, last: np.ndarray, k: int) -> tuple[PyTree, PyTree]:
    """Observations of `rows` and of what follows the rows `last`."""
    after = state.link.take(last)
    unknown = after == NO_LINK
    if unknown.any():  # the row terminated, and nobody said with which observation: its own stands in
        after = np.where(unknown, last, after)
    obs, new_obs = [], []
    backward: Any = None
    for stored, side, stacked in zip(state.obs, state.side, state.stacked, strict=True):
        if not stacked or state.back is None:
            found = stored.take(rows, axis=0), frames.gather(stored, side, after)
            if stacked:  # stacks of one frame
                found = found[0][..., None], found[1][..., None]
        else:
            if backward is None:
                backward = (
                    frames.ancestors(state, rows, state.back.take(rows), k),
                    frames.ancestors(state, after, last, k),
                )
            found = tuple(frames.as_stacks(frames.planes(stored, side, path)) for path in backward)
        obs.append(found[0])
        new_obs.append(found[1])
    if state.obs_tree is None:
        return obs[0], new_obs[0]
    return jax.tree.unflatten(state.obs_tree, obs), jax.tree.unflatten(state.obs_tree, new_obs)


# ---------------------------------------------------------------- priorities


def _update(
    spec: ReplaySpec, state: ReplayState, indexes: Any, priorities: Any, added: int | None = None
) -> ReplayState:
    indexes, priorities = _checked_indexes(state, indexes), checked_priorities(priorities, indexes)
    if state.tree is None or spec.alpha is None or not len(indexes):
        return state
    keep = None
    if added is not None and added < state.added:
        keep = (state.head - 1 - indexes) % spec.capacity >= state.added - added
    if state.unsampleable:
        sampleable = state.sampleable[indexes]
        keep = sampleable if keep is None else keep & sampleable
    if keep is not None:
        indexes, priorities = indexes[keep], priorities[keep]
        if not len(indexes):
            return state
    state.max_priority = max(state.max_priority, float(priorities.max()))
    sum_tree.set(state.tree, indexes, priorities**spec.alpha)
    return state


def checked_priorities(priorities: Any, indexes: np.ndarray) -> np.ndarray:
    """Priorities as float64 `[n]`; ReplayError naming the first one that is negative, NaN or infinite."""
    priorities = np.asarray(priorities, np.float64)
    if priorities.shape != indexes.shape:
        raise ReplayError(f"replay: {list(priorities.shape)} priorities for {len(indexes)} indexes; give one for each")
    if len(priorities) and not (priorities.min() >= 0.0 and priorities.max() < math.inf):
        bad = int((~((priorities >= 0.0) & (priorities < math.inf))).argmax())
        raise ReplayError(
            f"replay: priorities[{bad}] (of index {indexes[bad]}) is {priorities[bad]}, expected a finite number >= 0; "
            "did the loss diverge? No priority was changed"
        )
    return priorities
