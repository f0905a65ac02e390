"""A3C: asynchronous advantage actor-critic (Mnih et al. 2016, https://arxiv.org/abs/1602.01783, algorithm S3).

Each worker computes the gradient of A2C's loss on its own fragment, at the weights that it acted by. The learner
applies gradients one by one as they come, by its optimiser, and sends the new weights to the worker alone whose
gradient that was; the others go on with theirs.

Departures: means over the fragment, not sums, so that the learning rate does not depend on its length; advantages by
GAE; one optimiser, Adam by default, where the paper has RMSProp with shared statistics. While a worker's gradient is
applied it samples its next fragment already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxrl.algorithms.a2c import A2CPolicy
from jaxrl.config import option
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.worker_gradients import ApplyWorkerGradients, AsyncGradients
from jaxrl.rollout import AutoFragment
from jaxrl.schedules import Coeff
from jaxrl.trainers import CommonConfig, build_trainer
from jaxrl.trainers.support import Support
from jaxrl.types import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class A3CConfig(CommonConfig):
    """Options of A3C."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(10, None)
    without_meaning: ClassVar[Mapping[str, str]] = {"shuffle_sequences": "each fragment makes one gradient"}

    num_workers: int = option(2, "Rollout workers on Ray actors; 0: one in-process, whose gradients wait.", low=0)
    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment, which makes one gradient; 'auto': 10."
    )
    train_batch_size: int = option(0, "Without meaning here: a worker's fragment is one gradient.", low=0)
    timesteps_per_iteration: int = option(2000, "Env steps of an iteration at least; 0: one gradient.", low=0)
    lr: Coeff = option(1e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    grad_clip: float | None = option(40.0, "Clip the gradients' global norm to this; None: no clipping.")
    vf_loss_coeff: Coeff = option(0.5, "Weight of the value loss.", traced=True)
    entropy_coeff: Coeff = option(0.01, "Weight of the entropy bonus.", traced=True)
    entropy_coeff_schedule: list | None = option(None, "Schedule of the entropy coefficient: [[t, value], ...].")


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Gradients of all workers as they are ready, each applied by itself."""
    return StandardMetricsReporting(ctx, AsyncGradients(ctx).for_each(ApplyWorkerGradients(ctx)))


def validate_config(config: Any) -> None:
    """Refuses what has no meaning for gradients of whole fragments.

    Raises:
        ConfigError: a size of train batches or minibatches, or several epochs.
    """
    for name, only in (("train_batch_size", 0), ("sgd_minibatch_size", 0), ("num_sgd_iter", 1)):
        if getattr(config, name) != only:
            raise ConfigError(
                f"config: {name}={getattr(config, name)} has no meaning for A3C, where each fragment of a worker "
                "(rollout_fragment_length x num_envs_per_worker) is one gradient; leave it out, or use A2C."
            )


A3CTrainer = build_trainer(
    "A3CTrainer",
    default_policy=A2CPolicy.with_updates(name="A3CPolicy"),
    default_config=A3CConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"entropy": "info/learner/*/entropy", "vf loss": "info/learner/*/vf_loss"},
)

SUPPORT = Support(
    "asynchronous advantage actor-critic",
    "https://arxiv.org/abs/1602.01783",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
