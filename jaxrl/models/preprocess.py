"""From observation and action pytrees to float features, inside the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.types import Array, PyTree, UnsupportedSpaceError

ACTION_MASK = "action_mask"

# The smallest side of a rank-3 Box that is taken for an image: MiniGrid's agents see 7x7 cells.
MIN_IMAGE_SIDE = 7


class Leaf(NamedTuple):
    """A leaf of a space, the keys that lead to it from the root, and whether a convolution reads it."""

    path: tuple[Any, ...]
    space: gymnasium.Space
    is_image: bool

    def of(self, tree: PyTree) -> Any:
        """The leaf's value in a pytree of the space."""
        for key in self.path:
            tree = tree[key]
        return tree

    @property
    def name(self) -> str:
        """The path as text, for parameter names and errors."""
        return "_".join(map(str, self.path)) or "obs"


def leaves(space: gymnasium.Space, *, drop_action_mask: bool = False) -> list[Leaf]:
    """Lists the leaves of a space, Dict and Tuple unfolded, in the space's order.

    Args:
        space: an observation or action space.
        drop_action_mask: leave out the key "action_mask" of a Dict at the root: policies apply it to the distribution
            inputs, and it is no feature.

    Returns:
        The leaves; at least one.

    Raises:
        UnsupportedSpaceError: for a leaf without a fixed shape (Text, Graph, Sequence) or a space without leaves.
    """
    found = list(_walk(space, (), drop_action_mask))
    if not found:
        raise UnsupportedSpaceError(
            f"space {space}: no leaf that a model could read; expected at least one observation"
        )
    return found


def _walk(space: gymnasium.Space, path: tuple[Any, ...], drop_action_mask: bool) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            if not (drop_action_mask and not path and key == ACTION_MASK):
                yield from _walk(child, (*path, key), drop_action_mask)
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _walk(child, (*path, index), drop_action_mask)
    elif space.shape is None or space.dtype is None or not _is_numeric(space.dtype):
        where = "".join(f"[{key!r}]" for key in path) or "the root"
        raise UnsupportedSpaceError(
            f"space at {where}: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got "
            f"{type(space).__name__}; encode it in an environment wrapper"
        )
    else:
        yield Leaf(path, space, is_image(space))


def _is_numeric(dtype: Any) -> bool:
    return np.dtype(dtype).kind in "biuf"


def is_image(space: gymnasium.Space) -> bool:
    """Whether a space is a Box `[H, W, C]` or `[C, H, W]` with sides of at least `MIN_IMAGE_SIDE`."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    height, width, _ = image_shape(space)
    return min(height, width) >= MIN_IMAGE_SIDE


def image_shape(space: gymnasium.Space) -> tuple[int, int, int]:
    """Height, width and channels of a rank-3 Box; see `to_image` for which axis holds the channels."""
    assert space.shape is not None
    first, middle, last = space.shape
    return (middle, last, first) if _channels_first(space) else (first, middle, last)


def _channels_first(space: gymnasium.Space) -> bool:
    assert space.shape is not None
    first, middle, last = space.shape
    return first < min(middle, last)


def to_image(x: Array, space: gymnasium.Space) -> Array:
    """Brings an image to `[..., H, W, C]` float32.

    The first axis holds the channels where it is shorter than both others (stacked frames `[4, 84, 84]` of Gymnasium
    and ale-py), else the last.

    Args:
        x: `[..., H, W, C]` or `[..., C, H, W]`, the space's dtype.
        space: the Box.

    Returns:
        `[..., H, W, C]`; a uint8 image with values up to 255 is divided by 255.
    """
    if _channels_first(space):
        x = jnp.moveaxis(x, -3, -1)
    return scale(x, space)


def scale(x: Array, space: gymnasium.Space) -> Array:
    """To float32; uint8 values of a Box that reaches 255 (pixels, Atari RAM) are divided by 255."""
    is_bytes = isinstance(space, spaces.Box) and space.dtype == np.uint8 and bool(np.max(space.high) == 255)
    return x.astype(jnp.float32) * (1 / 255 if is_bytes else 1.0)


def flat(x: Any, space: gymnasium.Space) -> Array:
    """Encodes one leaf as a vector.

    Args:
        x: the leaf `[..., *space.shape]`.
        space: Box (flattened), Discrete (one-hot), MultiDiscrete (one-hots, concatenated), MultiBinary (flattened).

    Returns:
        `[..., F]` float32, F = `flat_size(space)`.
    """
    x = jnp.asarray(x)
    shape = space.shape or ()
    leading = x.shape[: x.ndim - len(shape)]
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x - int(space.start), int(space.n), dtype=jnp.float32)
    x = x.reshape(*leading, math.prod(shape))
    if isinstance(space, spaces.MultiDiscrete):
        x = x - np.asarray(space.start).reshape(-1).astype(x.dtype)
        hots = [jax.nn.one_hot(x[..., i], int(n), dtype=jnp.float32) for i, n in enumerate(space.nvec.reshape(-1))]
        return jnp.concatenate(hots, axis=-1)
    return scale(x, space)


def flat_size(space: gymnasium.Space) -> int:
    """Length of the vector that `flat` makes of one leaf."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return math.prod(space.shape or ())


def flat_tree(tree: PyTree, space: gymnasium.Space) -> Array:
    """Encodes every leaf of a pytree with `flat` and concatenates: `[..., F]` float32. Images are flattened too."""
    return jnp.concatenate([flat(leaf.of(tree), leaf.space) for leaf in leaves(space)], axis=-1)


def zeros(space: gymnasium.Space, leading: tuple[int, ...] = ()) -> PyTree:
    """A pytree of the space with zeros `[*leading, *shape]`: dict for Dict, tuple for Tuple, 64-bit dtypes halved."""
    if isinstance(space, spaces.Dict):
        return {key: zeros(child, leading) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(zeros(child, leading) for child in space.spaces)
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    return np.zeros((*leading, *(space.shape or ())), dtype)
