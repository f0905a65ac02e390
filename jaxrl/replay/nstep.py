"""Sums of the next n rewards, assembled from rows by following their links."""

from __future__ import annotations

import numpy as np

from jaxrl.replay.storage import NO_LINK, ReplayState

# Up to so many rows, a loop in Python is faster than NumPy.
FEW = 8


def powers(gamma: float, n: int) -> np.ndarray:
    """`gamma^0 .. gamma^n`, float32 `[n + 1]`."""
    return (gamma ** np.arange(n + 1, dtype=np.float64)).astype(np.float32)


def _tail(state: ReplayState, row: int, count: int) -> list[int]:
    assert state.back is not None
    found = [row]
    while len(found) < count and 0 <= (row := int(state.back[row])) < len(state.link):
        found.append(row)
    return found


def tails(state: ReplayState, rows: list[int], count: int) -> np.ndarray:
    """The slots `rows` and those of the rows before each, `count` in all per row, as far as they are there."""
    assert state.back is not None
    if len(rows) <= FEW:
        return np.asarray([slot for row in rows for slot in _tail(state, row, count)], np.int32)
    current = np.asarray(rows, np.int32)
    found = [current]
    for _ in range(count - 1):
        current = state.back[current]
        current = current[(current >= 0) & (current < len(state.link))]
        if not len(current):
            break
        found.append(current)
    return np.concatenate(found)


def assemble(state: ReplayState, rows: np.ndarray, n: int, gamma: float) -> None:
    """Computes `rewards_n` and `last_n` of rows anew.

    The sum of a row stops after n rewards, at the end of its episode, or at the newest row of it that is there:
    `rewards_n = sum_k gamma^k r_(t+k)`, k < m <= n (the m-step return of Sutton and Barto, 2nd edition, eq. 7.1,
    without its bootstrap value); `last_n` is the slot of row t + m - 1, whose link leads to the m-step successor.

    Args:
        state: the buffer's state; `rewards` and `link` hold the rows already.
        rows: slots, `[m]`.
        n: most steps to sum.
        gamma: discount per step.
    """
    assert state.rewards_n is not None and state.last_n is not None
    rewards, link, capacity = state.columns["rewards"], state.link, len(state.link)
    total = rewards[rows].astype(np.float32)
    last = rows
    for k in range(1, n):
        following = link[last]
        goes = following < capacity
        if state.unsampleable:  # the row after may have no known successor: then this one's link is the last to follow
            beyond = link.take(following, mode="clip")
            ended = state.columns["terminateds"].take(following, mode="clip")
            goes &= (beyond != NO_LINK) | ended
        last = np.where(goes, following, last)
        total += rewards[last] * np.float32(gamma**k) * goes
    state.rewards_n[rows] = total
    state.last_n[rows] = last
