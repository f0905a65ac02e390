"""Dense layers: hidden layers and the two heads. `initializers.initialize` gives their first values."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxrl.models.config import Activation, ModelConfig
from jaxrl.types import Array

zeros = nn.initializers.zeros


def hidden_layers(x: Array, layers: Sequence[tuple[int, Activation]]) -> Array:
    """Dense layers `layer_0, layer_1, ...` of the calling Linen module, each followed by its activation.

    Args:
        x: features `[..., F]`.
        layers: size and activation of each layer.

    Returns:
        `[..., size of the last layer]`, or `x` where there is no layer.
    """
    for i, (size, act) in enumerate(layers):
        x = act(nn.Dense(size, kernel_init=zeros, name=f"layer_{i}")(x))
    return x


class PolicyHead(nn.Module):
    """From features `[..., F]` to the inputs `[..., num_outputs]` of the action distribution.

    With `free_log_std` the layer `out` gives the first half and the parameter `log_std`, zero at first, the second.
    With `no_final_linear` the layer is a hidden layer, activated.
    """

    num_outputs: int
    config: ModelConfig
    last_activation: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        size = self.num_outputs // 2 if config.free_log_std else self.num_outputs
        x = nn.Dense(size, kernel_init=zeros, name="out")(x)
        if config.no_final_linear:
            x = self.last_activation(x)
        if config.free_log_std:
            log_std = self.param("log_std", zeros, (size,))
            x = jnp.concatenate([x, jnp.broadcast_to(log_std, x.shape)], axis=-1)
        return x


class ValueHead(nn.Module):
    """From features `[..., F]` to the value `[...]`."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(1, kernel_init=zeros, name="out")(x).squeeze(-1)
