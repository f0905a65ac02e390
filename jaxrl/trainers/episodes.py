"""Episodes played with a trainer's policies outside training: for rollouts, videos and inspection."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym

from jaxrl.envs import EPISODE_CONTINUES, EnvContext, EnvPlace, MultiAgentEnv, MultiAgentRunner, make_env_creator
from jaxrl.envs.checks import check_reset_result, check_step_result, env_failure
from jaxrl.envs.rows import action_copier
from jaxrl.envs.users import claim, release
from jaxrl.rollout import policy_for
from jaxrl.trainers.evaluation import evaluation_options
from jaxrl.trainers.inference import Actor
from jaxrl.types import DEFAULT_POLICY_ID, AgentID, ConfigError, EnvError, PolicyID


class Step(NamedTuple):
    """One step: dicts by agent where the environment has several, else single values."""

    obs: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any


class PlayedEpisode(NamedTuple):
    """An episode that was played.

    Attributes:
        reward: sum of all rewards.
        length: env steps.
        agent_rewards: sum of rewards by agent; empty where there is only one.
        steps: every step, where they were kept.
        final_obs: the observation after the last step.
        complete: False where it was cut by the number of steps asked for.
    """

    reward: float
    length: int
    agent_rewards: Mapping[AgentID, float]
    steps: tuple[Step, ...]
    final_obs: Any
    complete: bool


class Player:
    """Plays episodes with a trainer's current weights, in an environment of its own.

    The options are those of evaluation (`evaluation_config` merged in), so that `horizon` and `explore` hold.

    Args:
        trainer: a Trainer.
        render_mode: of the environment, or None.
        explore: sample actions (True) or take the mode (False); None: as the options say.
        seed: of the environment's first episode; None: as for evaluation.
        keep_steps: keep each step of the episodes.

    Raises:
        ConfigError: the environment has no such render mode.

    Example:
        >>> with contextlib.closing(Player(trainer)) as player:                   # doctest: +SKIP
        ...     rewards = [player.play().reward for _ in range(5)]
    """

    def __init__(
        self,
        trainer: Any,
        *,
        render_mode: str | None = None,
        explore: bool | None = None,
        seed: int | None = None,
        keep_steps: bool = False,
    ) -> None:
        options = evaluation_options(trainer.options)
        self.trainer = trainer
        self.horizon: int | None = options.horizon
        self.explore = options.explore if explore is None else explore
        self.keep_steps = keep_steps
        self._options = options
        self._actors: dict[PolicyID, Actor] = {}
        self._seed: int | None = options.seed if seed is None else seed
        extra = {} if render_mode is None else {"render_mode": render_mode}
        if render_mode is not None and not has_display():
            # Environments that draw with SDL would complain that there is no screen.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        creator = make_env_creator(options.env)
        self._place = EnvPlace(creator.name)
        self.env = creator(EnvContext({**options.env_config, **extra}))
        self._runner: MultiAgentRunner | None = None
        if isinstance(self.env, MultiAgentEnv):
            self._runner = MultiAgentRunner(self.env, self._place)
        else:
            claim([self.env], self, self._place)
        if isinstance(self.env, gym.vector.VectorEnv):
            self.close()
            raise ConfigError(
                f"env {creator.name}: is a vector environment; episodes are played in a single one. Give one as env"
            )
        if render_mode is not None and getattr(self.env, "render_mode", None) != render_mode:
            self.close()
            modes = getattr(self.env, "metadata", {}).get("render_modes") or "none"
            raise ConfigError(f"env {options.env!r} does not render as {render_mode!r}; its render modes: {modes}")

    @property
    def frames_per_second(self) -> int:
        """How fast the environment is meant to be shown."""
        return int(getattr(self.env, "metadata", {}).get("render_fps") or 30)

    def play(self, *, max_steps: int | None = None, on_step: Callable[[Any], None] | None = None) -> PlayedEpisode:
        """Plays one episode.

        Args:
            max_steps: cut it after so many env steps.
            on_step: called with the environment after its reset and after each step (to render, say).

        Returns:
            The episode.

        Raises:
            EnvError: the environment breaks its contract, or goes on beyond `max_whole_episode_steps`.
        """
        seed, self._seed = self._seed, None
        steps = self._multi_agent_steps(seed) if self.trainer.multi_agent else self._single_agent_steps(seed)
        limits = [limit for limit in (max_steps, self.horizon) if limit is not None]
        kept: list[Step] = []
        rewards: dict[AgentID, float] = {}
        length, complete = 0, False
        final_obs = next(steps)[1]
        if on_step is not None:
            on_step(self.env)
        for played in steps:
            step, final_obs, over = played
            length += 1
            shares = step.reward if self.trainer.multi_agent else {None: step.reward}
            for agent, reward in shares.items():
                rewards[agent] = rewards.get(agent, 0.0) + float(reward)
            if self.keep_steps:
                kept.append(step)
            if on_step is not None:
                on_step(self.env)
            complete = over or (self.horizon is not None and length >= self.horizon)
            if over or (limits and length >= min(limits)):
                break
            longest = self._options.max_whole_episode_steps
            if longest is not None and length >= longest:
                raise EnvError(
                    f"{self._place.describe(0)}: its episode has taken {length} steps and has not ended; set horizon, "
                    "which cuts it, give max_steps, have the environment end or truncate it, or raise "
                    f"max_whole_episode_steps, which is {longest}."
                )
        total = sum(rewards.values())
        return PlayedEpisode(
            total, length, rewards if self.trainer.multi_agent else {}, tuple(kept), final_obs, complete
        )

    def close(self) -> None:
        """Closes the environment."""
        if self._runner is not None:
            self._runner.close()
            return
        release([self.env], self)
        self.env.close()

    def _single_agent_steps(self, seed: int | None) -> Iterator[tuple[Any, Any, bool]]:
        space, owned = self.env.observation_space, action_copier(self.env.action_space)
        obs, _ = self._reset(seed)
        yield None, obs, False
        agent, length = self._agent(DEFAULT_POLICY_ID), 0
        while True:
            where = self._place.describe(0, length)
            action = agent.act(obs, where)
            try:
                result = self.env.step(owned(action))
            except Exception as error:
                raise env_failure(where, "step", error) from error
            new_obs, reward, terminated, truncated, info = check_step_result(space, result, where)
            length += 1
            agent.reward = float(reward)
            step = Step(obs, action, float(reward), bool(terminated), bool(truncated))
            # Copies: an environment may write each observation into the same array.
            obs, over = copy.deepcopy(new_obs), bool(terminated or truncated)
            if over and info.get(EPISODE_CONTINUES):
                obs, info = self._reset(None)
                over = not info.get(EPISODE_CONTINUES)
                agent = self._agent(DEFAULT_POLICY_ID)
            yield step, obs, over

    def _reset(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        where = self._place.describe(0)
        try:
            result = self.env.reset() if seed is None else self.env.reset(seed=seed)
        except Exception as error:
            raise env_failure(where, "reset", error) from error
        obs, info = check_reset_result(self.env.observation_space, result, where)
        return copy.deepcopy(obs), info

    def _multi_agent_steps(self, seed: int | None) -> Iterator[tuple[Any, Any, bool]]:
        runner = self._runner
        assert runner is not None
        runner.reset(seed)
        obs = copy.deepcopy(runner.obs)
        yield None, obs, False
        agents: dict[AgentID, _Agent] = {}
        mapping, length = self._options.multiagent.policy_mapping_fn, 0
        while True:
            where = self._place.describe(0, length)
            for name in runner.active:
                if name not in agents:
                    agents[name] = self._agent(policy_for(name, self.trainer.policies, mapping))
            obs = {name: obs[name] for name in runner.active}
            actions = {name: agents[name].act(seen, f"{where}: agent {name!r}") for name, seen in obs.items()}
            out = runner.step(actions)
            length += 1
            rewards = {name: float(reward) for name, reward in out.rewards.items()}
            for name, reward in rewards.items():
                if name in agents:
                    agents[name].reward += reward
            step = Step(obs, actions, rewards, dict(out.terminateds), dict(out.truncateds))
            obs = copy.deepcopy(out.obs)
            yield step, obs, out.terminated or out.truncated

    def _agent(self, policy_id: PolicyID) -> _Agent:
        if policy_id not in self._actors:
            self._actors[policy_id] = self.trainer.inference.actor(policy_id, self._options)
        return _Agent(self._actors[policy_id], self.explore)


def has_display() -> bool:
    """Whether a window can be shown."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Agent:
    """One agent's side of an episode: what it remembers, and what it got since its last action."""

    def __init__(self, actor: Actor, explore: bool) -> None:
        self._actor, self._explore = actor, explore
        self._memory = actor.begin()
        self.reward = 0.0

    def act(self, obs: Any, where: str) -> Any:
        (action,), self._memory = self._actor.act([obs], self._memory, [self.reward], self._explore, where)
        self.reward = 0.0
        return action
