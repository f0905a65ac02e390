"""LiveEpisodes: Episode objects kept up to date step by step, only where callbacks want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrl import trees
from jaxrl.callbacks import Callbacks, Episode
from jaxrl.metrics import EpisodeRecord
from jaxrl.rollout.episodes import SINGLE_AGENT


class LiveEpisodes:
    """The episodes in progress of a vector of environments, as callbacks see them.

    Args:
        callbacks: hooks.
        worker: given to the hooks.
        worker_index: number of the worker.
        num_envs: B.
    """

    def __init__(self, callbacks: Callbacks, worker: Any, worker_index: int, num_envs: int):
        self._callbacks, self._worker, self._worker_index = callbacks, worker, worker_index
        self._count = 0
        self._finished: list[Episode] = []
        self._episodes: list[Episode | None] = [None] * num_envs

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

    def step(
        self,
        rewards: np.ndarray,
        ended: Sequence[int],
        broken_off: Sequence[int],
        stepped: np.ndarray | None,
    ) -> None:
        """One vector step: adds rewards and calls the hooks.

        Args:
            rewards: `[B]`.
            ended: indices of the environments whose episode ended, in order.
            broken_off: indices of those that failed in it: it has no end and is forgotten.
            stepped: `[B]`, which environments moved; None: all.
        """
        for b in range(len(self._episodes)):
            if stepped is not None and not stepped[b]:
                continue
            episode = self._episode(b)
            reward = float(rewards[b])
            episode.length += 1
            episode.total_reward += reward
            episode.agent_rewards[SINGLE_AGENT] = episode.agent_rewards.get(SINGLE_AGENT, 0.0) + reward
            if self._callbacks.on_episode_step is not None:
                self._callbacks.on_episode_step(worker=self._worker, env_index=b, episode=episode)
        # In the order in which the sampler lists ended episodes, so that `complete` can pair them.
        for b in ended:
            episode = self._episode(b)
            if self._callbacks.on_episode_end is not None:
                self._callbacks.on_episode_end(worker=self._worker, env_index=b, episode=episode)
            self._finished.append(episode)
            self._episodes[b] = None
        for b in broken_off:
            self._episodes[b] = None
        for b in {*ended, *broken_off}:
            self._episode(b)

    def complete(self, records: list[EpisodeRecord]) -> list[EpisodeRecord]:
        """Adds what callbacks wrote to the records of the episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        return [
            record._replace(custom_metrics=dict(episode.custom_metrics), hist_data=dict(episode.hist_data))
            for record, episode in zip(records, finished, strict=True)
        ]

    def restart(self) -> None:
        """Forgets the episodes in progress (the environments were reset)."""
        self._episodes = [None] * len(self._episodes)

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
