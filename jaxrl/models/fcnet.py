"""Dense layers: initializers, hidden layers and the two heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.models.config import Activation, ModelConfig
from jaxrl.types import Array


def normc(gain: float) -> nn.initializers.Initializer:
    """Gaussian columns scaled to the norm `gain` (OpenAI baselines' and RLlib's `normc_initializer`)."""

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        w = jax.random.normal(key, shape, dtype)
        return gain * w / jnp.linalg.norm(w.reshape(-1, shape[-1]), axis=0)

    return init


def kernel_init(config: ModelConfig, layer: str) -> nn.initializers.Initializer:
    """Initializer of a kernel by `config.initializer`.

    Args:
        config: the model's options.
        layer: "hidden", "policy" (the last layer of the policy) or "value" (the last layer of the value function).

    Returns:
        For "orthogonal" the gains of PPO's reference code, sqrt 2, 0.01 and 1 (Huang et al., "The 37 Implementation
        Details of PPO", detail 2, https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/); for
        "normc" RLlib's 1, 0.01 and 1; "glorot" is the same for all.
    """
    if config.initializer == "glorot":
        return nn.initializers.glorot_uniform()
    hidden_gain = math.sqrt(2) if config.initializer == "orthogonal" else 1.0
    gain = {"hidden": hidden_gain, "policy": 0.01, "value": 1.0}[layer]
    return nn.initializers.orthogonal(gain) if config.initializer == "orthogonal" else normc(gain)


def hidden_layers(x: Array, layers: Sequence[tuple[int, Activation]], config: ModelConfig) -> Array:
    """Dense layers `layer_0, layer_1, ...` of the calling Linen module, each followed by its activation.

    Args:
        x: features `[..., F]`.
        layers: size and activation of each layer.
        config: for the initializer.

    Returns:
        `[..., size of the last layer]`, or `x` where there is no layer.
    """
    for i, (size, act) in enumerate(layers):
        x = act(nn.Dense(size, kernel_init=kernel_init(config, "hidden"), name=f"layer_{i}")(x))
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
        layer = "hidden" if config.no_final_linear else "policy"
        x = nn.Dense(size, kernel_init=kernel_init(config, layer), name="out")(x)
        if config.no_final_linear:
            x = self.last_activation(x)
        if config.free_log_std:
            log_std = self.param("log_std", nn.initializers.zeros, (size,))
            x = jnp.concatenate([x, jnp.broadcast_to(log_std, x.shape)], axis=-1)
        return x


class ValueHead(nn.Module):
    """From features `[..., F]` to the value `[...]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(1, kernel_init=kernel_init(self.config, "value"), name="out")(x).squeeze(-1)
