"""APPO: asynchronous PPO on IMPALA's architecture, with the target policy of IMPACT (https://arxiv.org/abs/1912.00167).

Without V-trace, PPO's clipped surrogate (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7) on advantages
that workers estimate (GAE), against the policy that acted. With `vtrace=True` three policies differ: the worker's `mu`,
the target network's `pi_target`, which lags behind and which the trust region is around, and `pi`, which learns:

    r_t = min(mu / pi_target, is_ratio_clip) pi / mu
    loss = -E[min(r_t A_t, clip(r_t, 1 - clip_param, 1 + clip_param) A_t)] + c_v E[(V(s_t) - vs_t)^2] - c_e E[H(pi)]

with V-trace's advantages and targets for `pi_target` and the current values. `use_kl_loss` adds
`kl_coeff KL(pi_target || pi)`, whose coefficient adapts as PPO's does.

Departures: the KL divergence is from the target policy without V-trace too (RLlib: from the policy that acted); it
adapts after each train batch; the value error is not halved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrl import losses
from jaxrl.algorithms import impala
from jaxrl.algorithms.ppo import update_kl
from jaxrl.config import option
from jaxrl.policies import TrainState, build_policy, lagged_target
from jaxrl.schedules import Coeff
from jaxrl.trainers import build_trainer
from jaxrl.trainers.support import Support
from jaxrl.types import Array, ConfigError, Params


@dataclass(frozen=True, kw_only=True, eq=False)
class APPOPolicyConfig(impala.IMPALAPolicyConfig):
    """Options of APPO's policy."""

    vtrace: bool = option(False, "V-trace's advantages and a target policy; else GAE, and the policy that acted.")
    clip_param: Coeff = option(0.4, "Probability ratios are clipped to [1 - clip_param, 1 + clip_param].", traced=True)
    is_ratio_clip: Coeff = option(2.0, "Largest ratio of the policy that acted to the target policy.", traced=True)
    use_kl_loss: bool = option(False, "Add the KL divergence from the target policy to the loss.")
    kl_coeff: float = option(1.0, "Initial coefficient of the KL divergence, which adapts.", traced=True)
    kl_target: float = option(0.01, "KL divergence per train batch that kl_coeff adapts to.")
    target_update_frequency: int = option(1, "Gradient steps between updates of the target policy.", low=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class APPOConfig(APPOPolicyConfig, impala.IMPALAConfig):
    """Options of APPO."""

    target_update_frequency: int = option(
        0,
        "Gradient steps between updates of the target policy; 0: as many as minibatch_buffer_size train batches take, "
        "each learned from num_sgd_iter times.",
        low=0,
    )
    replay_buffer_num_slots: int = option(100, "Fragments kept for replay.", low=0)


def _policy_loss(standardized: bool) -> losses.Term:
    terms = {
        True: losses.vtrace_surrogate(clip_param=0.4, standardized=standardized),
        False: losses.clipped_surrogate(clip_param=0.4, standardized=standardized),
    }
    return losses.choose("vtrace", terms)


def _loss(**more: Any) -> losses.Term:
    value = {True: losses.vtrace_value_error(target_policy=True), False: losses.value_error()}
    return losses.weighted_sum(
        policy_loss=(1.0, losses.choose("standardize_advantages", {yes: _policy_loss(yes) for yes in (True, False)})),
        vf_loss=(0.5, losses.choose("vtrace", value)),
        entropy=(0.01, losses.entropy_bonus()),
        **more,
    )


def target_policy(state: TrainState, config: Any) -> Params:
    """The target network follows at once, every so many gradient steps."""
    return lagged_target(state, config.target_update_frequency)


def adapt_kl(coeffs: Mapping[str, Array], metrics: Mapping[str, Array], config: Any) -> Mapping[str, Array]:
    """Adapts the coefficient of the KL divergence, where there is one in the loss, as PPO does."""
    return update_kl(coeffs, metrics, config) if config.use_kl_loss else coeffs


APPOPolicy = build_policy(
    "APPOPolicy",
    loss_fn=losses.choose("use_kl_loss", {True: _loss(kl=(1.0, losses.target_kl_penalty())), False: _loss()}),
    target_fn=target_policy,
    update_fn=adapt_kl,
    default_config=APPOPolicyConfig,
)


def validate_config(config: Any) -> Any:
    """As IMPALA's; says how often the target policy is updated, which a KL divergence needs to lag behind.

    Raises:
        ConfigError: sizes that do not fit, or a KL divergence that would always be 0.
    """
    impala.validate_config(config)
    if config.target_update_frequency == 0:
        minibatches = math.ceil(config.train_batch_size / (config.sgd_minibatch_size or config.train_batch_size))
        steps = config.minibatch_buffer_size * config.num_sgd_iter * minibatches
        config = dataclasses.replace(config, target_update_frequency=steps)
    if config.use_kl_loss and config.target_update_frequency == 1:
        raise ConfigError(
            "config: use_kl_loss with a target policy that follows after every gradient step: the divergence from it "
            "is always 0; set num_sgd_iter or target_update_frequency above 1."
        )
    return config


APPOTrainer = build_trainer(
    "APPOTrainer",
    default_policy=APPOPolicy,
    default_config=APPOConfig,
    execution_plan=impala.execution_plan,
    validate_config=validate_config,
    progress={"kl": "info/learner/*/kl", "entropy": "info/learner/*/entropy"},
)

SUPPORT = Support(
    "asynchronous proximal policy optimisation",
    "https://arxiv.org/abs/1912.00167",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=True,
)
