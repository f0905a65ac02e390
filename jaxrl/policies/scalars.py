"""Scalars: metrics as one array within compiled programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


@jax.tree_util.register_static
class _Names(tuple):
    """Names, which a program carries along without looking at them."""

    __slots__ = ()


class Scalars(NamedTuple):
    """Scalars by name as one array, so that a scan stacks one and not one for each.

    Attributes:
        names: static.
        values: float32 `[..., M]`.
    """

    names: Any
    values: Any

    @staticmethod
    def pack(scalars: Mapping[str, Any]) -> Scalars:
        """From arrays of equal shape `[...]`, or numbers."""
        values = [jnp.asarray(value, jnp.float32) for value in scalars.values()]
        return Scalars(_Names(scalars), jnp.stack(values, axis=-1) if values else jnp.zeros(0))

    def unpack(self) -> dict[str, Any]:
        """Arrays `[...]` by name."""
        return {name: self.values[..., i] for i, name in enumerate(self.names)}
