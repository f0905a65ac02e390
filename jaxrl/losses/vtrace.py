"""V-trace: values and advantages of a policy from what another, somewhat older one did.

Conventions as in `jaxrl.losses.returns`: recursions over axis 0 with any trailing axes, `v_tp1` the value of the true
successor, `terminated_t` and `ended_t` apart, absent rows passed through. `vtrace` stops no gradient: the terms do.

The terms of one loss share one V-trace (`ctx.once`), and with it the thresholds that the policy's term carries as
coeffs. Values, those of successors too, are of the parameters that learn; the policy to value is theirs as well or, for
the terms that say so, the target network's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl.losses.algebra import Term, coeff, sequence_term, term
from jaxrl.losses.returns import check_rows, reverse_recursion
from jaxrl.losses.statistics import MAX_LOG_RATIO, clamp, standardize
from jaxrl.losses.value import reduce_error
from jaxrl.types import Array, LearnOutput, LossContext, LossError, Params

CLIP_RHO, CLIP_PG_RHO = "vtrace_clip_rho_threshold", "vtrace_clip_pg_rho_threshold"


class VTraceOutput(NamedTuple):
    """What V-trace gives, each float32 `[T, ...]` and 0 at absent rows.

    Attributes:
        vs: targets of the value function, `errors + v_t`.
        pg_advantages: factors of the policy gradient, `min(clip_pg_rho, rho_t) (r_t + discount vs_{t+1} - v_t)`.
        errors: `vs - v_t`.
    """

    vs: Array
    pg_advantages: Array
    errors: Array


def vtrace(
    r_t: Any,
    v_t: Any,
    v_tp1: Any,
    log_rho_t: Any,
    terminated_t: Any,
    ended_t: Any,
    discount: Any,
    lambda_: Any = 1.0,
    clip_rho: Any = 1.0,
    clip_pg_rho: Any = 1.0,
    clip_c: Any = 1.0,
    mask: Any = None,
) -> VTraceOutput:
    """V-trace targets and policy-gradient advantages.

    Espeholt et al. 2018, https://arxiv.org/abs/1802.01561. Equation 1 in its recursive form (remark 1), with
    `rho_t = pi(a_t | s_t) / mu(a_t | s_t)`, `c_t = lambda_ min(clip_c, rho_t)` (remark 2):

        delta_t = min(clip_rho, rho_t) (r_t + discount v_tp1 - v_t)
        vs_t - v_t = delta_t + discount c_t (vs_{t+1} - v_{t+1})

    and section 4.2's policy gradient, whose bootstrap is mixed by lambda as in rlax:

        A_t = min(clip_pg_rho, rho_t) (r_t + discount (lambda_ vs_{t+1} + (1 - lambda_) v_{t+1}) - v_t)

    On-policy (`rho_t = 1`) `vs` are lambda-returns, with lambda 1 n-step returns to the end of the rows.

    Args:
        r_t: rewards `[T, ...]`.
        v_t: values of the rows' observations `[T, ...]`.
        v_tp1: values of their true successors `[T, ...]`; ignored (even if NaN) where terminated.
        log_rho_t: `log pi(a_t | s_t) - log mu(a_t | s_t)` `[T, ...]`, pi being the policy to value, mu the one that
            acted.
        terminated_t: bool `[T, ...]`, the successor is terminal.
        ended_t: bool `[T, ...]`, the episode ends with the row (terminated or truncated).
        discount: discount factor, scalar or `[T, ...]`.
        lambda_: scalar or `[T, ...]`; 0 gives one-step errors.
        clip_rho: largest weight of a TD error, which sets what the values converge to (equation 2); None or inf: none.
        clip_pg_rho: largest weight of a policy gradient; None or inf: none.
        clip_c: largest factor of a trace, which sets how fast they converge; None or inf: none.
        mask: bool `[T, ...]`, False where the row is absent; None if all are there.

    Returns:
        VTraceOutput.

    Example:
        ```python
        out = vtrace(r_t=jnp.ones(2), v_t=jnp.zeros(2), v_tp1=jnp.zeros(2), log_rho_t=jnp.log(jnp.array([2.0, 0.5])),
                     terminated_t=jnp.array([False, True]), ended_t=jnp.array([False, True]), discount=0.5)
        out.vs                                                        # [1.25, 0.5]
        out.pg_advantages                                             # [1.25, 0.5]
        ```
    """
    r_t, v_t, v_tp1, log_rho_t, terminated_t, ended_t, mask = check_rows(
        r_t, v_t, v_tp1, log_rho_t, terminated_t, ended_t, mask
    )
    rho_t = _ratio(log_rho_t)
    next_v_t = jnp.where(terminated_t, 0.0, v_tp1)
    delta_t = _capped(rho_t, clip_rho) * (r_t + discount * next_v_t - v_t)
    # What of the next row's error reaches this one: nothing of another episode's.
    trace_t = jnp.where(ended_t, 0.0, jnp.broadcast_to(discount * lambda_, r_t.shape))
    decay_t = trace_t * _capped(rho_t, clip_c)
    if mask is not None:
        delta_t, decay_t = jnp.where(mask, delta_t, 0.0), jnp.where(mask, decay_t, 1.0)
    # At absent rows this is the next present row's error, so that one step further always stands what follows.
    errors = reverse_recursion(delta_t, decay_t)
    following = jnp.concatenate([errors[1:], jnp.zeros_like(errors[:1])])
    advantages = _capped(rho_t, clip_pg_rho) * (r_t + discount * next_v_t + trace_t * following - v_t)
    out = VTraceOutput(errors + v_t, advantages, errors)
    return out if mask is None else VTraceOutput(*(jnp.where(mask, x, 0.0) for x in out))


def _capped(rho_t: Array, threshold: Any) -> Array:
    return rho_t if threshold is None else clamp(rho_t, -jnp.inf, threshold)


def vtrace_policy_gradient(
    vtrace_clip_rho_threshold: float = 1.0, vtrace_clip_pg_rho_threshold: float = 1.0, *, standardized: bool = False
) -> Term:
    """IMPALA's policy gradient, `-mean(log pi(a_t | s_t) * stop_gradient(A_t))` with V-trace's advantages.

    Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, section 4.2. A mean over rows, where the paper and RLlib
    take a sum: the learning rate does not depend on the batch size. Discount and lambda are the options `gamma` and
    `lambda` of the policy.

    Args:
        vtrace_clip_rho_threshold: largest weight of a TD error, inf for none; a coeff.
        vtrace_clip_pg_rho_threshold: largest weight of a row's gradient, inf for none; a coeff.
        standardized: advantages are shifted and scaled to mean 0 and deviation 1 over the (mini)batch.

    Returns:
        A term over whole columns, reading `obs`, `actions`, `action_logp`, `rewards`, `terminateds`, `truncateds` and
        what successors are made of; its metrics `mean_rho` and `mean_clipped_rho` are the mean importance weight before
        and after clipping: both 1 on-policy, the latter the lower the further the policies are apart.
    """

    def vtrace_policy_gradient(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        log_prob = ctx.forward(params, batch).dist.log_prob(batch["actions"])
        corrected = ctx.once(_corrected, params, batch)
        chex.assert_equal_shape([log_prob, corrected.advantages])
        advantages = corrected.advantages
        if standardized:
            advantages = standardize(advantages, batch.get("mask"))
        return -batch.mean(log_prob * advantages), LearnOutput(corrected.metrics)

    return sequence_term(vtrace_policy_gradient, **_thresholds(vtrace_clip_rho_threshold, vtrace_clip_pg_rho_threshold))


def vtrace_value_error(*, target_policy: bool = False) -> Term:
    """Squared error of the value function to V-trace's targets, `mean((V(s_t) - vs_t)^2)`.

    Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, section 4.2; without a factor 1/2, as `value_error`. It
    reads the threshold that the policy's term of the same weighted sum carries.

    Args:
        target_policy: the targets value the target network's policy, as those of `vtrace_surrogate` do.

    Returns:
        A term over whole columns, with the metrics `vf_loss` and `vf_explained_var`.
    """

    def vtrace_value_error(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        value = ctx.forward(params, batch).value
        target = ctx.once(_corrected_to_target if target_policy else _corrected, params, batch).targets
        chex.assert_equal_shape([value, target])
        return reduce_error(jnp.square(value - target), value, target, batch)

    return sequence_term(vtrace_value_error)


def vtrace_surrogate(
    clip_param: float = 0.4,
    is_ratio_clip: float = 2.0,
    vtrace_clip_rho_threshold: float = 1.0,
    vtrace_clip_pg_rho_threshold: float = 1.0,
    *,
    standardized: bool = False,
) -> Term:
    """IMPACT's clipped surrogate around a target policy, with V-trace's advantages, negated.

    Luo et al. 2019, https://arxiv.org/abs/1912.00167; RLlib's APPO with `vtrace`. The worker acted by `mu`,
    the target network's policy `pi_target` is a slower one that the trust region is around:
    `-mean(min(r_t A_t, clip(r_t, 1 - clip_param, 1 + clip_param) A_t))` with
    `r_t = min(mu / pi_target, is_ratio_clip) pi / mu`, which is `pi / pi_target` but where that weight is clipped.
    V-trace values `pi_target`.

    Args:
        clip_param: half-width of the ratio's range; a coeff.
        is_ratio_clip: largest `mu / pi_target`; a coeff.
        vtrace_clip_rho_threshold, vtrace_clip_pg_rho_threshold, standardized: as of `vtrace_policy_gradient`.

    Returns:
        A term over whole columns that reads what `vtrace_policy_gradient` reads, of a policy with a target network. Its
        metrics are those, and `mean_IS` and `var_IS` of the clipped `mu / pi_target`.
    """

    def vtrace_surrogate(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        log_prob = ctx.forward(params, batch).dist.log_prob(batch["actions"])
        corrected, log_prob_mu = ctx.once(_corrected_to_target, params, batch), batch["action_logp"]
        chex.assert_equal_shape([log_prob, log_prob_mu, corrected.advantages])
        clip, advantages = coeff(ctx, "clip_param"), corrected.advantages
        if standardized:
            advantages = standardize(advantages, batch.get("mask"))
        weight = jnp.minimum(_ratio(log_prob_mu - corrected.log_prob), coeff(ctx, "is_ratio_clip"))
        ratio = weight * _ratio(log_prob - log_prob_mu)
        unclipped, clipped = ratio * advantages, clamp(ratio, 1.0 - clip, 1.0 + clip) * advantages
        loss = -batch.mean(jnp.where(unclipped <= clipped, unclipped, clipped))
        mean = batch.mean(weight)
        moments = {"mean_IS": mean, "var_IS": batch.mean(jnp.square(weight - mean))}
        return loss, LearnOutput({**corrected.metrics, **moments})

    thresholds = _thresholds(vtrace_clip_rho_threshold, vtrace_clip_pg_rho_threshold)
    return sequence_term(vtrace_surrogate, clip_param=clip_param, is_ratio_clip=is_ratio_clip, **thresholds)


def target_kl_penalty() -> Term:
    """Mean KL divergence of the policy from the target network's, `mean(KL(pi_target(. | s_t) || pi(. | s_t)))`.

    Luo et al. 2019, https://arxiv.org/abs/1912.00167; RLlib's APPO with `use_kl_loss`.

    Returns:
        A term reading `obs`, of a policy with a target network, with the metric `kl`.
    """

    def target_kl_penalty(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        target = ctx.dist_class(jax.lax.stop_gradient(ctx.forward(_target_params(ctx), batch).dist_inputs))
        kl = batch.mean(target.kl(ctx.forward(params, batch).dist))
        return kl, LearnOutput({"kl": kl})

    return term(target_kl_penalty)


class _Corrected(NamedTuple):
    """What the terms share, all `[T, B]` and without gradient."""

    targets: Array
    advantages: Array
    log_prob: Array
    metrics: dict[str, Array]


def _corrected(params: Params, batch: Any, ctx: LossContext) -> _Corrected:
    return _correct(params, batch, ctx, params)


def _corrected_to_target(params: Params, batch: Any, ctx: LossContext) -> _Corrected:
    return _correct(params, batch, ctx, _target_params(ctx))


def _correct(params: Params, batch: Any, ctx: LossContext, policy_params: Params) -> _Corrected:
    log_prob = ctx.forward(policy_params, batch).dist.log_prob(batch["actions"])
    log_prob, value = jax.lax.stop_gradient((log_prob, ctx.forward(params, batch).value))
    next_value, log_rho = ctx.next_values(params, batch), log_prob - batch["action_logp"]
    clip_rho = coeff(ctx, CLIP_RHO)
    out = vtrace(
        batch["rewards"],
        value,
        next_value,
        log_rho,
        batch["terminateds"],
        batch["dones"],
        ctx.config.gamma,
        ctx.config.lambda_,
        clip_rho=clip_rho,
        clip_pg_rho=coeff(ctx, CLIP_PG_RHO),
        mask=batch.get("mask"),
    )
    rho = _ratio(log_rho)
    metrics = {"mean_rho": batch.mean(rho), "mean_clipped_rho": batch.mean(clamp(rho, -jnp.inf, clip_rho))}
    return _Corrected(out.vs, out.pg_advantages, log_prob, metrics)


def _ratio(log_ratio: Array) -> Array:
    return jnp.exp(clamp(log_ratio, -jnp.inf, MAX_LOG_RATIO))


def _thresholds(clip_rho: float, clip_pg_rho: float) -> dict[str, float]:
    return {CLIP_RHO: clip_rho, CLIP_PG_RHO: clip_pg_rho}


def _target_params(ctx: LossContext) -> Params:
    if ctx.target_params is None:
        raise LossError("this term needs a target network: give build_policy a target_fn (policies.lagged_target).")
    return ctx.target_params
