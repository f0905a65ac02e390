"""V-trace: values and advantages of a policy from what another, somewhat older one did.

Conventions as in `jaxrl.losses.returns`: recursions over axis 0 with any trailing axes, `v_tp1` the value of the true
successor, `terminated_t` and `ended_t` apart, absent rows passed through. No gradient is stopped here: the terms do it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrl.losses.returns import check_rows, reverse_recursion
from jaxrl.losses.statistics import MAX_LOG_RATIO, clamp
from jaxrl.types import Array


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
    rho_t = jnp.exp(clamp(log_rho_t, -jnp.inf, MAX_LOG_RATIO))
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
