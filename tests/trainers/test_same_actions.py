"""Evaluation, a loop of `compute_action`, a Player and `jaxrl rollout` act alike: one policy, the same episode."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.cli.rollout import _play
from jaxrl.envs import MultiAgentEnv
from jaxrl.trainers.episodes import Player

TURNS = 9
PLAYED: list[list[Any]] = []  # the actions of each episode, of any environment below

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "lstm_use_prev_action_reward": True, "max_seq_len": 4}


class Drift(gym.Env):
    """A point that actions move; every episode is the same, and a small difference soon becomes a large one."""

    def __init__(self, low: float = -1.4, high: float = 0.8, parts: bool = False) -> None:
        self.action_space = spaces.Box(low, high, (2,))
        box = spaces.Box(-1e4, 1e4, (3,))
        self.observation_space = spaces.Dict({"b": spaces.Tuple([box]), "a": spaces.Discrete(4)}) if parts else box
        self.parts = parts
        self.array = np.zeros(3, np.float32)  # written in place at every step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        PLAYED.append([])
        self.t = 0
        self.array[:] = (0.5, -0.25, 1.0)
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        PLAYED[-1].append(np.array(action))
        self.t += 1
        self.array[:2] = 2.0 * self.array[:2] + action
        self.array[2] = np.sin(3.0 * self.array[0])
        reward = float(5.0 * self.array[2] + action[0])
        action *= 0.0  # its own to change
        return self._observation(), reward, False, self.t == TURNS, {}

    def _observation(self) -> Any:
        # Neither a plain dict nor a tuple, as some environments have it.
        return OrderedDict(a=self.t % 4, b=[self.array]) if self.parts else self.array


class Turns(MultiAgentEnv):
    """Two agents in turns, rewarded at every step: what counts between two actions of an agent is their sum."""

    possible_agents = ["x", "y"]

    def __init__(self) -> None:
        self.drift = Drift()
        self.observation_spaces = dict.fromkeys("xy", self.drift.observation_space)
        self.action_spaces = dict.fromkeys("xy", self.drift.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, _ = self.drift.reset()
        return {"x": obs}, {}

    def step(self, action_dict: Any) -> Any:
        ((_, action),) = action_dict.items()
        obs, reward, _, over, _ = self.drift.step(action)
        ends = {"__all__": over}
        seen = dict.fromkeys("xy", obs) if over else {"xy"[self.drift.t % 2]: obs}
        return seen, {"x": reward, "y": 1.0 - reward}, {"__all__": False}, ends, {}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "previous action and reward": {"model": LSTM},
    "filters": {"observation_filter": "MeanStdFilter"},
    "clipped rewards": {"clip_rewards": 1.0, "model": LSTM},
    "normalised actions": {"normalize_actions": True, "model": LSTM},
    "parts": {"env_config": {"parts": True}},
    "all at once": {
        "model": LSTM,
        "clip_rewards": (-0.5, 2.0),
        "normalize_actions": True,
        "observation_filter": "MeanStdFilter",
        "env_config": {"parts": True},
    },
    "two policies": {
        "env": Turns,
        "model": LSTM,
        "clip_rewards": 1.0,
        "normalize_actions": True,
        "multiagent": {"policies": {"one": None, "two": None}, "policy_mapping_fn": {"x": "one", "y": "two"}},
    },
}


@pytest.fixture(params=CASES, scope="module")
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config = {
        "env": Drift,
        "model": {},
        "num_envs_per_worker": 1,
        "rollout_fragment_length": 12,
        "train_batch_size": 12,
        "sgd_minibatch_size": 0,
        "compile_cache": False,
        "seed": 3,
        "evaluation_num_episodes": 1,
        "evaluation_config": {"explore": False},
        **CASES[request.param],
    }
    config["model"] = {"fcnet_hiddens": [8], **config["model"]}
    with PPOTrainer(config=config, results_dir=tmp_path_factory.mktemp("results")) as made:
        # First weights hardly act.
        made.set_weights(jax.tree.map(lambda x: 4.0 * x, made.get_weights()))
        made.workers.foreach_worker("sample_episodes")  # filters learn
        yield made


def loop(trainer: Any) -> tuple[list[Any], float]:
    """An episode by `compute_action`, told the actions and rewards that a user has at hand."""
    env = trainer.options.env(**trainer.options.env_config)
    mapping = trainer.options.multiagent.policy_mapping_fn
    PLAYED.clear()
    obs, _ = env.reset()
    total, over = 0.0, False
    if not trainer.multi_agent:
        state, action, reward = trainer.get_initial_state(), None, None
        while not over:
            action, state = trainer.compute_action(obs, state, action, reward, explore=False)
            obs, reward, _, over, _ = env.step(np.array(action))
            total += reward
        return PLAYED[0], total
    states = {agent: trainer.get_initial_state(mapping[agent]) for agent in "xy"}
    since = dict.fromkeys("xy", 0.0)
    acted: set[str] = set()
    while not over:
        actions = {}
        for agent in obs:
            reward = since[agent] if agent in acted else 0.0
            actions[agent], states[agent] = trainer.compute_action(
                obs[agent], states[agent], prev_reward=reward, policy_id=mapping[agent], explore=False
            )
            since[agent] = 0.0
            acted.add(agent)
        obs, rewards, _, ends, _ = env.step(actions)
        over = ends["__all__"]
        for agent, reward in rewards.items():
            since[agent] += reward
            total += reward
    return PLAYED[0], total


def test_the_same_actions_and_return(trainer: Any, tmp_path: Any) -> None:
    PLAYED.clear()
    evaluated = trainer.evaluate()
    wanted, total = next(filter(None, PLAYED)), evaluated["hist_stats"]["episode_reward"][0]
    assert len(wanted) == TURNS and evaluated["episodes_this_iter"] == 1
    assert len({tuple(action) for action in wanted}) > 4, "a test of constant actions tells nothing"

    actions, reward = loop(trainer)
    np.testing.assert_array_equal(actions, wanted)
    assert reward == pytest.approx(total, abs=1e-9)

    PLAYED.clear()
    with contextlib.closing(Player(trainer, explore=False, keep_steps=True)) as player:
        episode = player.play()
    np.testing.assert_array_equal(PLAYED[0], wanted)
    assert episode.reward == pytest.approx(total, abs=1e-9)

    PLAYED.clear()
    out = tmp_path / "episodes.jsonl"
    _play(trainer, 1, None, False, None, out, False, 0)
    np.testing.assert_array_equal(PLAYED[0], wanted)
    assert json.loads(out.read_text())["reward"] == pytest.approx(total, abs=1e-6)

    # Each step as it was, though the environment has one array for all of them.
    steps = (
        episode.steps
        if not trainer.multi_agent
        else [
            step._replace(obs=next(iter(step.obs.values())), action=next(iter(step.action.values())))
            for step in episode.steps
        ]
    )
    np.testing.assert_array_equal([step.action for step in steps], wanted)
    arrays = [step.obs["b"][0] if isinstance(step.obs, dict) else step.obs for step in steps]
    assert len({array.tobytes() for array in arrays}) == TURNS
    np.testing.assert_array_equal(arrays[0], np.array([0.5, -0.25, 1.0], np.float32))
