"""Episodes played with a trainer's policies outside training: for rollouts, videos and inspection."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym

from jaxrl.envs import EPISODE_CONTINUES, EnvContext, EnvPlace, MultiAgentEnv, MultiAgentRunner, make_env_creator
from jaxrl.rollout import policy_for
from jaxrl.trainers.evaluation import evaluation_options
from jaxrl.types import DEFAULT_POLICY_ID, AgentID, ConfigError, PolicyID


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
        self._mapping = options.multiagent.policy_mapping_fn
        self._seed: int | None = options.seed if seed is None else seed
        extra = {} if render_mode is None else {"render_mode": render_mode}
        if render_mode is not None and not has_display():
            # Environments that draw with SDL would complain that there is no screen.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        context = EnvContext({**options.env_config, **extra})
        self._runner = _make_runner(options.env, context)
        self.env = self._runner.env if isinstance(self._runner, MultiAgentRunner) else self._runner
        if render_mode is not None and getattr(self.env, "render_mode", None) != render_mode:
            self.env.close()
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
        total = sum(rewards.values())
        return PlayedEpisode(
            total, length, rewards if self.trainer.multi_agent else {}, tuple(kept), final_obs, complete
        )

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def _single_agent_steps(self, seed: int | None) -> Iterator[tuple[Any, Any, bool]]:
        obs, _ = self.env.reset() if seed is None else self.env.reset(seed=seed)
        yield None, obs, False
        agent = _Agent(self.trainer, DEFAULT_POLICY_ID, self.explore)
        while True:
            action = agent.act(obs)
            new_obs, reward, terminated, truncated, info = self.env.step(action)
            agent.reward = float(reward)
            step = Step(obs, action, float(reward), bool(terminated), bool(truncated))
            obs, over = new_obs, bool(terminated or truncated)
            if over and info.get(EPISODE_CONTINUES):
                obs, info = self.env.reset()
                over = not info.get(EPISODE_CONTINUES)
                agent = _Agent(self.trainer, DEFAULT_POLICY_ID, self.explore)
            yield step, obs, over

    def _multi_agent_steps(self, seed: int | None) -> Iterator[tuple[Any, Any, bool]]:
        runner = self._runner
        runner.reset(seed)
        yield None, dict(runner.obs), False
        agents: dict[AgentID, _Agent] = {}
        while True:
            for agent in runner.active:
                if agent not in agents:
                    pid = policy_for(agent, self.trainer.policies, self._mapping)
                    agents[agent] = _Agent(self.trainer, pid, self.explore)
            obs = {agent: runner.obs[agent] for agent in runner.active}
            actions = {agent: agents[agent].act(observation) for agent, observation in obs.items()}
            out = runner.step(actions)
            for agent, reward in out.rewards.items():
                if agent in agents:
                    agents[agent].reward = float(reward)
            rewards = {agent: float(reward) for agent, reward in out.rewards.items()}
            step = Step(obs, actions, rewards, dict(out.terminateds), dict(out.truncateds))
            yield step, dict(out.obs), out.terminated or out.truncated


def has_display() -> bool:
    """Whether a window can be shown."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Agent:
    """One agent's side of an episode: the model's state, and what its model reads of the last step."""

    def __init__(self, trainer: Any, policy_id: PolicyID, explore: bool) -> None:
        self._trainer, self._policy_id, self._explore = trainer, policy_id, explore
        self._state = trainer.get_initial_state(policy_id)
        self._action: Any = None
        self.reward = 0.0

    def act(self, obs: Any) -> Any:
        self._action, self._state = self._trainer.compute_action(
            obs, self._state, self._action, self.reward, policy_id=self._policy_id, explore=self._explore
        )
        return self._action


def _make_runner(env: Any, context: EnvContext) -> Any:
    creator = make_env_creator(env)
    created = creator(context)
    if isinstance(created, MultiAgentEnv):
        return MultiAgentRunner(created, EnvPlace(creator.name, 0))
    if isinstance(created, gym.vector.VectorEnv):
        created.close()
        raise ConfigError(
            f"env {creator.name}: is a vector environment; episodes are played in a single one. Give one as env"
        )
    return created
