"""A2C: synchronous advantage actor-critic (Mnih et al. 2016, https://arxiv.org/abs/1602.01783: A3C, synchronous).

`loss = -E[log pi(a_t | s_t) A_t] + c_v E[(V(s_t) - V_t^target)^2] - c_e E[H(pi(s_t))]` (section 4, eq. for A3C), with
A_t by GAE.

Departures: means over the batch, not sums, so that the learning rate does not depend on its size; microbatches'
    gradients are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxrl import losses
from jaxrl.config import option
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts
from jaxrl.execution.train_ops import ApplyGradients, AverageGradients, ComputeGradients, TrainOneStep
from jaxrl.policies import build_policy
from jaxrl.rollout import AutoFragment
from jaxrl.schedules import Coeff
from jaxrl.trainers import CommonConfig, build_trainer
from jaxrl.trainers.setup import check_batch_sizes
from jaxrl.trainers.support import Support
from jaxrl.types import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class A2CConfig(CommonConfig):
    """Options of A2C."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(20, sizes=("microbatch_size", "train_batch_size"))

    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': about 20, such that fragments fill batches."
    )
    lr: Coeff = option(1e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    grad_clip: float | None = option(40.0, "Clip the gradients' global norm to this; None: no clipping.")
    vf_loss_coeff: Coeff = option(0.5, "Weight of the value loss.", traced=True)
    entropy_coeff: Coeff = option(0.01, "Weight of the entropy bonus.", traced=True)
    entropy_coeff_schedule: list | None = option(None, "Schedule of the entropy coefficient: [[t, value], ...].")
    microbatch_size: int | None = option(
        None, "Steps of a microbatch, whose gradients are averaged; None: whole batches.", low=1
    )


A2CPolicy = build_policy(
    "A2CPolicy",
    loss_fn=losses.weighted_sum(
        policy_loss=(1.0, losses.advantage_policy_gradient()),
        vf_loss=(0.5, losses.value_error()),
        entropy=(0.01, losses.entropy_bonus()),
    ),
)


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Synchronous sampling; one step on each train batch, whole or as the mean of its microbatches' gradients."""
    config = ctx.config
    rollouts = ParallelRollouts(ctx, mode="bulk_sync")
    if config.microbatch_size is None:
        train_op = rollouts.combine(ConcatBatches(config.train_batch_size)).for_each(TrainOneStep(ctx))
    else:
        microbatches = rollouts.combine(ConcatBatches(config.microbatch_size)).for_each(ComputeGradients(ctx))
        count = math.ceil(config.train_batch_size / config.microbatch_size)
        train_op = microbatches.batch(count).for_each(AverageGradients).for_each(ApplyGradients(ctx))
    return StandardMetricsReporting(ctx, train_op)


def validate_config(config: A2CConfig) -> None:
    """Fragments fill train batches, and microbatches, exactly."""
    check_batch_sizes(config)
    micro, length = config.microbatch_size, config.rollout_fragment_length
    if micro is None or config.batch_mode != "truncate_episodes":
        return
    assert length != "auto"  # resolved before this
    if config.num_sgd_iter != 1 or config.sgd_minibatch_size:
        raise ConfigError(
            f"config: num_sgd_iter={config.num_sgd_iter} and sgd_minibatch_size={config.sgd_minibatch_size} have no "
            f"meaning with microbatch_size={micro}: the microbatches' gradients make one step; leave them out."
        )
    rollout = length * config.num_envs_per_worker * max(1, config.num_workers)
    if config.train_batch_size % micro or micro % rollout:
        raise ConfigError(
            f"config: microbatch_size={micro} should divide train_batch_size={config.train_batch_size} and be a "
            f"multiple of the {rollout} steps that one round of sampling gives; change one of them."
        )


A2CTrainer = build_trainer(
    "A2CTrainer",
    default_policy=A2CPolicy,
    default_config=A2CConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"entropy": "info/learner/*/entropy", "vf loss": "info/learner/*/vf_loss"},
)

SUPPORT = Support(
    "synchronous advantage actor-critic",
    "https://arxiv.org/abs/1602.01783",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
