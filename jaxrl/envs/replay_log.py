"""What it takes to bring environments back: the random state before each one's last reset, and the actions since."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from jaxrl.envs.rows import is_array_space, leaves

# Longer episodes are not replayed: minutes of stepping to save one episode.
MAX_REPLAY_STEPS = 50_000


class ResumeWarning(UserWarning):
    """An environment could not be brought back to where it stood, and begins a fresh episode."""


def random_state(env: Any) -> dict[str, Any] | None:
    """Returns the state of the environment's NumPy generator (big integers included), or None where it has none."""
    try:
        state = env.np_random.bit_generator.state
    except Exception:  # a user's property may raise anything; such an environment is not replayable, that is all
        return None
    return state if isinstance(state, dict) else None


class ReplayLog:
    """Records actions by reference, once per vector step, and each environment's state before its last reset.

    Args:
        bases: the unwrapped environments, whose `np_random` is read.
        action_space: space of one environment's action.

    Attributes:
        steps: action pytrees `[B, ...]` since the last `compact`; `step` appends here.
        active: number of the vector step -> bool `[B]` of the environments that were stepped; absent means all.
    """

    def __init__(self, bases: list[Any], action_space: gym.Space) -> None:
        self.steps: list[Any] = []
        self.active: dict[int, np.ndarray] = {}
        self._bases = list(bases)
        self._action_space = action_space
        count = len(bases)
        self._base = 0
        self._reset_at = [0] * count
        self._before: list[tuple[int | None, dict[str, Any] | None]] = [(None, None)] * count
        self._past: list[list[list[np.ndarray]]] = [[] for _ in range(count)]
        self._past_count = [0] * count

    def replace(self, b: int, base: Any) -> None:
        """Another environment stands in environment b's place."""
        self._bases[b] = base

    def before_reset(self, b: int, seed: int | None) -> None:
        """Notes environment b's random state, and the seed that is about to replace it (unless it ignores seeds)."""
        self._before[b] = (seed, random_state(self._bases[b]))

    def after_reset(self, b: int) -> None:
        """Forgets the actions of environment b's last episode."""
        self._reset_at[b] = self._base + len(self.steps)
        if self._past_count[b]:
            self._past[b] = []
            self._past_count[b] = 0

    def episode_step(self, b: int) -> int:
        """Returns how many steps environment b has taken since its last reset."""
        return self._past_count[b] + self._rows_of(b)[1]

    def compact(self) -> None:
        """Copies what is still needed out of the recorded action arrays and lets go of them."""
        if not self.steps:
            return
        if is_array_space(self._action_space):
            stacked = [np.stack(self.steps)]
        else:
            columns = [leaves(self._action_space, actions) for actions in self.steps]
            stacked = [np.stack([row[i] for row in columns]) for i in range(len(columns[0]))]
        for b in range(len(self._bases)):
            rows, count = self._rows_of(b)
            if not count:
                continue
            self._past_count[b] += count
            if self._past_count[b] > MAX_REPLAY_STEPS:
                self._past[b] = []
            else:
                # An episode that spans many fragments keeps one array per leaf, not one per fragment.
                new = [column[rows, b].copy() for column in stacked]
                old = self._past[b]
                self._past[b] = [*old, new] if len(old) < 64 else [self._join([*old, new])]
        self._base += len(self.steps)
        self.steps.clear()
        self.active.clear()

    def state(self, b: int) -> dict[str, Any]:
        """Returns environment b's entry; call `compact` first.

        Returns:
            `seed`, `rng`, `steps` and `actions`: a list of arrays `[steps, ...]`, one per leaf of the action space,
            or None where the episode is too long to be replayed.
        """
        seed, rng = self._before[b]
        count = self._past_count[b]
        actions: list[np.ndarray] | None = None
        if count <= MAX_REPLAY_STEPS:
            actions = self._join(self._past[b]) if self._past[b] else []
        return {"seed": seed, "rng": rng, "steps": count, "actions": actions}

    def load(self, b: int, state: dict[str, Any], actions: list[np.ndarray]) -> None:
        """Takes over an entry that has just been replayed, so that the next `state` continues it."""
        self._reset_at[b] = self._base + len(self.steps)
        self._before[b] = (state["seed"], state["rng"])
        self._past[b] = [actions] if state["steps"] else []
        self._past_count[b] = int(state["steps"])

    def _rows_of(self, b: int) -> tuple[slice | list[int], int]:
        """Returns which recorded steps environment b took since its last reset, and how many."""
        start, end, active = max(self._reset_at[b] - self._base, 0), len(self.steps), self.active
        if not active:
            return slice(start, end), max(end - start, 0)
        rows = [t for t in range(start, end) if t not in active or active[t][b]]
        return rows, len(rows)

    @staticmethod
    def _join(chunks: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [np.concatenate([chunk[i] for chunk in chunks]) for i in range(len(chunks[0]))]
