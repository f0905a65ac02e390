"""Deterministic actor-critics (DDPG, TD3): the actor's objective, target smoothing, clipped double Q-learning.

Row by row on any leading axes, like `jaxrl.losses.td`: the caller reduces, and stops the gradients of targets.
"""

from __future__ import annotations

from typing import Any

import chex
import jax.numpy as jnp

from jaxrl.types import Array


def deterministic_policy_loss(q: Array) -> Array:
    """What the actor minimises: `-Q(s, mu(s))`.

    Silver et al. 2014, https://proceedings.mlr.press/v32/silver14.html, theorem 1, and Lillicrap et al. 2015,
    https://arxiv.org/abs/1509.02971, equation 6: the gradient reaches the actor through the action, so `q` must be
    computed from the actor's actions, and be differentiated with respect to the actor's parameters alone.

    Args:
        q: value of the actor's actions `[...]`; with several critics, that of the first one (TD3).

    Returns:
        `[...]`.
    """
    return -q


def smoothed_actions(actions: Array, noise: Array, noise_clip: float | Array, low: Any, high: Any) -> Array:
    """Target policy smoothing: similar actions should have similar values.

    Fujimoto et al. 2018, TD3, https://arxiv.org/abs/1802.09477, equation 14:
    `a~ = clip(mu'(s') + clip(noise, -c, c), low, high)`, `noise ~ N(0, sigma)`.

    Args:
        actions: the target actor's actions `[..., A]`.
        noise: of the same shape and in the same units. The authors' 0.2 (and `c = 0.5`) are for actions in [-1, 1];
            for other bounds they multiply both by the largest action.
        noise_clip: `c`.
        low: lower bound of the action, broadcastable.
        high: upper bound of the action, broadcastable.

    Returns:
        The same shape.
    """
    chex.assert_equal_shape([actions, noise])
    return jnp.clip(actions + jnp.clip(noise, -noise_clip, noise_clip), low, high)


def clipped_double_q(q: Array) -> Array:
    """Clipped double Q-learning: the smallest of the critics' values, against overestimation.

    Fujimoto et al. 2018, TD3, https://arxiv.org/abs/1802.09477, equation 10: `min_{i=1,2} Q_i(s', a~)`.

    Args:
        q: values by each of `C` critics, `[C, ...]`; `C` may be 1.

    Returns:
        `[...]`.
    """
    return jnp.min(q, axis=0)
