"""Beta distribution for bounded Box actions."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import betaln, digamma

from jaxrl.distributions.distribution import DistClass, as_inputs, flatten_event, unflatten_event
from jaxrl.types import Array

# Actions are kept this share of their range off the bounds, where the log-density may be infinite.
_EDGE = 1e-6


@struct.dataclass
class Beta:
    """Beta distribution, scaled to `[low, high]`: `a = low + (high - low) * x`, `x ~ Beta(alpha, beta)`.

    Chou et al. 2017, https://proceedings.mlr.press/v70/chou17a.html, section 4: bounded support without the bias that
    clipping gives a Gaussian; `alpha, beta > 1` make it unimodal.

    Attributes:
        alpha: `[..., A]`.
        beta: `[..., A]`.
        low: lower bounds, flat, `A` floats (static).
        high: upper bounds, flat, `A` floats (static).
        event_shape: shape of one action (static).
    """

    alpha: Array
    beta: Array
    low: tuple[float, ...] = struct.field(pytree_node=False)
    high: tuple[float, ...] = struct.field(pytree_node=False)
    event_shape: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.alpha.shape[:-1]

    def sample(self, key: Array) -> Array:
        """Draws actions `[..., *event_shape]` within the bounds, differentiable in alpha and beta (implicitly)."""
        return self._scale(jax.random.beta(key, self.alpha, self.beta))

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """Draws actions `[..., *event_shape]` and their log-density `[...]`."""
        actions = self.sample(key)
        return actions, self.log_prob(actions)

    def mode(self) -> Array:
        """The most probable action, `[..., *event_shape]`; the middle where the density is flat."""
        # alpha - 1 is a softplus and may round to 0, in both parameters at once.
        above, below = self.alpha - 1.0 + _EDGE, self.beta - 1.0 + _EDGE
        return self._scale(above / (above + below))

    def log_prob(self, actions: Any) -> Array:
        """Log-density `[...]` of actions `[..., *event_shape]`."""
        low, high = self._bounds()
        x = (flatten_event(actions, self.event_shape) / 2 - low / 2) / (high / 2 - low / 2)
        x = jnp.clip(x, _EDGE, 1.0 - _EDGE)
        log_density = (self.alpha - 1.0) * jnp.log(x) + (self.beta - 1.0) * jnp.log1p(-x)
        return jnp.sum(log_density - betaln(self.alpha, self.beta) - self._log_span(), axis=-1)

    def entropy(self) -> Array:
        """Differential entropy `[...]` in nats."""
        total = self.alpha + self.beta
        entropy = (
            betaln(self.alpha, self.beta)
            - (self.alpha - 1.0) * digamma(self.alpha)
            - (self.beta - 1.0) * digamma(self.beta)
            + (total - 2.0) * digamma(total)
        )
        return jnp.sum(entropy + self._log_span(), axis=-1)

    def kl(self, other: Beta) -> Array:
        """KL(self || other) `[...]` in nats."""
        alpha, beta = self.alpha - other.alpha, self.beta - other.beta
        return jnp.sum(
            betaln(other.alpha, other.beta)
            - betaln(self.alpha, self.beta)
            + alpha * digamma(self.alpha)
            + beta * digamma(self.beta)
            - (alpha + beta) * digamma(self.alpha + self.beta),
            axis=-1,
        )

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)

    def _log_span(self) -> np.ndarray:
        return np.log(np.asarray(self.high) - np.asarray(self.low)).astype(np.float32)

    def _scale(self, x: Array) -> Array:
        low, high = self._bounds()
        # Each product is within the bounds, however wide they are; their sum may round to just outside.
        return unflatten_event(jnp.clip(low * (1.0 - x) + high * x, low, high), self.event_shape)


@functools.cache
def beta(low: tuple[float, ...], high: tuple[float, ...], event_shape: tuple[int, ...]) -> DistClass:
    """Class of `Beta` within `[low, high]`.

    Args:
        low: finite lower bounds, flat.
        high: finite upper bounds, flat.
        event_shape: shape of one action.

    Returns:
        The class; inputs `[..., 2A]` are x, then y, with `alpha = 1 + softplus(x)`, `beta = 1 + softplus(y)`.
    """
    size = 2 * math.prod(event_shape)

    def from_inputs(inputs: Array) -> Beta:
        params = 1.0 + jax.nn.softplus(as_inputs("Beta", inputs, size))
        alpha, beta = jnp.split(params, 2, axis=-1)
        return Beta(alpha, beta, low, high, event_shape)

    return DistClass("Beta", size, from_inputs)
