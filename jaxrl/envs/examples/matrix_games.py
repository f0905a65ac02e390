"""Two-player games of a few moves: the two-step game of QMIX, and rock, paper, scissors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.spaces import Discrete

from jaxrl.envs.multi_agent import AgentDict, MultiAgentEnv


class TwoStepGame(MultiAgentEnv):
    """Agent 0 leads to state B (both get 7 together) or C (8 together if both then choose 1, else 1 or 0).

    The two-step game of Rashid et al., "QMIX", https://arxiv.org/abs/1803.11485, section 6.1; the reward is shared
    equally, so the best return is 8 over both agents. Observations: the state (0: A, 1: B, 2: C), plus 3 for agent 1.
    """

    _PAYOFF_C = ((0.0, 1.0), (1.0, 8.0))

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.possible_agents = [0, 1]
        self.observation_spaces = dict.fromkeys(self.possible_agents, Discrete(6))
        self.action_spaces = dict.fromkeys(self.possible_agents, Discrete(2))
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[AgentDict, AgentDict]:
        """See `MultiAgentEnv.reset`."""
        self.seed_random(seed)
        self.state = 0
        return self._observe(), {}

    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        """See `MultiAgentEnv.step`."""
        total, over = 0.0, self.state != 0
        if self.state == 0:
            self.state = 1 if action_dict[0] == 0 else 2
        elif self.state == 1:
            total = 7.0
        else:
            total = self._PAYOFF_C[int(action_dict[0])][int(action_dict[1])]
        rewards = {0: total / 2, 1: total / 2}
        return self._observe(), rewards, {"__all__": over}, {"__all__": False}, {}

    def _observe(self) -> AgentDict:
        return {0: self.state, 1: self.state + 3}


class RockPaperScissors(MultiAgentEnv):
    """Rock (0), paper (1), scissors (2) over 10 rounds: +1 for the winner of a round, -1 for the loser.

    Observations: the opponent's last move, 3 before the first.

    Args:
        env_config: `rounds` (default 10).
    """

    def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
        self.rounds = int((env_config or {}).get("rounds", 10))
        self.possible_agents = ["player1", "player2"]
        self.observation_spaces = dict.fromkeys(self.possible_agents, Discrete(4))
        self.action_spaces = dict.fromkeys(self.possible_agents, Discrete(3))
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[AgentDict, AgentDict]:
        """See `MultiAgentEnv.reset`."""
        self.seed_random(seed)
        self.t = 0
        return dict.fromkeys(self.possible_agents, 3), {}

    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        """See `MultiAgentEnv.step`."""
        self.t += 1
        first, second = int(action_dict["player1"]), int(action_dict["player2"])
        won = (0.0, 1.0, -1.0)[(first - second) % 3]
        obs = {"player1": second, "player2": first}
        over = {"__all__": self.t >= self.rounds}
        return obs, {"player1": won, "player2": -won}, over, {"__all__": False}, {}
