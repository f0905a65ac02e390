"""Policy-gradient terms. Each factory returns a term: `loss_fn(params, batch, ctx)` with named coeffs, to be minimised.

All are elementwise over rows and reduced by `batch.mean`, hence the same for flat, time-major and padded batches.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrl.losses.algebra import Term, coeff, term
from jaxrl.losses.statistics import MAX_LOG_RATIO, clamp, standardize
from jaxrl.types import Array, LearnOutput, LossContext, Params


def reinforce() -> Term:
    """REINFORCE, `-mean(log pi(a_t | s_t) * A_t)`.

    Williams 1992, https://doi.org/10.1007/BF00992696, with whatever stands in the `advantages` column for the
    return (the discounted return if nothing reads `value_targets`).

    Returns:
        A term reading `obs`, `actions` and `advantages`; its gradient flows through the log-probability only.
    """

    def reinforce(params: Params, batch: Any, ctx: LossContext) -> Array:
        log_prob = ctx.forward(params, batch).dist.log_prob(batch["actions"])
        advantages = batch["advantages"]
        chex.assert_equal_shape([log_prob, advantages])
        return -batch.mean(log_prob * advantages)

    return term(reinforce)


def advantage_policy_gradient(*, standardized: bool = False) -> Term:
    """Advantage actor-critic's policy term, `-mean(log pi(a_t | s_t) * stop_gradient(A_t))`.

    Mnih et al. 2016, https://arxiv.org/abs/1602.01783, section 4. The value of `reinforce`, but safe where the
    advantages depend on the parameters (a critic evaluated within the loss). A mean over rows, where RLlib's A3C
    takes a sum: the learning rate does not depend on the batch size.

    Args:
        standardized: advantages are shifted and scaled to mean 0 and deviation 1 over the (mini)batch.

    Returns:
        A term reading `obs`, `actions` and `advantages`.
    """

    def advantage_policy_gradient(params: Params, batch: Any, ctx: LossContext) -> Array:
        log_prob = ctx.forward(params, batch).dist.log_prob(batch["actions"])
        advantages = jax.lax.stop_gradient(batch["advantages"])
        chex.assert_equal_shape([log_prob, advantages])
        if standardized:
            advantages = standardize(advantages, batch.get("mask"))
        return -batch.mean(log_prob * advantages)

    return term(advantage_policy_gradient)


def clipped_surrogate(clip_param: float = 0.3, *, standardized: bool = False) -> Term:
    """PPO's clipped surrogate objective, negated.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7:
    `-mean(min(r_t * A_t, clip(r_t, 1 - clip_param, 1 + clip_param) * A_t))`, `r_t = pi(a_t | s_t) / pi_old(a_t | s_t)`.

    Args:
        clip_param: half-width of the ratio's range; a coeff.
        standardized: as of `advantage_policy_gradient`.

    Returns:
        A term reading `obs`, `actions`, `action_logp` and `advantages`.
    """

    def clipped_surrogate(params: Params, batch: Any, ctx: LossContext) -> Array:
        log_prob = ctx.forward(params, batch).dist.log_prob(batch["actions"])
        log_prob_old, advantages = jax.lax.stop_gradient((batch["action_logp"], batch["advantages"]))
        chex.assert_equal_shape([log_prob, log_prob_old, advantages])
        if standardized:
            advantages = standardize(advantages, batch.get("mask"))
        clip = coeff(ctx, "clip_param")
        ratio = jnp.exp(clamp(log_prob - log_prob_old, -jnp.inf, MAX_LOG_RATIO))
        unclipped, clipped = ratio * advantages, clamp(ratio, 1.0 - clip, 1.0 + clip) * advantages
        return -batch.mean(jnp.where(unclipped <= clipped, unclipped, clipped))

    return term(clipped_surrogate, clip_param=clip_param)


def kl_penalty() -> Term:
    """Mean KL divergence of the new policy from the behaviour policy, `mean(KL(pi_old(. | s_t) || pi(. | s_t)))`.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 8; its adaptive weight is the coeff that the
    weighted sum makes of it, changed by the algorithm's update function.

    Returns:
        A term reading `obs` and `action_dist_inputs`, with the metric `kl`.
    """

    def kl_penalty(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        dist = ctx.forward(params, batch).dist
        dist_old = ctx.dist_class(jax.lax.stop_gradient(batch["action_dist_inputs"]))
        kl = batch.mean(dist_old.kl(dist))
        return kl, LearnOutput({"kl": kl})

    return term(kl_penalty)


def entropy_bonus() -> Term:
    """Entropy bonus: `-mean(H(pi(. | s_t)))`, so that a positive weight rewards entropy.

    Williams and Peng 1991, https://doi.org/10.1080/09540099108946587.

    Returns:
        A term reading `obs`. Its metric `entropy` is the mean entropy itself, positive as RLlib reports it; in a
        weighted sum it takes the place of the negated value if the term is named `entropy`.
    """

    def entropy_bonus(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        entropy = batch.mean(ctx.forward(params, batch).dist.entropy())
        return -entropy, LearnOutput({"entropy": entropy})

    return term(entropy_bonus)
