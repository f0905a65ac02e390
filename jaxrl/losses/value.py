"""Value-function terms: squared error and PPO's clipped squared error, without a factor 1/2 (the weight's matter)."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrl.losses.algebra import Term, coeff, term
from jaxrl.losses.statistics import clamp, explained_variance
from jaxrl.types import Array, LearnOutput, LossContext, Params


def value_error() -> Term:
    """Squared error of the value function, `mean((V(s_t) - G_t)^2)`.

    Returns:
        A term reading `obs` and `value_targets`, with the metrics `vf_loss` and `vf_explained_var`.
    """

    def value_error(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        value = ctx.forward(params, batch).value
        target = jax.lax.stop_gradient(batch["value_targets"])
        chex.assert_equal_shape([value, target])
        return reduce_error(jnp.square(value - target), value, target, batch)

    return term(value_error)


def clipped_value_error(vf_clip_param: float = 10.0) -> Term:
    """Squared error of a value function that may move by `vf_clip_param` only.

    Schulman et al. 2016's code, as in RLlib's PPO:
    `mean(max((V - G)^2, (V_old + clip(V - V_old, -vf_clip_param, vf_clip_param) - G)^2))`. Since the clip has the
    scale of returns, it has to be chosen with the rewards.

    Args:
        vf_clip_param: the largest change of a value that the loss rewards; a coeff.

    Returns:
        A term reading `obs`, `vf_preds` and `value_targets`, with the metrics `vf_loss` and `vf_explained_var`.
    """

    def clipped_value_error(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        value = ctx.forward(params, batch).value
        value_old, target = jax.lax.stop_gradient((batch["vf_preds"], batch["value_targets"]))
        chex.assert_equal_shape([value, value_old, target])
        clip = coeff(ctx, "vf_clip_param")
        error = jnp.square(value - target)
        clipped = jnp.square(value_old + clamp(value - value_old, -clip, clip) - target)
        return reduce_error(jnp.where(error >= clipped, error, clipped), value, target, batch)

    return term(clipped_value_error, vf_clip_param=vf_clip_param)


def reduce_error(error: Array, value: Array, target: Array, batch: Any) -> tuple[Array, LearnOutput]:
    """The mean of a value term's errors, and the metrics `vf_loss` and `vf_explained_var`; all of the batch's shape."""
    loss = batch.mean(error)
    return loss, LearnOutput({"vf_loss": loss, "vf_explained_var": explained_variance(target, value, batch)})
