"""Convolutional networks for images.

Defaults: 84x84 gets the Nature CNN (Mnih et al. 2015, https://doi.org/10.1038/nature14236, "Model architecture"), which
today's implementations and their published scores use, and not RLlib's 16-32-256 filters; 42x42 gets RLlib's filters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import gymnasium

from jaxrl.models import preprocess
from jaxrl.models.config import ModelConfig, activation
from jaxrl.models.convolutions import conv2d, in_chunks, out_size
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
        height, width = (out_size(n, k, s, layer.padding) for n, k, s in zip((height, width), *layer[1:3], strict=True))
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


class VisionNet(nn.Module):
    """Convolutions of one image leaf: `[..., H, W, C]` or `[..., C, H, W]` to features `[..., F]`."""

    space: gymnasium.Space
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = activation(self.config.conv_activation)
        layers = conv_layers(self.space, self.config)
        *_, channels = preprocess.image_shape(self.space)
        weights = []
        for i, layer in enumerate(layers):
            kernel = self.param(f"kernel_{i}", nn.initializers.zeros, (*layer.kernel, channels, layer.out))
            weights.append((kernel, self.param(f"bias_{i}", nn.initializers.zeros, (layer.out,))))
            channels = layer.out

        def convolve(x: Array, first: int, last: int) -> Array:
            for layer, (kernel, bias) in zip(layers[first:last], weights[first:last], strict=True):
                x = act(conv2d(x, kernel, layer.stride, layer.padding) + bias)
            return x

        # A last layer as large as the image is a matrix product, which wants all rows at once.
        count = len(layers) - sum(layer.padding == "VALID" for layer in layers[-1:])
        leading = x.shape[:-3]
        x = x.reshape(math.prod(leading), *x.shape[-3:])
        x = in_chunks(lambda rows: convolve(preprocess.to_image(rows, self.space), 0, count), x)
        x = convolve(x, count, len(layers))
        return x.reshape(*leading, math.prod(x.shape[1:]))
