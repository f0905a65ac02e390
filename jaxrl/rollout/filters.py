"""Observation filters: pure functions over running statistics, on the host, as NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium import spaces

from jaxrl.types import PyTree

# Filtered observations lie within so many deviations of the mean.
CLIP = 10.0


class RunningStat(NamedTuple):
    """Number, mean and sum of squared deviations of the rows seen, in float64, per element."""

    rows: float
    mean: np.ndarray
    m2: np.ndarray


class Filter(NamedTuple):
    """A filter of observations as pure functions.

    Attributes:
        init: `() -> state`.
        update: `(state, obs [N, ...]) -> state` with N more rows.
        apply: `(state, obs [..., ...]) -> obs`.
        merge: `(state, state) -> state` of both their rows.
        identity: whether `apply` changes nothing, so that samplers can skip it.
    """

    init: Callable[[], PyTree]
    update: Callable[[PyTree, PyTree], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]
    merge: Callable[[PyTree, PyTree], PyTree]
    identity: bool


def merge_stats(a: RunningStat, b: RunningStat) -> RunningStat:
    """Statistics of two sets of rows together.

    Chan, Golub and LeVeque 1979, eq. 2.1 (http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf).
    """
    rows = a.rows + b.rows
    if rows == 0:
        return a
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.rows / rows)
    m2 = a.m2 + b.m2 + delta**2 * (a.rows * b.rows / rows)
    return RunningStat(rows, mean, m2)


def make_filter(name: str, space: spaces.Space) -> Filter:
    """The filter called `name` for observations of `space`: every float Box leaf is filtered, other leaves pass.

    MeanStdFilter clips what it gives to 10 deviations (as Baselines' VecNormalize does; RLlib does not): a number that
    was constant so far has none, and its first change would else be 1e8.

    Args:
        name: "NoFilter" or "MeanStdFilter".
        space: observation space of one environment.
    """
    if name == "NoFilter":
        return Filter(lambda: (), lambda s, _: s, lambda _, obs: obs, lambda a, _: a, True)

    def stat(leaf: spaces.Space) -> RunningStat | None:
        # Masks, counts and images are no statistics of their own.
        if not isinstance(leaf, spaces.Box) or not np.issubdtype(leaf.dtype, np.floating):
            return None
        return RunningStat(0.0, np.zeros(leaf.shape), np.zeros(leaf.shape))

    def init() -> PyTree:
        return _map_space(stat, space)

    def update_leaf(state: RunningStat | None, rows: np.ndarray) -> RunningStat | None:
        if state is None or len(rows) == 0:
            return state
        rows = np.asarray(rows, np.float64)
        mean = rows.mean(axis=0)
        return merge_stats(state, RunningStat(float(len(rows)), mean, ((rows - mean) ** 2).sum(axis=0)))

    def apply_leaf(state: RunningStat | None, obs: np.ndarray) -> np.ndarray:
        if state is None or state.rows < 2:
            return obs
        std = np.sqrt(state.m2 / (state.rows - 1)) + 1e-8
        return np.clip((obs - state.mean) / std, -CLIP, CLIP).astype(np.float32)

    def zipped(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda state, other: jax.tree.map(fn, state, other, is_leaf=_is_stat)

    def merge_leaf(a: RunningStat | None, b: RunningStat | None) -> RunningStat | None:
        return a if a is None or b is None else merge_stats(a, b)

    return Filter(init, zipped(update_leaf), zipped(apply_leaf), zipped(merge_leaf), False)


def _is_stat(x: Any) -> bool:
    return x is None or isinstance(x, RunningStat)


def _map_space(fn: Callable[[spaces.Space], Any], space: spaces.Space) -> PyTree:
    if isinstance(space, spaces.Dict):
        return {key: _map_space(fn, child) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_map_space(fn, child) for child in space.spaces)
    return fn(space)
