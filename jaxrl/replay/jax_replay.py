"""Replay buffers of JAX arrays, for plans that are compiled whole: every function runs under `jit`, `vmap` and `scan`.

They take rectangular fragments of one shape and without a mask, and do with them what `uniform_replay` and
`prioritized_replay` do: rows have the same slots, sums and successors, and the same uniform numbers draw the same rows.
What cannot be checked inside a compiled program is not: an empty buffer gives rows of zeros, and a priority that is no
finite number >= 0 leaves its row's as it was.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import trees
from jaxrl.data import SampleBatch
from jaxrl.data.columns import LAST_OBS, MASK
from jaxrl.replay import nstep
from jaxrl.replay.replay_buffer import ReplayBuffer, checked_spec
from jaxrl.replay.storage import NOT_STORED, ReplaySpec
from jaxrl.types import Array, CannotCompileError, ConfigError, PyTree

# Columns that hold sums over n steps, and change when the episode goes on.
_N_STEP = ("rewards", "terminateds", "truncateds", "new_obs")


class Weights(NamedTuple):
    """Priorities^alpha: `leaves [blocks * fanout]`, and of each block the sum and the smallest positive leaf."""

    leaves: Array
    sums: Array
    mins: Array


class JaxReplayState(NamedTuple):
    """The contents of a replay buffer as a pytree.

    Attributes:
        columns: stored columns by name, leaves `[capacity, ...]`; rewards, terminateds, truncateds, discounts and
            new_obs are those of n steps.
        tail: rewards, terminateds, truncateds and new_obs of single steps, the last n - 1 of them, `[n - 1, B, ...]`.
        weights: priorities; None if sampling is uniform.
        max_priority: the largest priority so far, float32.
        head, size: the next row's slot, and rows stored, int32.
        added: rows ever added, uint32; it wraps around.
    """

    columns: dict[str, PyTree]
    tail: dict[str, PyTree]
    weights: Weights | None
    max_priority: Array
    head: Array
    size: Array
    added: Array


def jax_uniform_replay(capacity: int, *, n_step: int = 1, gamma: float = 0.99) -> ReplayBuffer:
    """`uniform_replay` in JAX arrays.

    Args:
        capacity: transitions kept, less than 2^24.
        n_step: most steps that `rewards` sums.
        gamma: discount per step, in `[0, 1]`.

    Returns:
        The buffer's functions. `init` takes a fragment of the shape that all will have.

    Raises:
        ConfigError: an argument that cannot work, or (in `init`) fragments too large for the capacity.

    Example:
        >>> buffer = jax_uniform_replay(1024, n_step=3)
        >>> state = jax.jit(buffer.add)(buffer.init(fragment), fragment)
        >>> batch = buffer.sample(state, jax.random.uniform(key, (32,)))
    """
    return _make(ReplaySpec(capacity, n_step, gamma))


def jax_prioritized_replay(capacity: int, *, alpha: float = 0.6, n_step: int = 1, gamma: float = 0.99) -> ReplayBuffer:
    """`prioritized_replay` in JAX arrays.

    Args:
        capacity, n_step, gamma: see `jax_uniform_replay`.
        alpha: exponent of priorities, not negative.

    Returns:
        The buffer's functions.
    """
    return _make(ReplaySpec(capacity, n_step, gamma, alpha=alpha))


def jax_twin(buffer: ReplayBuffer) -> ReplayBuffer:
    """The functions of a NumPy buffer in JAX arrays.

    Args:
        buffer: made by `uniform_replay` or `prioritized_replay`.

    Raises:
        CannotCompileError: it holds sequences, or stacks of frames by their newest.
    """
    spec = buffer.spec
    if not isinstance(spec, ReplaySpec) or spec.frame_stack:
        held = "stacks of frames by their newest" if isinstance(spec, ReplaySpec) else "sequences"
        instead = "Set replay_frame_stack=0" if isinstance(spec, ReplaySpec) else "Use DQN"
        raise CannotCompileError.of(f"this replay memory holds {held}, which has no form in JAX arrays", instead)
    return _make(spec)


def _make(spec: ReplaySpec) -> ReplayBuffer:
    spec = checked_spec(spec)
    if spec.capacity >= 2**24:
        raise ConfigError(f"replay: capacity: expected less than 2^24 rows on a device, got {spec.capacity}")
    return ReplayBuffer(
        init=functools.partial(_init, spec),
        add=functools.partial(_add, spec),
        sample=functools.partial(_sample, spec),
        take=_take,
        update=functools.partial(_update, spec),
        size=lambda state: state.size,
        nbytes=trees.size_bytes,
        spec=spec,
    )


def _fanout(capacity: int) -> int:
    # Measured on CPUs inside a scan: the running sum over blocks and those within them should cost alike.
    return 16 if capacity <= 2**17 else 64


def _init(spec: ReplaySpec, fragment: SampleBatch) -> JaxReplayState:
    if not fragment.time_major or MASK in fragment:
        raise ConfigError(
            "replay: a buffer of JAX arrays takes time-major fragments without a mask; use uniform_replay"
        )
    if "obs" not in fragment or (LAST_OBS not in fragment and "new_obs" not in fragment):
        raise ConfigError("replay: a fragment needs obs, and new_obs or last_obs to know what follows them")
    steps, width = fragment.shape
    before = spec.n_step - 1
    if spec.capacity < (steps + before) * width:
        raise ConfigError(
            f"replay: capacity {spec.capacity} is less than a fragment of {steps} x {width} rows and {before} steps "
            f"before it; make it at least {(steps + before) * width}"
        )

    def rows(leaf: Any) -> Array:
        return jnp.zeros((spec.capacity, *leaf.shape[2:]), leaf.dtype)

    def steps_before(leaf: Any) -> Array:
        return jnp.zeros((before, *leaf.shape[1:]), leaf.dtype)

    source = {name: fragment[name] for name in fragment if name not in NOT_STORED} | {"obs": fragment["obs"]}
    source["new_obs"] = source["obs"]
    columns = jax.tree.map(rows, source) | {"discounts": jnp.zeros(spec.capacity, jnp.float32)}
    tail = {name: jax.tree.map(steps_before, source[name]) for name in _N_STEP} if before else {}
    weights = None
    if spec.alpha is not None:
        fanout = _fanout(spec.capacity)
        blocks = -(-spec.capacity // fanout)
        weights = Weights(jnp.zeros(blocks * fanout), jnp.zeros(blocks), jnp.full(blocks, jnp.inf))
    zero = jnp.zeros((), jnp.int32)
    return JaxReplayState(columns, tail, weights, jnp.ones(()), zero, zero, jnp.zeros((), jnp.uint32))


def _add(spec: ReplaySpec, state: JaxReplayState, fragment: SampleBatch) -> JaxReplayState:
    steps, width = fragment.shape
    before, count, capacity = spec.n_step - 1, steps * width, spec.capacity
    new = (state.head + jnp.arange(count)) % capacity

    def write(stored: Array, values: Array) -> Array:
        return stored.at[new].set(values.reshape(count, *values.shape[2:]), unique_indices=True)

    rows = {name: fragment[name] for name in state.columns if name not in ("discounts", "new_obs")}
    single = {name: fragment[name] for name in _N_STEP}
    if before:
        single = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), state.tail, single)
    sums = _n_step(spec, single)
    rows |= jax.tree.map(lambda x: x[before:], sums)
    columns = {name: jax.tree.map(write, stored, rows[name]) for name, stored in state.columns.items()}
    tail = state.tail
    if before:
        # The rows of the steps before this fragment see further now. At the start, where there are none yet, slots are
        # written that are not sampled before their rows come.
        slots = (state.head - before * width + jnp.arange(before * width)) % capacity
        for name, column in sums.items():
            columns[name] = jax.tree.map(
                lambda stored, values: stored.at[slots].set(
                    values[:before].reshape(-1, *values.shape[2:]), unique_indices=True
                ),
                columns[name],
                column,
            )
        tail = jax.tree.map(lambda x: x[x.shape[0] - before :], single)
    weights = state.weights
    if weights is not None and spec.alpha is not None:
        weights = _set(weights, _fanout(capacity), new, jnp.full(count, state.max_priority**spec.alpha))
    return JaxReplayState(
        columns,
        tail,
        weights,
        state.max_priority,
        (state.head + count) % capacity,
        jnp.minimum(state.size + count, capacity),
        state.added + np.uint32(count),
    )


def _n_step(spec: ReplaySpec, single: dict[str, PyTree]) -> dict[str, PyTree]:
    """Sums over n steps of rows `[E, B]`, as `nstep.assemble` defines them."""
    rewards = single["rewards"]
    total, ended = rewards, single["terminateds"] | single["truncateds"]
    length = rewards.shape[0]
    going = jnp.ones(rewards.shape, bool)
    last = jnp.broadcast_to(jnp.arange(length)[:, None], rewards.shape)
    for k in range(1, min(spec.n_step, length)):
        here, there = slice(0, length - k), slice(k, length)
        going = going[: length - k] & ~ended[k - 1 : length - 1]
        total = total.at[here].add(rewards[there] * np.float32(spec.gamma**k) * going)
        last = last.at[here].add(going)
    steps = last - jnp.arange(length)[:, None] + 1
    column = jnp.arange(rewards.shape[1])
    reach = single if spec.n_step == 1 else jax.tree.map(lambda x: x[last, column], single)
    discounts = jnp.where(reach["terminateds"], 0.0, jnp.asarray(nstep.powers(spec.gamma, spec.n_step))[steps])
    return {
        "rewards": total,
        "terminateds": reach["terminateds"],
        "truncateds": reach["truncateds"],
        "new_obs": reach["new_obs"],
        "discounts": discounts.astype(jnp.float32),
    }


# ---------------------------------------------------------------- priorities


def _set(weights: Weights, fanout: int, indexes: Array, values: Array) -> Weights:
    """Leaves `indexes` (those past the last one are dropped) and what is summed from them."""
    leaves = weights.leaves.at[indexes].set(values, mode="drop")
    blocks = indexes // fanout
    children = leaves.reshape(-1, fanout).at[blocks].get(mode="clip")
    smallest = jnp.where(children > 0, children, jnp.inf).min(axis=1)
    return Weights(
        leaves,
        weights.sums.at[blocks].set(children.sum(axis=1), mode="drop"),
        weights.mins.at[blocks].set(smallest, mode="drop"),
    )


def _find(weights: Weights, fanout: int, uniforms: Array) -> Array:
    """As `sum_tree.find`: leaves in proportion to their weight, never one of weight 0."""
    running = jnp.cumsum(weights.sums)
    rest = jnp.minimum(uniforms * running[-1], jnp.nextafter(running[-1], 0.0))
    block = jnp.searchsorted(running, rest, side="right")
    rest = rest - jnp.where(block > 0, running[block - 1], 0.0)
    running = jnp.cumsum(weights.leaves.reshape(-1, fanout).at[block].get(mode="clip"), axis=1)
    rest = jnp.minimum(rest, jnp.nextafter(running[:, -1], 0.0))
    return (block * fanout + (running <= rest[:, None]).sum(axis=1)).astype(jnp.int32)


def _update(
    spec: ReplaySpec, state: JaxReplayState, indexes: Array, priorities: Array, added: Array | None = None
) -> JaxReplayState:
    if state.weights is None or spec.alpha is None:
        return state
    capacity = spec.capacity
    keep = jnp.isfinite(priorities) & (priorities >= 0.0)
    if added is not None:
        since = (state.added - jnp.asarray(added, jnp.uint32)).astype(jnp.uint32)
        keep &= ((state.head - 1 - indexes) % capacity).astype(jnp.uint32) >= since
    # Of several priorities for one row the last counts; a scatter leaves open which.
    order = jnp.arange(indexes.shape[0])
    later = (indexes[None, :] == indexes[:, None]) & (order[None, :] > order[:, None]) & keep[None, :]
    keep_last = keep & ~later.any(axis=1)
    largest = jnp.where(keep, priorities, 0.0).max(initial=0.0).astype(jnp.float32)
    places = jnp.where(keep_last, indexes, state.weights.leaves.shape[0])
    values = jnp.where(keep, priorities, 0.0).astype(jnp.float32) ** spec.alpha
    return state._replace(
        weights=_set(state.weights, _fanout(capacity), places, values),
        max_priority=jnp.maximum(state.max_priority, largest),
    )


# ---------------------------------------------------------------- sampling


def _sample(spec: ReplaySpec, state: JaxReplayState, uniforms: Array, beta: Any = 0.0) -> SampleBatch:
    uniforms = jnp.asarray(uniforms)
    if state.weights is None:
        return _rows(state, _uniform_slots(uniforms, state.size), None)
    indexes = jnp.minimum(_find(state.weights, _fanout(spec.capacity), uniforms), spec.capacity - 1)
    leaves = state.weights.leaves[indexes]
    weights = (state.weights.mins.min() / jnp.where(leaves > 0, leaves, 1.0)) ** jnp.asarray(beta, jnp.float32)
    return _rows(state, indexes, weights)


def _uniform_slots(uniforms: Array, size: Array) -> Array:
    """`floor(u * size)` exactly: a float32 product would round up across slots."""
    if uniforms.dtype == jnp.float64:
        return jnp.minimum((uniforms * size).astype(jnp.int32), size - 1)
    digits, factor = (uniforms * 2**24).astype(jnp.uint32), size.astype(jnp.uint32)
    product = jnp.zeros_like(digits)
    for shift in (0, 8, 16):
        product = (((digits >> shift) & 255) * factor + product) >> 8
    return product.astype(jnp.int32)


def _take(state: JaxReplayState, indexes: Array) -> SampleBatch:
    return _rows(state, jnp.asarray(indexes), None)


def _rows(state: JaxReplayState, indexes: Array, weights: Array | None) -> SampleBatch:
    columns = jax.tree.map(lambda leaf: leaf.at[indexes].get(mode="clip"), state.columns)
    columns["weights"] = jnp.ones(indexes.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)
    columns["batch_indexes"] = indexes.astype(jnp.int32)
    return SampleBatch._make(columns, time_major=False)
