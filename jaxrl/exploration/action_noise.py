"""Noise added to continuous actions: Gaussian (TD3), and Ornstein-Uhlenbeck (DDPG), which is correlated in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.distributions.bounds import inner_bounds
from jaxrl.exploration.annealing import annealed, number
from jaxrl.exploration.exploration import Exploration, no_state
from jaxrl.exploration.per_worker import per_worker
from jaxrl.exploration.random_start import random_start
from jaxrl.types import Array, PyTree, UnsupportedSpaceError

SCALE = "exploration_scale"
"""Coeff: what the noise is multiplied by."""

NoiseFn = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]


def gaussian_noise(
    action_space: gymnasium.Space,
    *,
    random_timesteps: int = 1000,
    stddev: float = 0.1,
    initial_scale: float = 1.0,
    final_scale: float = 0.02,
    scale_timesteps: int = 10_000,
    scale_schedule: Any = None,
) -> Exploration:
    """Adds Gaussian noise to the distribution's mode, after a random start.

    Fujimoto et al. 2018, TD3, https://arxiv.org/abs/1802.09477, algorithm 1:
    `a = clip(mu(s) + scale * noise, low, high)`, `noise ~ N(0, stddev)`.

    Args:
        action_space: Box; bounded if there is a random start.
        random_timesteps: env steps of the run before which actions are drawn uniformly from the box; 0: none are.
        stddev: standard deviation of the noise in units of the action, as in RLlib, whatever the box: for bounds of
            -2 and 2, 0.2 is what 0.1 is for -1 and 1 (TD3's authors multiply by the largest action). With
            `normalize_actions` policies act in [-1, 1].
        initial_scale: factor of the noise until `random_timesteps`.
        final_scale: factor from `random_timesteps + scale_timesteps` on.
        scale_timesteps: env steps over which it falls, straight.
        scale_schedule: takes the place of these three.

    Returns:
        An exploration with the coeffs `exploration_scale` and `random_actions`. It returns no log-probability: clipped
        noise has no density.

    Raises:
        UnsupportedSpaceError: for another kind of space, or an unbounded box with a random start.
        ConfigError: a number out of range, or no schedule.
    """
    number("GaussianNoise: stddev", stddev)

    def noise(mean: Array, state: PyTree, key: Array) -> tuple[Array, PyTree]:
        return stddev * jax.random.normal(key, mean.shape, mean.dtype), state

    start = number("GaussianNoise: random_timesteps", random_timesteps)
    schedule = annealed(
        "GaussianNoise", "scale", initial_scale, final_scale, scale_timesteps, scale_schedule, start=start
    )
    return _additive(action_space, noise, no_state, schedule, random_timesteps, "GaussianNoise")


def ornstein_uhlenbeck_noise(
    action_space: gymnasium.Space,
    *,
    random_timesteps: int = 1000,
    ou_theta: float = 0.15,
    ou_sigma: float = 0.2,
    ou_base_scale: float = 0.1,
    initial_scale: float = 1.0,
    final_scale: float = 0.02,
    scale_timesteps: int = 10_000,
    scale_schedule: Any = None,
) -> Exploration:
    """Adds noise that drifts back to 0 to the distribution's mode, after a random start.

    Lillicrap et al. 2015, DDPG, https://arxiv.org/abs/1509.02971, section 7, the process of Uhlenbeck and Ornstein
    1930 in steps of 1: `x_{t+1} = x_t - theta x_t + sigma N(0, 1)`,
    `a = clip(mu(s) + scale * base_scale * (high - low) * x, low, high)`; an unbounded entry has the factor 1 for
    `high - low`. Neighbouring steps correlate by `1 - theta`.

    Each environment has a process of its own (RLlib's share one), which, as in RLlib, goes on over the ends of
    episodes.

    Args:
        action_space: Box; bounded if there is a random start.
        random_timesteps: env steps of the run before which actions are drawn uniformly from the box; 0: none are.
        ou_theta: pull towards 0 per step, in [0, 2].
        ou_sigma: standard deviation of a step.
        ou_base_scale: constant factor of the noise.
        initial_scale: factor of the noise until `random_timesteps`.
        final_scale: factor from `random_timesteps + scale_timesteps` on.
        scale_timesteps: env steps over which it falls, straight.
        scale_schedule: takes the place of these three.

    Returns:
        An exploration with the coeffs `exploration_scale` and `random_actions`, whose state is `x [B, *shape]`. It
        returns no log-probability.

    Raises:
        UnsupportedSpaceError: for another kind of space, or an unbounded box with a random start.
        ConfigError: a number out of range, or no schedule.
    """
    number("OrnsteinUhlenbeckNoise: ou_theta", ou_theta, high=2.0)
    number("OrnsteinUhlenbeckNoise: ou_sigma", ou_sigma)
    number("OrnsteinUhlenbeckNoise: ou_base_scale", ou_base_scale)
    low, high = _bounds(action_space, "OrnsteinUhlenbeckNoise")
    half = high / 2 - low / 2
    factor = (2 * ou_base_scale * np.where(np.isfinite(half), half, 0.5)).astype(np.float32)

    def init(batch_size: int, worker_index: int = 0, num_workers: int = 0) -> Array:
        del worker_index, num_workers
        return jnp.zeros((batch_size, *low.shape))

    def noise(mean: Array, state: Array, key: Array) -> tuple[Array, PyTree]:
        state = (1.0 - ou_theta) * state + ou_sigma * jax.random.normal(key, mean.shape, mean.dtype)
        return jnp.asarray(factor) * state, state

    name, start = "OrnsteinUhlenbeckNoise", number("OrnsteinUhlenbeckNoise: random_timesteps", random_timesteps)
    schedule = annealed(name, "scale", initial_scale, final_scale, scale_timesteps, scale_schedule, start=start)
    return _additive(action_space, noise, init, schedule, random_timesteps, name)


def per_worker_gaussian_noise(
    action_space: gymnasium.Space,
    *,
    random_timesteps: int = 1000,
    stddev: float = 0.1,
    initial_scale: float = 1.0,
    final_scale: float = 0.02,
    scale_timesteps: int = 10_000,
    scale_schedule: Any = None,
) -> Exploration:
    """Gaussian noise with a constant scale for each worker, `0.4^(1 + 7 i / (N - 1))` (Ape-X, see `worker_value`).

    Args:
        action_space: Box.
        random_timesteps: this option and the others as in `gaussian_noise`; scales count without rollout workers.
        stddev: standard deviation of the noise.
        initial_scale: factor of the noise until `random_timesteps`.
        final_scale: factor from `random_timesteps + scale_timesteps` on.
        scale_timesteps: env steps over which it falls.
        scale_schedule: takes the place of these three.

    Returns:
        As `gaussian_noise`.
    """
    exploration = gaussian_noise(
        action_space,
        random_timesteps=random_timesteps,
        stddev=stddev,
        initial_scale=initial_scale,
        final_scale=final_scale,
        scale_timesteps=scale_timesteps,
        scale_schedule=scale_schedule,
    )
    return per_worker(exploration, SCALE)


def per_worker_ornstein_uhlenbeck_noise(
    action_space: gymnasium.Space,
    *,
    random_timesteps: int = 1000,
    ou_theta: float = 0.15,
    ou_sigma: float = 0.2,
    ou_base_scale: float = 0.1,
    initial_scale: float = 1.0,
    final_scale: float = 0.02,
    scale_timesteps: int = 10_000,
    scale_schedule: Any = None,
) -> Exploration:
    """Ornstein-Uhlenbeck noise with a constant scale for each worker, `0.4^(1 + 7 i / (N - 1))` (see `worker_value`).

    Args:
        action_space: Box.
        random_timesteps: this option and the others as in `ornstein_uhlenbeck_noise`; scales count without rollout
            workers.
        ou_theta: pull towards 0 per step.
        ou_sigma: standard deviation of a step.
        ou_base_scale: constant factor of the noise.
        initial_scale: factor of the noise until `random_timesteps`.
        final_scale: factor from `random_timesteps + scale_timesteps` on.
        scale_timesteps: env steps over which it falls.
        scale_schedule: takes the place of these three.

    Returns:
        As `ornstein_uhlenbeck_noise`.
    """
    exploration = ornstein_uhlenbeck_noise(
        action_space,
        random_timesteps=random_timesteps,
        ou_theta=ou_theta,
        ou_sigma=ou_sigma,
        ou_base_scale=ou_base_scale,
        initial_scale=initial_scale,
        final_scale=final_scale,
        scale_timesteps=scale_timesteps,
        scale_schedule=scale_schedule,
    )
    return per_worker(exploration, SCALE)


def _additive(
    action_space: gymnasium.Space, noise: NoiseFn, init: Any, schedule: Any, random_timesteps: float, where: str
) -> Exploration:
    """The mode plus scaled noise within the bounds, after a random start."""
    low, high = _bounds(action_space, where)

    def sample(
        dist: Any, state: PyTree, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, None, PyTree]:
        del t
        mode = dist.mode()
        if not explore:
            return mode, None, state
        added, state = noise(mode, state, key)
        return jnp.clip(mode + coeffs[SCALE] * added, low, high), None, state

    exploration = Exploration(sample, init=init, coeffs={SCALE: schedule(0)}, schedules={SCALE: schedule})
    return random_start(exploration, action_space, random_timesteps, where)


def _bounds(space: gymnasium.Space, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(space, gymnasium.spaces.Box) or np.dtype(space.dtype).kind != "f":
        raise UnsupportedSpaceError(
            f"{where}: expected a Box of floats as action space, got {space}; "
            "for discrete actions use EpsilonGreedy or SoftQ"
        )
    return inner_bounds(space)
