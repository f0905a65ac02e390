"""The end of an asynchronous plan: learning in a thread, broadcasting weights as they come."""

from __future__ import annotations

from typing import Any

from jaxrl.data import as_multi_agent
from jaxrl.execution.concurrency_ops import Concurrently, Dequeue, Enqueue
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner_thread import LearnerThread, Trained, Work
from jaxrl.execution.nodes import Operator
from jaxrl.execution.train_ops import Info, TrainOneStep

WEIGHT_BROADCASTS = "num_weight_broadcasts"


def learn_in_thread(
    ctx: PlanContext,
    batches: LocalIterator,
    *,
    queue_size: int = 16,
    minibatch_buffer_size: int = 1,
    broadcast_interval: int = 1,
) -> LocalIterator:
    """Learns from train batches in a thread, while the plan goes on gathering; items are `(batch, info)`.

    A full queue holds the gathering back. Without workers on actors there is nothing to overlap: then it learns in
    place, one batch after the other, and the run is as repeatable as any other.

    Args:
        ctx: the plan's context.
        batches: of train batches.
        queue_size, minibatch_buffer_size: see `LearnerThread`.
        broadcast_interval: updates between broadcasts of weights.

    Examples:
        >>> rollouts = ParallelRollouts(ctx, mode="async", num_async=2)
        >>> train_op = learn_in_thread(ctx, rollouts.combine(ConcatBatches(500)))
        >>> return StandardMetricsReporting(ctx, train_op)
    """
    if ctx.workers.local is not None:
        return batches.for_each(TrainOneStep(ctx))
    thread = ctx.learner_thread = LearnerThread(
        ctx, queue_size=queue_size, minibatch_buffer_size=minibatch_buffer_size, num_passes=ctx.config.num_sgd_iter
    )
    enqueue = batches.for_each(lambda batch: Work(as_multi_agent(batch))).for_each(Enqueue(thread.inqueue))
    trained = TrainedBatches(thread).for_each(RecordTrained(ctx, thread, broadcast_interval))
    return Concurrently([enqueue, trained], mode="async", output_indexes=[1])


def TrainedBatches(thread: LearnerThread) -> LocalIterator:
    """Stream of what a learner thread has learned; starts the thread, and raises what ends it."""

    def check() -> bool:
        thread.start()
        return thread.check()

    return Dequeue(thread.outqueue, check=check)


def RecordTrained(ctx: PlanContext, thread: LearnerThread, broadcast_interval: int | None = 1) -> Operator:
    """Counts what the thread has learned, and broadcasts its newest weights; gives `(batch, info)`.

    A worker that has not yet taken the last weights is passed over until the next time, so that however slow it is, no
    more than one object waits for it. Changes the counters num_steps_trained, num_agent_steps_trained and
    num_weight_broadcasts, and the learner info of results.

    Args:
        ctx: the plan's context.
        thread: the learner thread.
        broadcast_interval: updates between broadcasts; None: others send the weights.
    """

    def apply(state: Any, trained: Trained) -> tuple[Any, tuple[Any, Info]]:
        ctx.count_trained(trained.batch)
        ctx.learner_info.update(trained.info)
        version, weights = thread.published
        if broadcast_interval is not None and version - ctx.workers.version >= broadcast_interval:
            ctx.workers.offer_weights(weights, version)
            ctx.counters[WEIGHT_BROADCASTS] += 1
        return state, (trained.batch, trained.info)

    return Operator(
        "RecordTrained",
        apply,
        host_only=True,
        counters=("num_steps_trained", "num_agent_steps_trained", WEIGHT_BROADCASTS),
    )
