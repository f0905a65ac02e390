"""IMPALA: importance-weighted actor-learner architecture (Espeholt et al. 2018, https://arxiv.org/abs/1802.01561).

Workers sample without pause by weights that are some updates old; the learner corrects for that by V-trace (section 4):

    loss = -E[log pi(a_t | s_t) A_t] + c_v E[(V(s_t) - vs_t)^2] - c_e E[H(pi(s_t))]

with V-trace's targets `vs_t` and advantages `A_t` under the current parameters (section 4.2). With `vtrace=False` it is
A3C's loss, on advantages that workers estimate (GAE).

Departures: means over the batch, not sums, so that the learning rate does not depend on its size; the value error is
not halved; Adam by default (`optimizer={"type": "rmsprop", "decay": 0.99, "eps": 0.1}` is the paper's); truncated
episodes bootstrap from their true successor; `lambda` discounts V-trace's traces (remark 2). Recurrent policies look
along sequences of `max_seq_len` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxrl import losses
from jaxrl.config import option
from jaxrl.execution.aggregation import AggregatedRollouts
from jaxrl.execution.async_ops import learn_in_thread
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.replay_ops import MixInReplay
from jaxrl.execution.rollout_ops import ConcatBatches
from jaxrl.policies import PolicyConfig, build_policy
from jaxrl.rollout import AutoFragment
from jaxrl.schedules import Coeff
from jaxrl.trainers import CommonConfig, build_trainer
from jaxrl.trainers.support import Support
from jaxrl.types import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class IMPALAPolicyConfig(PolicyConfig):
    """Options of IMPALA's policy."""

    lr: Coeff = option(5e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    grad_clip: float | None = option(40.0, "Clip the gradients' global norm to this; None: no clipping.", low=0)
    vtrace: bool = option(True, "Correct by V-trace for the age of the weights that a row was sampled with.")
    vtrace_clip_rho_threshold: Coeff = option(1.0, "Largest importance weight of a TD error; inf: any.", traced=True)
    vtrace_clip_pg_rho_threshold: Coeff = option(
        1.0, "Largest importance weight of a policy gradient; inf: any.", traced=True
    )
    standardize_advantages: bool = option(
        False, "Shift and scale advantages to mean 0 and deviation 1 in each gradient step."
    )
    vf_loss_coeff: Coeff = option(0.5, "Weight of the value loss.", traced=True)
    entropy_coeff: Coeff = option(0.01, "Weight of the entropy bonus.", traced=True)
    entropy_coeff_schedule: list | None = option(None, "Schedule of the entropy coefficient: [[t, value], ...].")


@dataclass(frozen=True, kw_only=True, eq=False)
class IMPALAConfig(IMPALAPolicyConfig, CommonConfig):
    """Options of IMPALA."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(50, "worker")
    of_run: ClassVar[Mapping[str, str]] = {"num_sgd_iter": "the learner's thread takes train batches in turn"}

    num_workers: int = option(2, "Rollout workers on Ray actors; 0: sample in-process and learn in turn.", low=0)
    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': about 50, such that fragments fill train batches."
    )
    train_batch_size: int = option(500, "Env steps of a train batch.", low=1)
    timesteps_per_iteration: int = option(5000, "Env steps of an iteration at least; 0: one train batch.", low=0)
    num_sgd_iter: int = option(1, "Times that each train batch is learned from.", low=1)
    minibatch_buffer_size: int = option(
        1, "Train batches that the learner's thread goes through in turn, num_sgd_iter times each.", low=1
    )
    learner_queue_size: int = option(16, "Train batches that wait for the learner's thread at most.", low=1)
    max_sample_requests_in_flight_per_worker: int = option(2, "Fragments asked of each worker at a time.", low=1)
    num_aggregation_workers: int = option(
        0, "Actors between workers and learner that join fragments to train batches; 0: the plan itself does.", low=0
    )
    broadcast_interval: int = option(1, "Updates between broadcasts of weights to the workers.", low=1)
    replay_proportion: float = option(0.0, "Fragments seen before to learn from again, for each new one.", low=0)
    replay_buffer_num_slots: int = option(0, "Fragments kept for that.", low=0)


def _policy_loss(standardized: bool) -> losses.Term:
    terms = {
        True: losses.vtrace_policy_gradient(standardized=standardized),
        False: losses.advantage_policy_gradient(standardized=standardized),
    }
    return losses.choose("vtrace", terms)


IMPALAPolicy = build_policy(
    "IMPALAPolicy",
    loss_fn=losses.weighted_sum(
        policy_loss=(1.0, losses.choose("standardize_advantages", {yes: _policy_loss(yes) for yes in (True, False)})),
        vf_loss=(0.5, losses.choose("vtrace", {True: losses.vtrace_value_error(), False: losses.value_error()})),
        entropy=(0.01, losses.entropy_bonus()),
    ),
    default_config=IMPALAPolicyConfig,
)


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Sampling and learning side by side: fragments as they are ready, train batches to the learner's thread."""
    config = ctx.config
    mix = MixInReplay(config.replay_buffer_num_slots, config.replay_proportion, seed=config.seed or 0)
    batches = AggregatedRollouts(
        ctx,
        [mix, ConcatBatches(config.train_batch_size)],
        num_aggregators=config.num_aggregation_workers,
        num_async=config.max_sample_requests_in_flight_per_worker,
    )
    train_op = learn_in_thread(
        ctx,
        batches,
        queue_size=config.learner_queue_size,
        minibatch_buffer_size=config.minibatch_buffer_size,
        broadcast_interval=config.broadcast_interval,
    )
    return StandardMetricsReporting(ctx, train_op)


def validate_config(config: Any) -> None:
    """Fragments fill train batches exactly, and what is replayed is kept.

    Raises:
        ConfigError: with the sizes that would fit.
    """
    size, fragment = config.train_batch_size, config.rollout_fragment_length * config.num_envs_per_worker
    if config.batch_mode == "truncate_episodes" and size % fragment:
        below, above = size - size % fragment, size - size % fragment + fragment
        raise ConfigError(
            f"config: train_batch_size={size} is no multiple of the {fragment} steps of a worker's fragment "
            f"(rollout_fragment_length={config.rollout_fragment_length} x "
            f"num_envs_per_worker={config.num_envs_per_worker}), which V-trace looks along as a whole; use "
            f"{f'{below} or ' if below else ''}{above}, or another rollout_fragment_length."
        )
    if config.num_aggregation_workers > config.num_workers:
        raise ConfigError(
            f"config: num_aggregation_workers={config.num_aggregation_workers} is more than "
            f"num_workers={config.num_workers}; each needs a worker of its own at least."
        )
    if config.sgd_minibatch_size > size:
        raise ConfigError(
            f"config: sgd_minibatch_size={config.sgd_minibatch_size} is larger than train_batch_size={size}; lower it, "
            "or 0 for whole batches."
        )
    if config.replay_proportion > 0 and config.replay_buffer_num_slots == 0:
        raise ConfigError(
            f"config: replay_proportion={config.replay_proportion} replays fragments, but replay_buffer_num_slots=0 "
            "keeps none; give it room for some, 100 say."
        )


IMPALATrainer = build_trainer(
    "IMPALATrainer",
    default_policy=IMPALAPolicy,
    default_config=IMPALAConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"entropy": "info/learner/*/entropy", "vf loss": "info/learner/*/vf_loss"},
)

SUPPORT = Support(
    "importance-weighted actors and learner (V-trace)",
    "https://arxiv.org/abs/1802.01561",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
