"""One-step temporal differences of action values: errors, targets, Huber loss, value rescaling.

Conventions: functions work row by row on any leading axes `[...]` and return `[...]`; the caller reduces, with weights
and masks of its own. A TD error is `target - prediction`. No function stops gradients: whoever builds a target from the
parameters that are being differentiated wraps it in `jax.lax.stop_gradient`.
"""

from __future__ import annotations

from typing import Any

import chex
import jax.numpy as jnp

from jaxrl.types import Array


def huber(x: Array, delta: float | Array = 1.0) -> Array:
    """Huber loss: quadratic within `delta`, linear outside.

    Huber 1964, https://doi.org/10.1214/aoms/1177703732; its gradient is `x` clipped to
    `[-delta, delta]`, which is what Mnih et al. 2015 (https://doi.org/10.1038/nature14236) call clipping the error.

        L(x) = x^2 / 2                       if |x| <= delta
               delta * (|x| - delta / 2)     otherwise

    Args:
        x: errors of any shape.
        delta: where the line begins, > 0.

    Returns:
        The same shape.
    """
    size = jnp.abs(x)
    return jnp.where(size <= delta, 0.5 * jnp.square(x), delta * (size - 0.5 * delta))


def q_of_actions(q: Array, actions: Array, start: int = 0) -> Array:
    """Values of the actions that were taken.

    Args:
        q: action values `[..., A]`.
        actions: integers `[...]`.
        start: number of the first action (`Discrete.start`).

    Returns:
        `q[..., actions - start]`, `[...]`; 0 for an action that there is not.
    """
    chex.assert_type(actions, int)
    chex.assert_equal_shape_prefix([q, actions], jnp.ndim(actions))
    chex.assert_rank(q, jnp.ndim(actions) + 1)
    # A comparison with iota rather than a gather, whose gradient is a scatter (see distributions/discrete.py).
    chosen = (actions - start)[..., None] == jnp.arange(q.shape[-1])
    return jnp.sum(jnp.where(chosen, q, 0.0), axis=-1)


def double_q_values(next_q_target: Array, next_q_online: Array, action_mask: Any = None) -> Array:
    """Double Q-learning's values of the successors: one network chooses the action, the other one values it.

    van Hasselt et al. 2015, https://arxiv.org/abs/1509.06461, equation 4:
    `V(s_{t+1}) = Q_target(s_{t+1}, argmax_a Q_online(s_{t+1}, a))`. Given the target network's values twice, it is
    Q-learning's maximum.

    Args:
        next_q_target: `[..., A]`, what values the action; need not be masked.
        next_q_online: `[..., A]`, what chooses it. Where masked actions already have values below all others (as the
            logits of a masked distribution have), no mask is needed.
        action_mask: bool `[..., A]`, False for actions that the successor forbids; None if all are allowed, as they
            are taken to be where none is.

    Returns:
        `[...]`.
    """
    chex.assert_equal_shape([next_q_target, next_q_online])
    if action_mask is not None:
        chex.assert_equal_shape([next_q_online, action_mask])
        allowed = action_mask | ~jnp.any(action_mask, axis=-1, keepdims=True)
        next_q_online = jnp.where(allowed, next_q_online, -jnp.inf)
    return q_of_actions(next_q_target, jnp.argmax(next_q_online, axis=-1))


def td_target(rewards: Array, discounts: Array, next_values: Array) -> Array:
    """Bootstrapped return `r_t + discount_t * V(s_{t+n})`.

    Sutton 1988, https://doi.org/10.1007/BF00115009.

    Args:
        rewards: `[...]`; for `n` steps their discounted sum.
        discounts: `[...]`, `gamma^n`, 0 where the episode terminated within the `n` steps (not where it was truncated).
        next_values: value of the true successor `[...]`.

    Returns:
        `[...]`.
    """
    chex.assert_equal_shape([rewards, discounts, next_values])
    return rewards + discounts * next_values


def td_error(values: Array, targets: Array) -> Array:
    """TD error `delta_t = target_t - V(s_t)`, positive where the prediction was too low.

    RLlib's has the opposite sign.

    Args:
        values: predictions `[...]`.
        targets: `[...]`, constants to the gradient.

    Returns:
        `[...]`.
    """
    chex.assert_equal_shape([values, targets])
    return targets - values


def rescale_values(x: Array, eps: float = 1e-3) -> Array:
    """Squashes returns so that those of any size can be learned: about a square root for large ones.

    Pohlen et al. 2018, https://arxiv.org/abs/1805.11593, proposition A.2:
    `h(x) = sign(x) * (sqrt(|x| + 1) - 1) + eps * x`. R2D2's target is
    `h(r_t + discount_t * h^-1(Q(s_{t+n}, a*)))` (https://openreview.net/forum?id=r1lyTjAqYX).

    Args:
        x: values of any shape.
        eps: slope far from 0, which makes the inverse Lipschitz; > 0.

    Returns:
        The same shape.
    """
    # sqrt(|x| + 1) - 1 without the cancellation near 0.
    return x / (jnp.sqrt(jnp.abs(x) + 1.0) + 1.0) + eps * x


def unscale_values(x: Array, eps: float = 1e-3) -> Array:
    """Inverse of `rescale_values`.

    Pohlen et al. 2018, https://arxiv.org/abs/1805.11593, proposition A.2:
    `h^-1(x) = sign(x) * (((sqrt(1 + 4 eps (|x| + 1 + eps)) - 1) / (2 eps))^2 - 1)`. In float32 that form is off by up
    to 1e-4 near 0; this one solves the same quadratic for `u = sqrt(|h^-1(x)| + 1) - 1`, which loses nothing.

    Args:
        x: rescaled values of any shape.
        eps: as given to `rescale_values`.

    Returns:
        The same shape.
    """
    # eps u^2 + (1 + 2 eps) u - |x| = 0, its root with the sign of x.
    slope = 1.0 + 2.0 * eps
    u = 2.0 * x / (slope + jnp.sqrt(slope**2 + 4.0 * eps * jnp.abs(x)))
    return u * (2.0 + jnp.abs(u))
