"""SimpleQ: deep Q-learning without extensions (Mnih et al. 2015, https://doi.org/10.1038/nature14236).

`loss = E[w Huber(r + gamma max_a Q_target(s', a) - Q(s, a))]` on rows drawn from the replay memory; the target network
follows every `target_network_update_freq` env steps. The weights w are ones unless replay is prioritised.

Departure: the gradient is clipped by its global norm instead of each variable's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxrl import losses
from jaxrl.config import option
from jaxrl.models import Model, make_q_model
from jaxrl.policies import PolicyConfig, build_policy, target_update
from jaxrl.schedules import Coeff
from jaxrl.trainers import build_trainer
from jaxrl.trainers.off_policy import OffPolicyConfig, execution_plan, perturbs, validate_config
from jaxrl.trainers.support import Support
from jaxrl.types import Array, LearnOutput, LossContext, Params


@dataclass(frozen=True, kw_only=True, eq=False)
class SimpleQPolicyConfig(PolicyConfig):
    """Options of SimpleQ's policy."""

    lr: Coeff = option(5e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    grad_clip: float | None = option(40.0, "Clip the gradients' global norm to this; None: no clipping.", low=0)
    exploration_config: Mapping[str, Any] = option(
        {"type": "EpsilonGreedy", "initial_epsilon": 1.0, "final_epsilon": 0.02, "epsilon_timesteps": 10_000},
        "Exploration: {'type': name, **options}.",
    )
    target_network_update_freq: int = option(
        500, "Env steps between updates of the target network; 0: after every gradient step.", low=0
    )
    tau: float = option(1.0, "An update of the target network: tau * params + (1 - tau) * target.", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class SimpleQConfig(SimpleQPolicyConfig, OffPolicyConfig):
    """Options of SimpleQ."""


def make_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    """The model's own layers, and a linear one to the action values."""
    return make_q_model(obs_space, action_space, config.model, hiddens=(), dueling=False, layer_norm=perturbs(config))


def simple_q_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """Huber loss of the one-step TD error."""
    now = ctx.forward(params, batch)
    next_q = ctx.forward(ctx.target_params, batch.with_columns(obs=batch["new_obs"])).dist_inputs
    target = losses.td_target(batch["rewards"], batch["discounts"], next_q.max(axis=-1))
    q = losses.q_of_actions(now.dist_inputs, batch["actions"], now.dist.start)
    td_error = losses.td_error(q, jax.lax.stop_gradient(target))
    loss = batch.mean(batch["weights"] * losses.huber(td_error))
    return loss, LearnOutput(q_metrics(batch, q, td_error), {"td_error": td_error})


def q_metrics(batch: Any, q: Array, td_error: Array) -> dict[str, Array]:
    """What results show of the values of the actions taken `q [N]`, and of their errors `[N]`."""
    return {
        "mean_q": batch.mean(q),
        "min_q": q.min(),
        "max_q": q.max(),
        "mean_td_error": batch.mean(td_error),
    }


SimpleQPolicy = build_policy(
    "SimpleQPolicy",
    loss_fn=simple_q_loss,
    make_model=make_model,
    target_fn=target_update,
    default_config=SimpleQPolicyConfig,
)

SimpleQTrainer = build_trainer(
    "SimpleQTrainer",
    default_policy=SimpleQPolicy,
    default_config=SimpleQConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={
        "epsilon": "info/learner/*/cur_epsilon",
        "mean q": "info/learner/*/mean_q",
        "buffer": "info/replay_buffer/*/size",
    },
)

SUPPORT = Support(
    "deep Q-learning as first published",
    "https://doi.org/10.1038/nature14236",
    discrete=True,
    continuous=False,
    multi_agent=True,
    recurrent=False,
)
