"""Priorities that workers give their own experience, so that it comes to a replay memory with sensible ones.

Horgan et al. 2018, https://arxiv.org/abs/1803.00933, section 3: were new rows to get the largest priority so far, a
learner that many workers feed would look at little but the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent
from jaxrl.execution.on_worker import OnWorker
from jaxrl.execution.train_ops import has_rows
from jaxrl.policies import make_loss_rows
from jaxrl.replay import uniform_replay
from jaxrl.rollout.acting import fold_in
from jaxrl.types import LossError, NonFiniteError, PolicyID

# What is larger goes into the object store on the worker's node, and only a reference to it through the driver. Smaller
# things travel faster within the messages themselves, as Ray's own results do.
BY_REFERENCE_BYTES = 100 * 1024


class Contents(NamedTuple):
    """What a replay shard stores of a fragment.

    Attributes:
        batch: the rows of every policy that learns.
        priorities: of the valid rows of each policy, in order of t, then b; empty: they get the largest so far.
    """

    batch: MultiAgentBatch
    priorities: Mapping[PolicyID, np.ndarray]


class Fragment(NamedTuple):
    """A fragment on its way from a worker to a replay shard.

    Attributes:
        contents: Contents, or an object reference to them.
        rows: in them.
        env_steps, agent_steps: what is counted.
        worker_index: the worker's.
        version: number of the weights that it acted by.
    """

    contents: Any
    rows: int
    env_steps: int
    agent_steps: int
    worker_index: int
    version: int


def priorities_of(
    rows: Any, fragment: SampleBatch, weights: Any, key: Any, *, n_step: int, gamma: float, where: str
) -> np.ndarray:
    """`|td_error|` of a fragment's valid rows, as transitions of n steps, in order of t, then b: float32 `[N]`.

    The transitions are those that a replay buffer makes of the fragment, by a replay buffer. Near the fragment's end
    they are of as many steps as there are.

    Args:
        rows: of `make_loss_rows`.
        fragment: time-major `[T, B]`.
        weights: the worker's.
        key: for stochastic losses.
        n_step, gamma: of the transitions.
        where: for messages.

    Raises:
        LossError: the loss returns no row `td_error`.
        NonFiniteError: an error is NaN or infinite.
    """
    buffer = uniform_replay(fragment.num_rows, n_step=n_step, gamma=gamma)
    state = buffer.add(buffer.init(fragment), fragment)
    batch = buffer.take(state, np.arange(buffer.size(state)))
    if "mask" in fragment:  # however many are valid: one shape, one compilation
        batch = batch.pad_to(fragment.num_rows) if batch.num_rows < fragment.num_rows else _unmasked(batch)
    found = rows(weights, batch, key)
    if "td_error" not in found:
        raise LossError(
            f"{where}: priorities need the row 'td_error' of its loss, which returns {sorted(found)}; return (loss, "
            "LearnOutput(metrics, {'td_error': ...})), or set worker_side_prioritization to false."
        )
    errors = np.abs(np.asarray(found["td_error"])[: buffer.size(state)])
    if not np.isfinite(errors).all():
        raise NonFiniteError(
            f"{where}: expected finite TD errors of the rows just sampled, got {errors[~np.isfinite(errors)][0]}; did "
            "the learner diverge? Lower lr, or set grad_clip."
        )
    return errors


def _unmasked(batch: SampleBatch) -> SampleBatch:
    return batch.with_columns(mask=np.ones(batch.num_rows, bool))


class _State(NamedTuple):
    """On a worker: the functions that give the rows of each policy's loss, a key, and fragments so far."""

    rows: Mapping[PolicyID, Any]
    key: Any
    fragments: int


def _start(worker: Any) -> _State:
    config = worker.config
    chosen = config.multiagent.policies_to_train
    by_worker = config.prioritized_replay and config.worker_side_prioritization
    policies = {pid: p for pid, p in worker.policies.items() if chosen is None or pid in chosen}
    seed = 0 if config.seed is None else config.seed
    key = jax.random.fold_in(jax.random.key(seed), 2**30 + worker.worker_index)
    return _State({pid: make_loss_rows(p) if by_worker else None for pid, p in policies.items()}, key, 0)


def _prioritize(worker: Any, state: _State, batch: SampleBatch | MultiAgentBatch) -> tuple[_State, Fragment]:
    config, multi = worker.config, as_multi_agent(batch)
    kept = multi.select([pid for pid in state.rows if has_rows(multi, pid)])
    priorities = {}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for pid, own in kept.items():
            if (rows := state.rows[pid]) is None:
                continue
            key = fold_in(state.key, np.uint32(state.fragments))
            where = f"policy {pid!r} on worker {worker.worker_index}"
            chosen = worker.policies[pid].spec.config
            sizes = {"n_step": chosen.n_step, "gamma": chosen.gamma}
            errors = priorities_of(rows, own, worker.weights[pid], key, where=where, **sizes)
            priorities[pid] = errors + np.float32(config.prioritized_replay_eps)
    contents: Any = Contents(kept, priorities)
    if kept.size_bytes >= BY_REFERENCE_BYTES:
        import ray

        contents = ray.put(contents)
    counts = kept.agent_steps, multi.env_steps, multi.agent_steps
    fragment = Fragment(contents, *counts, worker.worker_index, worker.weights_version)
    return state._replace(fragments=state.fragments + 1), fragment


PRIORITIZE = OnWorker("Prioritize", _prioritize, _start)
"""Makes a `Fragment` of each batch, on the worker, with the priorities of its rows (`worker_side_prioritization`)."""
