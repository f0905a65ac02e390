"""One-screen environments: a corridor, correlated actions, nested spaces, random and constant observations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from jaxrl.envs.rows import leaf_spaces, leaves

Step = tuple[Any, float, bool, bool, dict[str, Any]]


def _own(space: gym.Space) -> gym.Space:
    """Copies a space to sample from: seeded at each reset, its generator makes episodes depend on np_random alone."""
    return copy.deepcopy(space)


class SimpleCorridor(gym.Env):
    """Walk right (action 1) to the corridor's end: reward 1 there, -0.1 for each other step.

    Args:
        env_config: `corridor_length` (default 5).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.end_pos = int((env_config or {}).get("corridor_length", 5))
        self.position = 0
        self.action_space = Discrete(2)
        self.observation_space = Box(0.0, float(self.end_pos), (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.position = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        self.position = max(self.position + (1 if action == 1 else -1), 0)
        over = self.position >= self.end_pos
        return np.array([self.position], np.float32), 1.0 if over else -0.1, over, False, {}


class CorrelatedActions(gym.Env):
    """Two actions: 5 where the first equals the observation, 5 more where the second equals the first; 21 steps.

    The best return is 210; it needs an action distribution in which the second action depends on the first.
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.observation_space = Discrete(2)
        self.action_space = Tuple([Discrete(2), Discrete(2)])
        self.t = 0
        self.last = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.t = 0
        self.last = int(self.np_random.integers(2))
        return self.last, {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        first, second = action
        reward = 5.0 * (first == self.last) + 5.0 * (first == second)
        self.t += 1
        self.last = int(self.np_random.integers(2))
        return self.last, float(reward), False, self.t > 20, {}


class NestedSpaceRepeatAfterMe(gym.Env):
    """Repeat a nested observation at once: +1 for each equal Discrete part, minus the summed distance of each Box part.

    Args:
        env_config: `space` (default Tuple(Discrete(2), Dict(a=Box(-1, 1, (2,))))), `episode_len` (default 100).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        config = env_config or {}
        space = config.get("space", Tuple([Discrete(2), Dict({"a": Box(-1.0, 1.0, (2,))})]))
        self.observation_space: gym.Space = space
        self.action_space: gym.Space = space
        self.episode_len = int(config.get("episode_len", 100))
        self.t = 0
        self._current: Any = None
        self._sampled = _own(space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self._sampled.seed(int(self.np_random.integers(2**31)))
        self.t = 0
        self._current = self._sampled.sample()
        return self._current, {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        reward = 0.0
        pairs = zip(leaves(self.action_space, action), leaves(self.observation_space, self._current), strict=True)
        for leaf, (acted, seen) in zip(leaf_spaces(self.observation_space), pairs, strict=True):
            if isinstance(leaf.space, Discrete):
                reward += float(acted == seen)
            else:
                reward -= float(np.abs(np.asarray(acted, np.float64) - seen).sum())
        self.t += 1
        self._current = self._sampled.sample()
        return self._current, reward, False, self.t >= self.episode_len, {}


class RandomEnv(gym.Env):
    """Samples observations and rewards from given spaces, whatever the action; for smoke tests of any space.

    Args:
        env_config: `observation_space` (default Box(-1, 1, (2,))), `action_space` (default Discrete(2)), `reward_range`
            (default (-1, 1)), `p_terminated` (default 0.1), `max_episode_len` (default none).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        config = env_config or {}
        self.observation_space = config.get("observation_space", Box(-1.0, 1.0, (2,)))
        self.action_space = config.get("action_space", Discrete(2))
        self.reward_range = config.get("reward_range", (-1.0, 1.0))
        self.p_terminated = float(config.get("p_terminated", 0.1))
        self.max_episode_len = config.get("max_episode_len")
        self.t = 0
        self._sampled = _own(self.observation_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self._sampled.seed(int(self.np_random.integers(2**31)))
        self.t = 0
        return self._sampled.sample(), {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        self.t += 1
        reward = float(self.np_random.uniform(*self.reward_range))
        terminated = bool(self.np_random.random() < self.p_terminated)
        truncated = self.max_episode_len is not None and self.t >= self.max_episode_len
        return self._sampled.sample(), reward, terminated, truncated, {}


class DebugCounter(gym.Env):
    """Counts steps: the observation is the count, the reward the count modulo 3; 15 steps.

    Args:
        env_config: `episode_len` (default 15).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.episode_len = int((env_config or {}).get("episode_len", 15))
        self.action_space = Discrete(2)
        self.observation_space = Box(0.0, float(self.episode_len), (1,), np.float32)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.t = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        self.t += 1
        return np.array([self.t], np.float32), float(self.t % 3), self.t >= self.episode_len, False, {}


class FastImageEnv(gym.Env):
    """Black images at no cost, reward 1 a step, 1000 steps; for measuring everything but the environment.

    Args:
        env_config: `shape` (default (84, 84, 4)), `episode_len` (default 1000).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        config = env_config or {}
        self.image = np.zeros(tuple(config.get("shape", (84, 84, 4))), np.uint8)
        self.episode_len = int(config.get("episode_len", 1000))
        self.action_space = Discrete(2)
        self.observation_space = Box(0, 255, self.image.shape, np.uint8)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.t = 0
        return self.image, {}

    def step(self, action: Any) -> Step:
        """See `gymnasium.Env.step`."""
        self.t += 1
        return self.image, 1.0, False, self.t >= self.episode_len, {}
