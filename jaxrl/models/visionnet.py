"""Convolutional networks for images, with a convolution that is fast on CPUs too.

Defaults: 84x84 gets the Nature CNN (Mnih et al. 2015, https://doi.org/10.1038/nature14236, "Model architecture"), which
today's implementations and their published scores use, and not RLlib's 16-32-256 filters; 42x42 gets RLlib's filters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp

from jaxrl.models import preprocess
from jaxrl.models.config import ModelConfig, activation
from jaxrl.types import Array, ConfigError

_NATURE_84 = ((32, 8, 4, "valid"), (64, 4, 2, "valid"), (64, 3, 1, "valid"), (512, 7, 1, "valid"))
_RLLIB_42 = ((16, 4, 2), (32, 4, 2), (256, 11, 1))


class Conv(NamedTuple):
    """One layer of `conv_filters`, checked: channels, kernel `(kh, kw)`, stride `(sh, sw)`, "SAME" or "VALID"."""

    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: str


def default_conv_filters(height: int, width: int) -> tuple[tuple[Any, ...], ...]:
    """`conv_filters` for an image size.

    84x84 and 42x42 have their own (see the module's docstring). Any other size is halved (quartered while a side is
    over 64) by 4x4 (8x8) kernels of 16, 32, 64, 64... channels until no side is over 12; an image that starts below
    that gets one 3x3 layer of 32 channels. A last layer as large as what is left makes 256 features.

    Args:
        height: rows of the image.
        width: columns of the image.

    Returns:
        Layers `(out, kernel, stride, padding)`.
    """
    if (height, width) == (84, 84):
        return _NATURE_84
    if (height, width) == (42, 42):
        return _RLLIB_42
    layers: list[tuple[Any, ...]] = []
    while max(height, width) > 12:
        stride = 4 if max(height, width) > 64 else 2
        layers.append((min(16 * 2 ** len(layers), 64), 2 * stride, stride, "same"))
        height, width = math.ceil(height / stride), math.ceil(width / stride)
    if not layers:
        layers.append((32, 3, 1, "same"))
    return (*layers, (256, (height, width), 1, "valid"))


def conv_layers(space: gymnasium.Space, config: ModelConfig) -> list[Conv]:
    """The checked convolutions for an image space.

    Raises:
        ConfigError: for a malformed layer, or a kernel larger than the image that reaches it.
    """
    height, width, _ = preprocess.image_shape(space)
    given = config.conv_filters
    filters = default_conv_filters(height, width) if given is None else given
    layers = []
    for i, entry in enumerate(filters):
        where = f"model.conv_filters[{i}]"
        layer = _parse(entry, where, last=i == len(filters) - 1)
        if layer.padding == "VALID" and (layer.kernel[0] > height or layer.kernel[1] > width):
            raise ConfigError(
                f"{where}: kernel {list(layer.kernel)} is larger than the {height}x{width} image that reaches it "
                f"(observation {space.shape}); use a smaller kernel or stride, or padding 'same'"
            )
        height, width = (
            _out_size(n, k, s, layer.padding) for n, k, s in zip((height, width), *layer[1:3], strict=True)
        )
        layers.append(layer)
    return layers


def _parse(entry: Any, where: str, *, last: bool) -> Conv:
    try:
        out, kernel, stride, *rest = entry
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        stride = (stride, stride) if isinstance(stride, int) else tuple(stride)
        (padding,) = rest or ("valid" if last else "same",)
        numbers = (out, *kernel, *stride)
        well_formed = len(kernel) == len(stride) == 2 and all(isinstance(n, int) and n > 0 for n in numbers)
        if not well_formed or padding.upper() not in ("SAME", "VALID"):
            raise ValueError
    except (TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{where}: expected [out, kernel, stride] or [out, kernel, stride, 'same' or 'valid'], with a whole number "
            f"or a pair of them for kernel and stride, such as [32, [4, 4], 2]; got {entry!r}"
        ) from None
    return Conv(out, kernel, stride, padding.upper())


def _out_size(size: int, kernel: int, stride: int, padding: str) -> int:
    return math.ceil(size / stride) if padding == "SAME" else (size - kernel) // stride + 1


class VisionNet(nn.Module):
    """Convolutions of one image leaf: `[..., H, W, C]` or `[..., C, H, W]` to features `[..., F]`."""

    space: gymnasium.Space
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = activation(self.config.conv_activation)
        leading = x.shape[:-3]
        x = preprocess.to_image(x.reshape(math.prod(leading), *x.shape[-3:]), self.space)
        for i, layer in enumerate(conv_layers(self.space, self.config)):
            shape = (*layer.kernel, x.shape[-1], layer.out)
            kernel = self.param(f"kernel_{i}", nn.initializers.zeros, shape)
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (layer.out,))
            x = act(conv2d(x, kernel, layer.stride, layer.padding) + bias)
        return x.reshape(*leading, math.prod(x.shape[1:]))


def conv2d(x: Array, kernel: Array, stride: tuple[int, int], padding: str) -> Array:
    """Two-dimensional convolution (cross-correlation), lowered for the backend that it is traced for.

    XLA's CPU backend computes the gradient of a convolution slowly, and 16 times more slowly inside `lax.scan`, so
    there it is im2col; on accelerators it is XLA's own. Both give the same numbers up to float32 rounding.

    Args:
        x: images `[N, H, W, C]`.
        kernel: `[kh, kw, C, out]`.
        stride: rows and columns per step.
        padding: "SAME" or "VALID", as in XLA.

    Returns:
        `[N, H', W', out]`.
    """
    if padding == "VALID" and kernel.shape[:2] == x.shape[1:3]:
        out = x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1])
        return out[:, None, None, :]
    return (conv_im2col if _platform() == "cpu" else conv_xla)(x, kernel, stride, padding)


def _platform() -> str:
    # A sampler traces for the CPU under `jax.default_device` while the learner's default backend is an accelerator.
    config: Any = jax.config
    device = config.jax_default_device
    return jax.default_backend() if device is None else getattr(device, "platform", device)


def conv_xla(x: Array, kernel: Array, stride: tuple[int, int], padding: str) -> Array:
    """`conv2d` by XLA's convolution."""
    return jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_im2col(x: Array, kernel: Array, stride: tuple[int, int], padding: str) -> Array:
    """`conv2d` by one slice per kernel position, concatenated into patches, and one matrix product.

    Where the stride divides the kernel, blocks of `stride` pixels become channels first (space to depth): the 89
    strided slices of the Nature CNN become 17 plain ones, which compile in a third of the time and run as fast.
    """
    (kh, kw, channels, out), (sh, sw) = kernel.shape, stride
    height, width = (_out_size(n, k, s, padding) for n, k, s in zip(x.shape[1:3], (kh, kw), stride, strict=True))
    rows, columns = (height - 1) * sh + kh, (width - 1) * sw + kw  # that the kernel reaches
    if padding == "SAME":
        top, left = (max(need - n, 0) // 2 for need, n in zip((rows, columns), x.shape[1:3], strict=True))
        bottom, right = max(rows - x.shape[1] - top, 0), max(columns - x.shape[2] - left, 0)
        x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    x = x[:, :rows, :columns]
    if (sh, sw) != (1, 1) and kh % sh == kw % sw == 0:
        x = x.reshape(-1, rows // sh, sh, columns // sw, sw, channels).swapaxes(2, 3)
        kernel = kernel.reshape(kh // sh, sh, kw // sw, sw, channels, out).swapaxes(1, 2)
        kh, kw, channels = kh // sh, kw // sw, sh * sw * channels
        x = x.reshape(-1, rows // sh, columns // sw, channels)
        sh, sw = 1, 1
    patches = [
        x[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(kh * kw * channels, out)
