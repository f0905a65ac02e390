"""Which rows of a fragment end an episode, and how: by themselves, cut, or because their environment failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from jaxrl.envs import EPISODE_CONTINUES, RESET_FAILED, STEP_FAILED, EnvPlace, VectorEnv
from jaxrl.rollout.fragment import FragmentRows
from jaxrl.types import FINAL_PAD, EnvError, PyTree

logger = logging.getLogger("jaxrl.workers")

# In a fragment of whole episodes so many of one environment in a row may be broken off by its failures: else it would
# never be complete.
MAX_BROKEN_OFF = 100

Place = tuple[int, int]
Final = tuple[int, int, Any]


class FragmentEnds:
    """The ends of episodes in a fragment, gathered while it is collected.

    Args:
        env: the environments.

    Attributes:
        rows: (t, b, final observation) of each ended row, in order; of a row that failed, what its action was taken on.
        going_on: (t, b) of the ends that are for learning alone: the game goes on.
        failed: (t, b) of the rows in which an environment's step raised. They are no transitions.
        broken_off: (t, b) of the rows with which a game was broken off by a failure; it has no result.
        soft: (t, b) of the cuts after which a recurrent model's state goes on.
    """

    def __init__(self, env: VectorEnv) -> None:
        self._env = env
        self.rows: list[Final] = []
        self.going_on: set[Place] = set()
        self.failed: set[Place] = set()
        self.broken_off: set[Place] = set()
        self.soft: set[Place] = set()

    def look(self, i: int, env_ended: list[tuple[int, Any]]) -> list[int]:
        """Sees what kind of end each of the environments that ended in row `i` came to; returns those that failed."""
        failed = []
        for b, _ in env_ended:
            info, reset_info = self._env.infos[b], self._env.reset_infos[b]
            if STEP_FAILED in info:
                failed.append(b)
                self.failed.add((i, b))
                self.broken_off.add((i, b))
            elif reset_info.get(EPISODE_CONTINUES):
                self.going_on.add((i, b))
            elif RESET_FAILED in reset_info and info.get(EPISODE_CONTINUES):
                self.broken_off.add((i, b))  # a life was over, and the game was lost with the environment
        return failed

    def add(self, i: int, ended: list[tuple[int, Any]]) -> None:
        """Row `i` ended the episodes of these environments, those that the sampler cut included."""
        self.rows.extend((i, b, final) for b, final in ended)

    def games(self, i: int, ended: list[tuple[int, Any]]) -> tuple[list[int], list[int]]:
        """Of the environments that ended in row `i`, those whose game is over, and those that lost it to a failure."""
        lost = [b for b, _ in ended if (i, b) in self.broken_off]
        return [b for b, _ in ended if (i, b) not in self.going_on and b not in lost], lost

    def places(self) -> list[Place]:
        """(t, b) of each ended row, in order."""
        return [(i, b) for i, b, _ in self.rows]

    def settle(
        self, rows: FragmentRows, valid: np.ndarray | None, logps: np.ndarray | None, *, whole: bool
    ) -> tuple[np.ndarray | None, np.ndarray | None, list[Final]]:
        """Makes the rows say what is true where an environment failed.

        The row before a failed one becomes a truncation, whose successor is what the failing action was taken on. Where
        it is the last row of the fragment before, it stands there as any last row does: with what follows it. Of a
        fragment of whole episodes those that were cut are left out, and the rows after them move up.

        Args:
            rows: the fragment's; changed.
            valid: bool `[T, B]`, the rows that are transitions; None: all, and nothing has failed.
            logps: `[T, B]` of the actions, where acting gave them.
            whole: the fragment is of whole episodes.

        Returns:
            `valid` and `logps`, maybe shorter, and the final observations `(t, b, observation)`.
        """
        if valid is None or not self.failed:
            return valid, logps, self.rows
        if not whole:
            return valid, logps, self._cut_before_failures(rows)
        valid, order, finals = self._leave_out_broken(rows, valid)
        return valid, None if logps is None else np.take_along_axis(logps, order, axis=0)[: len(valid)], finals

    def _cut_before_failures(self, rows: FragmentRows) -> list[Final]:
        finals = []
        for i, b, final in self.rows:
            if (i, b) not in self.failed:
                finals.append((i, b, final))
                continue
            rows.truncateds[i, b] = False
            if i > 0 and not rows.starts[i, b]:
                rows.truncateds[i - 1, b] = True
                finals.append((i - 1, b, final))
        return finals

    def _leave_out_broken(self, rows: FragmentRows, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Final]]:
        steps, begin = len(valid), [0] * valid.shape[1]
        valid = valid.copy()
        for i, b in self.places():
            if (i, b) in self.failed:
                valid[begin[b] : i + 1, b] = False
            begin[b] = i + 1
        order = np.argsort(~valid, axis=0, kind="stable")
        place = np.cumsum(valid, axis=0) - 1
        finals = [(int(place[i, b]), b, final) for i, b, final in self.rows if (i, b) not in self.failed]
        rows.reorder(order)
        valid = np.take_along_axis(valid, order, axis=0)
        for column in (rows.rewards, rows.terminateds, rows.truncateds):
            column[:steps] *= valid
        kept = max(1, int(valid.sum(axis=0).max()))
        rows.starts[kept] = rows.starts[steps]
        rows.cuts[kept] = rows.cuts[kept : steps + 1].any(axis=0)
        return valid[:kept], order, finals


def final_rows(
    finals: list[Final], empty: PyTree, slots: int, settled: Callable[[PyTree], PyTree]
) -> tuple[PyTree, np.ndarray]:
    """The columns `final_obs [slots, ...]` and `final_index [slots, 2]` of a fragment.

    Args:
        finals: the final observations, no more than `slots`.
        empty: rows of zeros `[slots, ...]`.
        slots: K.
        settled: what is done to them, stacked: checked and filtered.
    """
    index = np.full((slots, 2), FINAL_PAD, np.int32)
    index[:, 1] = 0
    if not finals:
        return empty, index
    index[: len(finals)] = [(i, b) for i, b, _ in finals]

    def put(into: np.ndarray, values: np.ndarray) -> np.ndarray:
        into = into if into.dtype == values.dtype else into.astype(values.dtype)
        into[: len(finals)] = values
        return into

    stacked = jax.tree.map(lambda *x: np.stack(x), *(final for _, _, final in finals))
    return jax.tree.map(put, empty, settled(stacked)), index


class WholeEpisodes:
    """Which environments play on in a fragment of whole episodes: each to the end of the one that fills its share.

    Args:
        steps: the share of each environment.
        place: names the environments in errors.
        num_envs: B.
        limit: steps after which an episode that has not ended is an error; None: never.

    Attributes:
        active: bool `[B]`; a new array whenever it changes.
    """

    def __init__(self, steps: int, place: EnvPlace, num_envs: int, limit: int | None = None) -> None:
        self.active = np.ones(num_envs, bool)
        self._steps, self._place, self._limit = steps, place, limit
        self._warned = False
        self._until_look = _steps_to(limit)
        self._whole = np.zeros(num_envs, np.int64)
        self._under_way = np.zeros(num_envs, np.int64)
        self._broken_off = np.zeros(num_envs, np.int64)

    @property
    def rows(self) -> int:
        """Rows of the whole episodes so far, all environments together."""
        return int(self._whole.sum())

    def step(self, moved: np.ndarray, ended: list[tuple[int, Any]], failed: Collection[int]) -> None:
        """One vector step.

        Args:
            moved: bool `[B]`, the environments whose row is a transition.
            ended: those whose episode ended, with final observations.
            failed: those among them whose step raised.

        Raises:
            EnvError: an environment fails in each of its episodes, or goes on beyond the limit without an end.
        """
        self._under_way += moved
        self._until_look -= 1
        if not self._until_look:
            self._look_for_endless()
        if not ended:
            return
        active = self.active.copy()
        for b, _ in ended:
            if b in failed:
                self._broken_off[b] += 1
                if self._broken_off[b] >= MAX_BROKEN_OFF:
                    raise EnvError(
                        f"{self._place.describe(b)}: its failures broke off {MAX_BROKEN_OFF} episodes in a row, and "
                        "batch_mode='complete_episodes' takes whole ones only; mend the environment, or set "
                        "batch_mode='truncate_episodes'."
                    )
            else:
                self._broken_off[b] = 0
                self._whole[b] += self._under_way[b]
                active[b] = active[b] and self._whole[b] < self._steps
            self._under_way[b] = 0
        self.active = active

    def _look_for_endless(self) -> None:
        """Warns of an episode that is very long already; raises where one is beyond the limit."""
        b = int(self._under_way.argmax())
        steps, limit = int(self._under_way[b]), self._limit
        self._until_look = _steps_to(limit)
        if limit is None or steps < limit // 10:
            return
        where = f"{self._place.describe(b, steps)}: its episode has not ended after {steps} steps, and whole ones are"
        if steps >= limit:
            raise EnvError(
                f"{where} sampled (evaluation, or batch_mode='complete_episodes'); set `horizon` to cut episodes, let "
                f"the environment end or truncate them, or raise `max_whole_episode_steps`, which is {limit}."
            )
        if not self._warned:
            self._warned = True
            logger.warning("%s waited for; `horizon` cuts episodes. An error comes after %d steps", where, limit)


def _steps_to(limit: int | None) -> int:
    # Looked at now and then: an episode of `limit` steps is found within a hundredth of it.
    return -1 if limit is None else max(1, limit // 100)
