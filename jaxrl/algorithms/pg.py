"""PG: vanilla policy gradients, REINFORCE (Williams 1992, https://link.springer.com/article/10.1007/BF00992696).

Maximises `log pi(a_t | s_t) * G_t` with the discounted return `G_t` of the row (section 5, eq. 11, without a baseline).

Departures: returns are standardised over the train batch, which acts as a baseline and sets the scale of the gradient;
train batches hold whole episodes, so that no return is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxrl import losses
from jaxrl.config import option
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts, StandardizeFields
from jaxrl.execution.train_ops import TrainOneStep
from jaxrl.policies import build_policy
from jaxrl.schedules import Coeff
from jaxrl.trainers import CommonConfig, build_trainer
from jaxrl.trainers.setup import check_batch_sizes
from jaxrl.trainers.support import Support


@dataclass(frozen=True, kw_only=True, eq=False)
class PGConfig(CommonConfig):
    """Options of PG."""

    without_meaning: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("lambda", "use_gae", "use_critic"), "PG learns from returns, without values"
    )

    lr: Coeff = option(4e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    batch_mode: str = option(
        "complete_episodes",
        "complete_episodes: returns of whole episodes; truncate_episodes: cut at the fragment's end.",
        choices=("truncate_episodes", "complete_episodes"),
    )


PGPolicy = build_policy("PGPolicy", loss_fn=losses.weighted_sum(policy_loss=(1.0, losses.reinforce())))


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Synchronous sampling; one step on each train batch of whole episodes."""
    rollouts = ParallelRollouts(ctx, mode="bulk_sync")
    batches = rollouts.combine(ConcatBatches(ctx.config.train_batch_size)).for_each(StandardizeFields(["advantages"]))
    return StandardMetricsReporting(ctx, batches.for_each(TrainOneStep(ctx)))


PGTrainer = build_trainer(
    "PGTrainer",
    default_policy=PGPolicy,
    default_config=PGConfig,
    execution_plan=execution_plan,
    validate_config=check_batch_sizes,
    progress={"policy loss": "info/learner/*/policy_loss"},
)

SUPPORT = Support(
    "policy gradients (REINFORCE)",
    "https://link.springer.com/article/10.1007/BF00992696",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
