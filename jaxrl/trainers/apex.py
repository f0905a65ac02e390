"""What Ape-X's algorithms share (Horgan et al. 2018, https://arxiv.org/abs/1803.00933): options, plan, checks.

    workers  --- fragments --->  replay shards  --- batches --->  learner's thread
       ^                               ^                                 |
       +----------- weights -----------|---------------------------------+
                                       +---------- priorities -----------+

The learner's thread and the actors each go at their own pace; what is on its way between them is bounded.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from jaxrl.config import option
from jaxrl.execution.async_ops import RecordTrained, TrainedBatches
from jaxrl.execution.concurrency_ops import Concurrently, Enqueue
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner_thread import LearnerThread
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ParallelRollouts
from jaxrl.execution.sharded_ops import (
    CountTargetUpdates,
    Intensity,
    ReplayFromShards,
    ReportShards,
    StoreToShards,
    UpdateShardPriorities,
    UpdateWorkerWeights,
)
from jaxrl.execution.sharded_replay import ShardedReplay
from jaxrl.execution.worker_priorities import PRIORITIZE
from jaxrl.policies import TrainState, followed
from jaxrl.rollout import AutoFragment
from jaxrl.schedules import LinearSchedule
from jaxrl.trainers import off_policy
from jaxrl.types import ConfigError, Params

# Batches that wait for the learner. More would only be older: shards draw ahead too.
QUEUE_SIZE = 4
ROLLOUTS_IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ApexConfig(off_policy.OffPolicyConfig):
    """Options of Ape-X's algorithms."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(50, None)

    num_workers: int = option(2, "Rollout workers on Ray actors, one at least.", low=0)
    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': 50."
    )
    train_batch_size: int = option(512, "Rows of a batch drawn from a replay shard: one gradient step.", low=1)
    timesteps_per_iteration: int = option(25_000, "Env steps of an iteration at least; 0: one gradient step.", low=0)
    training_intensity: float | None = option(
        None, "Rows trained on for each env step sampled; None: workers and learner go as fast as they can."
    )
    buffer_size: int = option(500_000, "Rows of each policy that all replay shards hold together.", low=1)
    learning_starts: int = option(10_000, "Rows of each policy in all shards together before learning begins.", low=0)
    n_step: int = option(3, "Steps that a replayed row's reward sums, at most to its episode's end.", low=1)
    prioritized_replay: bool = option(True, "Draw rows by priority, the size of their TD error, instead of evenly.")
    worker_side_prioritization: bool = option(
        True, "Workers give rows their first priorities; else new rows get the largest so far."
    )
    num_replay_buffer_shards: int = option(2, "Actors that hold the replay memory.", low=1)
    max_weight_sync_delay: int = option(400, "Env steps of a worker between the weights that it is sent.", low=0)


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Three plans side by side: rollouts into the shards; batches to the learner; what it has learned to the shards."""
    config = ctx.config
    shards = ctx.shards = ShardedReplay(
        config,
        off_policy.policy_buffers(ctx, make_shard_buffer),
        ctx.policies_to_train,
        ctx.workers.budget,
        ctx.counters,
    )
    prioritized = config.prioritized_replay
    thread = ctx.learner_thread = LearnerThread(ctx, queue_size=QUEUE_SIZE, wants_rows=prioritized)
    intensity = Intensity(config.training_intensity, slack_rows(config))
    beta = LinearSchedule(
        config.prioritized_replay_beta_annealing_timesteps,
        config.final_prioritized_replay_beta,
        config.prioritized_replay_beta,
    )
    rollouts = ParallelRollouts(ctx, mode="raw").for_each(PRIORITIZE)
    fragments = rollouts.gather_async(num_async=ROLLOUTS_IN_FLIGHT, **ctx.fault_tolerance())
    stored = StoreToShards(ctx, fragments, shards, intensity).zip_with_source_actor()
    ages: deque[int] = deque(maxlen=100)
    stored = stored.for_each(UpdateWorkerWeights(ctx, thread, config.max_weight_sync_delay, ages))

    replayed = ReplayFromShards(ctx, shards, config.train_batch_size, thread, intensity, beta=beta)
    replayed = replayed.for_each(Enqueue(thread.inqueue))

    trained = TrainedBatches(thread)
    if prioritized:
        trained = trained.for_each(UpdateShardPriorities(ctx, shards, eps=config.prioritized_replay_eps))
    trained = trained.for_each(RecordTrained(ctx, thread, broadcast_interval=None))
    if config.target_network_update_freq:
        rows = steps_between_targets(config) * config.train_batch_size
        trained = trained.for_each(CountTargetUpdates(ctx, rows))
    all_three = Concurrently([stored, replayed, trained], mode="async", output_indexes=[2])
    # Episodes of the workers that explore least, as RLlib does: a third of them, at least one.
    least_exploring = range(config.num_workers - -(-config.num_workers // 3) + 1, config.num_workers + 1)
    return StandardMetricsReporting(ctx, all_three, least_exploring).for_each(ReportShards(ctx, shards, ages))


def make_shard_buffer(config: Any) -> Any:
    """The replay buffer of one shard: an equal part of the rows."""
    part = -(-config.buffer_size // config.num_replay_buffer_shards)
    return off_policy.make_buffer(dataclasses.replace(config, buffer_size=part))


def slack_rows(config: Any) -> float:
    """Rows by which sampling may be ahead of learning: a fragment of every worker, and what waits for the learner."""
    steps = config.rollout_fragment_length * config.num_envs_per_worker * config.num_workers
    return max((config.training_intensity or 0) * steps, QUEUE_SIZE * config.train_batch_size)


def steps_between_targets(config: Any) -> int:
    """Gradient steps between updates of the target network, which the options give in rows trained on."""
    return max(1, round(config.target_network_update_freq / max(1, config.sgd_minibatch_size)))


def target_update(state: TrainState, config: Any) -> Params:
    """A `target_fn`: `tau * params + (1 - tau) * target`, each `target_network_update_freq` rows trained on.

    It is part of the gradient step, since nothing else may touch a learner that learns in a thread.

    Args:
        state: after the gradient step.
        config: options `tau`, `target_network_update_freq` and `sgd_minibatch_size`, the rows of a gradient step.
    """
    target = state.target_params
    moved = optax.incremental_update(followed(state.params, target), target, config.tau)
    due = state.step % steps_between_targets(config) == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, target)


def validate_config(config: Any) -> Any:
    """Checks what Ape-X needs: workers, and sizes that fit when they are divided among the shards.

    Raises:
        ConfigError: see there.
    """
    if config.num_workers == 0:
        raise ConfigError(
            "config: Ape-X samples on workers beside its learner and has no use for num_workers=0; set num_workers to "
            "1 or more, or use DQN or DDPG, which learn from the same replay in this process."
        )
    if isinstance(config.optimizer, Mapping):
        moved = sorted({"max_weight_sync_delay", "num_replay_buffer_shards", "debug"} & set(config.optimizer))
        if moved:
            raise ConfigError(
                f"config: optimizer names the optimiser of the networks, got {moved}: options are flat, so give "
                "max_weight_sync_delay and num_replay_buffer_shards beside the others, and leave debug out."
            )
    shards = config.num_replay_buffer_shards
    if config.buffer_size < shards * config.train_batch_size:
        raise ConfigError(
            f"config: buffer_size={config.buffer_size} in num_replay_buffer_shards={shards} gives shards smaller than "
            f"train_batch_size={config.train_batch_size}; make the buffer larger, or the batch or the number of shards "
            "smaller."
        )
    return off_policy.validate_config(config)
