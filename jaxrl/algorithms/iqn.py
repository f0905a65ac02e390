"""IQN: implicit quantile networks (Dabney et al. 2018, https://arxiv.org/abs/1806.06923).

The network gives the return's quantile `Z_tau(s, a)` at any fraction tau. Equation 3, for N fractions tau_i of the
network that learns and N' fractions tau'_j of the target network, all uniform:

    loss = E[w sum_i mean_j |tau_i - 1{delta_ij < 0}| Huber_kappa(delta_ij) / kappa]
    delta_ij = r_n + gamma^n Z_target(s', a*; tau'_j) - Z(s, a; tau_i),   a* = argmax_a mean_k Z(s', a; tau~_k)

with the K fractions tau~_k of acting. The paper chooses a* with the target network, `double_q` with the one that
learns. Replay may be prioritised (by each row's loss), returns of n steps, streams duelling and layers noisy. Acting
without exploration takes fixed fractions, the midpoints of K equal parts.
"""

from __future__ import annotations

import functools
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
from jaxrl.types import Array, LearnOutput, LossContext, ModelInputs, ModelOutput, Params, PyTree


@dataclass(frozen=True, kw_only=True, eq=False)
class IQNPolicyConfig(SimpleQPolicyConfig):
    """Options of IQN's policy."""

    num_quantiles: int = option(64, "Fractions per row of the network that learns (the paper's N).", low=1)
    num_target_quantiles: int = option(64, "Fractions per row of the target network (N').", low=1)
    num_action_quantiles: int = option(32, "Fractions per row that actions are chosen by (K).", low=1)
    embedding_size: int = option(64, "Cosines that a fraction is embedded by.", low=1)
    huber_threshold: float = option(1.0, "Half-width of the Huber loss's parabola (kappa).", low=0)
    hiddens: tuple[int, ...] = option((256,), "Hidden layers of the value streams, after the model's own.")
    dueling: bool = option(False, "Separate streams for the state's value and the actions' advantages.")
    double_q: bool = option(False, "The network that learns chooses the successor's action, the target values it.")
    noisy: bool = option(False, "Noisy layers in the value streams, which explore by themselves.")
    sigma0: float = option(0.5, "Initial noise of noisy layers.", low=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class IQNConfig(IQNPolicyConfig, OffPolicyConfig):
    """Options of IQN."""


def make_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    """Acts by K fractions; its heads `quantiles` and `target_quantiles` give N and N' of the same parameters."""

    def network(num_quantiles: int) -> Model:
        return make_q_model(
            obs_space,
            action_space,
            config.model,
            hiddens=config.hiddens,
            dueling=config.dueling,
            noisy=config.noisy,
            sigma0=config.sigma0,
            num_quantiles=num_quantiles,
            embedding_size=config.embedding_size,
            layer_norm=perturbs(config),
        )

    def at_random_fractions(model: Model, params: Params, obs: PyTree, key: Array) -> ModelOutput:
        return model.apply(params, ModelInputs(obs=obs, key=key))

    heads = {"quantiles": network(config.num_quantiles), "target_quantiles": network(config.num_target_quantiles)}
    return network(config.num_action_quantiles)._replace(
        heads={name: functools.partial(at_random_fractions, model) for name, model in heads.items()}
    )


def iqn_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """Quantile Huber loss of the distributional TD errors."""
    keys, heads, config = jax.random.split(ctx.key, 3), ctx.model.heads, ctx.config
    chooser = params if config.double_q else ctx.target_params
    chosen = ctx.forward(chooser, batch.with_columns(obs=batch["new_obs"]), keys[0])
    best = jnp.argmax(chosen.dist_inputs, axis=-1)
    now = heads["quantiles"](params, batch["obs"], keys[1])
    following = heads["target_quantiles"](ctx.target_params, batch["new_obs"], keys[2]).extras["quantiles"]
    rewards, discounts = batch["rewards"][..., None], batch["discounts"][..., None]
    targets = rewards + discounts * losses.quantiles_of_actions(following, best)
    quantiles = losses.quantiles_of_actions(now.extras["quantiles"], batch["actions"], chosen.dist.start)
    td_errors = losses.quantile_td_errors(quantiles, jax.lax.stop_gradient(targets))
    loss = losses.quantile_huber(td_errors, now.extras["taus"], config.huber_threshold)
    metrics = q_metrics(batch, quantiles.mean(axis=-1), td_errors.mean(axis=(-2, -1)))
    return batch.mean(batch["weights"] * loss), LearnOutput(metrics, {"td_error": loss})


IQNPolicy = build_policy(
    "IQNPolicy", loss_fn=iqn_loss, make_model=make_model, target_fn=target_update, default_config=IQNPolicyConfig
)

IQNTrainer = build_trainer(
    "IQNTrainer",
    default_policy=IQNPolicy,
    default_config=IQNConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={
        "epsilon": "info/learner/*/cur_epsilon",
        "mean q": "info/learner/*/mean_q",
        "buffer": "info/replay_buffer/*/size",
    },
)

SUPPORT = Support(
    "implicit quantile networks",
    "https://arxiv.org/abs/1806.06923",
    discrete=True,
    continuous=False,
    multi_agent=True,
    recurrent=False,
)
