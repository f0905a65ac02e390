"""Episode bookkeeping over a fragment: numbers of rows and episodes, returns and lengths, all at the fragment's end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jaxrl.metrics import EpisodeRecord
from jaxrl.types import DEFAULT_POLICY_ID

SINGLE_AGENT = "agent0"


class FragmentIndex(NamedTuple):
    """`t [T, B]`: step within the episode; `eps_id [T, B]`: number of the episode; both int32."""

    t: np.ndarray
    eps_id: np.ndarray


class EpisodeTracker:
    """Which episode each environment is in, how long it is and what it has earned, carried from fragment to fragment.

    Where an end is one for learning alone (a lost life), the record of the whole game comes at its true end. Where an
    episode is cut and a recurrent model's state goes on (`soft_horizon`), `t` goes on too: `t == 0` resets the state.

    Args:
        num_envs: B.
        worker_index, num_workers: make episode numbers unique among workers.
    """

    def __init__(self, num_envs: int, worker_index: int, num_workers: int):
        self._stride = num_workers + 1
        self._first = worker_index
        self._count = 0
        self.eps_id = np.zeros(num_envs, np.int64)
        self.length = np.zeros(num_envs, np.int64)
        self.before_cut = np.zeros(num_envs, np.int64)
        self.reward = np.zeros(num_envs, np.float64)
        self.earlier_length = np.zeros(num_envs, np.int64)
        self.earlier_reward = np.zeros(num_envs, np.float64)

    def next_id(self) -> int:
        """The number of a new episode."""
        number = self._count * self._stride + self._first
        self._count += 1
        return number

    def index(self, starts: np.ndarray, cuts: np.ndarray | None = None) -> FragmentIndex:
        """Numbers the rows of a fragment.

        Args:
            starts: bool `[T + 1, B]`, True where an episode starts with the row (row T: the next fragment's first).
            cuts: likewise, where one starts and `t` goes on; None: nowhere.
        """
        steps, width = starts.shape[0] - 1, starts.shape[1]
        new = starts if cuts is None else starts | cuts
        if not new.any():
            t = np.arange(steps)[:, None] + self.length + self.before_cut
            return FragmentIndex(
                t.astype(np.int32), np.broadcast_to(self.eps_id.astype(np.int32), (steps, width)).copy()
            )
        # Numbers grow with time, so running maxima carry each start's row and number down its column.
        rows = np.arange(steps + 1)[:, None]
        begin = np.where(starts, rows, np.iinfo(np.int64).min)
        ids = np.full((steps + 1, width), -1, np.int64)
        for i, b in np.argwhere(new):
            ids[i, b] = self.next_id()
        begin[0] = np.where(starts[0], 0, -(self.length + self.before_cut))
        ids[0] = np.where(new[0], ids[0], self.eps_id)
        begin = np.maximum.accumulate(begin, axis=0)
        ids = np.maximum.accumulate(ids, axis=0)
        self.eps_id = ids[-1].copy()
        t = rows - begin
        return FragmentIndex(t[:-1].astype(np.int32), ids[:-1].astype(np.int32))

    def finish(
        self,
        rewards: np.ndarray,
        ended: list[tuple[int, int]],
        valid: np.ndarray | None,
        going_on: Collection[tuple[int, int]] = (),
        broken_off: Collection[tuple[int, int]] = (),
        cut: Collection[tuple[int, int]] = (),
    ) -> list[EpisodeRecord]:
        """Records of the episodes that ended in a fragment, in the order in which they ended.

        Args:
            rewards: float64 `[T, B]`, as the environments gave them.
            ended: `(t, b)` of each ended row, in order.
            valid: bool `[T, B]`, False where a row is no transition; None if all are.
            going_on: those of `ended` after which the game goes on.
            broken_off: those of `ended` with which a game was lost: it has no record.
            cut: those of `ended` after which `t` goes on.
        """
        begin = [0] * rewards.shape[1]
        records = []

        def add(b: int, stop: int) -> None:
            start, begin[b] = begin[b], stop
            self.length[b] += stop - start if valid is None else int(valid[start:stop, b].sum())
            self.reward[b] += rewards[start:stop, b].sum()

        for i, b in ended:
            add(b, i + 1)
            length = int(self.earlier_length[b] + self.length[b])
            reward = float(self.earlier_reward[b] + self.reward[b])
            self.before_cut[b] = self.before_cut[b] + self.length[b] if (i, b) in cut else 0
            self.length[b], self.reward[b] = 0, 0.0
            if (i, b) in going_on:
                self.earlier_length[b], self.earlier_reward[b] = length, reward
                continue
            self.earlier_length[b], self.earlier_reward[b] = 0, 0.0
            if (i, b) in broken_off:
                continue
            records.append(EpisodeRecord(length, reward, {(SINGLE_AGENT, DEFAULT_POLICY_ID): reward}))
        for b in range(len(begin)):
            add(b, len(rewards))
        return records

    def get_state(self) -> dict[str, Any]:
        """The tracker's state, for a checkpoint."""
        return {
            "count": self._count,
            "eps_id": self.eps_id,
            "length": self.length,
            "before_cut": self.before_cut,
            "reward": self.reward,
            "earlier_length": self.earlier_length,
            "earlier_reward": self.earlier_reward,
        }

    def set_state(self, state: dict[str, Any], restored: list[bool]) -> None:
        """Takes a saved state back; environments that did not come back start a new episode."""
        self._count = int(state["count"])
        self.eps_id = np.array(state["eps_id"], np.int64)
        self.length = np.array(state["length"], np.int64)
        self.before_cut = np.array(state.get("before_cut", np.zeros_like(self.length)), np.int64)
        self.reward = np.array(state["reward"], np.float64)
        self.earlier_length = np.array(state.get("earlier_length", np.zeros_like(self.length)), np.int64)
        self.earlier_reward = np.array(state.get("earlier_reward", np.zeros_like(self.reward)), np.float64)
        for b, same in enumerate(restored):
            if not same:
                self.eps_id[b], self.length[b], self.reward[b] = self.next_id(), 0, 0.0
                self.earlier_length[b], self.earlier_reward[b], self.before_cut[b] = 0, 0.0, 0
