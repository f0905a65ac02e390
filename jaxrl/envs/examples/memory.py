"""Environments that only an agent with memory solves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Discrete

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class RepeatAfterMe(gym.Env):
    """Repeat the token seen `repeat_delay` steps ago: reward +1, else -1; 100 steps (best return 100, random 0).

    The tokens before the first count as 0.

    Args:
        env_config: `repeat_delay` (default 1), `episode_len` (default 100).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        config = env_config or {}
        self.delay = int(config.get("repeat_delay", 1))
        if self.delay < 1:
            raise ValueError(f"repeat_delay: expected at least 1, got {self.delay}")
        self.episode_len = int(config.get("episode_len", 100))
        self.observation_space = Discrete(2)
        self.action_space = Discrete(2)
        self.history: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.history = [0] * self.delay
        return self._next_token(), {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        reward = 1.0 if action == self.history[-(1 + self.delay)] else -1.0
        token = self._next_token()
        # The agent does not see the time, so the end is a cut.
        return token, reward, False, len(self.history) > self.delay + self.episode_len, {}

    def _next_token(self) -> int:
        token = int(self.np_random.integers(2))
        self.history.append(token)
        return token


class RepeatInitialObs(gym.Env):
    """Repeat the first observation for ever: reward +1, else -1; later observations are 0.

    Args:
        env_config: `episode_len` (default 100).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.episode_len = int((env_config or {}).get("episode_len", 100))
        self.observation_space = Discrete(2)
        self.action_space = Discrete(2)
        self.token = 0
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.token = int(self.np_random.integers(2))
        self.t = 0
        return self.token, {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        self.t += 1
        return 0, 1.0 if action == self.token else -1.0, False, self.t >= self.episode_len, {}


class LookAndPush(gym.Env):
    """Look (action 0 in state 2) to see the hidden case, push (action 1) to state 4, answer with the case: +10 or -10.

    Every other step costs 1, so the best return is 6; without looking -2 on average. Looking leads to state 0 or 1, the
    case; pushing leads from there back to 2.

    Args:
        env_config: `episode_len` (default 100).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.episode_len = int((env_config or {}).get("episode_len", 100))
        self.observation_space = Discrete(5)
        self.action_space = Discrete(2)
        self.state = 2
        self.case = 0
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.state = 2
        self.case = int(self.np_random.integers(2))
        self.t = 0
        return self.state, {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        self.t += 1
        if self.state == 4:
            return self.state, 10.0 if action == self.case else -10.0, True, False, {}
        if action == 1:
            self.state = 2 if self.state == 0 else self.state + 1
        elif self.state == 2:
            self.state = self.case
        return self.state, -1.0, False, self.t >= self.episode_len, {}
