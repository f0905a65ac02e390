"""Returns and advantages: reverse recursions over axis 0 (time), with any trailing axes.

Conventions, after rlax: `_t` is the row itself, `_tp1` what comes after it. `v_tp1` is the value of the row's *true*
successor (at a time limit that of the final observation, never of the next episode's first one), so that the caller
alone decides what to bootstrap from. `terminated_t` ends the future; `ended_t` (terminated or truncated) ends the
recursion. The last row of a fragment bootstraps from its `v_tp1` as a truncated one does. Rows where `mask` is False
are absent: the recursion passes through them unchanged, and their result is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl.types import Array


class GAEOutput(NamedTuple):
    """Advantages `[T, ...]` and value targets `[T, ...]` (advantages + values: lambda-returns)."""

    advantages: Array
    value_targets: Array


def gae(
    r_t: Any,
    v_t: Any,
    v_tp1: Any,
    terminated_t: Any,
    ended_t: Any,
    discount: Any,
    lambda_: Any,
    mask: Any = None,
) -> GAEOutput:
    """Generalised advantage estimation.

    Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16:
    `A_t = delta_t + discount * lambda_ * A_{t+1}`, `delta_t = r_t + discount * v_tp1 - v_t`.

    Args:
        r_t: rewards `[T, ...]`.
        v_t: values of the rows' observations `[T, ...]`.
        v_tp1: values of their true successors `[T, ...]`; ignored (even if NaN) where terminated.
        terminated_t: bool `[T, ...]`, the successor is terminal.
        ended_t: bool `[T, ...]`, the episode ends with the row (terminated or truncated).
        discount: discount factor, scalar or `[T, ...]`.
        lambda_: scalar or `[T, ...]`; 0 gives one-step TD errors, 1 returns minus values.
        mask: bool `[T, ...]`, False where the row is absent; None if all are there.

    Returns:
        Advantages and value targets, float32 `[T, ...]`; 0 at absent rows.

    Example:
        ```python
        out = gae(r_t=jnp.ones(2), v_t=jnp.zeros(2), v_tp1=jnp.zeros(2), terminated_t=jnp.array([False, True]),
                  ended_t=jnp.array([False, True]), discount=0.5, lambda_=1.0)
        out.advantages                                                # [1.5, 1.0]
        ```
    """
    r_t, v_t, v_tp1, terminated_t, ended_t, mask = check_rows(r_t, v_t, v_tp1, terminated_t, ended_t, mask)
    delta_t = r_t + discount * jnp.where(terminated_t, 0.0, v_tp1) - v_t
    decay_t = jnp.where(ended_t, 0.0, jnp.broadcast_to(discount * lambda_, r_t.shape))
    advantages = reverse_recursion(delta_t, decay_t, mask)
    targets = advantages + v_t
    return GAEOutput(advantages, targets if mask is None else jnp.where(mask, targets, 0.0))


def lambda_returns(
    r_t: Any,
    v_tp1: Any,
    terminated_t: Any,
    ended_t: Any,
    discount: Any,
    lambda_: Any,
    mask: Any = None,
) -> Array:
    """Lambda-returns: a mixture of all n-step returns.

    Sutton and Barto 2018, http://incompleteideas.net/book/the-book-2nd.html, equation 12.20:
    `G_t = r_t + discount * ((1 - lambda_) * v_tp1 + lambda_ * G_{t+1})`.

    Args:
        r_t: rewards `[T, ...]`.
        v_tp1: values of the true successors `[T, ...]`; ignored where terminated.
        terminated_t: bool `[T, ...]`.
        ended_t: bool `[T, ...]`.
        discount: scalar or `[T, ...]`.
        lambda_: scalar or `[T, ...]`.
        mask: bool `[T, ...]` or None.

    Returns:
        Returns, float32 `[T, ...]`; 0 at absent rows.
    """
    r_t, v_tp1, terminated_t, ended_t, mask = check_rows(r_t, v_tp1, terminated_t, ended_t, mask)
    # Nothing follows the last present row: it bootstraps wholly from v_tp1, as an ended one does.
    cut_t = ended_t | _is_last(r_t, mask)
    lambda_t = jnp.where(cut_t, 0.0, jnp.broadcast_to(lambda_, r_t.shape))
    bootstrap_t = discount * (1.0 - lambda_t) * jnp.where(terminated_t, 0.0, v_tp1)
    return reverse_recursion(r_t + bootstrap_t, discount * lambda_t, mask)


def discounted_returns(
    r_t: Any,
    terminated_t: Any,
    ended_t: Any,
    discount: Any,
    v_tp1: Any = None,
    mask: Any = None,
) -> Array:
    """Discounted returns, `G_t = r_t + discount * G_{t+1}`: lambda-returns with lambda 1.

    Args:
        r_t: rewards `[T, ...]`.
        terminated_t: bool `[T, ...]`.
        ended_t: bool `[T, ...]`.
        discount: scalar or `[T, ...]`.
        v_tp1: values of the true successors `[T, ...]`, read where an episode is truncated and at the last row; None
            for no bootstrap: rewards after the cut count as 0.
        mask: bool `[T, ...]` or None.

    Returns:
        Returns, float32 `[T, ...]`; 0 at absent rows.
    """
    v_tp1 = jnp.zeros_like(jnp.asarray(r_t)) if v_tp1 is None else v_tp1
    return lambda_returns(r_t, v_tp1, terminated_t, ended_t, discount, 1.0, mask)


def n_step_returns(
    r_t: Any,
    v_tp1: Any,
    terminated_t: Any,
    ended_t: Any,
    discount: Any,
    n: int,
    mask: Any = None,
) -> Array:
    """N-step returns: `n` rewards, then the value of where they lead.

    Sutton and Barto 2018, http://incompleteideas.net/book/the-book-2nd.html, equation 7.1. Fewer rewards are
    summed where the episode or the fragment ends sooner, and the value taken is that of the true successor there.

    Args:
        r_t: rewards `[T, ...]`.
        v_tp1: values of the true successors `[T, ...]`; ignored where terminated.
        terminated_t: bool `[T, ...]`.
        ended_t: bool `[T, ...]`.
        discount: scalar or `[T, ...]`.
        n: number of rewards, at least 1 (static).
        mask: bool `[T, ...]` or None.

    Returns:
        Returns, float32 `[T, ...]`; 0 at absent rows.

    Raises:
        ValueError: if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n_step_returns: expected n >= 1, got {n}")
    r_t, v_tp1, terminated_t, ended_t, mask = check_rows(r_t, v_tp1, terminated_t, ended_t, mask)
    cut_t = ended_t | _is_last(r_t, mask)
    next_row = None if mask is None else _next_row(mask)
    one_step = r_t + discount * jnp.where(terminated_t, 0.0, v_tp1)
    returns = one_step
    for _ in range(n - 1):
        # The last row, where roll wraps around, is cut.
        following = (
            jnp.roll(returns, -1, axis=0) if next_row is None else jnp.take_along_axis(returns, next_row, axis=0)
        )
        returns = jnp.where(cut_t, one_step, r_t + discount * following)
    return returns if mask is None else jnp.where(mask, returns, 0.0)


def check_rows(*args: Any) -> tuple[Any, ...]:
    """Asserts one shape `[T, ...]`, floats first, then three flags, the last of which (mask) may be None."""
    *floats, terminated_t, ended_t, mask = args
    floats = [jnp.asarray(x) for x in floats]
    flags = [jnp.asarray(x) for x in (terminated_t, ended_t, mask) if x is not None]
    chex.assert_type(floats, float)
    chex.assert_type(flags, bool)
    chex.assert_equal_shape(floats + flags)
    chex.assert_axis_dimension_gt(floats[0], axis=0, val=0)
    return (*floats, *flags) if mask is not None else (*floats, *flags, None)


def reverse_recursion(x_t: Array, decay_t: Array, mask: Array | None = None) -> Array:
    """`y_t = x_t + decay_t * y_{t+1}` from the last row up, starting at 0; absent rows pass `y` on."""
    if mask is not None:
        x_t, decay_t = jnp.where(mask, x_t, 0.0), jnp.where(mask, decay_t, 1.0)

    def step(y_tp1: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        y_t = row[0] + row[1] * y_tp1
        return y_t, y_t

    # For [128, 8] inside jit on 2 CPU cores: 8.8 us, as with unroll 2 and 4; unroll 8 takes 12, 16 takes 76, and
    # lax.associative_scan 13 (500 against 67 for [128, 1024]); each also compiles longer.
    _, y_t = jax.lax.scan(step, jnp.zeros_like(x_t[0]), (x_t, decay_t), reverse=True)
    return y_t if mask is None else jnp.where(mask, y_t, 0.0)


def _is_last(r_t: Array, mask: Array | None) -> Array:
    """True at the last present row of each column."""
    row = jnp.arange(r_t.shape[0]).reshape((-1,) + (1,) * (r_t.ndim - 1))
    if mask is None:
        return row == r_t.shape[0] - 1
    return row == jnp.max(jnp.where(mask, row, -1), axis=0, keepdims=True)


def _next_row(mask: Array) -> Array:
    """Number of the next present row `[T, ...]`; the last row where there is none."""
    last = mask.shape[0] - 1
    row = jnp.arange(mask.shape[0]).reshape((-1,) + (1,) * (mask.ndim - 1))
    at_or_after = jax.lax.cummin(jnp.where(mask, row, last), axis=0, reverse=True)
    return jnp.concatenate([at_or_after[1:], jnp.full_like(at_or_after[:1], last)], axis=0)
