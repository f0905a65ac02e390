"""Bootstrapping from a state whose mask allows no action: as from one that allows all, never a value of -1e7."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms import dqn, iqn, r2d2, sac, simple_q
from jaxrl.algorithms.pg import PGPolicy, PGTrainer
from jaxrl.data import SampleBatch
from jaxrl.rollout.actions import make_mask_check
from jaxrl.types import EnvError

OBS = spaces.Dict({"action_mask": spaces.Box(0, 1, (3,), np.int8), "x": spaces.Box(-1.0, 1.0, (2,))})
ACTIONS = spaces.Discrete(3)
MODEL = {"fcnet_hiddens": [4]}
HEAD = {"model": MODEL, "hiddens": [4]}
POLICIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "SimpleQ": (simple_q.SimpleQPolicy, {"model": MODEL}),
    "DQN": (dqn.DQNPolicy, {**HEAD, "dueling": False, "double_q": False}),
    "duelling double DQN": (dqn.DQNPolicy, HEAD),
    "C51": (dqn.DQNPolicy, {**HEAD, "num_atoms": 5}),
    "IQN": (iqn.IQNPolicy, {**HEAD, "num_quantiles": 4, "num_target_quantiles": 4, "num_action_quantiles": 4}),
    "R2D2": (r2d2.R2D2Policy, {**HEAD, "model": {**MODEL, "lstm_cell_size": 4}}),
    "SAC": (sac.SACPolicy, {"actor_hiddens": [4], "critic_hiddens": [4]}),
}


def seen(mask: int, *leading: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (*leading, 2)).astype(np.float32)
    return {"action_mask": np.full((*leading, 3), mask, np.int8), "x": x}


def rows(mask: int) -> SampleBatch:
    """Rows as a replay buffer gives them; their successors, cut by a time limit, have this mask."""
    columns = {
        "obs": seen(1, 4),
        "new_obs": seen(mask, 4),
        "actions": np.array([0, 1, 2, 0], np.int32),
        "rewards": np.ones(4, np.float32),
        "discounts": np.full(4, 0.9, np.float32),
        "weights": np.ones(4, np.float32),
    }
    return SampleBatch(columns, time_major=False)


def sequence(mask: int) -> SampleBatch:
    """A sequence of two rows; the observation after it has this mask."""
    columns = {
        "obs": seen(1, 2, 1),
        "last_obs": seen(mask, 1),
        "actions": np.array([[0], [1]], np.int32),
        "rewards": np.ones((2, 1), np.float32),
        "terminateds": np.zeros((2, 1), bool),
        "truncateds": np.zeros((2, 1), bool),
        "t": np.array([[3], [4]], np.int32),
        "mask": np.ones((2, 1), bool),
        "weights": np.ones((2, 1), np.float32),
        "state_in": {name: np.zeros((1, 4), np.float32) for name in ("c", "h")},
    }
    return SampleBatch(columns)


@pytest.mark.parametrize("name", POLICIES)
def test_targets_are_ordinary_numbers(name: str) -> None:
    factory, options = POLICIES[name]
    policy = factory(OBS, ACTIONS, options)
    state = policy.init(jax.random.key(0))
    loss_fn = policy.loss_fn["q"] if name == "SAC" else policy.loss_fn

    @jax.jit
    def td_error(batch: SampleBatch) -> Any:
        return loss_fn(state.params, batch, policy.context(state))[1].rows["td_error"]

    make = sequence if name == "R2D2" else rows
    nothing = np.asarray(td_error(make(0)))
    np.testing.assert_array_equal(nothing, td_error(make(1)))
    assert np.isfinite(nothing).all() and np.abs(nothing).max() < 20.0


class Stuck(gym.Env):
    """Episodes of four steps; from step `stuck` on, the mask allows nothing."""

    observation_space, action_space = OBS, ACTIONS

    def __init__(self, stuck: int) -> None:
        self.stuck = stuck

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = 0
        return seen(1), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return seen(int(self.t < self.stuck)), 1.0, False, self.t == 4, {}


TINY: dict[str, Any] = {
    "env": Stuck,
    "train_batch_size": 8,
    "rollout_fragment_length": 8,
    "batch_mode": "truncate_episodes",
    "model": MODEL,
    "compile_cache": False,
    "seed": 0,
}


def test_an_action_without_one_that_is_allowed_is_an_error(tmp_path: Any) -> None:
    nothing = r"obs\['action_mask'\]: expected an action that is allowed.*got none"
    with PGTrainer(config={**TINY, "env_config": {"stuck": 2}}, results_dir=tmp_path) as trainer:
        with pytest.raises(EnvError, match=rf"Stuck \(worker 0, env 0.*{nothing}"):
            trainer.train()
        with pytest.raises(EnvError, match=rf"compute_action.*{nothing}"):
            trainer.compute_action(seen(0))
    with PGTrainer(config={**TINY, "env_config": {"stuck": 4}}, results_dir=tmp_path / "2") as trainer:
        assert trainer.train()["episodes_this_iter"] == 2


def test_each_choice_is_one() -> None:
    actions = spaces.Dict(
        {"go": spaces.Discrete(2), "both": spaces.MultiDiscrete([2, 3]), "bits": spaces.MultiBinary(2)}
    )
    masks = spaces.Dict({name: spaces.Box(0, 1, (n,), np.int8) for name, n in (("go", 2), ("both", 5), ("bits", 2))})
    obs = spaces.Dict({"action_mask": masks, "x": OBS["x"]})
    check = make_mask_check(PGPolicy(obs, actions, {"model": MODEL}).spec)
    allowed = {"go": np.ones((3, 2)), "both": np.ones((3, 5)), "bits": np.zeros((3, 2))}
    check({"action_mask": allowed}, None, str)
    one = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    with pytest.raises(EnvError, match=r"^1: obs\['action_mask'\]\['both'\], component 1"):
        check({"action_mask": {**allowed, "both": one}}, None, str)
    check({"action_mask": {**allowed, "both": one}}, np.array([True, False, True]), str)
