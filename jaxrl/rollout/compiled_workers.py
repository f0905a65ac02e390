"""CompiledWorkers: what stands in a plan for rollout workers where the environments run within a compiled program."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxrl.metrics import EpisodeRecord
from jaxrl.policies import Policy
from jaxrl.rollout.compiled_rollouts import Played
from jaxrl.rollout.filters import make_filter
from jaxrl.types import PolicyID, Weights


class Ended(NamedTuple):
    """Episodes that ended, in the order of time: their environment, length and return, each `[K]`."""

    column: np.ndarray
    length: np.ndarray
    reward: np.ndarray


class EpisodeReturns:
    """Returns and lengths of episodes from rewards and ends.

    Args:
        width: environments.
    """

    def __init__(self, width: int):
        self.width = width
        self.reward = np.zeros(width)
        self.length = np.zeros(width, np.int64)

    def add(self, rewards: np.ndarray, ended: np.ndarray) -> Ended:
        """The episodes that ended in the next `N` steps.

        Args:
            rewards: `[N, B]`.
            ended: bool `[N, B]`.
        """
        steps, width = rewards.shape
        running = np.cumsum(rewards, axis=0, dtype=np.float64)
        column, row = np.nonzero(ended.T)
        total = running[row, column]
        first = np.ones(len(row), bool)
        first[1:] = column[1:] != column[:-1]
        before = np.where(first, -self.reward[column], np.roll(total, 1))
        begun = np.where(first, -1 - self.length[column], np.roll(row, 1))
        last_row, last_total = np.full(width, -1), np.zeros(width)
        last_row[column], last_total[column] = row, total
        unbroken = last_row < 0
        self.reward = running[-1] - last_total + np.where(unbroken, self.reward, 0.0)
        self.length = steps - 1 - last_row + np.where(unbroken, self.length, 0)
        order = np.argsort(row, kind="stable")
        return Ended(column[order], (row - begun)[order], (total - before)[order])


class CompiledWorkers:
    """Has the methods of `WorkerSet` that results, evaluation and checkpoints ask of it; nothing here samples.

    Args:
        config: a RolloutConfig.
        policies: built policies by id.
    """

    def __init__(self, config: Any, policies: Mapping[PolicyID, Policy]):
        self.local = self
        self.version = 0
        self.actors: list[Any] = []
        self.num_restarts = self.num_env_restarts = 0
        self.sampler_perf: dict[str, float] = {}
        self.filters = {pid: make_filter("NoFilter", policy.spec.obs_space) for pid, policy in policies.items()}
        self._layout = ["compiled", config.num_envs_per_worker]
        self._returns = EpisodeReturns(config.num_envs_per_worker)
        self._episodes: list[EpisodeRecord] = []

    @property
    def shards(self) -> list[Any]:
        """What `ParallelRollouts` gathers from: this, a placeholder."""
        return [self]

    def par_iter_init(self, steps: Any) -> NoReturn:
        """Refuses to sample.

        Raises:
            AssertionError: always; the compiled engine takes the place of what would call it.
        """
        raise AssertionError(f"a compiled plan was pulled on the host ({steps})")

    def add(self, played: Played) -> None:
        """Takes what happened in `[N, B]` env steps."""
        ended = self._returns.add(np.asarray(played.rewards), np.asarray(played.ended))
        self._episodes += map(EpisodeRecord, ended.length.tolist(), ended.reward.tolist())

    def set_returns(self, returns: EpisodeReturns) -> None:
        """Goes on with the episodes that another has followed so far."""
        self._returns = returns

    def pop_episodes(
        self, timeout_s: float | None = None, of_workers: Collection[int] | None = None
    ) -> list[EpisodeRecord]:
        """Episodes that ended since the last call."""
        del timeout_s, of_workers
        popped, self._episodes = self._episodes, []
        return popped

    def sync_weights(self, weights: Mapping[PolicyID, Weights]) -> None:
        """Nothing: the program holds the weights."""
        self.version += 1

    def sync_filters(self, timeout_s: float | None = None) -> None:
        """Nothing: there are none."""

    def get_filters(self) -> dict[PolicyID, Any]:
        """The states of filters that do nothing."""
        return {pid: filter.init() for pid, filter in self.filters.items()}

    def get_state(self) -> dict[str, Any]:
        """The returns of episodes under way."""
        return {
            "layout": self._layout,
            "workers": [{"reward": self._returns.reward, "length": self._returns.length}],
            "filters": {pid: [] for pid in self.filters},
        }

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether `state` is of as many environments in a compiled program."""
        return list(state["layout"]) == self._layout

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `get_state` returned, where it fits."""
        if self.fits(state):
            (saved,) = state["workers"]
            self._returns.reward = np.asarray(saved["reward"], np.float64)
            self._returns.length = np.asarray(saved["length"], np.int64)

    def stop(self) -> None:
        """Nothing: there is nothing to end."""
