"""Operators of plans whose replay memory lies in shards on actors, and whose learner runs in a thread (Ape-X)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrl.execution.context import AGENT_STEPS_SAMPLED, STEPS_SAMPLED, STEPS_TRAINED, PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner_thread import LearnerThread, Trained, Work
from jaxrl.execution.nodes import Node, Operator
from jaxrl.execution.replay_actor import RowUpdates
from jaxrl.execution.replay_ops import LAST_TARGET_UPDATE_TS, NUM_TARGET_UPDATES
from jaxrl.execution.sharded_replay import ShardedReplay
from jaxrl.execution.waiting import NOT_READY, Wait
from jaxrl.execution.worker_priorities import Fragment
from jaxrl.exploration import worker_info
from jaxrl.types import LossError, PolicyID, Weights

WEIGHT_SYNCS = "num_weight_syncs"


class Intensity:
    """Holds rows trained on and env steps sampled to a ratio: whichever is ahead waits for the other.

    Round robin weights of a union would not: a branch that waits for a full queue passes its turn on, so that a slow
    learner falls behind for good. Counting begins with learning, and anew where a run is restored.

    Args:
        ratio: rows trained on for each env step sampled; None: both go as fast as they can.
        slack: rows by which sampling may be ahead, so that neither side waits for every single item of the other.
    """

    def __init__(self, ratio: float | None, slack: float):
        self.ratio, self.slack = ratio, slack
        self.due = 0.0

    def sampled(self, env_steps: int) -> None:
        """Counts env steps, while there is something to learn from."""
        if self.ratio is not None:
            self.due += self.ratio * env_steps

    def replayed(self, rows: int) -> None:
        """Counts rows that go to the learner."""
        if self.ratio is not None:
            self.due -= rows

    @property
    def may_sample(self) -> bool:
        """Whether sampling is not too far ahead."""
        return self.ratio is None or self.due < self.slack

    @property
    def may_replay(self) -> bool:
        """Whether learning is not ahead."""
        return self.ratio is None or self.due > 0


def StoreToShards(
    ctx: PlanContext, fragments: LocalIterator, shards: ShardedReplay, intensity: Intensity
) -> LocalIterator:
    """Sends each fragment to a replay shard, drawn at random, and passes it on.

    While every shard is busy, or learning is behind, no fragment is taken, so that in time the workers wait.
    Changes the counters num_steps_sampled and num_agent_steps_sampled, and the timer sample.

    Args:
        ctx: the plan's context.
        fragments: of `Fragment`s.
        shards: the replay memory.
        intensity: the ratio of learning to sampling.

    Examples:
        >>> rollouts = ParallelRollouts(ctx, mode="raw").for_each(PRIORITIZE).gather_async(num_async=2)
        >>> next(StoreToShards(ctx, rollouts, shards, Intensity(None, 0))).env_steps
        50
    """
    return LocalIterator(_Store(ctx, fragments.node, shards, intensity))


class _Store(Node):
    kind = "store"

    def __init__(self, ctx: PlanContext, fragments: Node, shards: ShardedReplay, intensity: Intensity):
        super().__init__("StoreToShards", [fragments], host_only=True)
        self.ctx, self.shards, self.intensity = ctx, shards, intensity
        self._closed: Wait | None = None
        self._since: float | None = None

    def step(self) -> Any:
        shards = self.shards
        shards.poll()
        if not shards.ready:  # nothing to learn from, also where it has been lost: nothing is owed
            self.intensity.due = 0.0
        self._closed = None
        if not shards.has_room:
            self._closed = shards.wait(self.name)
        elif not self.intensity.may_sample:
            self._closed = Wait(self.name, "turn")
        if self._closed is not None:
            return NOT_READY
        if self._since is None:
            self._since = time.perf_counter()
        fragment = self.fetch()
        if fragment is NOT_READY:
            return NOT_READY
        self._count(fragment)
        if fragment.rows:
            shards.add(fragment.contents, fragment.rows)
        if shards.ready:
            self.intensity.sampled(fragment.env_steps)
        return fragment

    def _count(self, fragment: Fragment) -> None:
        timer, now = self.ctx.timer("sample"), time.perf_counter()
        timer.push(now - (self._since or now))
        timer.push_units_processed(fragment.env_steps)
        self._since = None
        self.ctx.counters[STEPS_SAMPLED] += fragment.env_steps
        self.ctx.counters[AGENT_STEPS_SAMPLED] += fragment.agent_steps

    def waits(self) -> list[Wait]:
        return super().waits() if self._closed is None else [self._closed]


def ReplayFromShards(
    ctx: PlanContext,
    shards: ShardedReplay,
    batch_size: int,
    thread: LearnerThread,
    intensity: Intensity,
    *,
    beta: Callable[[int], float] = lambda timestep: 0.0,
) -> LocalIterator:
    """Stream of `Work` for a learner's thread: batches that the shards have drawn, tagged with where.

    Each shard draws ahead. While the thread's queue is full, or learning is ahead, none is asked for.

    Args:
        ctx: the plan's context.
        shards: the replay memory.
        batch_size: rows of a batch.
        thread: the learner's thread.
        intensity: the ratio of learning to sampling.
        beta: exponent of the importance weights after so many env steps.

    Examples:
        >>> work = next(ReplayFromShards(ctx, shards, 32, thread, Intensity(None, 0)))
        >>> work.batch.env_steps, work.tag.shard
        (32, 1)
    """
    return LocalIterator(_Replay(ctx, shards, batch_size, thread, intensity, beta))


class _Replay(Node):
    kind = "source"

    def __init__(
        self,
        ctx: PlanContext,
        shards: ShardedReplay,
        batch_size: int,
        thread: LearnerThread,
        intensity: Intensity,
        beta: Callable[[int], float],
    ):
        super().__init__(f"ReplayFromShards({batch_size})", host_only=True)
        self.ctx, self.shards, self.batch_size, self.thread = ctx, shards, batch_size, thread
        self.intensity, self.beta = intensity, beta
        self._closed = False

    def step(self) -> Any:
        shards = self.shards
        shards.poll()
        self._closed = self.thread.inqueue.full() or not self.intensity.may_replay
        if self._closed:
            return NOT_READY
        shards.request(self.batch_size, self.beta(self.ctx.counters[STEPS_SAMPLED]))
        taken = shards.take()
        if taken is None:
            return NOT_READY
        batch, origin = taken
        self.intensity.replayed(batch.env_steps)
        return Work(batch, origin)

    def waits(self) -> list[Wait]:
        return [Wait(self.name, "turn") if self._closed else self.shards.wait(self.name)]

    def get_state(self) -> Any:
        return {"draws": self.shards.draws}

    def set_state(self, state: Any) -> None:
        self.shards.draws = int(state["draws"])

    def detail(self) -> str:
        return f"{len(self.shards.actors)} shards"


def UpdateShardPriorities(ctx: PlanContext, shards: ShardedReplay, *, eps: float = 1e-6) -> Operator:
    """Sends the new priorities `|td_error| + eps` of what was learned from to the shard that it came from.

    Takes and gives `Trained`, whose tag says where the batch was drawn. A shard that has been lost meanwhile gets none.

    Args:
        ctx: the plan's context.
        shards: the replay memory.
        eps: added, so that every row can be drawn again.

    Raises:
        LossError: (while iterating) the loss returns no row `td_error`.
    """

    def apply(state: Any, trained: Trained) -> tuple[Any, Trained]:
        updates = {}
        for pid, rows in trained.rows.items():
            if "td_error" not in rows:
                raise LossError(
                    f"policy {pid!r}: priorities need the row 'td_error' of its loss, which returns {sorted(rows)}; "
                    "return (loss, LearnOutput(metrics, {'td_error': ...})), or set prioritized_replay to false."
                )
            indexes = np.asarray(trained.batch[pid]["batch_indexes"])
            priorities = np.abs(np.asarray(rows["td_error"])) + np.float32(eps)
            updates[pid] = RowUpdates(indexes, priorities, trained.tag.added[pid])
        shards.update(trained.tag, updates)
        return state, trained

    return Operator("UpdateShardPriorities", apply, host_only=True)


def UpdateWorkerWeights(
    ctx: PlanContext, thread: LearnerThread, max_weight_sync_delay: int, ages: deque[int]
) -> Operator:
    """Sends the learner's newest weights to a worker once it has sampled `max_weight_sync_delay` env steps.

    Takes `(worker, Fragment)`, gives the fragment. Coeffs with schedules go along as they are at that time, also before
    learning begins. Changes the counter num_weight_syncs.

    Args:
        ctx: the plan's context.
        thread: the learner's thread.
        max_weight_sync_delay: env steps of a worker between the weights that it is sent.
        ages: how many updates old the weights were by which each of the last fragments was sampled.
    """
    newest: list[tuple[Any, dict[PolicyID, Weights]]] = [(None, {})]

    def apply(since: dict[int, int], item: tuple[Any, Fragment]) -> tuple[dict[int, int], Fragment]:
        worker, fragment = item
        index = fragment.worker_index
        ages.append(max(0, thread.version - fragment.version))
        steps = since.get(index, 0) + fragment.env_steps
        if steps < max_weight_sync_delay or worker is None:
            return {**since, index: steps}, fragment
        version, published = thread.published
        due = _scheduled(ctx)
        if newest[0][0] != (version, due):  # the same object to all workers that get these weights
            newest[0] = (version, due), _with_coeffs(published, due)
        ctx.workers.send_weights(worker, newest[0][1], version)
        ctx.counters[WEIGHT_SYNCS] += 1
        return {**since, index: 0}, fragment

    counters = (WEIGHT_SYNCS,)
    return Operator(
        f"UpdateWorkerWeights({max_weight_sync_delay})", apply, init=dict, host_only=True, counters=counters
    )


def _scheduled(ctx: PlanContext) -> dict[PolicyID, dict[str, float]]:
    """The coeffs that follow schedules, as of now. The learners themselves are their thread's."""
    now = ctx.counters[STEPS_SAMPLED]
    return {
        pid: {name: schedule(now) for name, schedule in learner.policy.spec.schedules.items()}
        for pid, learner in ctx.learners.items()
    }


def _with_coeffs(
    weights: Mapping[PolicyID, Weights], coeffs: Mapping[PolicyID, Mapping[str, float]]
) -> dict[PolicyID, Weights]:
    return {
        pid: Weights(params, {**own, **{name: np.float32(value) for name, value in coeffs[pid].items()}})
        for pid, (params, own) in weights.items()
    }


def CountTargetUpdates(ctx: PlanContext, rows: int) -> Operator:
    """Counts the updates of target networks that learning makes by itself, one for every `rows` trained on.

    Changes the counters num_target_updates and last_target_update_ts (steps trained).
    """

    def apply(state: Any, item: Any) -> tuple[Any, Any]:
        updates, before = ctx.counters[STEPS_TRAINED] // rows, ctx.counters[NUM_TARGET_UPDATES]
        if updates > before:
            ctx.counters[NUM_TARGET_UPDATES] = updates
            ctx.counters[LAST_TARGET_UPDATE_TS] = updates * rows
        return state, item

    return Operator("CountTargetUpdates", apply, host_only=True, counters=(NUM_TARGET_UPDATES, LAST_TARGET_UPDATE_TS))


def ReportShards(ctx: PlanContext, shards: ShardedReplay, ages: deque[int]) -> Operator:
    """Adds to each result what every shard holds, how old the workers' weights are, and how every worker explores.

    `info["replay_shard_0"]` has rows and bytes by policy, `info["exploration_infos"]` the coeffs of each worker's
    exploration, `info["weights_age_mean"]` the updates between the weights that fragments were sampled by and the
    newest ones when they came.

    Args:
        ctx: the plan's context.
        shards: the replay memory.
        ages: as of `UpdateWorkerWeights`.
    """

    def apply(state: Any, result: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        info, count = result["info"], ctx.config.num_workers
        for index, stats in shards.stats().items():
            info[f"replay_shard_{index}"] = {pid: dict(sizes) for pid, sizes in stats.sizes.items()}
        due, learners = _scheduled(ctx), ctx.learners
        coeffs = {pid: {**learner.weights.coeffs, **due[pid]} for pid, learner in learners.items()}
        info["exploration_infos"] = [
            {pid: worker_info(learners[pid].policy.spec.exploration, coeffs[pid], i, count) for pid in learners}
            for i in range(1, count + 1)
        ]
        info["weights_age_mean"] = sum(ages) / len(ages) if ages else 0.0
        return state, result

    return Operator("ReportShards", apply, host_only=True)
