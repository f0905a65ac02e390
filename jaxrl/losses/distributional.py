"""Distributional reinforcement learning: C51's categorical returns, and quantiles (QR-DQN, IQN).

Row by row on any leading axes `[...]`, like `jaxrl.losses.td`: the caller reduces, and stops the gradients of targets.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrl.losses.td import huber
from jaxrl.types import Array


def value_support(v_min: float, v_max: float, atoms: int) -> Array:
    """The returns that a categorical distribution is over.

    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, section 4: `z_i = v_min + i * (v_max - v_min) / (N - 1)`.

    Args:
        v_min: smallest return.
        v_max: largest return, > `v_min`.
        atoms: their number `N`, at least 2.

    Returns:
        float32 `[N]`.

    Raises:
        ValueError: fewer than two atoms, or an empty range.
    """
    if atoms < 2 or not v_min < v_max:
        raise ValueError(f"value_support: expected v_min < v_max and atoms >= 2, got {v_min}, {v_max} and {atoms}")
    return jnp.linspace(v_min, v_max, atoms, dtype=jnp.float32)


def expected_values(logits: Array, support: Array) -> Array:
    """Mean returns of categorical distributions: `Q = sum_i z_i p_i`.

    Args:
        logits: `[..., N]`.
        support: `[N]`.

    Returns:
        `[...]`.
    """
    chex.assert_rank(support, 1)
    chex.assert_axis_dimension(logits, -1, support.shape[0])
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * support, axis=-1)


def atoms_of_actions(atoms: Array, actions: Array, start: int = 0) -> Array:
    """The distributions (logits or probabilities) of the actions that were taken.

    Args:
        atoms: `[..., A, N]`.
        actions: integers `[...]`.
        start: number of the first action (`Discrete.start`).

    Returns:
        `[..., N]`.
    """
    chex.assert_type(actions, int)
    chex.assert_rank(atoms, jnp.ndim(actions) + 2)
    chex.assert_equal_shape_prefix([atoms, actions], jnp.ndim(actions))
    chosen = (actions - start)[..., None] == jnp.arange(atoms.shape[-2])
    return jnp.sum(jnp.where(chosen[..., None], atoms, 0.0), axis=-2)


def project_distribution(target_probs: Array, target_support: Array, support: Array) -> Array:
    """Projects distributions onto a fixed support: each atom's mass goes to its two neighbours by closeness.

    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, equation 7, with `y_j` the atoms of the target:
    `m_i = sum_j clip(1 - |clip(y_j, z_1, z_N) - z_i| / dz, 0, 1) * p_j`. Mass beyond the ends goes to the end.

    Args:
        target_probs: `[..., N']`.
        target_support: atoms `y` that the probabilities belong to, `[..., N']`, of any order.
        support: evenly spaced atoms `z`, ascending, `[N]`.

    Returns:
        Probabilities `[..., N]`, which sum to what `target_probs` sum to.
    """
    chex.assert_rank(support, 1)
    chex.assert_equal_shape([target_probs, target_support])
    spacing = (support[-1] - support[0]) / (support.shape[0] - 1)
    y = jnp.clip(target_support, support[0], support[-1])
    shares = jnp.clip(1.0 - jnp.abs(y[..., None, :] - support[:, None]) / spacing, 0.0, 1.0)
    return jnp.sum(shares * target_probs[..., None, :], axis=-1)


def categorical_td_target(rewards: Array, discounts: Array, next_probs: Array, support: Array) -> Array:
    """C51's target: the distribution of `r_t + discount_t * Z(s_{t+n}, a*)`, projected onto the support.

    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, algorithm 1.

    Args:
        rewards: `[...]`; for `n` steps their discounted sum.
        discounts: `[...]`, `gamma^n`, 0 where the episode terminated: all mass is then at the reward.
        next_probs: distribution of the successor's greedy action, `[..., N]`.
        support: `[N]`.

    Returns:
        Probabilities `[..., N]`.
    """
    chex.assert_rank(support, 1)
    chex.assert_equal_shape([rewards, discounts])
    chex.assert_shape(next_probs, (*jnp.shape(rewards), support.shape[0]))
    return project_distribution(next_probs, rewards[..., None] + discounts[..., None] * support, support)


def cross_entropy(target_probs: Array, logits: Array) -> Array:
    """Cross entropy `-sum_i m_i log p_i`, whose gradient is that of `KL(m || p)`.

    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, algorithm 1.

    Args:
        target_probs: `m`, `[..., N]`, constants to the gradient.
        logits: of `p`, `[..., N]`.

    Returns:
        `[...]` in nats.
    """
    chex.assert_equal_shape([target_probs, logits])
    return -jnp.sum(target_probs * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def quantile_midpoints(n: int) -> Array:
    """The fixed fractions that QR-DQN estimates quantiles at.

    Dabney et al. 2018, https://arxiv.org/abs/1710.10044, lemma 2: `tau_i = (2 i - 1) / (2 N)`, `i = 1, ..., N`.

    Args:
        n: number of quantiles `N`.

    Returns:
        float32 `[N]`.
    """
    return (jnp.arange(n, dtype=jnp.float32) + 0.5) / n


def quantiles_of_actions(quantiles: Array, actions: Array, start: int = 0) -> Array:
    """The quantiles of the actions that were taken.

    Args:
        quantiles: `[..., N, A]`.
        actions: integers `[...]`.
        start: number of the first action (`Discrete.start`).

    Returns:
        `[..., N]`.
    """
    return atoms_of_actions(jnp.swapaxes(quantiles, -1, -2), actions, start)


def quantile_td_errors(quantiles: Array, targets: Array) -> Array:
    """Every target minus every quantile, `delta_ij = y_j - theta_i`.

    Dabney et al. 2018, https://arxiv.org/abs/1806.06923, equation 2.

    Args:
        quantiles: predictions `[..., N]`.
        targets: samples or quantiles of the target, `r_t + discount_t * theta'_j`, `[..., N']`, constants to the
            gradient.

    Returns:
        `[..., N, N']`.
    """
    chex.assert_equal_shape_prefix([quantiles, targets], jnp.ndim(quantiles) - 1)
    return targets[..., None, :] - quantiles[..., :, None]


def quantile_huber(td_errors: Array, taus: Array, kappa: float | Array = 1.0) -> Array:
    """Quantile regression with the Huber loss, summed over quantiles and averaged over targets.

    Dabney et al. 2018, IQN, https://arxiv.org/abs/1806.06923, equation 3, and QR-DQN,
    https://arxiv.org/abs/1710.10044, equation 10 (without the division by kappa there; the same at kappa = 1):
    `sum_i mean_j |tau_i - 1{delta_ij < 0}| * L_kappa(delta_ij) / kappa`.

    Args:
        td_errors: `delta`, target minus quantile, `[..., N, N']`.
        taus: fractions of the quantiles, `[..., N]`, or `[N]` if they are the same for all rows.
        kappa: half-width of the Huber loss's parabola, > 0.

    Returns:
        `[...]`.
    """
    chex.assert_axis_dimension(td_errors, -2, jnp.shape(taus)[-1])
    weight = jnp.abs(taus[..., None] - (td_errors < 0.0))
    return jnp.sum(jnp.mean(weight * huber(td_errors, kappa) / kappa, axis=-1), axis=-1)
