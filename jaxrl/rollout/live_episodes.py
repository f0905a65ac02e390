"""LiveEpisodes: Episode objects kept up to date step by step, only where callbacks want them."""

from __future__ import annotations

from typing import Any

import numpy as np

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

    def step(self, rewards: np.ndarray, ended: list[tuple[int, Any]], stepped: np.ndarray | None) -> None:
        """One vector step: adds rewards `[B]`, calls the hooks; `stepped [B]` says which environments moved (None: all)."""
        over = {b for b, _ in ended}
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
        for b, _ in ended:
            episode = self._episode(b)
            if self._callbacks.on_episode_end is not None:
                self._callbacks.on_episode_end(worker=self._worker, env_index=b, episode=episode)
            self._finished.append(episode)
            self._episodes[b] = None
        for b in over:
            self._episode(b)

    def complete(self, records: list[EpisodeRecord]) -> list[EpisodeRecord]:
        """Adds what callbacks wrote to the records of the episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        return [
            record._replace(custom_metrics=dict(episode.custom_metrics), hist_data=dict(episode.hist_data))
            for record, episode in zip(records, finished, strict=True)
        ]

    def restart(self) -> None:
        """Forgets the episodes in progress (environments were restored or reset)."""
        self._episodes = [None] * len(self._episodes)
