"""Gaussian families for Box actions: `DiagGaussian`, and `SquashedGaussian`, which stays within finite bounds.

Both take inputs `[..., 2A]`: means, then log standard deviations. Whether the latter depend on the observation or are
free parameters is the model's matter.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.distributions.bounds import middle_and_half
from jaxrl.distributions.distribution import DistClass, as_inputs, flatten_event, unflatten_event
from jaxrl.types import Array

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

LOG_STD_RANGE = (-20.0, 2.0)
"""Range that `SquashedGaussian` clips log standard deviations to (Haarnoja et al. 2018's code, RLlib): a wider Gaussian
only saturates tanh."""

# Farthest from 0 that a squashed action is inverted at: atanh(1 - 1e-6) = 7.25. Actions on the bounds would give
# infinity.
_MAX_TANH = 1.0 - 1e-6

# Nodes z and weights w of E[f(Z)] = sum w f(z) for a standard normal Z: the trapezoidal rule, whose error for analytic
# f falls exponentially with the spacing. For log(1 - tanh^2) at std e^2 it is 3e-4 nats, where the 32 and 64 nodes of
# Gauss-Hermite, which lie farther apart near 0, leave 8e-2 and 2e-2.
_NODES = np.linspace(-6.0, 6.0, 64, dtype=np.float32)
_WEIGHTS = np.exp(-0.5 * _NODES**2) / np.sum(np.exp(-0.5 * _NODES**2))


def _log_prob(x: Array, mean: Array, log_std: Array) -> Array:
    z = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(z) - log_std - _HALF_LOG_2PI, axis=-1)


def _kl(p: DiagGaussian | SquashedGaussian, q: DiagGaussian | SquashedGaussian) -> Array:
    log_ratio = p.log_std - q.log_std
    scaled = (p.mean - q.mean) * jnp.exp(-q.log_std)
    return jnp.sum(0.5 * (jnp.exp(2.0 * log_ratio) + jnp.square(scaled) - 1.0) - log_ratio, axis=-1)


@struct.dataclass
class DiagGaussian:
    """Gaussian with a diagonal covariance.

    Samples are unbounded: the rollout clips what it sends to the environment, and the batch keeps the sample.

    Attributes:
        mean: `[..., A]`.
        log_std: log standard deviation `[..., A]`.
        event_shape: shape of one action (static).
    """

    mean: Array
    log_std: Array
    event_shape: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.mean.shape[:-1]

    @property
    def std(self) -> Array:
        """Standard deviation `[..., A]`."""
        return jnp.exp(self.log_std)

    def sample(self, key: Array) -> Array:
        """Draws actions `[..., *event_shape]`, differentiable in mean and log_std (reparameterised)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return unflatten_event(self.mean + self.std * noise, self.event_shape)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """Draws actions `[..., *event_shape]` and their log-density `[...]`."""
        actions = self.sample(key)
        return actions, self.log_prob(actions)

    def mode(self) -> Array:
        """The mean, `[..., *event_shape]`."""
        return unflatten_event(self.mean, self.event_shape)

    def log_prob(self, actions: Any) -> Array:
        """Log-density `[...]` of actions `[..., *event_shape]`."""
        return _log_prob(flatten_event(actions, self.event_shape), self.mean, self.log_std)

    def entropy(self) -> Array:
        """Differential entropy `[...]` in nats."""
        return jnp.sum(self.log_std + 0.5 + _HALF_LOG_2PI, axis=-1)

    def kl(self, other: DiagGaussian) -> Array:
        """KL(self || other) `[...]` in nats."""
        return _kl(self, other)


@struct.dataclass
class SquashedGaussian:
    """Gaussian through tanh, scaled to `[low, high]`: `a = mid + half * tanh(u)`, `u ~ N(mean, std)`.

    Haarnoja et al. 2018, Soft Actor-Critic, https://arxiv.org/abs/1801.01290, appendix C, equation 21:
    `log p(a) = log N(u) - sum log |da/du|`, here with `log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`, which is
    exact and stable for every `u`.

    Attributes:
        mean: mean of `u`, `[..., A]`.
        log_std: log standard deviation of `u`, `[..., A]`.
        low: lower bounds, flat, `A` floats (static).
        high: upper bounds, flat, `A` floats (static).
        event_shape: shape of one action (static).
    """

    mean: Array
    log_std: Array
    low: tuple[float, ...] = struct.field(pytree_node=False)
    high: tuple[float, ...] = struct.field(pytree_node=False)
    event_shape: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.mean.shape[:-1]

    def sample(self, key: Array) -> Array:
        """Draws actions `[..., *event_shape]` within the bounds, differentiable in mean and log_std."""
        return self._squash(self._sample_u(key))

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """Draws actions `[..., *event_shape]` and their log-density `[...]`, exact even where tanh saturates."""
        u = self._sample_u(key)
        return self._squash(u), self._log_prob_u(u)

    def mode(self) -> Array:
        """The squashed mean, `[..., *event_shape]`: each dimension's median (the peak has no closed form)."""
        return self._squash(self.mean)

    def log_prob(self, actions: Any) -> Array:
        """Log-density `[...]` of actions `[..., *event_shape]`.

        Actions within 5e-7 of the range of a bound are taken as that far from it; where `u` is at hand, as it is in
        `sample_and_log_prob`, nothing is lost.
        """
        middle, half = middle_and_half(*self._bounds())
        y = (flatten_event(actions, self.event_shape) - middle) / half
        return self._log_prob_u(jnp.arctanh(jnp.clip(y, -_MAX_TANH, _MAX_TANH)))

    def entropy(self) -> Array:
        """Differential entropy `[...]` in nats: that of the Gaussian plus `E[log |da/du|]`.

        The expectation has no closed form. It is taken by quadrature with 64 nodes per dimension, which is
        deterministic and differentiable: exact to float32 up to a standard deviation of e, within 1e-3 nats at the
        largest one (e^2).
        """
        u = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * _NODES
        log_det = jnp.sum(_log_det_tanh(u) * _WEIGHTS, axis=-1) + self._log_half()
        return jnp.sum(self.log_std + 0.5 + _HALF_LOG_2PI + log_det, axis=-1)

    def kl(self, other: SquashedGaussian) -> Array:
        """KL(self || other) `[...]` in nats: exactly that of the Gaussians, since both share one bijection."""
        return _kl(self, other)

    def _sample_u(self, key: Array) -> Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def _log_prob_u(self, u: Array) -> Array:
        return _log_prob(u, self.mean, self.log_std) - jnp.sum(_log_det_tanh(u) + self._log_half(), axis=-1)

    def _squash(self, u: Array) -> Array:
        low, high = self._bounds()
        middle, half = middle_and_half(low, high)
        # The sum may round to just outside of the bounds.
        return unflatten_event(jnp.clip(middle + half * jnp.tanh(u), low, high), self.event_shape)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)

    def _log_half(self) -> np.ndarray:
        return np.log((np.asarray(self.high) - np.asarray(self.low)) / 2).astype(np.float32)


def _log_det_tanh(u: Array) -> Array:
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


@functools.cache
def diag_gaussian(event_shape: tuple[int, ...]) -> DistClass:
    """Class of `DiagGaussian` over actions of this shape; inputs `[..., 2A]` are means, then log-stds."""
    size = 2 * math.prod(event_shape)

    def from_inputs(inputs: Array) -> DiagGaussian:
        mean, log_std = jnp.split(as_inputs("DiagGaussian", inputs, size), 2, axis=-1)
        return DiagGaussian(mean, log_std, event_shape)

    return DistClass("DiagGaussian", size, from_inputs)


@functools.cache
def squashed_gaussian(low: tuple[float, ...], high: tuple[float, ...], event_shape: tuple[int, ...]) -> DistClass:
    """Class of `SquashedGaussian` within `[low, high]`; inputs `[..., 2A]` are means, then log standard deviations.

    Args:
        low: finite lower bounds, flat.
        high: finite upper bounds, flat.
        event_shape: shape of one action.

    Returns:
        The class; it clips log standard deviations to `LOG_STD_RANGE`.
    """
    size = 2 * math.prod(event_shape)

    def from_inputs(inputs: Array) -> SquashedGaussian:
        mean, log_std = jnp.split(as_inputs("SquashedGaussian", inputs, size), 2, axis=-1)
        return SquashedGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE), low, high, event_shape)

    return DistClass("SquashedGaussian", size, from_inputs)
