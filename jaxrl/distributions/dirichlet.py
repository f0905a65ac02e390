"""Dirichlet distribution, for actions on a simplex."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.special import digamma, gammaln

from jaxrl.distributions.distribution import DistClass, as_inputs
from jaxrl.types import Array

# Entries are kept this far off 0, where the log-density may be infinite.
_EDGE = 1e-7


@struct.dataclass
class Dirichlet:
    """Dirichlet distributions over the last axis of an action, independent along its other axes.

    Attributes:
        concentration: `[..., *event_shape]`.
        event_shape: shape of one action (static).
    """

    concentration: Array
    event_shape: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.concentration.shape[: self.concentration.ndim - len(self.event_shape)]

    def sample(self, key: Array) -> Array:
        """Draws actions `[..., *event_shape]`, differentiable in the concentration (implicitly)."""
        return jax.random.dirichlet(key, self.concentration)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """Draws actions `[..., *event_shape]` and their log-density `[...]`."""
        actions = self.sample(key)
        return actions, self.log_prob(actions)

    def mode(self) -> Array:
        """The most probable action, `[..., *event_shape]`; the centre where the density is flat."""
        above = self.concentration - 1.0 + _EDGE
        return above / jnp.sum(above, axis=-1, keepdims=True)

    def log_prob(self, actions: Any) -> Array:
        """Log-density `[...]` of actions `[..., *event_shape]`, with respect to all entries but the last."""
        log_x = jnp.log(jnp.maximum(jnp.asarray(actions), _EDGE))
        log_density = jnp.sum((self.concentration - 1.0) * log_x, axis=-1) - self._log_normalizer()
        return self._sum(log_density)

    def entropy(self) -> Array:
        """Differential entropy `[...]` in nats."""
        total = jnp.sum(self.concentration, axis=-1)
        entropy = (
            self._log_normalizer()
            + (total - self.event_shape[-1]) * digamma(total)
            - jnp.sum((self.concentration - 1.0) * digamma(self.concentration), axis=-1)
        )
        return self._sum(entropy)

    def kl(self, other: Dirichlet) -> Array:
        """KL(self || other) `[...]` in nats."""
        total = jnp.sum(self.concentration, axis=-1, keepdims=True)
        difference = (self.concentration - other.concentration) * (digamma(self.concentration) - digamma(total))
        return self._sum(other._log_normalizer() - self._log_normalizer() + jnp.sum(difference, axis=-1))

    def _log_normalizer(self) -> Array:
        return jnp.sum(gammaln(self.concentration), axis=-1) - gammaln(jnp.sum(self.concentration, axis=-1))

    def _sum(self, per_simplex: Array) -> Array:
        return jnp.sum(per_simplex, axis=tuple(range(1 - len(self.event_shape), 0)))


@functools.cache
def dirichlet(event_shape: tuple[int, ...]) -> DistClass:
    """Class of `Dirichlet` over actions of this shape; inputs `[..., A]`, the concentration is `1 + softplus(inputs)`.

    Concentrations above 1 keep the density bounded and unimodal, as for `Beta`.
    """
    size = math.prod(event_shape)

    def from_inputs(inputs: Array) -> Dirichlet:
        concentration = 1.0 + jax.nn.softplus(as_inputs("Dirichlet", inputs, size))
        return Dirichlet(concentration.reshape(concentration.shape[:-1] + event_shape), event_shape)

    return DistClass("Dirichlet", size, from_inputs)
