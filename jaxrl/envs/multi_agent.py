"""Environments with several agents, and the class that turns any single-agent one into one with n agents."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.creation import make_env_creator
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.users import claim, release
from jaxrl.types import AgentID, ConfigError

AgentDict = dict[AgentID, Any]


class MultiAgentEnv(abc.ABC):
    """Interface of environments with several agents, which users implement.

    Everything is a dict by agent. An agent acts next exactly when the last `reset` or `step` returned an observation
    for it and did not end it; agents may come and go. `terminateds` and `truncateds` hold the agents that end, and
    `"__all__"`, which ends the episode. An ended agent's observation of that step is its final one, and it may not
    return in the same episode. One that is truncated without a final observation has no last transition: nothing is
    known of where its last action led (a terminated one needs none). Rewards may come for agents that are not observed
    in the same step; they count towards the agent's last action.

    An environment may offer `get_state() -> dict` and `set_state(state)` (JSON values and arrays, random state
    included) to resume at once; otherwise its actions are replayed from `np_random`, which is why all its randomness
    should come from there.

    Attributes:
        possible_agents: every agent that may ever appear, in a fixed order.
        observation_spaces: space by agent.
        action_spaces: space by agent.
        render_mode: as in gymnasium.

    Example:
        >>> class Turns(MultiAgentEnv):
        ...     possible_agents = ["a", "b"]
        ...     observation_spaces = dict.fromkeys(["a", "b"], gym.spaces.Discrete(10))
        ...     action_spaces = dict.fromkeys(["a", "b"], gym.spaces.Discrete(2))
        ...
        ...     def reset(self, *, seed=None, options=None):
        ...         self.t = 0
        ...         return {"a": 0}, {}
        ...
        ...     def step(self, action_dict):
        ...         self.t += 1
        ...         over = {"__all__": self.t == 9}
        ...         obs = dict.fromkeys("ab", 9) if over["__all__"] else {"ab"[self.t % 2]: self.t}
        ...         return obs, dict.fromkeys(action_dict, 1.0), over, {"__all__": False}, {}
    """

    possible_agents: list[AgentID]
    observation_spaces: Mapping[AgentID, gym.Space]
    action_spaces: Mapping[AgentID, gym.Space]
    render_mode: str | None = None
    _np_random: np.random.Generator | None = None

    @abc.abstractmethod
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[AgentDict, AgentDict]:
        """Starts an episode.

        Args:
            seed: seeds all randomness (`self.seed_random(seed)`) where given; None goes on with the random state
                there is.
            options: for the environment's own use.

        Returns:
            Observations of the agents that act first, and infos.
        """

    @abc.abstractmethod
    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        """Takes the actions of all agents that were to act.

        Args:
            action_dict: action by agent.

        Returns:
            `(obs, rewards, terminateds, truncateds, infos)`, dicts by agent; both flag dicts also hold `"__all__"`.
        """

    def render(self) -> Any:
        """Renders the environment; None where it has nothing to show."""
        return None

    def close(self) -> None:
        """Releases what the environment holds."""
        return

    @property
    def np_random(self) -> np.random.Generator:
        """The environment's generator, seeded from the system at first use unless `seed_random` came before."""
        if self._np_random is None:
            self._np_random, _ = seeding.np_random()
        return self._np_random

    @np_random.setter
    def np_random(self, generator: np.random.Generator) -> None:
        self._np_random = generator

    def seed_random(self, seed: int | None) -> None:
        """Replaces the generator by one of this seed; None leaves it as it is. Call it at the start of `reset`."""
        if seed is not None:
            self._np_random, _ = seeding.np_random(seed)


def agent_space(env: Any, kind: str, agent: AgentID) -> gym.Space:
    """Returns an agent's space: `observation_spaces[agent]`, else `observation_space(agent)`, else `observation_space`.

    Args:
        env: a multi-agent environment.
        kind: "observation" or "action".
        agent: one of `possible_agents`.

    Raises:
        ConfigError: the environment names no space for the agent.
    """
    by_agent = getattr(env, f"{kind}_spaces", None)
    if isinstance(by_agent, Mapping | gym.spaces.Dict) and agent in by_agent:
        return by_agent[agent]
    single = getattr(env, f"{kind}_space", None)
    space = single(agent) if callable(single) and not isinstance(single, gym.Space) else single
    if not isinstance(space, gym.Space):
        raise ConfigError(
            f"{type(env).__name__}: expected {kind}_spaces[{agent!r}] to be a gymnasium space, got {space!r}; set "
            f"{kind}_spaces = {{agent: space, ...}} for every one of possible_agents"
        )
    return space


def make_multi_agent(env: Any) -> type[Any]:
    """Makes a multi-agent class of a single-agent environment: n independent copies, agents 0 to n - 1.

    Each agent plays its own copy until that ends; the episode ends when all have. All copies draw from the
    environment's one generator, so that one seed repeats all.

    Args:
        env: gymnasium id, registered name, class or creator (see `make_env_creator`).

    Returns:
        A MultiAgentEnv class whose constructor takes `{"num_agents": n, **env_config}`.

    Example:
        >>> MultiAgentCartPole = make_multi_agent("CartPole-v1")
        >>> obs, infos = MultiAgentCartPole({"num_agents": 2}).reset(seed=1)
        >>> sorted(obs)
        [0, 1]
    """
    creator = make_env_creator(env)

    class IndependentCopies(MultiAgentEnv):
        """n independent copies of one environment."""

        def __init__(self, env_config: Mapping[str, Any] | None = None) -> None:
            config = dict(env_config or {})
            count = int(config.pop("num_agents", 1))
            if count < 1:
                raise ConfigError(f"env_config num_agents: expected at least 1, got {count}")
            context = env_config if isinstance(env_config, EnvContext) else EnvContext()
            self.copies = [creator(context.copy_with_overrides(config)) for _ in range(count)]
            self.possible_agents = list(range(count))
            self.observation_spaces = {i: copy.observation_space for i, copy in enumerate(self.copies)}
            self.action_spaces = {i: copy.action_space for i, copy in enumerate(self.copies)}
            self.render_mode = self.copies[0].render_mode
            self._over: set[int] = set()
            self._cut = False
            claim(self.copies, self, EnvPlace(creator.name, context.worker_index))

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[AgentDict, AgentDict]:
            self.seed_random(seed)
            self._over = set()
            self._cut = False
            obs: AgentDict = {}
            infos: AgentDict = {}
            for i, copy in enumerate(self.copies):
                copy.unwrapped.np_random = self.np_random
                obs[i], infos[i] = copy.reset(options=options)
            return obs, infos

        def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
            obs: AgentDict = {}
            rewards: AgentDict = {}
            terminateds: AgentDict = {}
            truncateds: AgentDict = {}
            infos: AgentDict = {}
            for i, action in action_dict.items():
                obs[i], rewards[i], terminateds[i], truncateds[i], infos[i] = self.copies[i].step(action)
                if terminateds[i] or truncateds[i]:
                    self._over.add(i)
                    self._cut = self._cut or not terminateds[i]
            over = len(self._over) == len(self.copies)
            terminateds["__all__"] = over and not self._cut
            truncateds["__all__"] = over and self._cut
            return obs, rewards, terminateds, truncateds, infos

        def render(self) -> Any:
            return self.copies[0].render()

        def close(self) -> None:
            release(self.copies, self)
            for copy in self.copies:
                copy.close()

    name = creator.name.rpartition("/")[2].rpartition(":")[2].rpartition("-v")[0] or creator.name
    IndependentCopies.__name__ = IndependentCopies.__qualname__ = f"MultiAgent{name}"
    return IndependentCopies
