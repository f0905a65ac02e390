"""SAC: soft actor-critic (Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905), for continuous and discrete actions.

With the soft value of a state, `V(s) = min_i Q_i(s, a) - alpha log pi(a | s)` of a sampled action, or its exact
expectation over discrete ones (Christodoulou 2019, https://arxiv.org/abs/1910.07207), three groups of parameters learn:

    critics       E[w sum_i (r_n + gamma^n V_target(s') - Q_i(s, a))^2 / 2]     targets: the critics' moving averages
    actor         E[-V(s)]
    temperature   E[log_alpha (H(pi(. | s)) - target_entropy)]

Departures: all three learn at the same parameters rather than one after another; returns of n steps leave out the
entropies between; replay may be prioritised, by the mean size of the critics' errors; where actions are masked, the
target entropy is a share of what the allowed ones can reach.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl import losses
from jaxrl.config import option
from jaxrl.distributions import MASK_VALUE, Categorical, DistClass, get_dist_class
from jaxrl.models import Model, make_actor_critic
from jaxrl.policies import build_policy, default_optimizer, learning_rates, target_update
from jaxrl.schedules import Coeff
from jaxrl.trainers import build_trainer
from jaxrl.trainers.off_policy import ActorCriticConfig, ActorCriticPolicyConfig, execution_plan, validate_actor_critic
from jaxrl.trainers.support import Support
from jaxrl.types import Array, LearnOutput, LossContext, Params


@dataclass(frozen=True, kw_only=True, eq=False)
class SACPolicyConfig(ActorCriticPolicyConfig):
    """Options of SAC's policy."""

    lr: Coeff = option(3e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    entropy_lr: Coeff | None = option(None, "Learning rate of the temperature, or a schedule; None: lr.", traced=True)
    exploration_config: Mapping[str, Any] = option(
        {"type": "StochasticSampling", "random_timesteps": 1500}, "Exploration: {'type': name, **options}."
    )
    twin_q: bool = option(True, "Two critics, of whose values the smaller counts.")
    initial_alpha: float = option(1.0, "First temperature: the weight of entropy against reward.", begins="log_alpha")
    target_entropy: float | Literal["auto"] = option(
        "auto",
        "Entropy in nats that the temperature aims at; 'auto': -1 per action entry, 98% of the largest if discrete.",
    )
    target_network_update_freq: int = option(
        0, "Env steps between updates of the target network; 0: after every gradient step.", low=0
    )
    tau: float = option(5e-3, "An update of the target network: tau * params + (1 - tau) * target.", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class SACConfig(SACPolicyConfig, ActorCriticConfig):
    """Options of SAC."""

    timesteps_per_iteration: int = option(100, "Env steps of an iteration at least; 0: one round of learning.", low=0)
    buffer_size: int = option(1_000_000, "Rows that the replay memory of each policy holds.", low=1)


def dist_fn(action_space: gymnasium.Space, config: Any) -> DistClass:
    """A Gaussian squashed to the bounds of the Box, if it has some; a categorical for discrete actions."""
    chosen = config.model.custom_action_dist
    if chosen is None and isinstance(action_space, spaces.Box) and action_space.is_bounded():
        chosen = "squashed_gaussian"
    return get_dist_class(action_space, dist_type=chosen)


def make_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    """Actor, critics and temperature; the head `target_entropy` gives that of each row of a distribution."""
    model = make_actor_critic(
        obs_space,
        action_space,
        num_outputs,
        config.model,
        actor_hiddens=config.actor_hiddens,
        critic_hiddens=config.critic_hiddens,
        actor_activation=config.actor_hidden_activation,
        critic_activation=config.critic_hidden_activation,
        num_critics=2 if config.twin_q else 1,
        initial_alpha=config.initial_alpha,
        use_state_preprocessor=config.use_state_preprocessor,
    )
    auto = config.target_entropy == "auto"
    fixed = losses.default_target_entropy(action_space) if auto else float(config.target_entropy)

    def target_entropy(dist: Any) -> Array | float:
        if not auto or not isinstance(dist, Categorical):
            return fixed
        allowed = jnp.sum(dist.logits > MASK_VALUE, axis=-1)
        return fixed * jnp.log(jnp.maximum(allowed, 1)) / np.log(max(dist.logits.shape[-1], 2))

    return model._replace(heads={**model.heads, "target_entropy": target_entropy})


def soft_value(params: Params, critics: Params, batch: Any, ctx: LossContext, key: Array) -> tuple[Array, Array, Any]:
    """Soft values of the observations of `batch`, by the actor in `params` and the critics in `critics`.

    Returns:
        `(values [N], entropies [N], distribution)`; entropies of continuous actions are a sample's estimate.
    """
    dist, q_of, alpha = ctx.forward(params, batch).dist, ctx.model.heads["q"], jnp.exp(params["log_alpha"])
    if isinstance(dist, Categorical):
        q = losses.clipped_double_q(q_of(critics, batch["obs"]))
        return losses.soft_values_discrete(q, jax.nn.log_softmax(dist.logits), alpha), dist.entropy(), dist
    actions, logp = dist.sample_and_log_prob(key)
    q = losses.clipped_double_q(q_of(critics, batch["obs"], actions))
    return losses.soft_values(q, logp, alpha), -logp, dist


def actor_loss(params: Params, batch: Any, ctx: LossContext) -> Array:
    """The soft value, negated."""
    value, _, _ = soft_value(params, params, batch, ctx, jax.random.fold_in(ctx.key, 0))
    return -batch.mean(value)


def critic_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """Half the squared error of each critic, added."""
    successors = batch.with_columns(obs=batch["new_obs"])
    next_value, _, dist = soft_value(params, ctx.target_params, successors, ctx, jax.random.fold_in(ctx.key, 1))
    target = jax.lax.stop_gradient(losses.td_target(batch["rewards"], batch["discounts"], next_value))
    if isinstance(dist, Categorical):
        q = ctx.model.heads["q"](params, batch["obs"])
        q = jax.vmap(losses.q_of_actions, (0, None, None))(q, batch["actions"], dist.start)
    else:
        q = ctx.model.heads["q"](params, batch["obs"], batch["actions"])
    td_errors = target - q
    loss = batch.mean(batch["weights"] * 0.5 * jnp.square(td_errors).sum(axis=0))
    metrics = {"mean_q": batch.mean(q[0]), "min_q": q.min(), "max_q": q.max(), "mean_td_error": td_errors.mean()}
    return loss, LearnOutput(metrics, {"td_error": jnp.abs(td_errors).mean(axis=0)})


def temperature_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """Raises the temperature where the entropy is below its target."""
    _, entropy, dist = soft_value(params, params, batch, ctx, jax.random.fold_in(ctx.key, 0))
    target_entropy = ctx.model.heads["target_entropy"](dist)
    loss = batch.mean(losses.temperature_loss(params["log_alpha"], entropy, target_entropy))
    alpha = jnp.exp(params["log_alpha"])
    return loss, LearnOutput(
        {"alpha": alpha, "entropy": batch.mean(entropy), "target_entropy": jnp.mean(target_entropy)}
    )


def optimizer_fn(config: Any, coeffs: Mapping[str, Array]) -> dict[str, Any]:
    """One optimiser for each group, at its own learning rate."""
    rates = {"policy": "actor_lr", "q": "critic_lr", "log_alpha": "entropy_lr"}
    return {group: default_optimizer(config, coeffs, lr) for group, lr in rates.items()}


SACPolicy = build_policy(
    "SACPolicy",
    loss_fn={"policy": actor_loss, "q": critic_loss, "log_alpha": temperature_loss},
    make_model=make_model,
    dist_fn=dist_fn,
    optimizer_fn=optimizer_fn,
    target_fn=functools.partial(target_update, groups=("q",)),
    coeffs_fn=lambda config: learning_rates(config, "actor_lr", "critic_lr", "entropy_lr"),
    default_config=SACPolicyConfig,
)

SACTrainer = build_trainer(
    "SACTrainer",
    default_policy=SACPolicy,
    default_config=SACConfig,
    execution_plan=execution_plan,
    validate_config=validate_actor_critic,
    progress={
        "alpha": "info/learner/*/log_alpha/alpha",
        "mean q": "info/learner/*/q/mean_q",
        "buffer": "info/replay_buffer/*/size",
    },
)

SUPPORT = Support(
    "soft actor-critic",
    "https://arxiv.org/abs/1812.05905",
    discrete=True,
    continuous=True,
    multi_agent=True,
    recurrent=False,
)
