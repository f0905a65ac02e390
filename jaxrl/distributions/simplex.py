"""The `Simplex` space: non-negative numbers that sum to 1 (shares of a portfolio, a mixture)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box


class Simplex(Box):
    """Points whose last axis is non-negative and sums to 1.

    A Box, so that whatever batches and checks Box actions (Gymnasium's vector environments) works.

    Args:
        shape: number of entries, or a shape whose last axis is the simplex.
        seed: seed of `sample`.

    Example:
        >>> space = Simplex(3, seed=0)
        >>> bool(np.isclose(space.sample().sum(), 1.0))
        True
    """

    def __init__(self, shape: int | Sequence[int], seed: int | np.random.Generator | None = None):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or shape[-1] < 2:
            raise ValueError(f"Simplex: expected at least 2 entries on the last axis, got shape {shape}")
        Box.__init__(self, 0.0, 1.0, shape, np.float32, seed)

    def sample(self, mask: None = None, probability: None = None) -> Any:
        """Draws a point uniformly."""
        if mask is not None or probability is not None:
            raise ValueError("Simplex.sample: takes no mask and no probability")
        *leading, size = self.shape
        return self.np_random.dirichlet(np.ones(size), size=leading).astype(np.float32)

    def contains(self, x: Any) -> bool:
        """True if `x` has the shape, no negative entries, and sums to 1 within 1e-4 (float32 rounding)."""
        x = np.asarray(x)
        return x.shape == self.shape and bool(
            np.all(x >= 0.0) and np.allclose(x.sum(axis=-1), 1.0, rtol=0.0, atol=1e-4)
        )

    def __repr__(self) -> str:
        """Shows the shape."""
        return f"Simplex({self.shape})"
