"""Dense layers: hidden layers and the two heads. `initializers.initialize` gives their first values."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.models.config import Activation, ModelConfig
from jaxrl.types import Array

zeros = nn.initializers.zeros


def hidden_layers(x: Array, layers: Sequence[tuple[int, Activation]], *, layer_norm: bool = False) -> Array:
    """Dense layers `layer_0, layer_1, ...` of the calling Linen module, each followed by its activation.

    Args:
        x: features `[..., F]`.
        layers: size and activation of each layer.
        layer_norm: give each row of a layer mean 0 and variance 1 before the activation, as parameter noise needs
            (Plappert et al. 2017, https://arxiv.org/abs/1706.01905, section 3: then one scale of noise suits all
            layers). Without the usual gain and offset, which are not to be perturbed.

    Returns:
        `[..., size of the last layer]`, or `x` where there is no layer.
    """
    for i, (size, act) in enumerate(layers):
        x = nn.Dense(size, kernel_init=zeros, name=f"layer_{i}")(x)
        x = act(jax.nn.standardize(x) if layer_norm else x)
    return x


class Mlp(nn.Module):
    """Hidden layers and the linear layer `out`: from `[..., F]` to `[..., outputs]`."""

    layers: tuple[tuple[int, Activation], ...]
    outputs: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = hidden_layers(x, self.layers, layer_norm=self.layer_norm)
        return nn.Dense(self.outputs, kernel_init=zeros, name="out")(x)


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
