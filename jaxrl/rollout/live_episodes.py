"""LiveEpisodes: Episode objects kept up to date step by step, only where callbacks want them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxrl import trees
from jaxrl.callbacks import Callbacks, Episode
from jaxrl.envs import EPISODE_CONTINUES, VectorEnv
from jaxrl.metrics import EpisodeRecord
from jaxrl.rollout.episodes import SINGLE_AGENT
from jaxrl.types import CallbackError


class LiveEpisodes:
    """The episodes in progress of a vector of environments, as callbacks see them.

    Args:
        callbacks: hooks.
        worker: given to the hooks.
        worker_index: number of the worker.
        env: the environments.
    """

    def __init__(self, callbacks: Callbacks, worker: Any, worker_index: int, env: VectorEnv):
        self._env = env
        env.before_reset = self._before_reset
        self._callbacks, self._worker, self._worker_index = callbacks, worker, worker_index
        self._count = 0
        self._finished: list[Episode] = []
        self._looked_at: dict[int, bool] = {}
        self._episodes: list[Episode | None] = [None] * env.num_envs

    def _episode(self, b: int) -> Episode:
        episode = self._episodes[b]
        if episode is None:
            episode = Episode(episode_id=self._count, worker_index=self._worker_index, env_index=b)
            self._count += 1
            self._episodes[b] = episode
            if self._callbacks.on_episode_start is not None:
                self._callbacks.on_episode_start(worker=self._worker, env_index=b, episode=episode)
        return episode

    def begin(self) -> None:
        """Starts the episodes that have none yet."""
        for b in range(len(self._episodes)):
            self._episode(b)

    def before_reset(self, b: int, reward: float, *, over: bool = True) -> None:
        """Calls the hooks of environment b's last step while it stands where its episode ended; `step` comes later.

        Args:
            b: its index.
            reward: of the step.
            over: the episode ends with it; else a life does, and the game may go on.
        """
        self._looked_at[b] = over
        episode = self._stepped(b, reward)
        if over and self._callbacks.on_episode_end is not None:
            self._callbacks.on_episode_end(worker=self._worker, env_index=b, episode=episode)

    def step(
        self,
        rewards: np.ndarray,
        ended: Sequence[int],
        broken_off: Sequence[int],
        stepped: np.ndarray | None,
    ) -> None:
        """One vector step: adds rewards and calls the hooks that `before_reset` has not called.

        Args:
            rewards: `[B]`.
            ended: indices of the environments whose episode ended, in order.
            broken_off: indices of those that failed in it: it has no end and is forgotten.
            stepped: `[B]`, which environments moved; None: all.
        """
        looked_at, self._looked_at = self._looked_at, {}
        for b in range(len(self._episodes)):
            if (stepped is None or stepped[b]) and b not in looked_at:
                self._stepped(b, float(rewards[b]))
        # In the order in which the sampler lists ended episodes, so that `complete` can pair them.
        for b in ended:
            episode = self._episode(b)
            if self._callbacks.on_episode_end is not None and not looked_at.get(b):
                self._callbacks.on_episode_end(worker=self._worker, env_index=b, episode=episode)
            self._finished.append(episode)
            self._episodes[b] = None
        for b in broken_off:
            self._episodes[b] = None
        for b in {*ended, *broken_off}:
            self._episode(b)

    def _before_reset(self, b: int, reward: float) -> None:
        self.before_reset(b, reward, over=not self._env.infos[b].get(EPISODE_CONTINUES))

    def _stepped(self, b: int, reward: float) -> Episode:
        episode = self._episode(b)
        episode.length += 1
        episode.total_reward += reward
        episode.agent_rewards[SINGLE_AGENT] = episode.agent_rewards.get(SINGLE_AGENT, 0.0) + reward
        if self._callbacks.on_episode_step is not None:
            self._callbacks.on_episode_step(worker=self._worker, env_index=b, episode=episode)
        return episode

    def complete(self, records: list[EpisodeRecord]) -> list[EpisodeRecord]:
        """Adds what callbacks wrote to the records of the episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        return [record._replace(**written(episode)) for record, episode in zip(records, finished, strict=True)]

    def restart(self) -> None:
        """Forgets the episodes in progress (the environments were reset)."""
        self._episodes = [None] * len(self._episodes)
        self._looked_at = {}

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """The episodes in progress, for a checkpoint."""
        return {"count": self._count, "episodes": [None if e is None else save_episode(e) for e in self._episodes]}

    def set_state(self, state: dict[str, Any], restored: list[bool]) -> None:
        """Takes saved episodes back, but for environments that did not come back."""
        self._count = int(state["count"])
        self._episodes = [
            load_episode(saved) if saved is not None and same else None
            for saved, same in zip(state["episodes"], restored, strict=True)
        ]


def written(episode: Episode) -> dict[str, Any]:
    """What hooks wrote into an episode, as the fields of its record.

    Raises:
        CallbackError: something else than numbers.
    """
    for name, value in episode.custom_metrics.items():
        _check_number(value, f"custom_metrics[{name!r}]", "a number")
    for name, values in episode.hist_data.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise CallbackError(
                f"callbacks: episode.hist_data[{name!r}]: expected a list of numbers, got {type(values).__name__} "
                f"{values!r}"
            )
        for value in values:
            _check_number(value, f"hist_data[{name!r}]", "a list of numbers")
    return {"custom_metrics": dict(episode.custom_metrics), "hist_data": dict(episode.hist_data)}


def _check_number(value: Any, where: str, expected: str) -> None:
    array = np.asarray(value) if not isinstance(value, float | int) else None
    if array is not None and (array.dtype.kind not in "biuf" or array.size != 1):
        raise CallbackError(
            f"callbacks: episode.{where}: expected {expected}, got {type(value).__name__} {value!r}; leave it out "
            "where there is nothing to report, or keep it in episode.user_data"
        )


def save_episode(episode: Episode) -> dict[str, Any]:
    """An episode in progress as plain data; entries of `user_data` that a checkpoint cannot hold are left out."""
    agents = [[agent, reward] for agent, reward in episode.agent_rewards.items()]
    own = {name: value for name, value in episode.user_data.items() if _storable(value)}
    return {**vars(episode), "agent_rewards": agents, "user_data": own}


def load_episode(saved: dict[str, Any]) -> Episode:
    """The episode that `save_episode` made data of."""
    return Episode(**{**saved, "agent_rewards": dict(saved["agent_rewards"])})


def _storable(value: Any) -> bool:
    try:
        trees.encode(value)
    except TypeError:
        return False
    return True
