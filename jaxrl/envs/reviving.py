"""Processes of environments that die: what is kept of them, so that another one takes their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrl.envs.restarting import MAX_IN_A_ROW
from jaxrl.types import EnvError


class Revival:
    """Counts the deaths of processes, each of which steps a share of the environments.

    Environments in a new process are seeded with what follows from their first seeds and the number of deaths, so that
    they do not play the same episodes again.

    Args:
        num_shares: processes.
        num_envs: environments of all of them.

    Attributes:
        count: environments that were created anew because their process died.
        in_a_row: by share, deaths since the last step that went well.
        seeds: the first seed of each environment.
        untold: by share, first observations and infos of episodes that have begun anew; the next step tells of it.
    """

    def __init__(self, num_shares: int, num_envs: int) -> None:
        self.count = 0
        self.in_a_row = [0] * num_shares
        self.seeds: list[int | None] = [None] * num_envs
        self.untold: dict[int, tuple[list[np.ndarray], list[Any]]] = {}
        self._deaths = [0] * num_shares

    def note_death(self, i: int, share: slice, restarts: int, error: EnvError) -> None:
        """Process i has died.

        Args:
            i: number of the share.
            share: its environments.
            restarts: how often environments were created anew within the process.
            error: what to raise in the end.

        Raises:
            EnvError: it dies time and again (`MAX_IN_A_ROW`).
        """
        self.in_a_row[i] += 1
        self._deaths[i] += 1
        if self.in_a_row[i] >= MAX_IN_A_ROW:
            raise EnvError(
                f"{error}. It was started anew (restart_failed_sub_environments), and died {self.in_a_row[i]} times "
                "without a step between that went well"
            )
        self.count += restarts + share.stop - share.start

    def next_seeds(self, i: int, share: slice) -> list[int] | None:
        """The seeds of the environments in the next process."""
        first = [seed for seed in self.seeds[share] if seed is not None]
        if len(first) < share.stop - share.start:
            return None
        return [int(np.random.SeedSequence([seed, self._deaths[i], 0]).generate_state(1)[0]) for seed in first]
