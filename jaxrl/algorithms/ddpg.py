"""DDPG: deep deterministic policy gradient (Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971).

A critic learns the value of the actor's actions, and the actor climbs it; both have slowly moving targets, marked ':

    critics   E[w sum_i (r_n + gamma^n min_j Q_j'(s', mu'(s')) - Q_i(s, a))^2 / 2]      or Huber's loss of the errors
    actor     E[-Q_0(s, mu(s))]

The options `twin_q`, `policy_delay` and `smooth_target_policy` are what TD3 (`jaxrl.algorithms.td3`) adds: a second
critic, an actor and targets that move every few steps only, and noise on mu'.

Departures: policies act in [-1, 1] (`normalize_actions`), so that noise means the same whatever the bounds; critics
see the action in their first layer; each critic learns from its own error; replay is prioritised by default, by the
mean size of the critics' errors, and importance weights are for the critics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl import losses
from jaxrl.config import option
from jaxrl.distributions import DistClass, get_dist_class, inner_bounds
from jaxrl.models import Model, make_actor_critic
from jaxrl.policies import (
    TrainState,
    build_policy,
    default_optimizer,
    every,
    learning_rates,
    target_update,
)
from jaxrl.schedules import Coeff
from jaxrl.trainers import build_trainer
from jaxrl.trainers.off_policy import (
    ActorCriticConfig,
    ActorCriticPolicyConfig,
    execution_plan,
    perturbs,
    validate_actor_critic,
)
from jaxrl.trainers.support import Support
from jaxrl.types import Array, LearnOutput, LossContext, Params, UnsupportedSpaceError


@dataclass(frozen=True, kw_only=True, eq=False)
class DDPGPolicyConfig(ActorCriticPolicyConfig):
    """Options of DDPG's policy."""

    lr: Coeff = option(1e-3, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    exploration_config: Mapping[str, Any] = option(
        {
            "type": "OrnsteinUhlenbeckNoise",
            "random_timesteps": 1000,
            "ou_base_scale": 0.1,
            "ou_theta": 0.15,
            "ou_sigma": 0.2,
            "initial_scale": 1.0,
            "final_scale": 1.0,
            "scale_timesteps": 10_000,
        },
        "Exploration: {'type': name, **options}.",
    )
    actor_hiddens: tuple[int, ...] = option((400, 300), "Hidden layers of the actor.")
    critic_hiddens: tuple[int, ...] = option((400, 300), "Hidden layers of each critic.")
    twin_q: bool = option(False, "Two critics, of whose target values the smaller counts.")
    policy_delay: int = option(1, "The actor and the targets move on every so many-th gradient step.", low=1)
    smooth_target_policy: bool = option(False, "Add clipped noise to the target actor's actions.")
    target_noise: float = option(0.2, "Deviation of that noise, in units of half the action's range.", low=0)
    target_noise_clip: float = option(0.5, "Bound of that noise, in the same units.", low=0)
    use_huber: bool = option(False, "Huber's loss of the critics' errors instead of half their squares.")
    huber_threshold: float = option(1.0, "Half-width of the Huber loss's parabola.", low=0)
    l2_reg: float = option(1e-6, "Weight of half the squares of all weight matrices.", low=0)
    target_network_update_freq: int = option(
        0, "Env steps between updates of the target networks; 0: after every gradient step that moves the actor.", low=0
    )
    tau: float = option(2e-3, "An update of the target networks: tau * params + (1 - tau) * target.", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class DDPGConfig(DDPGPolicyConfig, ActorCriticConfig):
    """Options of DDPG."""

    prioritized_replay: bool = option(True, "Draw rows by priority, the size of their TD error, instead of evenly.")


def dist_fn(action_space: gymnasium.Space, config: Any) -> DistClass:
    """All mass on the actor's action."""
    if not isinstance(action_space, spaces.Box) or np.dtype(action_space.dtype).kind != "f":
        raise UnsupportedSpaceError(
            f"action_space: a deterministic actor needs a Box of floats, got {action_space}; use DQN or SAC for "
            "discrete actions, PPO for others"
        )
    if not (action_space.is_bounded() and np.all(action_space.low < action_space.high)):
        raise UnsupportedSpaceError(
            f"action_space: a deterministic actor needs finite bounds, low < high, got {action_space}; bound it in an "
            "environment wrapper, or use SAC"
        )
    return get_dist_class(action_space, dist_type="deterministic")


def make_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    """Actor and critics; the head `smoothed(actions, key)` adds the noise of target policy smoothing."""
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
        use_state_preprocessor=config.use_state_preprocessor,
        layer_norm=perturbs(config),
    )
    return model._replace(heads={**model.heads, "smoothed": _smoothing(action_space, config)})


def _smoothing(space: Any, config: Any) -> Callable[[Array, Array], Array]:
    low, high = inner_bounds(space)
    half = high / 2 - low / 2

    def smoothed(actions: Array, key: Array) -> Array:
        noise = config.target_noise * half * jax.random.normal(key, actions.shape, actions.dtype)
        return losses.smoothed_actions(actions, noise, config.target_noise_clip * half, low, high)

    return smoothed


def actor_loss(params: Params, batch: Any, ctx: LossContext) -> Array:
    """The first critic's value of the actor's actions, negated."""
    actions = ctx.forward(params, batch).dist.mode()
    q = ctx.model.heads["q"](params, batch["obs"], actions)[0]
    return batch.mean(losses.deterministic_policy_loss(q)) + _l2(params["policy"], ctx)


def critic_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """The loss of each critic's error, added."""
    config, heads = ctx.config, ctx.model.heads
    next_actions = ctx.forward(ctx.target_params, batch.with_columns(obs=batch["new_obs"])).dist.mode()
    if config.smooth_target_policy:
        next_actions = heads["smoothed"](next_actions, ctx.key)
    next_q = losses.clipped_double_q(heads["q"](ctx.target_params, batch["new_obs"], next_actions))
    target = jax.lax.stop_gradient(losses.td_target(batch["rewards"], batch["discounts"], next_q))
    q = heads["q"](params, batch["obs"], batch["actions"])
    td_errors = target - q
    loss = losses.huber(td_errors, config.huber_threshold) if config.use_huber else 0.5 * jnp.square(td_errors)
    metrics = {"mean_q": batch.mean(q[0]), "min_q": q.min(), "max_q": q.max(), "mean_td_error": td_errors.mean()}
    total = batch.mean(batch["weights"] * loss.sum(axis=0)) + _l2(params["q"], ctx)
    return total, LearnOutput(metrics, {"td_error": jnp.abs(td_errors).mean(axis=0)})


def _l2(params: Params, ctx: LossContext) -> Array | float:
    if not ctx.config.l2_reg:
        return 0.0
    return 0.5 * ctx.config.l2_reg * sum(jnp.square(x).sum() for x in jax.tree.leaves(params) if x.ndim > 1)


def optimizer_fn(config: Any, coeffs: Mapping[str, Array]) -> dict[str, Any]:
    """One optimiser for the critics, and a slower one for the actor."""
    return {
        "policy": every(config.policy_delay, default_optimizer(config, coeffs, "actor_lr")),
        "q": default_optimizer(config, coeffs, "critic_lr"),
    }


def target_fn(state: TrainState, config: Any) -> Params:
    """The targets move with the actor."""
    moved = target_update(state, config)
    if config.policy_delay == 1:
        return moved
    due = state.step % config.policy_delay == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, state.target_params)


DDPGPolicy = build_policy(
    "DDPGPolicy",
    loss_fn={"policy": actor_loss, "q": critic_loss},
    make_model=make_model,
    dist_fn=dist_fn,
    optimizer_fn=optimizer_fn,
    target_fn=target_fn,
    coeffs_fn=lambda config: learning_rates(config, "actor_lr", "critic_lr"),
    default_config=DDPGPolicyConfig,
)

DDPGTrainer = build_trainer(
    "DDPGTrainer",
    default_policy=DDPGPolicy,
    default_config=DDPGConfig,
    execution_plan=execution_plan,
    validate_config=validate_actor_critic,
    progress={"mean q": "info/learner/*/q/mean_q", "buffer": "info/replay_buffer/*/size"},
)

SUPPORT = Support(
    "deep deterministic policy gradient",
    "https://arxiv.org/abs/1509.02971",
    discrete=False,
    continuous=True,
    multi_agent=True,
    recurrent=False,
)
