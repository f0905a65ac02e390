"""Stacks of frames: only the newest frame of an observation is stored, and stacks are rebuilt from the rows before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl.replay.storage import START, ReplayState
from jaxrl.types import ConfigError

# The first rows that come are all checked, later ones by sample.
CHECKED_WHOLLY = 1000


def gather(rows: np.ndarray, side: np.ndarray, address: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Entries at addresses: slots of `rows`, and from `len(rows)` on those of `side`."""
    taken = rows.take(address, axis=0, mode="clip", out=out)
    outside = address >= len(rows)
    if outside.any():
        places = outside.nonzero()[0]
        taken[places] = side[address[places] - len(rows)]
    return taken


def ancestors(state: ReplayState, address: np.ndarray, previous: np.ndarray, count: int) -> list[np.ndarray]:
    """Addresses of the `count` newest frames that end with `address`, newest first.

    Args:
        state: the buffer's state; it has `back`.
        address: `[n]`, where the newest frame is.
        previous: `[n]`, where the one before is, START or LOST. The oldest frame there is stands in for what is before.
        count: frames.
    """
    assert state.back is not None
    capacity = len(state.link)
    found = [address]
    for _ in range(count - 1):
        address = np.where(previous < 0, address, previous)
        found.append(address)
        before = np.where(previous < 0, previous, state.back.take(previous, mode="clip"))
        outside = previous >= capacity
        if outside.any():
            before[outside] = state.side_back[previous[outside] - capacity]
        previous = before
    return found


def planes(rows: np.ndarray, side: np.ndarray, addresses: Sequence[np.ndarray]) -> np.ndarray:
    """Frames at each of `addresses` (newest first), as `[k, n, ...]` with the newest last."""
    k, n = len(addresses), len(addresses[0])
    out = np.empty((k, n, *rows.shape[1:]), rows.dtype)
    for place, address in enumerate(reversed(addresses)):
        gather(rows, side, address, out[place])
    return out


def as_stacks(frames: np.ndarray) -> np.ndarray:
    """Frames `[k, n, ...]` as stacks `[n, ..., k]`: a view, since copying bytes one by one costs more than the rest."""
    return np.moveaxis(frames, 0, -1)


def intact(state: ReplayState, row: int, count: int) -> bool:
    """Whether the `count` frames that end with `row` are all there (or the episode starts before)."""
    assert state.back is not None
    capacity, address = len(state.link), row
    for _ in range(count - 1):
        address = int(state.back[address] if address < capacity else state.side_back[address - capacity])
        if address < 0:
            return address == START
    return True


def check_stacks(
    state: ReplayState,
    obs: Sequence[np.ndarray],
    pairs: tuple[np.ndarray, np.ndarray],
    firsts: np.ndarray,
    continued: Sequence[tuple[int, int]],
    finals: Sequence[tuple[np.ndarray, np.ndarray]],
    debug: bool,
) -> None:
    """Checks that observations are stacks of the last k frames, newest last; all rows at first, later some.

    Args:
        state: the buffer's state before the rows are added.
        obs: leaves of the rows' observations `[N, ..., k]`, any order.
        pairs: numbers of rows and of the rows that follow them.
        firsts: numbers of rows that start an episode.
        continued: numbers of rows that continue an episode of the buffer, and the slot of the row before.
        finals: for each leaf, some final observations and the rows' that they follow, both `[m, ..., k]`.
        debug: check all rows, always.

    Raises:
        ConfigError: they are not.
    """
    every = debug or state.added < CHECKED_WHOLLY
    some = slice(None) if every else slice(None, 1)
    before, after = pairs[0][some], pairs[1][some]
    for leaf, stored, frames, final in zip(obs, state.obs, state.stacked, finals, strict=True):
        if not frames:
            continue
        _require(leaf[after][..., :-1], leaf[before][..., 1:], "a row's older frames are not those of the row before")
        start = leaf[firsts[some]]
        _require(
            start, np.broadcast_to(start[..., :1], start.shape), "an episode's first row does not repeat one frame"
        )
        for row, slot in continued[some] if leaf.shape[-1] > 1 else []:
            _require(leaf[row][..., -2], stored[slot], "a row's older frames are not those of the fragment before")
        _require(final[0][some][..., :-1], final[1][some][..., 1:], "a final observation does not follow its row")


def _require(found: Any, expected: Any, what: str) -> None:
    if found.shape != expected.shape or not np.array_equal(found, expected):
        raise ConfigError(
            f"replay: frame_stack expects observations that stack the last frames of the episode on the last axis, the "
            f"newest last, the first frame repeated at its start, but {what}; stack them so (gymnasium: "
            "FrameStackObservation with padding_type='reset', axis moved last), or set frame_stack=0"
        )
