"""The interface of distributions, their class (`DistClass`), and what all families share: shapes, dtypes, masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array, PyTree

MASK_VALUE = -1e7
"""Logit of a masked action.

`exp(-1e7)` is exactly 0 in float32, so that a masked action has probability 0 and no gradient, and 0 * (-1e7) keeps
entropies and divergences finite where -inf would make NaN. It is no lower than it has to be: float32 numbers of this
size are 1 apart, so that ratios `exp(log p - log q)` of masked actions in padding rows stay finite too.
"""


class Distribution(Protocol):
    """A distribution over actions with batch shape `[...]`: a frozen pytree that works under jit, vmap and grad.

    `log_prob`, `entropy` and `kl` sum over the event (the axes of one action) and return `[...]`. Actions may have more
    leading axes than the distribution: they broadcast.
    """

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the leading axes."""
        ...

    def sample(self, key: Array) -> PyTree:
        """Draws actions `[..., *event_shape]`."""
        ...

    def sample_and_log_prob(self, key: Array) -> tuple[PyTree, Array]:
        """Draws actions and their log-probability `[...]`, exact where `log_prob` has to invert tanh."""
        ...

    def mode(self) -> PyTree:
        """The action taken when not exploring."""
        ...

    def log_prob(self, actions: PyTree) -> Array:
        """Log-probability (log-density for continuous actions) `[...]` of `actions`."""
        ...

    def entropy(self) -> Array:
        """Entropy `[...]` in nats."""
        ...

    def kl(self, other: Any) -> Array:
        """KL(self || other) `[...]` in nats; `other` is of the same family."""
        ...


class DistClass(NamedTuple):
    """Class of distributions that serves one action space; call it on a model's output.

    Built-in classes are cached: equal spaces give the same object, so a `DistClass` is a good static argument.

    Example:
        ```python
        dist_class = get_dist_class(gymnasium.spaces.Discrete(2))
        dist = dist_class(jnp.zeros((8, dist_class.input_size)))
        actions = dist.sample(jax.random.key(0))                      # int32 [8]
        ```

    Attributes:
        name: name for messages and summaries.
        input_size: `D`, the size of the last axis of the inputs, which is what the model has to emit.
        from_inputs: inputs `[..., D]` -> distribution with batch shape `[...]`.
        mask_inputs: `(inputs [..., D], action_mask) -> inputs` under which masked actions have probability 0; None
            where masks mean nothing (continuous actions).
    """

    name: str
    input_size: int
    from_inputs: Callable[[Array], Any]
    mask_inputs: Callable[[Array, PyTree], Array] | None = None

    def __call__(self, inputs: Array) -> Any:
        """Returns the distribution with these inputs `[..., D]`; its batch shape is `[...]`."""
        return self.from_inputs(inputs)


def as_inputs(name: str, inputs: Any, size: int) -> Array:
    """Checks that inputs are `[..., size]`, and widens half precision (too coarse to compare log-probabilities in).

    Args:
        name: the family, for the message.
        inputs: array `[..., size]`.
        size: expected last axis.

    Returns:
        The inputs, at least float32.

    Raises:
        ValueError: if the last axis is another.
    """
    inputs = jnp.asarray(inputs)
    if inputs.ndim == 0 or inputs.shape[-1] != size:
        raise ValueError(
            f"{name}: expected inputs [..., {size}], got shape {inputs.shape}; "
            "the model has to emit dist_class.input_size numbers"
        )
    return inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))


def mask_logits(logits: Array, action_mask: Any) -> Array:
    """Replaces masked logits by `MASK_VALUE`, each for itself.

    Args:
        logits: `[..., D]`.
        action_mask: bool or int `[..., D]`; False or 0 forbids the action.

    Returns:
        Logits `[..., D]`, at least float32.

    Raises:
        ValueError: if the last axes differ.
    """
    logits, allowed = _logits_and_mask(logits, action_mask)
    return jnp.where(allowed, logits, MASK_VALUE)


def mask_choices(logits: Array, action_mask: Any, sizes: tuple[int, ...] | None = None) -> Array:
    """Replaces masked logits by `MASK_VALUE` where of each group of logits one is chosen.

    A group that allows nothing, as padding and many environments' last observations have it, says nothing: it counts
    as one that allows everything. Values of such a state stay ordinary numbers, so that one may bootstrap from it; no
    gradient reaches them.

    Args:
        logits: `[..., D]`.
        action_mask: bool or int `[..., D]`; False or 0 forbids the action.
        sizes: of the groups, which add up to D; None: there is one.

    Returns:
        Logits `[..., D]`, at least float32.

    Raises:
        ValueError: if the last axes differ.
    """
    logits, allowed = _logits_and_mask(logits, action_mask)
    if sizes is None:
        some = jnp.any(allowed, axis=-1, keepdims=True)
    else:
        groups = jnp.split(allowed, np.cumsum(sizes)[:-1].tolist(), axis=-1)
        some = jnp.concatenate([jnp.broadcast_to(g.any(axis=-1, keepdims=True), g.shape) for g in groups], axis=-1)
    return jnp.where(allowed, logits, jnp.where(some, MASK_VALUE, jax.lax.stop_gradient(logits)))


def _logits_and_mask(logits: Any, action_mask: Any) -> tuple[Array, Array]:
    logits = jnp.asarray(logits)
    allowed = jnp.asarray(action_mask).astype(bool)
    if allowed.ndim == 0 or allowed.shape[-1] != logits.shape[-1]:
        raise ValueError(
            f"action_mask: expected [..., {logits.shape[-1]}], one entry per logit, got shape {allowed.shape}; "
            "a MultiDiscrete mask is the masks of its components, concatenated"
        )
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), allowed


def flatten_event(actions: Any, event_shape: tuple[int, ...]) -> Array:
    """Reshapes actions `[..., *event_shape]` to `[..., A]`."""
    actions = jnp.asarray(actions)
    if len(event_shape) == 1:
        return actions
    return actions.reshape((*actions.shape[: actions.ndim - len(event_shape)], math.prod(event_shape)))


def unflatten_event(actions: Array, event_shape: tuple[int, ...]) -> Array:
    """Reshapes `[..., A]` to actions `[..., *event_shape]`."""
    return actions if len(event_shape) == 1 else actions.reshape((*actions.shape[:-1], *event_shape))
