"""Bounds of Box spaces in the floating-point type that actions are computed in."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


def inner_bounds(space: spaces.Box, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of a Box as `dtype`, rounded inwards: what lies between them is in the Box.

    Bounds that are infinite stay so; finite ones that `dtype` cannot hold become its largest number.

    Args:
        space: the space.
        dtype: a floating-point type.

    Returns:
        `(low, high)`, each of the space's shape.

    Example:
        >>> inner_bounds(spaces.Box(0.1, 0.1, (1,), np.float64))[1] <= 0.1
        array([ True])
    """
    with np.errstate(over="ignore"):
        low, high = space.low.astype(dtype), space.high.astype(dtype)
        low = np.where(low < space.low, np.nextafter(low, np.inf, dtype=low.dtype), low)
        high = np.where(high > space.high, np.nextafter(high, -np.inf, dtype=high.dtype), high)
    most = np.finfo(dtype).max
    return (
        np.where(np.isfinite(space.low), np.clip(low, -most, most), low),
        np.where(np.isfinite(space.high), np.clip(high, -most, most), high),
    )


def middle_and_half(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(middle, half)` of finite bounds, so that `clip(middle + half * x, low, high)` is a bound where x is 1 or -1.

    `half` is rounded up; nothing here overflows, however wide the bounds are.

    Args:
        low, high: of one floating-point type, and so is what is returned.
    """
    middle = low / 2 + high / 2
    half = np.maximum(high - middle, middle - low)
    short = (middle + half < high) | (middle - half > low)
    with np.errstate(over="ignore"):
        return middle, np.where(short, np.nextafter(half, np.inf, dtype=half.dtype), half)
