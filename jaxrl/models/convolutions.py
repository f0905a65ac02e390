"""Convolutions that are fast on CPUs too: there XLA's own are fast in one form only, which gradients do not take."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.types import Array

Pair = tuple[int, int]

# Rows of a batch that are convolved at once on a CPU, and at most how many such chunks a program holds: it grows with
# them, and so does the time to compile it.
_CHUNK_ROWS = 16
_MAX_CHUNKS = 16


def out_size(size: int, kernel: int, stride: int, padding: str) -> int:
    """Rows or columns that a convolution makes of `size`; padding "SAME" or "VALID"."""
    return math.ceil(size / stride) if padding == "SAME" else (size - kernel) // stride + 1


def conv2d(x: Array, kernel: Array, stride: Pair, padding: str) -> Array:
    """Two-dimensional convolution (cross-correlation), in the form that suits the backend it is traced for.

    A kernel as large as the image is a matrix product. All forms give the same numbers up to float32 rounding.

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
    return (conv_cpu if _platform() == "cpu" else conv_xla)(x, kernel, stride, padding)


def in_chunks(fn: Callable[[Array], Array], x: Array) -> Array:
    """`fn(x)` for a function of single rows; on a CPU a few rows at a time.

    A chunk's intermediate results stay in the cache, and chunks run side by side. They are unrolled: the body of a loop
    would run alone.

    Args:
        fn: function of rows `[n, ...]` to rows, whatever n is.
        x: `[N, ...]`.
    """
    count = min(_MAX_CHUNKS, x.shape[0] // _CHUNK_ROWS)
    if count < 2 or _platform() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return fn(x)
    return jnp.concatenate([fn(part) for part in jnp.array_split(x, count)])


def conv_xla(x: Array, kernel: Array, stride: Pair, padding: Any) -> Array:
    """`conv2d` by XLA's convolution; padding may also be `((top, bottom), (left, right))`."""
    return jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_cpu(x: Array, kernel: Array, stride: Pair, padding: str) -> Array:
    """`conv2d` by XLA's convolution, with gradients that are fast on a CPU.

    XLA's CPU backend has a fast convolution of images NHWC with kernels HWIO. What automatic differentiation gives has
    its axes in other orders. Outside loops XLA transposes those, inside `lax.scan` it falls back on code 16 times
    slower. Here they are transposed by hand. The price: there is no forward-mode derivative (`jax.jvp`).
    """
    return conv_xla(x, kernel, stride, padding)


def _forward(x: Array, kernel: Array, stride: Pair, padding: str) -> tuple[Array, tuple[Array, Array]]:
    return conv_xla(x, kernel, stride, padding), (x, kernel)


def _backward(stride: Pair, padding: str, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    conv = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    lows, to_image, to_kernel, used = [], [], [], []
    for n, k, s, m in zip(x.shape[1:3], kernel.shape[:2], stride, grad.shape[1:3], strict=True):
        reach = (m - 1) * s + k  # what the kernel covers
        low = max(reach - n, 0) // 2 if padding == "SAME" else 0
        lows.append(low)
        to_image.append((k - 1 - low, n + low - reach + k - 1))
        to_kernel.append((low, max(reach - n - low, 0)))
        used.append(min(n, reach - low))
    # The image's gradient: the output's, spread out by the strides, under the kernel turned around.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    grad_x = conv(grad, turned, window_strides=(1, 1), padding=to_image, lhs_dilation=stride)
    # The kernel's gradient: channels are a batch of images, whose channels are the rows.
    images = x[:, : used[0], : used[1]].transpose(3, 1, 2, 0)
    weights = grad.transpose(1, 2, 0, 3)
    grad_kernel = conv(images, weights, window_strides=(1, 1), padding=to_kernel, rhs_dilation=stride)
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


conv_cpu.defvjp(_forward, _backward)


def _platform() -> str:
    # A sampler traces for the CPU under `jax.default_device` while the learner's default backend is an accelerator.
    config: Any = jax.config
    device = config.jax_default_device
    return jax.default_backend() if device is None else getattr(device, "platform", device)
