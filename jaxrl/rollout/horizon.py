"""The sampler's own end of episodes: after `horizon` steps, with or without a reset."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrl.envs import VectorEnv
from jaxrl.rollout.ends import FragmentEnds
from jaxrl.rollout.fragment import FragmentRows
from jaxrl.rollout.live_episodes import LiveEpisodes


class Horizon:
    """Cuts the episodes of a fragment that reach the horizon.

    Args:
        config: a RolloutConfig: `horizon`, and `soft_horizon`, with which environments are not reset.
        env: the environments.
        lengths: int `[B]`, steps of the episodes under way.
        live: the episodes that callbacks see, or None.
        goes_on: at a soft horizon the policy's state goes on: it is recurrent.
    """

    def __init__(
        self, config: Any, env: VectorEnv, lengths: np.ndarray, live: LiveEpisodes | None, *, goes_on: bool
    ) -> None:
        self._steps, self._soft = config.horizon, config.soft_horizon
        self._env, self._live, self._goes_on = env, live, goes_on
        self._lengths = lengths.copy()

    def cut(
        self,
        i: int,
        rows: FragmentRows,
        env_ended: list[tuple[int, Any]],
        moved: np.ndarray | None,
        ends: FragmentEnds,
    ) -> list[tuple[int, Any]]:
        """Truncates the episodes that reach the horizon in row `i`.

        Args:
            i: the row.
            rows: the fragment's; changed.
            env_ended: the environments that ended their episode in it, with final observations.
            moved: bool `[B]`, the environments whose step gave a transition; None: all.
            ends: the fragment's.

        Returns:
            All that ended in row `i`.
        """
        self._lengths += 1 if moved is None else moved
        for b, _ in env_ended:
            self._lengths[b] = 0
        raw = rows.raw_row(i + 1)
        for b in map(int, np.flatnonzero(self._lengths >= self._steps)):
            self._lengths[b] = 0
            rows.truncateds[i, b] = True
            if self._soft:
                final = jax.tree.map(lambda x, b=b: x[b].copy(), raw)
                if self._goes_on:
                    ends.soft.add((i, b))
                (rows.cuts if self._goes_on else rows.starts)[i + 1, b] = True
            else:
                if self._live is not None:
                    self._live.before_reset(b, float(rows.rewards[i, b]))
                final = self._env.truncate(b, raw)
            env_ended = [*env_ended, (b, final)]
        return env_ended
