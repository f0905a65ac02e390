"""FragmentRows: the rows that environments and the policy write into while a fragment is collected."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.envs import VectorEnv, empty_rows
from jaxrl.types import PyTree

# Beyond this, padding to the longest fragment that can come costs more than compiling a few lengths.
MAX_PADDED_BYTES = 4 * 2**20


class FragmentRows:
    """Preallocated rows `[T, B, ...]` of one fragment; they grow when a fragment of whole episodes needs more.

    New arrays for every fragment: what learning reads may share their memory.

    Args:
        env: the environments, whose spaces lay out the rows.
        action_space: the policy's action space.
        steps: T expected.
        filtered: observations that learning sees are kept apart from the raw ones.

    Attributes:
        rewards: float64 `[T, B]`, as the environments gave them.
        terminateds, truncateds: bool `[T, B]`.
        starts: bool `[T + 1, B]`, True where an episode starts with the row, and a model's state anew.
        cuts: bool `[T + 1, B]`, True where an episode starts with the row, and a model's state goes on.
    """

    def __init__(self, env: VectorEnv, action_space: Any, steps: int, *, filtered: bool):
        b = env.num_envs
        self._raw = empty_rows(env.observation_space, steps + 1, b)
        self._obs: PyTree = None
        self._filtered = filtered
        self._actions = empty_rows(action_space, steps, b)
        self.rewards = np.zeros((steps, b), np.float64)
        self.terminateds = np.zeros((steps, b), bool)
        self.truncateds = np.zeros((steps, b), bool)
        self.starts = np.zeros((steps + 1, b), bool)
        self.cuts = np.zeros((steps + 1, b), bool)
        self._plain = isinstance(self._raw, np.ndarray)
        self._plain_actions = isinstance(self._actions, np.ndarray)

    def reserve(self, steps: int) -> None:
        """Makes room for at least `steps` rows."""
        have = len(self.rewards)
        if steps <= have:
            return

        def grown(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.zeros((max(have, steps - have), *x.shape[1:]), x.dtype)])

        self._raw, self._obs, self._actions = jax.tree.map(grown, (self._raw, self._obs, self._actions))
        self.rewards, self.terminateds = grown(self.rewards), grown(self.terminateds)
        self.truncateds, self.starts, self.cuts = map(grown, (self.truncateds, self.starts, self.cuts))

    def reorder(self, order: np.ndarray) -> None:
        """Puts the first rows into another order, in new arrays.

        Args:
            order: int `[T, B]`, which row of its column each row becomes.
        """
        steps = len(order)

        def moved(x: np.ndarray) -> np.ndarray:
            taken = np.take_along_axis(x[:steps], order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=0)
            return np.concatenate([taken, x[steps:]])

        self._raw, self._obs, self._actions = jax.tree.map(moved, (self._raw, self._obs, self._actions))
        self.rewards, self.terminateds = moved(self.rewards), moved(self.terminateds)
        self.truncateds, self.starts, self.cuts = map(moved, (self.truncateds, self.starts, self.cuts))

    def put_raw(self, i: int, obs: PyTree) -> None:
        """Writes raw observations into row `i`."""

        def put(rows: np.ndarray, x: np.ndarray) -> None:
            rows[i] = x

        jax.tree.map(put, self._raw, obs)

    def put_obs(self, i: int, obs: PyTree) -> None:
        """Writes filtered observations into row `i`."""
        if self._obs is None:  # the filter decides the dtypes
            n = len(self.rewards) + 1
            self._obs = jax.tree.map(lambda x: np.zeros((n, *x.shape), x.dtype), obs)
        if self._plain:
            self._obs[i] = obs
        else:

            def put(rows: np.ndarray, x: np.ndarray) -> None:
                rows[i] = x

            jax.tree.map(put, self._obs, obs)

    def put_actions(self, i: int, actions: PyTree) -> None:
        """Writes the policy's actions into row `i`."""
        if self._plain_actions:
            self._actions[i] = actions
        else:

            def put(rows: np.ndarray, x: np.ndarray) -> None:
                rows[i] = x

            jax.tree.map(put, self._actions, actions)

    def raw_row(self, i: int) -> PyTree:
        """Row `i` of the raw observations, a view `[B, ...]`."""
        return self._raw[i] if self._plain else jax.tree.map(lambda x: x[i], self._raw)

    def obs_row(self, i: int) -> PyTree:
        """Row `i` of the observations that the policy sees, a view `[B, ...]`."""
        if not self._filtered:
            return self.raw_row(i)
        return self._obs[i] if self._plain else jax.tree.map(lambda x: x[i], self._obs)

    def raw(self, steps: int) -> PyTree:
        """The first `steps` rows of raw observations `[steps, B, ...]`."""
        return jax.tree.map(lambda x: x[:steps], self._raw)

    def obs(self, steps: int) -> PyTree:
        """The first `steps` rows of the observations that the policy saw."""
        return jax.tree.map(lambda x: x[:steps], self._obs if self._filtered else self._raw)

    def actions(self, steps: int) -> PyTree:
        """The first `steps` rows of actions."""
        return jax.tree.map(lambda x: x[:steps], self._actions)


class Before(NamedTuple):
    """What stood before a fragment's first row: model state, previous actions and rewards."""

    state: PyTree
    actions: PyTree
    rewards: np.ndarray


def zeroed(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A copy of `x` with zeros where `where [B]` is True."""
    x = np.array(x)
    x[where] = 0
    return x


def shifted(column: np.ndarray, previous: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The column one row later: `previous` in row 0, zeros where an episode starts."""
    out = np.concatenate([np.asarray(previous)[None].astype(column.dtype), column[:-1]])
    out[starts[:-1]] = 0
    return out


def padded_length(steps: int, fragment: int, longest_episode: int | None, row_bytes: int) -> int:
    """Rows that a fragment of whole episodes is padded to: each length compiles the programs that see it anew.

    Where the longest episode is known, that is the one length that always suffices, as long as it is small; else the
    fragment's own length, and beyond it powers of two.

    Args:
        steps: rows collected.
        fragment: `rollout_fragment_length`; an environment goes on to the end of the episode that reaches it.
        longest_episode: steps after which every episode ends, or None.
        row_bytes: of the observations of one row, all environments together.
    """
    if longest_episode is not None:
        longest = fragment - 1 + longest_episode
        if steps <= longest and longest * row_bytes <= MAX_PADDED_BYTES:
            return longest
    return fragment if steps <= fragment else 1 << (steps - 1).bit_length()


def bytes_of(rows: PyTree) -> int:
    """Bytes of a pytree of arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(rows))
