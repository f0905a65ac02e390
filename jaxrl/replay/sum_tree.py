"""A sum tree in NumPy: draws by weight and updates in time logarithmic in the number of leaves, whole batches at once.

The tree is shallow and wide (16 children to a node, up to 4096 nodes at its root), since a NumPy call costs as much as
a hundred additions: 10^6 leaves make two levels beneath the root. Every sum is computed anew from its children, so that
rounding never accumulates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

FANOUT = 16
ROOT = 4096


class SumTree(NamedTuple):
    """Weights of `capacity` leaves; its arrays are written in place.

    Attributes:
        capacity: number of leaves.
        sums: float64, one array per level, the leaves first; an entry is the sum of `FANOUT` entries of the level
            below. Padded with zeros to a multiple of `FANOUT` (the last one, the root, is not).
        mins: float64, one array per level above the leaves: the smallest positive leaf beneath, infinity if none.
    """

    capacity: int
    sums: tuple[np.ndarray, ...]
    mins: tuple[np.ndarray, ...]


def init(capacity: int) -> SumTree:
    """A tree of `capacity >= 1` leaves of weight 0."""
    sizes = [capacity]
    while len(sizes) == 1 or sizes[-1] > ROOT:
        sizes.append(-(-sizes[-1] // FANOUT))
    padded = [-(-size // FANOUT) * FANOUT for size in sizes[:-1]] + sizes[-1:]
    return SumTree(
        capacity, tuple(np.zeros(size) for size in padded), tuple(np.full(size, np.inf) for size in padded[1:])
    )


def set(tree: SumTree, indexes: Any, values: Any) -> SumTree:
    """Gives leaves new weights.

    Args:
        tree: the tree; it is changed in place.
        indexes: integers `[n]` in `[0, capacity)`; of several values for one leaf the last one counts.
        values: weights `[n]` (or one for all), finite and not negative.

    Returns:
        The tree.
    """
    tree.sums[0][indexes] = values
    blocks = indexes
    for level, (above, mins) in enumerate(zip(tree.sums[1:], tree.mins, strict=True)):
        blocks = blocks // FANOUT
        children = tree.sums[level].reshape(-1, FANOUT).take(blocks, axis=0)
        above[blocks] = children.sum(axis=1)
        if level:
            mins[blocks] = tree.mins[level - 1].reshape(-1, FANOUT).take(blocks, axis=0).min(axis=1)
        else:
            mins[blocks] = children.min(axis=1, initial=np.inf, where=children > 0.0)
    return tree


def fill(tree: SumTree, start: int, stop: int, values: Any) -> SumTree:
    """`set` for the leaves `start:stop`, at a fraction of its cost."""
    tree.sums[0][start:stop] = values
    for level, (above, mins) in enumerate(zip(tree.sums[1:], tree.mins, strict=True)):
        start, stop = start // FANOUT, (stop - 1) // FANOUT + 1
        children = tree.sums[level].reshape(-1, FANOUT)[start:stop]
        above[start:stop] = children.sum(axis=1)
        if level:
            mins[start:stop] = tree.mins[level - 1].reshape(-1, FANOUT)[start:stop].min(axis=1)
        else:
            mins[start:stop] = children.min(axis=1, initial=np.inf, where=children > 0.0)
    return tree


def find(tree: SumTree, targets: Any) -> np.ndarray:
    """The leaf at which the running sum of all leaves first exceeds each target.

    Rounding never leads to a leaf of weight 0, nor past the last one, while `total(tree) > 0`.

    Args:
        tree: the tree.
        targets: float64 `[n]`, in `[0, total)`.

    Returns:
        Integers `[n]`. A leaf is found for a share of the targets in proportion to its weight.
    """
    running = tree.sums[-1].cumsum()
    rest = np.minimum(targets, np.nextafter(running[-1], 0.0))
    nodes = running.searchsorted(rest, side="right")
    rest = rest - np.where(nodes > 0, running[nodes - 1], 0.0)
    rows = np.arange(len(nodes))
    for sums in tree.sums[-2::-1]:
        running = sums.reshape(-1, FANOUT).take(nodes, axis=0).cumsum(axis=1)
        # A child of weight 0 never adds to the running sum: below the last value, only others are counted past.
        rest = np.minimum(rest, np.nextafter(running[:, -1], 0.0))
        child = (running <= rest[:, None]).sum(axis=1)
        rest = rest - np.where(child > 0, running[rows, child - 1], 0.0)
        nodes = nodes * FANOUT + child
    return nodes


def total(tree: SumTree) -> float:
    """The sum of all weights."""
    return float(tree.sums[-1].sum())


def smallest(tree: SumTree) -> float:
    """The smallest positive weight, infinity if there is none."""
    return float(tree.mins[-1].min())


def nbytes(tree: SumTree) -> int:
    """Bytes of the tree's arrays."""
    return sum(array.nbytes for array in (*tree.sums, *tree.mins))
