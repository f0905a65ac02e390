"""Five probe environments with known answers, which any sound algorithm learns in seconds.

Each isolates one thing that can be wrong, in the order in which to look: the value loss and optimiser, the value's
dependence on the observation, discounting, the policy loss, and the policy's dependence on the observation (after
A. Jones, "Debugging reinforcement learning", https://andyljones.com/posts/rl-debugging.html).
`env_config={"continuous": True}` replaces the two actions by one in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

# The best continuous action, away from the middle (where an untrained policy stands) and from the bounds (where
# clipping hides).
BEST = 0.5


class ProbeAnswer(NamedTuple):
    """What is right for one observation.

    Attributes:
        obs: the observation, float32 `[1]`.
        value: value of it under the best policy.
        action: best action (int, or float for continuous actions); None where every action is as good.
    """

    obs: np.ndarray
    value: float
    action: float | None


class ProbeTask(NamedTuple):
    """The rules of a probe: first observations, number of steps, reward of the last step, best action."""

    starts: tuple[float, ...]
    length: int
    reward: Callable[[float, float, bool], float]
    best: Callable[[float, bool], float | None]


def _score(action: float, best: float, continuous: bool) -> float:
    return 1.0 - (action - best) ** 2 if continuous else (1.0 if action == best else -1.0)


def _best_for(obs: float, continuous: bool) -> float:
    return BEST * obs if continuous else float(obs > 0)


TASKS: Mapping[str, ProbeTask] = {
    "ValueProbe": ProbeTask((0.0,), 1, lambda obs, action, continuous: 1.0, lambda obs, continuous: None),
    "ObservationProbe": ProbeTask((-1.0, 1.0), 1, lambda obs, action, continuous: obs, lambda obs, continuous: None),
    "DiscountProbe": ProbeTask((0.0,), 2, lambda obs, action, continuous: 1.0, lambda obs, continuous: None),
    "ActionProbe": ProbeTask(
        (0.0,),
        1,
        lambda obs, action, continuous: _score(action, _best_for(1.0, continuous), continuous),
        lambda obs, continuous: _best_for(1.0, continuous),
    ),
    "ObservationActionProbe": ProbeTask(
        (-1.0, 1.0),
        1,
        lambda obs, action, continuous: _score(action, _best_for(obs, continuous), continuous),
        _best_for,
    ),
}


class ProbeEnv(gym.Env):
    """An environment of one of the `TASKS`: observations in [-1, 1], reward in the last of one or two steps.

    - ValueProbe: one step, reward 1: the value is 1.
    - ObservationProbe: one step, observation -1 or 1, which is the reward and the value.
    - DiscountProbe: observation 0, then 1, then reward 1: the values are gamma and 1.
    - ActionProbe: one step, reward 1 for action 1 and -1 for action 0 (continuous: 1 - (a - 0.5)^2): the best value
      is 1.
    - ObservationActionProbe: one step, reward 1 for action 1 at observation 1 and for action 0 at observation -1,
      else -1 (continuous: 1 - (a - obs / 2)^2): the best value is 1.

    Args:
        task: name of the task.
        env_config: `continuous` (default False).
    """

    def __init__(self, task: str, env_config: Mapping[str, Any] | None = None) -> None:
        self.task = TASKS[task]
        self.continuous = bool((env_config or {}).get("continuous", False))
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space: gym.Space = Box(-1.0, 1.0, (1,), np.float32) if self.continuous else Discrete(2)
        self.obs = 0.0
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        starts = self.task.starts
        self.obs = starts[int(self.np_random.integers(len(starts)))]
        self.t = 0
        return np.array([self.obs], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        self.t += 1
        over = self.t >= self.task.length
        taken = float(np.asarray(action).reshape(()))
        reward = self.task.reward(self.obs, taken, self.continuous) if over else 0.0
        if self.task.length > 1:
            self.obs = 1.0
        return np.array([self.obs], np.float32), reward, over, False, {}

    def answers(self, gamma: float) -> list[ProbeAnswer]:
        """Returns the right answer for each observation.

        Args:
            gamma: discount factor.

        Example:
            >>> [answer.value for answer in DiscountProbe().answers(0.9)]
            [0.9, 1.0]
        """
        task, continuous = self.task, self.continuous
        if task.length > 1:
            return [_answer(0.0, gamma, None), _answer(1.0, 1.0, None)]
        found = []
        for obs in task.starts:
            best = task.best(obs, continuous)
            found.append(_answer(obs, task.reward(obs, 0.0 if best is None else best, continuous), best))
        return found


def _answer(obs: float, value: float, action: float | None) -> ProbeAnswer:
    return ProbeAnswer(np.array([obs], np.float32), value, action)


def _probe(name: str) -> Callable[..., ProbeEnv]:
    def create(env_config: Mapping[str, Any] | None = None) -> ProbeEnv:
        return ProbeEnv(name, env_config)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Creates the probe environment {name}; see `ProbeEnv`."
    return create


ValueProbe = _probe("ValueProbe")
ObservationProbe = _probe("ObservationProbe")
DiscountProbe = _probe("DiscountProbe")
ActionProbe = _probe("ActionProbe")
ObservationActionProbe = _probe("ObservationActionProbe")
