"""One multi-agent environment as the sampler runs it: checked, and able to resume."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from jaxrl.envs.checks import NUMBERS, EnvPlace, check_flag, check_observation, check_reward, env_failure, short
from jaxrl.envs.fitting import MisfitError
from jaxrl.envs.leaves import leaf_spaces, leaves, unflatten
from jaxrl.envs.multi_agent import AgentDict, agent_space
from jaxrl.envs.replay_log import MAX_REPLAY_STEPS, random_state
from jaxrl.envs.restarting import Restarter
from jaxrl.envs.resume import (
    own_state_holder,
    same_bits,
    same_random_state,
    set_random_state,
    warn_fresh,
)
from jaxrl.envs.rows import action_copier, action_splitter, row_copier
from jaxrl.envs.users import claim, release
from jaxrl.types import AgentID, ConfigError, EnvError

_CHECKED_STEPS = 16
_ALL = "__all__"


class MultiAgentStep(NamedTuple):
    """What a step brought: dicts by agent, flags without `"__all__"`, which `terminated` and `truncated` are.

    Observations are copies, in the dtypes of rows: an environment may write into its own again.

    Where it `failed`, the environment's step raised: there was none, and the next reset creates the environment anew.
    """

    obs: AgentDict
    rewards: AgentDict
    terminateds: AgentDict
    truncateds: AgentDict
    infos: AgentDict
    terminated: bool
    truncated: bool
    failed: bool = False


class MultiAgentRunner:
    """Runs one MultiAgentEnv; resetting after an episode's end is the caller's.

    Args:
        env: the environment.
        place: names it in errors.
        vector_index: its number within the worker.
        checks: look at bounds in the first steps; later ones are the caller's to look at, once a fragment.
        restarter: the environment is created anew when it fails; None: its error is raised.

    Attributes:
        possible_agents: every agent that may appear.
        observation_spaces: space by agent.
        action_spaces: space by agent.
        active: the agents that act next, in the order of the observations.
        obs: current observation of each of them.
        infos: infos of the last step or reset.
    """

    def __init__(
        self,
        env: Any,
        place: EnvPlace,
        vector_index: int = 0,
        *,
        checks: bool = True,
        restarter: Restarter | None = None,
    ) -> None:
        self.env = env
        self.place = place
        self.vector_index = vector_index
        self.possible_agents: list[AgentID] = _agents_of(env)
        self.observation_spaces = {agent: agent_space(env, "observation", agent) for agent in self.possible_agents}
        self.action_spaces = {agent: agent_space(env, "action", agent) for agent in self.possible_agents}
        self.active: list[AgentID] = []
        self.obs: AgentDict = {}
        self.infos: AgentDict = {}
        self._restarter = restarter
        self._known = frozenset(self.possible_agents)
        self._copiers = {
            agent: row_copier(space, f"obs of agent {agent!r}") for agent, space in self.observation_spaces.items()
        }
        self._action_copiers = {agent: action_copier(space) for agent, space in self.action_spaces.items()}
        self._ended: dict[AgentID, int] = {}
        self._over = True
        self._steps_to_check = _CHECKED_STEPS if checks else 0
        self._before: tuple[int | None, dict[str, Any] | None] = (None, None)
        self._log: list[AgentDict] = []
        self._count = 0
        self._rewards: AgentDict = {}
        claim([env], self, place._replace(first_index=vector_index))

    def reset(self, seed: int | None = None) -> tuple[AgentDict, AgentDict]:
        """Starts an episode.

        Args:
            seed: None goes on with the environment's random state.

        Returns:
            Observations of the agents that act first, and infos.

        Raises:
            EnvError: the environment raised, or broke its contract.
        """
        where = self.place.describe(self.vector_index)
        if self._restarter is not None:
            _, result, _ = self._restarter.reset(self.env, seed, where, self._before_reset)
        else:
            self._before_reset(self.env, seed)
            try:
                result = self.env.reset() if seed is None else self.env.reset(seed=seed)
            except Exception as error:
                raise env_failure(where, "reset", error) from error
        if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, dict) for part in result)):
            raise EnvError(f"{where}: reset: expected (obs dict, infos dict), got {short(result)}")
        obs, self.infos = result
        if not obs:
            raise EnvError(f"{where}: reset: expected an observation of at least one agent, got an empty dict")
        obs = self._copied(obs, f"{where}: reset", {})
        self._log, self._count, self._rewards, self._ended = [], 0, {}, {}
        self._over = False
        self.obs = obs
        self.active = list(obs)
        return obs, self.infos

    def step(self, actions: AgentDict) -> MultiAgentStep:
        """Steps the environment.

        Args:
            actions: one action for each agent in `active`, as the environment wants it.

        Returns:
            A MultiAgentStep; `active` and `obs` are updated.

        Raises:
            EnvError: actions for other agents than `active`; the environment raised or broke its contract.
        """
        where = self.place.describe(self.vector_index, self._count)
        if self._over:
            raise EnvError(f"{where}: step: the episode is over (or has not begun); call reset first")
        if actions.keys() != set(self.active):
            raise EnvError(
                f"{where}: step: expected actions of the agents that were observed last, {self.active}, "
                f"got {list(actions)}{self._why_not(actions)}"
            )
        try:
            result = self.env.step({agent: self._action_copiers[agent](action) for agent, action in actions.items()})
        except Exception as error:
            if self._restarter is None:
                raise env_failure(where, "step", error) from error
            self._restarter.step_failed(where, error)
            self._over, self.active = True, []
            return MultiAgentStep({}, {}, {}, {}, {}, False, True, failed=True)
        if self._restarter is not None:
            self._restarter.in_a_row = 0
        if not (isinstance(result, tuple) and len(result) == 5 and all(isinstance(part, dict) for part in result)):
            got = f"{len(result)} values" if isinstance(result, tuple) and len(result) != 5 else short(result)
            raise EnvError(
                f"{where}: step: expected five dicts (obs, rewards, terminateds, truncateds, infos), got {got}"
            )
        obs, rewards, terminateds, truncateds, infos = result
        for name, flags in (("terminateds", terminateds), ("truncateds", truncateds)):
            if _ALL not in flags:
                raise EnvError(f"{where}: step: expected {name}['__all__'], got keys {list(flags)}")
            for agent, flag in flags.items():
                check_flag(flag, f"{where}: step: expected {name}[{agent!r}]")
        obs = self._copied(obs, f"{where}: step", terminateds)
        for agent, reward in rewards.items():
            if agent not in self._known or agent in self._ended:
                raise EnvError(f"{where}: rewards: {self._unexpected(agent, 'a reward')}")
            if reward.__class__ not in NUMBERS or not math.isfinite(reward):
                check_reward(reward, f"{where}: reward of agent {agent!r}")
        ends_now = [
            agent
            for flags in (terminateds, truncateds)
            for agent, flag in flags.items()
            if flag and agent != _ALL and agent not in self._ended
        ]
        for agent in ends_now:
            if agent not in self._known:
                raise EnvError(f"{where}: terminateds or truncateds: {self._unexpected(agent, 'an end')}")
            self._ended[agent] = self._count
        self._count += 1
        if self._count <= MAX_REPLAY_STEPS:
            self._log.append(actions)
        else:
            self._log = []
        self._rewards = rewards
        self._over = bool(terminateds[_ALL] or truncateds[_ALL])
        self.infos = infos
        self.obs = obs
        self.active = [] if self._over else [agent for agent in obs if agent not in self._ended]
        if not self.active and not self._over and not obs and len(self._ended) == len(self._known):
            raise EnvError(
                f"{where}: step: every agent has ended, and neither terminateds nor truncateds has '__all__' set"
            )
        if self._steps_to_check:
            self._steps_to_check -= 1
        flags = [{agent: bool(flag) for agent, flag in f.items() if agent != _ALL} for f in (terminateds, truncateds)]
        return MultiAgentStep(obs, rewards, flags[0], flags[1], infos, bool(terminateds[_ALL]), bool(truncateds[_ALL]))

    def get_state(self) -> dict[str, Any]:
        """Returns where the environment stands: JSON values and arrays, agents by number in `possible_agents`."""
        number = {agent: i for i, agent in enumerate(self.possible_agents)}
        state: dict[str, Any] = {
            "steps": self._count,
            "over": self._over,
            "obs": {
                str(number[a]): leaves(self.observation_spaces[a], self._copiers[a](o)) for a, o in self.obs.items()
            },
            "order": [number[agent] for agent in self.obs],
            "active": [number[agent] for agent in self.active],
            "ended": {str(number[agent]): step for agent, step in self._ended.items()},
            "rewards": {str(number[agent]): float(reward) for agent, reward in self._rewards.items()},
            "rng_now": random_state(self.env),
        }
        if self._restarter is not None:
            state["restarts"] = self._restarter.get_state()
        if own_state_holder(self.env) is not None:
            return state | {"state": self.env.get_state()}
        state |= {"seed": self._before[0], "rng": self._before[1], "actions": None}
        if self._count <= MAX_REPLAY_STEPS:
            state["acted"] = np.array([[a in acts for a in self.possible_agents] for acts in self._log], np.bool_)
            state["actions"] = {str(number[agent]): self._actions_of(agent) for agent in self.possible_agents}
        return state

    def set_state(self, state: dict[str, Any]) -> bool:
        """Brings the environment back to where `get_state` found it.

        Returns:
            Whether it came back exactly; otherwise it is freshly reset, with a ResumeWarning.
        """
        return restore_runners([self], [state])[0]

    def restore(self, state: dict[str, Any] | None) -> str:
        """Does what `set_state` does, without a warning; returns why it did not come back, or an empty string."""
        reason = "no state was saved for it"
        if state is not None:
            try:
                reason = self._load(state)
            except Exception as error:  # whatever a user's environment raises here, a fresh episode is the answer
                reason = f"{type(error).__name__}: {error}"
            if self._restarter is not None:
                self._restarter.set_state(state.get("restarts"))  # replaying has seeded it
        if reason:
            self.reset()
        return reason

    def render(self) -> Any:
        """Renders the environment."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment."""
        release([self.env], self)
        self.env.close()

    @property
    def num_restarts(self) -> int:
        """How often the environment was created anew."""
        return 0 if self._restarter is None else self._restarter.count

    def _before_reset(self, env: Any, seed: int | None) -> None:
        if env is not self.env:
            for kind, spaces in (("observation", self.observation_spaces), ("action", self.action_spaces)):
                for agent, space in spaces.items():
                    if agent_space(env, kind, agent) != space:
                        raise EnvError(
                            f"{self.place.describe(self.vector_index)}: created anew, it has another {kind} space of "
                            f"agent {agent!r}: {agent_space(env, kind, agent)}, which was {space}"
                        )
            claim([env], self, self.place._replace(first_index=self.vector_index), instead_of=[self.env])
            self.env = env
        self._before = (seed, random_state(env))

    def _load(self, state: dict[str, Any]) -> str:
        if own_state_holder(self.env) is not None and "state" in state:
            self.reset()
            self.env.set_state(state["state"])
            set_random_state(self.env, state["rng_now"])
            self._count = int(state["steps"])
        else:
            reason = self._replay(state)
            if reason:
                return reason
        agents = self.possible_agents
        self.obs = {
            agents[i]: unflatten(
                self.observation_spaces[agents[i]],
                [
                    np.asarray(value, leaf.dtype)
                    for value, leaf in zip(
                        state["obs"][str(i)], leaf_spaces(self.observation_spaces[agents[i]]), strict=True
                    )
                ],
            )
            for i in state["order"]
        }
        self.active = [agents[i] for i in state["active"]]
        self._ended = {agents[int(i)]: int(step) for i, step in state["ended"].items()}
        self._rewards = {agents[int(i)]: reward for i, reward in state["rewards"].items()}
        self._over = bool(state["over"])
        return ""

    def _replay(self, state: dict[str, Any]) -> str:
        if state.get("actions") is None or int(state["steps"]) > MAX_REPLAY_STEPS:
            return f"its episode had taken {state['steps']} steps, more than the {MAX_REPLAY_STEPS} that are replayed"
        if state["seed"] is None and state["rng"] is None:
            return "it has no NumPy generator np_random whose state could be saved"
        columns = {}
        for i, agent in enumerate(self.possible_agents):
            space = self.action_spaces[agent]
            flat = [
                np.asarray(column, leaf.space.dtype)
                for column, leaf in zip(state["actions"][str(i)], leaf_spaces(space), strict=True)
            ]
            columns[agent] = iter(action_splitter(space)(unflatten(space, flat)))
        set_random_state(self.env, state["rng"])
        self.reset(state["seed"])
        for acted in np.asarray(state["acted"], np.bool_).reshape(int(state["steps"]), len(self.possible_agents)):
            self.step({a: next(columns[a]) for a, does in zip(self.possible_agents, acted, strict=True) if does})
        # A second checkpoint must tell the same story as the first.
        self._before = (state["seed"], state["rng"])
        number = {agent: i for i, agent in enumerate(self.possible_agents)}
        if {str(number[agent]) for agent in self.obs} != set(state["obs"]):
            return "replaying its actions gave observations of other agents"
        for agent, obs in self.obs.items():
            got = leaves(self.observation_spaces[agent], self._copiers[agent](obs))
            if not same_bits(got, state["obs"][str(number[agent])]):
                return f"replaying its actions gave another observation of agent {agent!r}"
        if not same_random_state(random_state(self.env), state["rng_now"]):
            return "replaying its actions gave another random state"
        if {str(number[agent]): float(reward) for agent, reward in self._rewards.items()} != state["rewards"]:
            return "replaying its actions gave other rewards"
        return ""

    def _actions_of(self, agent: AgentID) -> list[np.ndarray]:
        space: gym.Space = self.action_spaces[agent]
        rows = [leaves(space, actions[agent]) for actions in self._log if agent in actions]
        return [
            np.array([row[i] for row in rows], leaf.space.dtype).reshape(len(rows), *leaf.shape)
            for i, leaf in enumerate(leaf_spaces(space))
        ]

    def _copied(self, obs: AgentDict, where: str, terminateds: AgentDict) -> AgentDict:
        """The observations as rows take them; those that follow a terminal state need not be finite."""
        copies, over = {}, terminateds.get(_ALL, False)
        for agent, value in obs.items():
            if agent not in self._known or (agent in self._ended and terminateds):
                raise EnvError(f"{where}: obs: {self._unexpected(agent, 'an observation')}")
            try:
                copies[agent] = self._copiers[agent](value)
            except MisfitError as error:
                raise EnvError(f"{where}: {error}") from None
            finite = not (over or terminateds.get(agent, False))
            if self._steps_to_check or (finite and not self._finite(agent, copies[agent])):
                name = f"obs of agent {agent!r}"
                check_observation(self.observation_spaces[agent], value, where, name, finite=finite)
        return copies

    def _finite(self, agent: AgentID, obs: Any) -> bool:
        """A quick look; where it fails, the full check finds out and says what is wrong."""
        return all(x.dtype.kind != "f" or math.isfinite(x.sum()) for x in leaves(self.observation_spaces[agent], obs))

    def _unexpected(self, agent: AgentID, what: str) -> str:
        if agent in self._ended:
            return (
                f"got {what} of agent {agent!r}, which ended at episode step {self._ended[agent]}; an agent that "
                "ended stays away until the next reset"
            )
        return f"got {what} of agent {agent!r}, expected agents of possible_agents: {self.possible_agents}"

    def _why_not(self, actions: AgentDict) -> str:
        late = [agent for agent in actions if agent in self._ended]
        return f"; agent {late[0]!r} ended at episode step {self._ended[late[0]]}" if late else ""


def _agents_of(env: Any) -> list[AgentID]:
    """The agents of an environment.

    Raises:
        ConfigError: it names none.
    """
    given = getattr(env, "possible_agents", None)
    agents = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    hashable = all(isinstance(agent, Hashable) for agent in agents)
    if not agents or _ALL in agents or not hashable or len(set(agents)) != len(agents):
        raise ConfigError(
            f"{type(env).__name__}: expected possible_agents to list every agent that may ever appear, each once, got "
            f"{short(given)}; set it in the class or the constructor, e.g. possible_agents = ['left', 'right']"
        )
    return agents


def restore_runners(runners: Sequence[MultiAgentRunner], states: Sequence[dict[str, Any] | None]) -> list[bool]:
    """Brings several environments back, with one ResumeWarning for all that begin a fresh episode instead.

    Args:
        runners: the environments of one worker.
        states: what each one's `get_state` returned; missing ones count as None.

    Returns:
        For each, whether it came back exactly.
    """
    padded = [*states, *[None] * (len(runners) - len(states))]
    why = {i: runner.restore(state) for i, (runner, state) in enumerate(zip(runners, padded, strict=False))}
    reasons = {runners[i].vector_index: reason for i, reason in why.items() if reason}
    if reasons:
        warn_fresh(reasons, len(runners), runners[0].place)
    return [not reason for reason in why.values()]
