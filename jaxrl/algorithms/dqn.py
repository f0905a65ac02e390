"""DQN: deep Q-learning (Mnih et al. 2015, https://doi.org/10.1038/nature14236) and its extensions up to Rainbow.

`loss = E[w Huber(r_n + gamma^n Q_target(s', argmax_a Q(s', a)) - Q(s, a))]`, with double Q-learning
(https://arxiv.org/abs/1509.06461), duelling streams (https://arxiv.org/abs/1511.06581), prioritised replay
(https://arxiv.org/abs/1511.05952), n-step returns, noisy layers (https://arxiv.org/abs/1706.10295) and distributions of
returns, C51 (https://arxiv.org/abs/1707.06887); all of them together are Rainbow (https://arxiv.org/abs/1710.02298).

Departures: rows near a fragment's end wait for their n steps instead of being cut short; the gradient is clipped by its
global norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import losses
from jaxrl.algorithms.simple_q import SimpleQPolicyConfig, q_metrics
from jaxrl.config import option
from jaxrl.models import Model, make_q_model
from jaxrl.policies import build_policy, target_update
from jaxrl.trainers import build_trainer
from jaxrl.trainers.off_policy import OffPolicyConfig, execution_plan, perturbs, validate_config
from jaxrl.trainers.support import Support
from jaxrl.types import Array, LearnOutput, LossContext, Params


@dataclass(frozen=True, kw_only=True, eq=False)
class DQNPolicyConfig(SimpleQPolicyConfig):
    """Options of DQN's policy."""

    hiddens: tuple[int, ...] = option((256,), "Hidden layers of the value streams, after the model's own.")
    dueling: bool = option(True, "Separate streams for the state's value and the actions' advantages.")
    double_q: bool = option(True, "The network that learns chooses the successor's action, the target values it.")
    noisy: bool = option(False, "Noisy layers in the value streams, which explore by themselves.")
    sigma0: float = option(0.5, "Initial noise of noisy layers.", low=0)
    num_atoms: int = option(1, "Atoms of the return's distribution; 1: its mean alone.", low=1)
    v_min: float = option(-10.0, "Lowest return of the distribution's support.")
    v_max: float = option(10.0, "Highest return of the distribution's support.")


@dataclass(frozen=True, kw_only=True, eq=False)
class DQNConfig(DQNPolicyConfig, OffPolicyConfig):
    """Options of DQN."""

    prioritized_replay: bool = option(True, "Draw rows by priority, the size of their TD error, instead of evenly.")


def make_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    """Action values, or their distributions, by the options."""
    return make_q_model(
        obs_space,
        action_space,
        config.model,
        hiddens=config.hiddens,
        dueling=config.dueling,
        noisy=config.noisy,
        sigma0=config.sigma0,
        num_atoms=config.num_atoms,
        v_min=config.v_min,
        v_max=config.v_max,
        layer_norm=perturbs(config),
    )


def dqn_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """Huber loss of the TD error, or cross-entropy to the projected target distribution where there are atoms."""
    keys = jax.random.split(ctx.key, 3)
    successors = batch.with_columns(obs=batch["new_obs"])
    now = ctx.forward(params, batch, keys[0])
    target = ctx.forward(ctx.target_params, successors, keys[1])
    chooser = ctx.forward(params, successors, keys[2]) if ctx.config.double_q else target
    start, actions, rewards, discounts = now.dist.start, batch["actions"], batch["rewards"], batch["discounts"]
    q = losses.q_of_actions(now.dist_inputs, actions, start)
    if ctx.config.num_atoms == 1:
        next_q = losses.double_q_values(target.dist_inputs, chooser.dist_inputs)
        td_error = losses.td_error(q, jax.lax.stop_gradient(losses.td_target(rewards, discounts, next_q)))
        loss = losses.huber(td_error)
    else:
        support = losses.value_support(ctx.config.v_min, ctx.config.v_max, ctx.config.num_atoms)
        best = jnp.argmax(chooser.dist_inputs, axis=-1)
        next_probs = jax.nn.softmax(losses.atoms_of_actions(target.extras["q_logits"], best))
        target_probs = losses.categorical_td_target(rewards, discounts, next_probs, support)
        logits = losses.atoms_of_actions(now.extras["q_logits"], actions, start)
        loss = td_error = losses.cross_entropy(jax.lax.stop_gradient(target_probs), logits)
    return batch.mean(batch["weights"] * loss), LearnOutput(q_metrics(batch, q, td_error), {"td_error": td_error})


DQNPolicy = build_policy(
    "DQNPolicy", loss_fn=dqn_loss, make_model=make_model, target_fn=target_update, default_config=DQNPolicyConfig
)

DQNTrainer = build_trainer(
    "DQNTrainer",
    default_policy=DQNPolicy,
    default_config=DQNConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={
        "epsilon": "info/learner/*/cur_epsilon",
        "mean q": "info/learner/*/mean_q",
        "buffer": "info/replay_buffer/*/size",
    },
)

SUPPORT = Support(
    "deep Q-learning up to Rainbow",
    "https://arxiv.org/abs/1710.02298",
    discrete=True,
    continuous=False,
    multi_agent=True,
    recurrent=False,
)
