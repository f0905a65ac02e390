"""CartPole with parts hidden, with a changing set of actions, and with its reward at the end only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete


def _make_cartpole(env_config: Mapping[str, Any] | None) -> gym.Env:
    return gym.make("CartPole-v1", disable_env_checker=True, **dict(env_config or {}))


class StatelessCartPole(gym.ObservationWrapper):
    """CartPole without velocities: the position of the cart and the angle of the pole; needs memory.

    Args:
        env_config: keyword arguments of `gymnasium.make("CartPole-v1")`, e.g. `max_episode_steps`.
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        gym.ObservationWrapper.__init__(self, _make_cartpole(env_config))
        full = self.env.observation_space
        assert isinstance(full, Box)
        self.observation_space = Box(full.low[[0, 2]], full.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Keeps position and angle."""
        return observation[[0, 2]]


class ParametricActionsCartPole(gym.Env):
    """CartPole whose two actions stand at two random places among `max_avail_actions`, anew in each step.

    Observations: `action_mask` (1 where an action may be taken), `avail_actions` (an embedding of each action: left is
    (1, -1), right (-1, 1), others zero) and `cart`. Taking a masked action raises ValueError.

    Args:
        env_config: `max_avail_actions` (default 10), and keyword arguments of `gymnasium.make("CartPole-v1")`.
    """

    metadata = CartPoleEnv.metadata
    _LEFT = np.array([1, -1], np.float32)
    _RIGHT = np.array([-1, 1], np.float32)

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        config = dict(env_config or {})
        self.max_avail_actions = int(config.pop("max_avail_actions", 10))
        if self.max_avail_actions < 2:
            raise ValueError(f"max_avail_actions: expected at least 2, got {self.max_avail_actions}")
        self.cartpole = _make_cartpole(config)
        self.render_mode = self.cartpole.render_mode
        self.action_space = Discrete(self.max_avail_actions)
        self.observation_space = Dict(
            {
                "action_mask": Box(0, 1, (self.max_avail_actions,), np.int8),
                "avail_actions": Box(-1, 1, (self.max_avail_actions, 2), np.float32),
                "cart": self.cartpole.observation_space,
            }
        )
        self._places = np.array([0, 1])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.cartpole.unwrapped.np_random = self.np_random
        cart, info = self.cartpole.reset(options=options)
        return self._observe(cart), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        if action not in self._places:
            raise ValueError(f"action {action} is masked; allowed are {sorted(self._places.tolist())}")
        chosen = int(action == self._places[1])
        cart, reward, terminated, truncated, info = self.cartpole.step(chosen)
        return self._observe(cart), float(reward), terminated, truncated, info

    def render(self) -> Any:
        """See `gymnasium.Env.render`."""
        return self.cartpole.render()

    def close(self) -> None:
        """See `gymnasium.Env.close`."""
        self.cartpole.close()

    def _observe(self, cart: Any) -> dict[str, np.ndarray]:
        self._places = self.np_random.choice(self.max_avail_actions, 2, replace=False)
        mask = np.zeros(self.max_avail_actions, np.int8)
        mask[self._places] = 1
        embeddings = np.zeros((self.max_avail_actions, 2), np.float32)
        embeddings[self._places[0]] = self._LEFT
        embeddings[self._places[1]] = self._RIGHT
        return {"action_mask": mask, "avail_actions": embeddings, "cart": cart}


class SparseRewardCartPole(gym.Env):
    """CartPole that pays the whole episode's reward at its end, with `get_state` and `set_state` (for tree search).

    Args:
        env_config: `max_episode_steps` (default 500), `render_mode`.
    """

    metadata = CartPoleEnv.metadata

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        config = dict(env_config or {})
        self.max_episode_steps = int(config.pop("max_episode_steps", 500))
        self.cartpole = CartPoleEnv(**config)
        self.render_mode = self.cartpole.render_mode
        self.action_space = self.cartpole.action_space
        self.observation_space = Dict({"action_mask": Box(0, 1, (2,), np.int8), "obs": self.cartpole.observation_space})
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        self.cartpole.np_random = self.np_random
        cart, info = self.cartpole.reset(options=options)
        self.steps = 0
        return self._observe(cart), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        cart, _, terminated, _, info = self.cartpole.step(action)
        self.steps += 1
        truncated = not terminated and self.steps >= self.max_episode_steps
        reward = float(self.steps) if terminated or truncated else 0.0
        return self._observe(cart), reward, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Returns where the episode stands: JSON values."""
        state = None if self.cartpole.state is None else [float(x) for x in self.cartpole.state]
        return {"cartpole": state, "steps": self.steps, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> Any:
        """Goes back to where `get_state` was called; returns that observation (None before the first reset)."""
        self.np_random.bit_generator.state = state["rng"]
        self.cartpole.np_random = self.np_random
        self.cartpole.steps_beyond_terminated = None
        self.steps = int(state["steps"])
        if state["cartpole"] is None:
            return None
        self.cartpole.state = np.array(state["cartpole"], np.float64)
        return self._observe(self.cartpole.state)

    def render(self) -> Any:
        """See `gymnasium.Env.render`."""
        return self.cartpole.render()

    def close(self) -> None:
        """See `gymnasium.Env.close`."""
        self.cartpole.close()

    def _observe(self, cart: Any) -> dict[str, np.ndarray]:
        return {"action_mask": np.ones(2, np.int8), "obs": np.array(cart, np.float32)}
