"""Bad input: a clear error with where, expected and got; before any actor starts where it can be; nothing lost."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ray
from gymnasium import spaces

from jaxrl import ConfigError, build_policy
from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.pg import PGTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.envs import MultiAgentEnv
from jaxrl.types import EnvError, LossError, NonFiniteError, UnsupportedSpaceError

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "rollout_fragment_length": 20,
    "train_batch_size": 20,
    "batch_mode": "truncate_episodes",
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
}


@pytest.fixture(scope="module", autouse=True)
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXRL_RESULTS_DIR", str(root))
        yield root
    assert not ray.is_initialized()  # no actor was ever started


@pytest.mark.parametrize(
    ("cls", "options", "match"),
    [
        (PPOTrainer, {"train_batchsize": 10}, "train_batchsize.*did you mean 'train_batch_size'"),
        (PPOTrainer, {"framework": "torch"}, "framework"),
        (PPOTrainer, {"lr": "fast"}, "lr.*expected.*got"),
        (PPOTrainer, {"num_workers": -1}, "num_workers"),
        (PPOTrainer, {"num_workers": 2.5}, "num_workers"),
        (PPOTrainer, {"model": {"fcnet_hidden": [8]}}, "fcnet_hidden.*did you mean"),
        (PPOTrainer, {"batch_mode": "whole"}, "batch_mode.*truncate_episodes"),
        (PPOTrainer, {"train_batch_size": 30}, "train_batch_size=30 is no multiple of the 20 steps.*use 20 or 40"),
        (PPOTrainer, {"train_batch_size": 10}, "use 20,"),
        (PPOTrainer, {"num_workers": 3, "rollout_fragment_length": "auto"}, "does not divide among 3.*use 18 or 21"),
        (PPOTrainer, {"rollout_fragment_length": 0}, "rollout_fragment_length"),
        (PPOTrainer, {"sgd_minibatch_size": 64}, "sgd_minibatch_size=64 is larger than train_batch_size=20"),
        (A2CTrainer, {"microbatch_size": 15}, "microbatch_size=15"),
        (PPOTrainer, {"env": None}, "no environment"),
        (PPOTrainer, {"env": "CartPoll-v1"}, "unknown environment 'CartPoll-v1'.*CartPole"),
        (PPOTrainer, {"env": "CartPoll-v1", "num_workers": 2, "rollout_fragment_length": 10}, "unknown environment"),
        (PPOTrainer, {"env_config": {"gravitas": 1}}, "gravitas"),
        (PPOTrainer, {"evaluation_interval": 1, "evaluation_config": {"explorer": False}}, "explorer.*did you mean"),
        (PPOTrainer, {"exploration_config": {"type": "Nosuch"}}, "Nosuch"),
        (PPOTrainer, {"optimizer": "adamm"}, "adamm"),
    ],
)
def test_config(cls: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises((ConfigError, EnvError), match=match):
        cls(config={**TINY, **({"sgd_minibatch_size": 0} if cls is PPOTrainer else {}), **options})


class Bad(gym.Env):
    """Misbehaves as `env_config["how"]` says, after `at` steps."""

    def __init__(self, config: Any) -> None:
        self.how, self.at = config["how"], config.get("at", 3)
        self.observation_space: gym.Space = spaces.Box(-5.0, 5.0, (2,), np.float32)
        self.action_space: gym.Space = spaces.Discrete(2)
        if self.how == "text":
            self.observation_space = spaces.Text(5)
        if self.how == "graph":
            self.observation_space = spaces.Graph(spaces.Box(-1, 1, (1,)), None)
        if self.how == "int":
            self.observation_space = spaces.Box(0, 3, (2,), np.int32)
        self.t = 0

    def obs(self) -> Any:
        if self.t < self.at:
            return np.zeros(2, self.observation_space.dtype)
        return {
            "shape": np.zeros(3, np.float32),
            "dtype": np.array(["a", "b"]),
            "int": np.array([0.5, 1.0]),
            "outside": np.array([0.0, 7.0], np.float32),
            "nan": np.array([0.0, np.nan], np.float32),
            "none obs": None,
        }.get(self.how, np.zeros(2, np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.how == "old reset":
            return self.obs()
        return self.obs(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        reward: Any = 1.0
        if self.t >= self.at:
            reward = {"inf": np.inf, "nan reward": np.nan, "none": None, "array": np.zeros(3)}.get(self.how, 1.0)
        if self.how == "old step":
            return self.obs(), reward, False, {}
        if self.how == "raises" and self.t >= self.at:
            raise ZeroDivisionError("my bug")
        return self.obs(), reward, False, False, {}


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("text", "expected Box.*got Text"),
        ("graph", "expected Box.*got Graph"),
        ("old reset", r"reset: expected a tuple \(obs, info dict\)"),
    ],
)
def test_environments_refused_at_once(how: str, match: str) -> None:
    with pytest.raises((UnsupportedSpaceError, EnvError), match=match):
        PGTrainer(config={**TINY, "env": Bad, "env_config": {"how": how}})


@pytest.mark.parametrize("at", [3, 18])  # among the steps checked in full, and after them
@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("old step", "got 4 values.*before 0.26"),
        ("shape", r"shape \(2,\)"),
        ("dtype", "dtype|could not convert"),
        ("outside", "within|expected values"),
        ("nan", "expected finite numbers, got NaN|expected finite"),
        ("none obs", "NoneType|None"),
        ("inf", "finite"),
        ("nan reward", "finite"),
        ("none", "NoneType|finite|None"),
        ("array", "reward|sequence|step raised"),
        ("raises", "step raised ZeroDivisionError: my bug"),
    ],
)
def test_environments_refused_while_sampling(policy_trainer: Any, how: str, match: str, at: int) -> None:
    from jaxrl.rollout import RolloutWorker, make_worker_env

    config = PGTrainer.resolve_config({**TINY, "env": Bad, "env_config": {"how": how, "at": at}})
    env = make_worker_env(config, 0, 0)
    worker = RolloutWorker(config, policy_trainer.policies, env=env)
    worker.set_weights(1, policy_trainer.workers.local.weights)
    with pytest.raises(EnvError, match=match) as caught:
        worker.sample()
        worker.sample()
    assert "Bad (worker 0, env 0" in str(caught.value)


@pytest.fixture(scope="module")
def policy_trainer() -> Iterator[Any]:
    with PGTrainer(config={**TINY, "env": Bad, "env_config": {"how": "well"}}) as trainer:
        yield trainer


class Undead(MultiAgentEnv):
    possible_agents = ["a", "b"]
    observation_spaces = dict.fromkeys("ab", spaces.Box(-1, 1, (1,), np.float32))
    action_spaces = dict.fromkeys("ab", spaces.Discrete(2))

    def __init__(self, config: Any) -> None:
        self.config = config

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return dict.fromkeys("ab", np.zeros(1, np.float32)), {}

    def step(self, action_dict: Any) -> Any:
        self.t += 1
        obs = {agent: np.zeros(1, np.float32) for agent in self.config["agents"](self.t)}
        return obs, dict.fromkeys(obs, 0.0), {"b": self.t == 2, "__all__": False}, {"__all__": False}, {}


@pytest.mark.parametrize(
    ("agents", "match"),
    [
        (lambda t: "ab", "'b', which ended at episode step 1"),
        (lambda t: "abz", "agent 'z', expected agents of possible_agents"),
    ],
)
def test_agents_that_should_not_be_there(agents: Any, match: str) -> None:
    config = {**TINY, "env": Undead, "env_config": {"agents": agents}}
    with PGTrainer(config=config) as trainer, pytest.raises(EnvError, match=match):
        trainer.train()


def test_losses_that_are_no_scalar() -> None:
    def vector(params: Any, batch: Any, ctx: Any) -> Any:
        return ctx.forward(params, batch).value

    def nothing(params: Any, batch: Any, ctx: Any) -> Any:
        return None

    for loss in (vector, nothing):
        Trainer = PGTrainer.with_updates(name="LossTrainer", default_policy=build_policy("P", loss_fn=loss))
        with pytest.raises(LossError, match="scalar"):
            Trainer(config=TINY)


def test_a_loss_that_turns_nan(tmp_path: pathlib.Path) -> None:
    def loss(params: Any, batch: Any, ctx: Any) -> Any:
        value = batch.mean(ctx.forward(params, batch).value ** 2)
        return value + jnp.where(ctx.coeffs["poison"] > 0, jnp.nan, 0.0)

    policy = build_policy("P", loss_fn=loss, coeffs_fn=lambda config: {"poison": 0.0})
    Trainer = PGTrainer.with_updates(name="PoisonTrainer", default_policy=policy)
    with Trainer(config={**TINY, "keep_checkpoints_num": 1}, results_dir=tmp_path) as trainer:
        trainer.train()
        path = trainer.save()
        good = trainer.get_weights()
        trainer.set_coeffs(poison=1.0)
        with pytest.raises(NonFiniteError, match="'default_policy'.*total_loss=nan"):
            trainer.train()
        jax.tree.map(np.testing.assert_array_equal, trainer.get_weights(), good)
        trainer.restore(path)
        trainer.set_coeffs(poison=0.0)
        assert trainer.train()["training_iteration"] == 2
