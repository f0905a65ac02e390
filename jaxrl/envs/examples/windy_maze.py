"""A maze in which one moves with the wind or not at all, flat and as a hierarchy of two levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple

from jaxrl.envs.multi_agent import AgentDict, MultiAgentEnv

_MAP = (
    "#########",
    "#S      #",
    "####### #",
    "      # #",
    "      # #",
    "####### #",
    "#F      #",
    "#########",
)
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
_MAX_STEPS = 200


class WindyMaze(gym.Env):
    """Action 1 moves one cell in the direction of the wind (random, observed), action 0 waits; 100 at the goal.

    Observations: ((row, column), wind direction: up, right, down, left). An episode is cut after 200 steps.
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        cells = {cell: (i, line.index(cell)) for i, line in enumerate(_MAP) for cell in "SF" if cell in line}
        self.start, self.goal = cells["S"], cells["F"]
        self.observation_space = Tuple([Box(0.0, 100.0, (2,), np.float32), Discrete(4)])
        self.action_space = Discrete(2)
        self.position = self.start
        self.wind = 0
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.position = self.start
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        if action == 1:
            self.position = moved(self.position, self.wind)
        self.t += 1
        arrived = self.position == self.goal
        return self._observe(), 100.0 * arrived, arrived, not arrived and self.t >= _MAX_STEPS, {}

    def _observe(self) -> tuple[np.ndarray, int]:
        self.wind = int(self.np_random.integers(4))
        return np.array(self.position, np.float32), self.wind


def moved(position: tuple[int, int], direction: int) -> tuple[int, int]:
    """Returns the cell beside `position` in the direction, or `position` itself where a wall is."""
    row, column = position[0] + _MOVES[direction][0], position[1] + _MOVES[direction][1]
    inside = 0 <= row < len(_MAP) and 0 <= column < len(_MAP[0])
    return (row, column) if inside and _MAP[row][column] != "#" else position


class HierarchicalWindyMaze(MultiAgentEnv):
    """WindyMaze with a high-level agent that sets a direction and a low-level one that pursues it for 25 steps.

    Each choice of the high-level agent brings a new low-level agent (`low_level_1`, `low_level_2`, ...), which gets
    +1 for a move in the wanted direction, -1 for another; the high-level agent gets the maze's reward.
    """

    _STEPS = 25

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.maze = WindyMaze()
        low = [f"low_level_{i}" for i in range(1, _MAX_STEPS // self._STEPS + 1)]
        self.possible_agents = ["high_level", *low]
        flat = self.maze.observation_space
        self.observation_spaces = {"high_level": flat, **dict.fromkeys(low, Tuple([flat, Discrete(4)]))}
        self.action_spaces = {"high_level": Discrete(4), **dict.fromkeys(low, Discrete(2))}
        self._obs: Any = None
        self._goal = 0
        self._remaining = 0
        self._choices = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[AgentDict, AgentDict]:
        """See `MultiAgentEnv.reset`."""
        self.seed_random(seed)
        self.maze.np_random = self.np_random
        self._obs, _ = self.maze.reset()
        self._choices = 0
        return {"high_level": self._obs}, {}

    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        """See `MultiAgentEnv.step`."""
        going_on = {"__all__": False}
        if "high_level" in action_dict:
            self._goal = int(action_dict["high_level"])
            self._remaining = self._STEPS
            self._choices += 1
            low = f"low_level_{self._choices}"
            return {low: (self._obs, self._goal)}, {low: 0.0}, going_on, going_on, {}
        low = f"low_level_{self._choices}"
        before = self.maze.position
        wanted = moved(before, self._goal)
        self._obs, reward, arrived, cut, _ = self.maze.step(action_dict[low])
        self._remaining -= 1
        moved_to = self.maze.position
        obs: AgentDict = {low: (self._obs, self._goal)}
        rewards: AgentDict = {low: 0.0 if moved_to == before else 1.0 if moved_to == wanted else -1.0}
        terminateds: AgentDict = {"__all__": arrived}
        truncateds: AgentDict = {"__all__": cut}
        if arrived or cut or self._remaining == 0:
            obs["high_level"] = self._obs
            rewards["high_level"] = reward
            if not (arrived or cut):
                # The low-level agent's time was up, no end of its task.
                truncateds[low] = True
        return obs, rewards, terminateds, truncateds, {}
