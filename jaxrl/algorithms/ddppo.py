"""DD-PPO: decentralised distributed PPO (Wijmans et al. 2019, https://arxiv.org/abs/1911.00357).

PPO without a central learner (section 3): each worker samples fragments and learns from them by itself, and

`theta^{k+1} = ParamUpdate(theta^k, AllReduce(grad_1 J^PPO(theta^k), ..., grad_N J^PPO(theta^k)))`

for every minibatch, so that all workers hold the same parameters and optimiser state, and no batch travels. The loss is
that of `jaxrl.algorithms.ppo`.

Departures: stragglers are not preempted (section 3.1); advantages are standardised over each worker's own fragments,
and the KL coefficient adapts to the divergence over all workers, as in RLlib; gradients are averaged in host memory,
whatever device computed them (`jaxrl.execution.all_reduce` says why, with measurements).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxrl.algorithms.ppo import PPOConfig, PPOPolicy, share_layers
from jaxrl.config import option
from jaxrl.execution.context import PlanContext
from jaxrl.execution.decentralized import LearnTogether
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ParallelRollouts, SelectExperiences, StandardizeFields
from jaxrl.execution.worker_group import DownloadStates, FollowWorkers, WorkerGroup
from jaxrl.rollout import AutoFragment
from jaxrl.trainers import build_trainer
from jaxrl.trainers.support import Support
from jaxrl.types import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class DDPPOConfig(PPOConfig):
    """Options of DD-PPO: PPO's, for workers that learn."""

    workers_learn: ClassVar[bool] = True
    auto_fragment: ClassVar[AutoFragment] = AutoFragment(100, None)

    num_workers: int = option(2, "Rollout workers on Ray actors, which are the learners.", low=0)
    num_envs_per_worker: int = option(5, "Environments that each worker steps together.", low=1)
    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment: a round's; 'auto': 100."
    )
    train_batch_size: int = option(0, "0: what the fragments of all workers make; else it has to agree.", low=0)
    sgd_minibatch_size: int = option(50, "Rows of a minibatch on each worker; 0: its whole batch.", low=0)
    num_sgd_iter: int = option(10, "Epochs over each worker's batch.", low=1)
    keep_local_weights_in_sync: bool = option(
        True, "The driver's copy of the weights follows after each round; False: before each result alone."
    )


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Workers sample and learn, each from its own fragments; the driver follows."""
    group = WorkerGroup(ctx)
    rollouts = ParallelRollouts(ctx, mode="raw").for_each(SelectExperiences(ctx.policies_to_train))
    learned = rollouts.for_each(StandardizeFields(["advantages"])).for_each(LearnTogether)
    rounds = learned.batch_across_shards(**ctx.fault_tolerance()).combine(FollowWorkers(group))
    results = StandardMetricsReporting(ctx, rounds)
    return results if ctx.config.keep_local_weights_in_sync else DownloadStates(group, results)


def validate_config(config: DDPPOConfig) -> DDPPOConfig:
    """Workers there must be, all with batches of one size; the driver learns nothing, so it needs no devices."""
    if config.num_workers < 1:
        raise ConfigError(
            "config: num_workers=0: in DD-PPO the workers are the learners, there is no other; set num_workers to 1 or "
            "more, or use PPO."
        )
    if config.batch_mode != "truncate_episodes":
        raise ConfigError(
            f"config: batch_mode={config.batch_mode!r}: workers that learn together need fragments of one length; use "
            "'truncate_episodes', or PPO."
        )
    if config.num_gpus > 0 or config.num_learner_devices > 1:
        raise ConfigError(
            f"config: num_gpus={config.num_gpus:g}, num_learner_devices={config.num_learner_devices}: the trainer "
            "itself learns nothing in DD-PPO; set num_gpus_per_worker, and leave these at 0 and 1."
        )
    assert config.rollout_fragment_length != "auto"  # resolved before this
    per_worker = config.rollout_fragment_length * config.num_envs_per_worker
    total = per_worker * config.num_workers
    if config.train_batch_size not in (0, total):
        raise ConfigError(
            f"config: train_batch_size={config.train_batch_size}, but rollout_fragment_length="
            f"{config.rollout_fragment_length} x num_envs_per_worker={config.num_envs_per_worker} x "
            f"{config.num_workers} workers make {total}; leave train_batch_size out."
        )
    if config.sgd_minibatch_size > per_worker:
        raise ConfigError(
            f"config: sgd_minibatch_size={config.sgd_minibatch_size} is larger than a worker's {per_worker} steps "
            f"(rollout_fragment_length={config.rollout_fragment_length} x "
            f"num_envs_per_worker={config.num_envs_per_worker}); lower it, or 0 for a worker's whole batch."
        )
    return share_layers(config)


DDPPOTrainer = build_trainer(
    "DDPPOTrainer",
    default_policy=PPOPolicy,
    default_config=DDPPOConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"kl": "info/learner/*/kl", "entropy": "info/learner/*/entropy"},
)

SUPPORT = Support(
    "decentralised distributed PPO",
    "https://arxiv.org/abs/1911.00357",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
