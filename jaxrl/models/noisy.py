"""Noisy linear layers: exploration by learned noise on the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.types import Array, Params

# Up to this many rows (acting) the noise is factorised in the product too, and no noisy kernel is made. For two streams
# of 256 hidden units on 64 features, 2 CPU cores: 61 against 106 us for 8 rows (49 of both for the draw), 207 against
# 187 for 32, 853 against 455 for 256.
_FEW_ROWS = 16


class NoisyDense(nn.Module):
    """Dense layer whose weights are Gaussian, with learned means and standard deviations.

    Fortunato et al. 2017, Noisy Networks for Exploration, https://arxiv.org/abs/1706.10295, equation 9:
    `y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b`, with factorised noise (equations 10 and 11):
    `eps_w = f(eps_in) f(eps_out)^T`, `eps_b = f(eps_out)`, `f(x) = sgn(x) sqrt(|x|)`. First values as in section 3.2:
    means uniform within `1 / sqrt(inputs)`, deviations `sigma0 / sqrt(inputs)`.

    Called with a key, or with noise drawn already, one draw is shared by the whole batch, as in the paper's DQN;
    without, the layer computes with the means.

    Attributes:
        size: outputs.
        sigma0: first deviation of the weights, before the division by `sqrt(inputs)`.

    Example:
        >>> layer = NoisyDense(4)
        >>> params = layer.init(jax.random.key(0), jnp.ones((8, 3)))
        >>> mean, noisy = layer.apply(params, x), layer.apply(params, x, jax.random.key(1))
    """

    size: int
    sigma0: float = 0.5

    @nn.compact
    def __call__(self, x: Array, key: Array | None = None, *, noise: Array | None = None) -> Array:
        """From `[..., F]` to `[..., size]`.

        Args:
            x: features.
            key: a key that the noise is drawn from; None for no noise, or for that of `noise`.
            noise: standard normal numbers `[F + size]`, in place of a key: networks of several layers draw theirs at
                once (`draw_noise`).
        """
        inputs = x.shape[-1]
        bound = 1 / math.sqrt(inputs)
        mean = nn.initializers.uniform(2 * bound)

        def mean_init(key: Array, shape: tuple[int, ...]) -> Array:
            return mean(key, shape) - bound

        sigma_init = nn.initializers.constant(self.sigma0 * bound)
        kernel = self.param("kernel", mean_init, (inputs, self.size))
        bias = self.param("bias", mean_init, (self.size,))
        sigma_kernel = self.param("sigma_kernel", sigma_init, (inputs, self.size))
        sigma_bias = self.param("sigma_bias", sigma_init, (self.size,))
        if key is not None and noise is None:
            (noise,) = draw_noise(key, [(inputs, self.size)])
        if noise is not None:
            scaled = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
            noise_in, noise_out = scaled[:inputs], scaled[inputs:]
            bias = bias + sigma_bias * noise_out
            if math.prod(x.shape[:-1]) <= _FEW_ROWS:
                return x @ kernel + ((x * noise_in) @ sigma_kernel) * noise_out + bias
            kernel = kernel + sigma_kernel * (noise_in[:, None] * noise_out)
        return x @ kernel + bias


def draw_noise(key: Array, sizes: Sequence[tuple[int, int]]) -> list[Array]:
    """The noise of several layers from one draw: on a CPU each draw costs an acting call 20 us or more.

    Args:
        key: a key.
        sizes: inputs and outputs of each layer.

    Returns:
        Standard normal numbers `[inputs + outputs]` for each layer.
    """
    lengths = [inputs + outputs for inputs, outputs in sizes]
    return _pieces(jax.random.normal(key, (sum(lengths),)), lengths)


def initialize_noisy(key: Array, params: Params, sigma0: float) -> Params:
    """Gives every noisy layer within `params` its first values, all from one draw, and leaves the others alone.

    Args:
        key: a key.
        params: nested dicts.
        sigma0: as in `NoisyDense`.

    Returns:
        Parameters of the same structure.
    """
    layers: list[tuple[int, int]] = []

    def find(tree: Any) -> None:
        if isinstance(tree, Mapping):
            if "sigma_kernel" in tree:
                layers.append(tree["kernel"].shape)
            for child in tree.values():
                find(child)

    find(params)
    lengths = [inputs * outputs + outputs for inputs, outputs in layers]
    draws = iter(_pieces(jax.random.uniform(key, (sum(lengths),), minval=-1.0), lengths))

    def fill(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if "sigma_kernel" not in tree:
            return {name: fill(child) for name, child in tree.items()}
        inputs, outputs = tree["kernel"].shape
        bound = 1 / math.sqrt(inputs)
        means = bound * next(draws)
        return {
            "kernel": means[: inputs * outputs].reshape(inputs, outputs),
            "bias": means[inputs * outputs :],
            "sigma_kernel": jnp.full((inputs, outputs), sigma0 * bound),
            "sigma_bias": jnp.full((outputs,), sigma0 * bound),
        }

    return fill(params)


def _pieces(x: Array, lengths: Sequence[int]) -> list[Array]:
    return jnp.split(x, [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)])
