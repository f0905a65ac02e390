"""Tree aggregation: actors between the rollout workers and the plan, which join fragments to train batches.

One process that takes every worker's fragments out of the object store and joins them saturates with some dozens of
workers; aggregators, each with a share of them, hand on whole train batches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jaxrl.data import as_multi_agent
from jaxrl.execution.context import AGENT_STEPS_SAMPLED, STEPS_SAMPLED, PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator
from jaxrl.execution.parallel import from_actors
from jaxrl.execution.rollout_ops import STAMP_VERSION, Batch, ParallelRollouts
from jaxrl.execution.shards import Member, ShardFailure, ShardStep
from jaxrl.rollout.failures import describe, logger
from jaxrl.types import WorkerError

# What an aggregator owes is late only after a worker of its own is.
_MARGIN_S = 30.0


def AggregatedRollouts(
    ctx: PlanContext, operators: Sequence[Operator], *, num_aggregators: int, num_async: int = 2
) -> LocalIterator:
    """Train batches that `operators` (for `combine`) make of all workers' fragments, as they are ready.

    Without aggregators the operators run in the plan, else on actors on this node that have a share of the workers
    each. Changes the counters and timers of `ParallelRollouts`. Failed workers and aggregators are replaced within the
    budget of workers; fragments that an aggregator held are lost, and were not counted.

    Args:
        ctx: the plan's context.
        operators: such as `MixInReplay` and `ConcatBatches`, without state that has to be saved.
        num_aggregators: actors, no more than workers; 0: none.
        num_async: requests in flight for each worker.

    Examples:
        >>> batches = AggregatedRollouts(ctx, [ConcatBatches(500)], num_aggregators=2)
        >>> next(batches).count
        500
    """
    if num_aggregators == 0:
        batches = ParallelRollouts(ctx, mode="async", num_async=num_async)
        for operator in operators:
            batches = batches.combine(operator)
        return batches
    tree = _Tree(ctx, num_aggregators, num_async)
    timeout = ctx.config.sample_timeout_s
    joined = from_actors(tree.start(), name="AggregatedRollouts").combine(_joint(operators))
    gathered = joined.gather_async(
        batch_ms=0, num_async=1, timeout_s=None if timeout is None else timeout + _MARGIN_S, on_failure=tree.on_failure
    )
    return gathered.for_each(_CountAggregated(ctx))


def _joint(operators: Sequence[Operator]) -> Operator:
    """All operators as one that gives `(env steps, agent steps, batch)`: of what came in since the last batch."""
    return Operator("Aggregate", _Joint(tuple(operators)), init=_JointInit(tuple(operators)))


class _JointInit:
    def __init__(self, operators: tuple[Operator, ...]):
        self.operators = operators

    def __call__(self) -> Any:
        return 0, 0, [operator.init() for operator in self.operators]


class _Joint:
    def __init__(self, operators: tuple[Operator, ...]):
        self.operators = operators

    def __call__(self, state: Any, batch: Batch) -> tuple[Any, list[Any]]:
        env_steps, agent_steps, states = state
        counted = as_multi_agent(batch)
        env_steps, agent_steps, states = env_steps + counted.env_steps, agent_steps + counted.agent_steps, list(states)
        items: list[Any] = [batch]
        for i, operator in enumerate(self.operators):
            made: list[Any] = []
            for item in items:
                states[i], out = operator.apply(states[i], item)
                made.extend(out)
            items = made
        if not items:
            return (env_steps, agent_steps, states), []
        counts = [(env_steps, agent_steps), *[(0, 0)] * (len(items) - 1)]
        return (0, 0, states), [(*count, item) for count, item in zip(counts, items, strict=True)]


def _CountAggregated(ctx: PlanContext) -> Operator:
    started = [time.perf_counter()]

    def start() -> None:
        started[0] = time.perf_counter()

    def count(state: Any, item: tuple[int, int, Batch]) -> tuple[Any, Batch]:
        env_steps, agent_steps, batch = item
        timer = ctx.timer("sample")
        timer.push(time.perf_counter() - started[0])
        timer.push_units_processed(env_steps)
        ctx.counters[STEPS_SAMPLED] += env_steps
        ctx.counters[AGENT_STEPS_SAMPLED] += agent_steps
        return state, batch

    return Operator("CountSampled", count, host_only=True, on_fetch_start=start)


class _GroupFailure(WorkerError):
    """What an aggregator raises when a worker of its group has failed.

    Args:
        place: which of its workers.
        answers: how many fragments that worker had given.
        error: what became of it.
    """

    def __init__(self, place: int, answers: int, error: BaseException):
        super().__init__(place, answers, error)
        self.place, self.answers, self.error = place, answers, error


def _tell(failure: ShardFailure) -> Any:
    raise _GroupFailure(failure.shard_index, failure.answers, failure.error)


class _Group:
    """Makes, on an aggregator, the stream of its workers' fragments; a class since it has to travel."""

    def __init__(self, workers: Sequence[Any], weights_taken: Sequence[Any], num_async: int, timeout_s: float | None):
        self.workers, self.weights_taken = list(workers), list(weights_taken)
        self.num_async, self.timeout_s = num_async, timeout_s

    def __call__(self) -> LocalIterator:
        import ray

        if self.weights_taken:
            ray.wait(self.weights_taken, num_returns=len(self.weights_taken), timeout=self.timeout_s)
        from jaxrl.execution.shard_actor import AsyncActorGather

        members = [Member(worker, (ShardStep("for_each", (STAMP_VERSION,)),)) for worker in self.workers]
        gather = AsyncActorGather(
            "Aggregate", members, num_async=self.num_async, timeout_s=self.timeout_s, on_failure=_tell
        )
        return LocalIterator(gather)


class _Tree:
    """Which aggregator has which workers; replaces what fails."""

    def __init__(self, ctx: PlanContext, num_aggregators: int, num_async: int):
        self.ctx, self.num_async = ctx, num_async
        self.groups = [ctx.workers.actors[i::num_aggregators] for i in range(num_aggregators)]

    def start(self) -> list[Any]:
        """An aggregator for each group of workers."""
        return [self._start(group) for group in self.groups]

    def _start(self, group: Sequence[Any]) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from jaxrl.execution.shard_actor import start_shards

        # On the learner's node: there a train batch is made once, and read where it lies.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        taken = self.ctx.workers.weights_taken(group)
        source = _Group(group, taken, self.num_async, self.ctx.config.sample_timeout_s)
        (actor,) = start_shards([source], False, "aggregate", {"num_cpus": 0, "scheduling_strategy": here})
        return actor

    def on_failure(self, failure: ShardFailure) -> Any:
        """A new aggregator in place of one that died, or one of whose workers failed."""
        import ray

        group, told = self.groups[failure.shard_index], getattr(failure.error, "cause", failure.error)
        ray.kill(failure.shard)
        if isinstance(told, _GroupFailure):
            worker = group[told.place]
            fresh = self.ctx.workers.on_failure(ShardFailure(told.place, worker, told.error, told.answers))
            group[told.place : told.place + 1] = [] if fresh is None else [fresh]
        else:
            name = f"aggregator {failure.shard_index}"
            if not self.ctx.config.recreate_failed_workers:
                raise WorkerError(f"{name} failed: {describe(failure.error)}.") from failure.error
            self.ctx.workers.budget.spend(name, failure.error, answered=failure.answers > 0)
            logger.warning("%s is started anew: %s", name, describe(failure.error))
        return self._start(group) if group else None
