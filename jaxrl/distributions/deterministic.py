"""A point mass, for algorithms whose policy is a function (DDPG, TD3) and for evaluation."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxrl.distributions.distribution import DistClass, as_inputs, unflatten_event
from jaxrl.types import Array


@struct.dataclass
class Deterministic:
    """All mass on one Box action.

    It has no density. Its log-probability, entropy and divergence are 0 by convention, as in RLlib, so that code that
    only records them works; a loss made from them has no gradient.

    Attributes:
        action: `[..., A]`.
        event_shape: shape of one action (static).
    """

    action: Array
    event_shape: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        return self.action.shape[:-1]

    def sample(self, key: Array) -> Array:
        """The action, `[..., *event_shape]`."""
        del key
        return self.mode()

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        """The action, `[..., *event_shape]`, and zeros `[...]`."""
        return self.sample(key), self.entropy()

    def mode(self) -> Array:
        """The action, `[..., *event_shape]`."""
        return unflatten_event(self.action, self.event_shape)

    def log_prob(self, actions: Any) -> Array:
        """Zeros `[...]`."""
        leading = jnp.ndim(actions) - len(self.event_shape)
        return jnp.zeros(jnp.broadcast_shapes(self.batch_shape, jnp.shape(actions)[:leading]), self.action.dtype)

    def entropy(self) -> Array:
        """Zeros `[...]`."""
        return jnp.zeros(self.batch_shape, self.action.dtype)

    def kl(self, other: Deterministic) -> Array:
        """Zeros `[...]`."""
        return jnp.zeros(jnp.broadcast_shapes(self.batch_shape, other.batch_shape), self.action.dtype)


@functools.cache
def deterministic(event_shape: tuple[int, ...]) -> DistClass:
    """Class of `Deterministic` over actions of this shape; inputs `[..., A]` are the action."""
    size = math.prod(event_shape)

    def from_inputs(inputs: Array) -> Deterministic:
        return Deterministic(as_inputs("Deterministic", inputs, size), event_shape)

    return DistClass("Deterministic", size, from_inputs)
