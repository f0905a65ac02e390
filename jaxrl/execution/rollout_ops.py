"""Operators that gather experience and shape train batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent, concat_batches
from jaxrl.execution.compiled_form import CompiledForm, passes
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.execution.on_worker import OnWorker
from jaxrl.execution.parallel import ParallelIterator, from_actors
from jaxrl.losses import standardize
from jaxrl.types import PolicyID

Batch = SampleBatch | MultiAgentBatch


@overload
def ParallelRollouts(
    ctx: PlanContext, *, mode: Literal["bulk_sync", "async"] = "bulk_sync", num_async: int = 1
) -> LocalIterator: ...
@overload
def ParallelRollouts(ctx: PlanContext, *, mode: Literal["raw"], num_async: int = 1) -> ParallelIterator: ...
def ParallelRollouts(
    ctx: PlanContext, *, mode: Literal["bulk_sync", "async", "raw"] = "bulk_sync", num_async: int = 1
) -> LocalIterator | ParallelIterator:
    """Batches of experience from all rollout workers.

    Args:
        ctx: the plan's context.
        mode: "bulk_sync": one batch of every worker, joined; "async": each as it is ready, with the column
            `weights_version`; "raw": the ParallelIterator, whose gather wants `**ctx.fault_tolerance()`.
        num_async: requests in flight per worker in async mode.

    Returns:
        A LocalIterator of batches, or for "raw" a ParallelIterator. Changes the counters num_steps_sampled and
        num_agent_steps_sampled (not in raw mode) and the timer sample.

    Examples:
        >>> rollouts = ParallelRollouts(ctx, mode="bulk_sync")
        >>> next(rollouts).count                              # 2 workers x 4 envs x 100 steps
        800
        >>> ctx.counters["num_steps_sampled"]
        800
    """
    rollouts = from_actors(ctx.workers.shards, name="ParallelRollouts")
    if mode == "raw":
        return rollouts
    count, care = CountSampled(ctx), ctx.fault_tolerance()
    if mode == "bulk_sync":
        return rollouts.batch_across_shards(**care).for_each(Operator("JoinWorkers", _join)).for_each(count)
    if mode == "async":
        return rollouts.for_each(STAMP_VERSION).gather_async(num_async=num_async, **care).for_each(count)
    raise ValueError(f"ParallelRollouts: mode should be 'bulk_sync', 'async' or 'raw', got {mode!r}.")


def _stamp(worker: Any, state: Any, batch: Batch) -> tuple[Any, Batch]:
    def stamped(batch: SampleBatch) -> SampleBatch:
        return batch.with_columns(weights_version=np.full(batch.shape, worker.weights_version, np.int32))

    return state, batch.map(stamped) if isinstance(batch, MultiAgentBatch) else stamped(batch)


STAMP_VERSION = OnWorker("StampVersion", _stamp)
"""Adds the column `weights_version`: which weights, by number, a worker acted with."""


def _join(state: Any, batches: Sequence[Batch]) -> tuple[Any, Batch]:
    return state, concat_batches(batches)


def CountSampled(ctx: PlanContext) -> Operator:
    """Counts the steps of each batch: counters num_steps_sampled, num_agent_steps_sampled, timer sample."""
    started = [time.perf_counter()]

    def start() -> None:
        started[0] = time.perf_counter()

    def count(state: Any, batch: Batch) -> tuple[Any, Batch]:
        timer = ctx.timer("sample")
        timer.push(time.perf_counter() - started[0])
        counted = as_multi_agent(batch)
        timer.push_units_processed(counted.env_steps)
        ctx.count_sampled(counted)
        return state, batch

    return Operator(
        "CountSampled",
        count,
        host_only=True,
        counters=("num_steps_sampled", "num_agent_steps_sampled"),
        on_fetch_start=start,
        compiled=CompiledForm(passes),
    )


def ConcatBatches(min_batch_size: int) -> Operator:
    """Joins batches until there are at least `min_batch_size` steps; for `combine`.

    Fragments of fixed length count their slots (8 x 128 is exactly 1024), batches of whole episodes and of sequences
    their rows but for padding, multi-agent batches their environment steps.

    Args:
        min_batch_size: steps of a train batch.

    Examples:
        >>> batches = rollouts.combine(ConcatBatches(4000))    # fragments of 1000 steps
        >>> next(batches).count
        4000
    """

    def apply(pending: list[Batch], batch: Batch) -> tuple[list[Batch], list[Batch]]:
        pending = [*pending, batch]
        if sum(batch_steps(b) for b in pending) < min_batch_size:
            return pending, []
        return [], [concat_batches(pending)]

    return Operator(f"ConcatBatches({min_batch_size})", apply, init=list)


def batch_steps(batch: Batch) -> int:
    """How many steps a batch counts towards a train batch; see `ConcatBatches`."""
    if isinstance(batch, MultiAgentBatch):
        return batch.env_steps
    if "mask" not in batch:
        return batch.num_rows
    if not batch.time_major or "state_in" in batch or _whole_episodes(batch):
        return batch.count + _failed_steps(batch)
    return batch.num_rows


def _failed_steps(batch: SampleBatch) -> int:
    # Rows in which an environment failed and was created anew: they take up slots that padding does not.
    return int((~np.asarray(batch["mask"]) & (np.asarray(batch["t"]) < 0)).sum()) if "t" in batch else 0


def _whole_episodes(batch: SampleBatch) -> bool:
    # Each column is valid rows up to an episode's end, then padding.
    mask, dones = np.asarray(batch["mask"]), np.asarray(batch["dones"])
    lengths = mask.sum(axis=0)
    prefix = (np.arange(batch.T)[:, None] < lengths) == mask
    ends = dones[np.maximum(lengths - 1, 0), np.arange(batch.B)] | (lengths == 0)
    return bool(prefix.all() and ends.all())


def SelectExperiences(policy_ids: Sequence[PolicyID]) -> Operator:
    """Keeps the batches of `policy_ids` in multi-agent batches; SampleBatches pass.

    Examples:
        >>> list(next(rollouts.for_each(SelectExperiences(["learner"]))))
        ['learner']
    """
    chosen = tuple(policy_ids)

    def apply(state: Any, batch: Batch) -> tuple[Any, Batch]:
        return state, batch.select(chosen) if isinstance(batch, MultiAgentBatch) else batch

    return Operator(f"SelectExperiences({', '.join(chosen)})", apply)


def StandardizeFields(fields: Sequence[str]) -> Operator:
    """Shifts and scales columns to mean 0 and deviation 1 (no less than 1e-4) over a batch, each policy's apart.

    Examples:
        >>> batch = next(batches.for_each(StandardizeFields(["advantages"])))
        >>> float(batch.mean(batch["advantages"]))
        0.0
    """

    def standardized(batch: SampleBatch) -> SampleBatch:
        mask = batch.get("mask")
        return batch.with_columns(**{name: standardize(batch[name], mask) for name in fields if name in batch})

    def apply(state: Any, batch: Batch) -> tuple[Any, Batch]:
        return state, batch.map(standardized) if isinstance(batch, MultiAgentBatch) else standardized(batch)

    return Operator(f"StandardizeFields({', '.join(fields)})", apply)
