"""PPO: proximal policy optimisation (Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

`loss = -L^CLIP + c_v L^VF - c_e H + beta KL(pi_old || pi)` (eqs. 7, 8 and 9): the clipped surrogate, a clipped value
error, an entropy bonus and a KL penalty whose coefficient adapts (section 4).

Departures: advantages are standardised over the train batch; the value error is clipped around the old prediction and
is not halved, as in RLlib.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from jaxrl import losses
from jaxrl.config import option
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts, SelectExperiences, StandardizeFields
from jaxrl.execution.train_ops import TrainOneStep
from jaxrl.models import ModelConfig
from jaxrl.policies import build_policy
from jaxrl.rollout import AutoFragment
from jaxrl.schedules import Coeff
from jaxrl.trainers import CommonConfig, build_trainer
from jaxrl.trainers.setup import check_batch_sizes
from jaxrl.trainers.support import Support
from jaxrl.types import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class PPOConfig(CommonConfig):
    """Options of PPO."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(None)

    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': one round fills a train batch."
    )
    train_batch_size: int = option(4000, "Env steps of a train batch.", low=1)
    sgd_minibatch_size: int = option(128, "Rows of a minibatch; 0: the whole train batch.", low=0)
    num_sgd_iter: int = option(30, "Epochs over each train batch.", low=1)
    lr: Coeff = option(5e-5, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    kl_coeff: float = option(0.2, "Initial coefficient of the KL penalty, which adapts; 0: no penalty.", traced=True)
    kl_target: float = option(0.01, "KL divergence per train batch that kl_coeff adapts to.", of_policy=True)
    clip_param: Coeff = option(0.3, "Probability ratios are clipped to [1 - clip_param, 1 + clip_param].", traced=True)
    vf_clip_param: Coeff = option(
        10.0, "Value predictions are clipped to this distance from the old ones.", traced=True
    )
    vf_loss_coeff: Coeff = option(1.0, "Weight of the value loss.", traced=True)
    entropy_coeff: Coeff = option(0.0, "Weight of the entropy bonus.", traced=True)
    entropy_coeff_schedule: list | None = option(None, "Schedule of the entropy coefficient: [[t, value], ...].")
    vf_share_layers: bool | None = option(
        None, "Policy and value function share layers; None: as model.vf_share_layers.", of_policy=True
    )
    model: ModelConfig = option(ModelConfig(vf_share_layers=False), "Options of the model.")


def update_kl(coeffs: Mapping[str, Array], metrics: Mapping[str, Array], config: Any) -> dict[str, Array]:
    """Adapts the coefficient of the KL penalty to its target (section 4; thresholds and factors as RLlib's)."""
    kl, target = metrics["kl"], config.kl_target
    factor = jnp.where(kl > 2.0 * target, 1.5, jnp.where(kl < 0.5 * target, 0.5, 1.0))
    return {**coeffs, "kl_coeff": coeffs["kl_coeff"] * factor}


PPOPolicy = build_policy(
    "PPOPolicy",
    loss_fn=losses.weighted_sum(
        policy_loss=(1.0, losses.clipped_surrogate()),
        vf_loss=(1.0, losses.clipped_value_error()),
        entropy=(0.0, losses.entropy_bonus()),
        kl=(0.2, losses.kl_penalty()),
    ),
    update_fn=update_kl,
    default_config={"kl_target": 0.01},
)


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Synchronous sampling; epochs of minibatches on each train batch with standardised advantages."""
    rollouts = ParallelRollouts(ctx, mode="bulk_sync").for_each(SelectExperiences(ctx.policies_to_train))
    batches = rollouts.combine(ConcatBatches(ctx.config.train_batch_size)).for_each(StandardizeFields(["advantages"]))
    return StandardMetricsReporting(ctx, batches.for_each(TrainOneStep(ctx)))


def validate_config(config: PPOConfig) -> PPOConfig:
    """Fragments fill train batches exactly; the top-level `vf_share_layers` goes to the model."""
    check_batch_sizes(config)
    return share_layers(config)


def share_layers(config: Any) -> Any:
    """The config whose model does what the top-level `vf_share_layers` says."""
    if config.vf_share_layers is None:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vf_share_layers=config.vf_share_layers))


PPOTrainer = build_trainer(
    "PPOTrainer",
    default_policy=PPOPolicy,
    default_config=PPOConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"kl": "info/learner/*/kl", "entropy": "info/learner/*/entropy"},
)

SUPPORT = Support(
    "proximal policy optimisation",
    "https://arxiv.org/abs/1707.06347",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
