"""Soft actor-critic: soft values, the actor's objective and the temperature's, for continuous and discrete actions.

Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications, https://arxiv.org/abs/1812.05905; Christodoulou
2019, Soft Actor-Critic for Discrete Action Settings, https://arxiv.org/abs/1910.07207. Row by row on any leading axes,
like `jaxrl.losses.td`: the caller reduces, and stops the gradients that an equation does not have: those of targets, of
`alpha` in the actor's objective, of the entropy in the temperature's. (Losses of parameter groups are differentiated
with respect to their own group alone, which does most of it.)
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.types import Array, UnsupportedSpaceError


def soft_values(q: Array, logp: Array, alpha: float | Array) -> Array:
    """Soft state value of a sampled action: `V(s) = Q(s, a) - alpha * log pi(a | s)`, `a ~ pi`.

    Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, equation 3.

    Args:
        q: value of the sampled action, the smallest of the critics' (`clipped_double_q`), `[...]`.
        logp: log-probability of the same sample `[...]`.
        alpha: temperature.

    Returns:
        `[...]`.
    """
    chex.assert_equal_shape([q, logp])
    return q - alpha * logp


def soft_values_discrete(q: Array, log_pi: Array, alpha: float | Array) -> Array:
    """Soft state value by the exact expectation: `V(s) = sum_a pi(a | s) (Q(s, a) - alpha * log pi(a | s))`.

    Christodoulou 2019, https://arxiv.org/abs/1910.07207, equation 10.

    Args:
        q: the smallest of the critics' values of each action, `[..., A]`.
        log_pi: log-probabilities `[..., A]`; finite where an action is masked (`MASK_VALUE`, not -inf).
        alpha: temperature.

    Returns:
        `[...]`.
    """
    chex.assert_equal_shape([q, log_pi])
    return jnp.sum(jnp.exp(log_pi) * (q - alpha * log_pi), axis=-1)


def soft_policy_loss(q: Array, logp: Array, alpha: float | Array) -> Array:
    """What the actor minimises with a reparameterised sample: `alpha * log pi(a | s) - Q(s, a)`.

    Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, equation 9.

    Args:
        q: value of the sampled action `[...]`, through which the gradient reaches the actor.
        logp: log-probability of the same sample `[...]`.
        alpha: temperature, a constant to the gradient.

    Returns:
        `[...]`.
    """
    return -soft_values(q, logp, alpha)


def soft_policy_loss_discrete(q: Array, log_pi: Array, alpha: float | Array) -> Array:
    """What the actor of discrete actions minimises: `sum_a pi(a | s) (alpha * log pi(a | s) - Q(s, a))`.

    Christodoulou 2019, https://arxiv.org/abs/1910.07207, equation 12.

    Args:
        q: values of each action `[..., A]`, constants to the gradient.
        log_pi: log-probabilities `[..., A]`, finite.
        alpha: temperature, a constant to the gradient.

    Returns:
        `[...]`.
    """
    return -soft_values_discrete(q, log_pi, alpha)


def temperature_loss(log_alpha: Array, entropy: Array, target_entropy: float | Array) -> Array:
    """What the temperature minimises: it grows while the entropy is below its target, and shrinks above.

    Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, equation 18: `alpha * (H(pi(. | s)) - target)`. As in the
    authors' code (and RLlib's), `log_alpha` stands in alpha's place: both have their optimum where the entropy is the
    target, but this one's gradient does not vanish with alpha.

    Args:
        log_alpha: logarithm of the temperature, a scalar.
        entropy: of the current policy, `[...]`, a constant to the gradient: the estimate `-log pi(a | s)` of a sample
            or, for discrete actions (Christodoulou 2019, equation 11), exact.
        target_entropy: see `default_target_entropy`.

    Returns:
        `[...]`.
    """
    chex.assert_rank(log_alpha, 0)
    return log_alpha * (entropy - target_entropy)


def default_target_entropy(action_space: spaces.Space, discrete_fraction: float = 0.98) -> float:
    """The entropy that `target_entropy="auto"` asks for.

    Continuous: Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, table 1: `-|A|` for actions in [-1, 1]. That is
    a density's entropy, which depends on the unit of the action: each entry with other finite bounds adds
    `log((high - low) / 2)`, so that the target means the same. Discrete: `0.98 log n` (Christodoulou's code, RLlib),
    close to the largest possible; many tasks want less.

    Args:
        action_space: Box, Discrete, MultiDiscrete, MultiBinary, and any nesting of Dict and Tuple (their sum).
        discrete_fraction: share of the largest entropy for discrete actions.

    Returns:
        The target in nats.

    Raises:
        UnsupportedSpaceError: for another kind of space.
    """

    def target(space: Any) -> float:
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            return sum(map(target, space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces))
        if isinstance(space, spaces.Box):
            half = (space.high.astype(np.float64) - space.low) / 2.0
            return float(np.sum(np.log(half[np.isfinite(half)])) - half.size)
        if isinstance(space, spaces.Discrete):
            return discrete_fraction * math.log(space.n)
        if isinstance(space, spaces.MultiDiscrete):
            return discrete_fraction * float(np.log(space.nvec).sum())
        if isinstance(space, spaces.MultiBinary):
            return discrete_fraction * math.prod(space.shape) * math.log(2.0)
        raise UnsupportedSpaceError(
            f"target_entropy: 'auto' serves Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple, got {space}; "
            "give a number"
        )

    return target(action_space)
