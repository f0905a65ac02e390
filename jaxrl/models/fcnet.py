"""Dense layers: hidden layers and the two heads. `initializers.initialize` gives their first values."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.models.config import Activation, ModelConfig
from jaxrl.models.products import KernelAndBias, dense_layers
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
    return dense_layers(x, *_hidden(x.shape[-1], layers, layer_norm))


def _hidden(
    inputs: int, layers: Sequence[tuple[int, Activation]], layer_norm: bool
) -> tuple[list[KernelAndBias], list[Activation]]:
    """Weights and activations of hidden layers."""
    weights = []
    for i, (size, _) in enumerate(layers):
        weights.append(DenseWeights(size, name=f"layer_{i}")(inputs))
        inputs = size
    if layer_norm:
        return weights, [lambda x, act=act: act(jax.nn.standardize(x)) for _, act in layers]
    return weights, [act for _, act in layers]


class DenseWeights(nn.Module):
    """The parameters of a dense layer, as `flax.linen.Dense` names them, zero at first."""

    size: int

    @nn.compact
    def __call__(self, inputs: int) -> KernelAndBias:
        """Kernel `[inputs, size]` and bias `[size]`."""
        return self.param("kernel", zeros, (inputs, self.size)), self.param("bias", zeros, (self.size,))


class Mlp(nn.Module):
    """Hidden layers and the linear layer `out`: from `[..., F]` to `[..., outputs]`."""

    layers: tuple[tuple[int, Activation], ...]
    outputs: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weights, activations = _hidden(x.shape[-1], self.layers, self.layer_norm)
        weights.append(DenseWeights(self.outputs, name="out")(weights[-1][1].shape[0] if weights else x.shape[-1]))
        return dense_layers(x, weights, [*activations, jax.nn.identity], is_head=True)


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
        act = self.last_activation if config.no_final_linear else jax.nn.identity
        x = dense_layers(x, [DenseWeights(size, name="out")(x.shape[-1])], [act], is_head=True)
        if config.free_log_std:
            log_std = self.param("log_std", zeros, (size,))
            x = jnp.concatenate([x, jnp.broadcast_to(log_std, x.shape)], axis=-1)
        return x


class ValueHead(nn.Module):
    """From features `[..., F]` to the value `[...]`."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weights = DenseWeights(1, name="out")(x.shape[-1])
        return dense_layers(x, [weights], [jax.nn.identity], is_head=True).squeeze(-1)
