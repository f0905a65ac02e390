"""Options of a run: of sampling, by the fragments of a worker; of memories and plans, by what is built of them."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import option_rows as options
import pytest

from jaxrl import registry
from jaxrl.algorithms import impala
from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.rollout import RolloutWorker
from jaxrl.trainers import apex, evaluation, off_policy, setup
from jaxrl.types import ConfigError


class Counting(gym.Env):
    """Counts to `size`; shows the count and the action that came, in a box that actions may leave."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Box(-0.25, 0.5, (1,), np.float32)

    def __init__(self, config: Any = None) -> None:
        self.size = dict(config or {}).get("size", 4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.array([0.0, self.np_random.uniform()], np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        seen = np.array([self.count, action[0]], np.float32)
        return seen, float(self.count), self.count >= self.size, False, {}


BASE: dict[str, Any] = {
    "env": Counting,
    "seed": 7,
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 4,
    "train_batch_size": 24,
    "model": {"fcnet_hiddens": [2]},
}


def double(batch: Any) -> Any:
    return batch.with_columns(rewards=batch["rewards"] * 2)


CALLBACKS = Callbacks(on_sample_end=lambda *, worker, samples: double(samples))


@functools.cache
def sampled(key: str | None, beside: tuple[tuple[str, Any], ...] = ()) -> list[np.ndarray]:
    """Fragments of a worker, the weights of which are the same whatever the options."""
    given = dict(beside)
    if key is not None:
        value = options.SAMPLING[key][0]
        given[key] = CALLBACKS if value == "counting" else value
    trainer = registry.resolve("algorithm", "PPO")
    config = trainer.config_class
    resolved = setup.with_fragment_length(trainer.parse_config({**BASE, **given}))
    assert isinstance(resolved, config)
    env = setup.probe_env(resolved)
    recipes = setup.make_recipes(resolved, trainer.policy_factory, env)
    worker = RolloutWorker(resolved, {pid: recipe.build() for pid, recipe in recipes.items()}, env=env)
    policy = worker.policies["default_policy"]
    worker.set_weights(1, {"default_policy": policy.init(jax.random.key(3)).weights})
    leaves = [x for _ in range(2) for x in jax.tree.leaves(dict(worker.sample()))]
    worker.stop()
    return [np.asarray(x) for x in leaves]


@pytest.mark.parametrize("key", options.SAMPLING)
def test_options_of_sampling_change_what_is_sampled(key: str) -> None:
    beside = tuple(options.SAMPLING[key][1].items())
    before, after = sampled(None, beside), sampled(key, beside)
    same = [x.shape == y.shape and np.array_equal(x, y) for x, y in zip(before, after, strict=False)]
    assert len(before) != len(after) or not all(same)


def spec_of_memory(make: Any = off_policy.make_buffer, **given: Any) -> Any:
    small = {"env": "CartPole-v1", "seed": 1, "buffer_size": 64, "learning_starts": 4, "train_batch_size": 4}
    return make(DQNTrainer.resolve_config({**small, **given})).spec


@pytest.mark.parametrize("key", options.REPLAY)
def test_options_of_memories_change_them(key: str) -> None:
    value = options.REPLAY[key]
    value = False if value is None else value
    assert spec_of_memory(**{key: value}) != spec_of_memory()


def test_single_policies_have_memories_of_their_own_options() -> None:
    small = {"env": "CartPole-v1", "seed": 1, "buffer_size": 64, "learning_starts": 4, "train_batch_size": 4}
    asked = DQNTrainer.parse_config(small)
    own = DQNTrainer.policy_options(asked, "a", {"gamma": 0.5, "n_step": 3, "buffer_size": 32}, None)
    spec = off_policy.make_buffer(own).spec
    assert (spec.gamma, spec.n_step, spec.capacity) == (0.5, 3, 32)


@functools.cache
def plan_of(name: str, given: tuple[tuple[str, Any], ...]) -> str:
    trainer = registry.resolve("algorithm", name)
    replay = {"buffer_size": 64, "learning_starts": 4} if name == "DQN" else {}
    small = {"train_batch_size": 8} if name == "DQN" else {"train_batch_size": 40}
    config = {"env": "CartPole-v1", "seed": 1, "num_workers": 0, **small, **replay, **dict(given)}
    with trainer(config={**config, "model": {"fcnet_hiddens": [2]}}) as made:
        return str(made.plan)


@pytest.mark.parametrize("key", options.PLANS)
def test_options_of_plans_change_them(key: str) -> None:
    name, value, beside = options.PLANS[key]
    assert plan_of(name, (*beside.items(), (key, value))) != plan_of(name, tuple(beside.items()))


@pytest.mark.parametrize("key", options.CALLS)
def test_options_that_plans_hand_on(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To an operator, whose own tests show what it does with them: the value arrives."""
    name, value, module, function, parameter = options.CALLS[key]
    where = {"impala": impala, "off_policy": off_policy, "apex": apex}[module]
    told: list[Any] = []
    original = getattr(where, function)

    def spy(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(*args, **kwargs)
        told.append(bound.arguments.get(parameter))
        return original(*args, **kwargs)

    monkeypatch.setattr(where, function, spy)
    plan_of.__wrapped__(name, ((key, value),))
    assert told == [value]


def test_aggregation_workers_need_workers() -> None:
    config = {"env": "CartPole-v1", "num_workers": 0, "num_aggregation_workers": 1}
    with pytest.raises(ConfigError, match="num_aggregation_workers=1 is more than num_workers=0"):
        impala.IMPALATrainer.resolve_config(config)


def test_evaluation_num_workers_are_those_of_evaluation() -> None:
    resolved = PPOTrainer.resolve_config({"env": "CartPole-v1", "evaluation_num_workers": 2, "num_workers": 0})
    assert evaluation.evaluation_options(resolved).num_workers == 2


def test_priority_eta_weighs_the_largest_error() -> None:
    from jaxrl.replay import sequence_priorities

    errors, learned = np.array([[1.0], [3.0]], np.float32), np.ones((2, 1), bool)
    assert sequence_priorities(errors, learned, 0.9) == pytest.approx(0.9 * 3 + 0.1 * 2)
    assert sequence_priorities(errors, learned, 0.0) == pytest.approx(2.0)
