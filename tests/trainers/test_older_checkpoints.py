"""Checkpoints that an older version wrote go on as that version went on.

`format_1` holds a checkpoint for each recipe and, in `next.safetensors`, the parameters one iteration later. That
version made them: `python tests/trainers/test_older_checkpoints.py DIRECTORY`.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl import registry, trees

HERE = pathlib.Path(__file__).parent / "format_1"
QUICK = ("ppo", "dqn")

SMALL: dict[str, Any] = {"fcnet_hiddens": [4]}
COMMON: dict[str, Any] = {"env": "CartPole-v1", "num_envs_per_worker": 2, "seed": 3, "model": SMALL}
ON_POLICY: dict[str, Any] = {**COMMON, "rollout_fragment_length": 8, "train_batch_size": 16}
ASYNC: dict[str, Any] = {**ON_POLICY, "num_workers": 0, "timesteps_per_iteration": 16}
REPLAY: dict[str, Any] = {
    **COMMON,
    "rollout_fragment_length": 8,
    "train_batch_size": 8,
    "learning_starts": 16,
    "timesteps_per_iteration": 32,
    "buffer_size": 64,
    "store_buffer_in_checkpoints": True,
}
CRITIC: dict[str, Any] = {**REPLAY, "env": "Pendulum-v1", "actor_hiddens": [4], "critic_hiddens": [4]}
LSTM: dict[str, Any] = {**SMALL, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pg": ("PG", ON_POLICY),
    "a2c": ("A2C", ON_POLICY),
    "a3c": ("A3C", {**ASYNC, "train_batch_size": 0}),
    "ppo": ("PPO", {**ON_POLICY, "sgd_minibatch_size": 8, "num_sgd_iter": 2, "observation_filter": "MeanStdFilter"}),
    "ppo-lstm": ("PPO", {**ON_POLICY, "sgd_minibatch_size": 8, "num_sgd_iter": 2, "model": LSTM}),
    "ppo-agents": ("PPO", {**ON_POLICY, "env": "MultiAgentCartPole", "sgd_minibatch_size": 8, "num_sgd_iter": 2}),
    "ppo-compiled": (
        "PPO",
        {**ON_POLICY, "env": "jax/CartPole-v1", "engine": "compiled", "sgd_minibatch_size": 8, "num_sgd_iter": 2},
    ),
    "appo": ("APPO", ASYNC),
    "impala": ("IMPALA", ASYNC),
    "simple-q": ("SimpleQ", REPLAY),
    "dqn": ("DQN", {**REPLAY, "hiddens": [4], "prioritized_replay": True, "n_step": 2}),
    "dqn-compiled": ("DQN", {**REPLAY, "env": "jax/CartPole-v1", "engine": "compiled", "hiddens": [4]}),
    "iqn": ("IQN", {**REPLAY, "hiddens": [4]}),
    "r2d2": (
        "R2D2",
        {**REPLAY, "hiddens": [4], "model": {**SMALL, "lstm_cell_size": 4, "max_seq_len": 4}, "burn_in": 2},
    ),
    "ddpg": ("DDPG", CRITIC),
    "td3": ("TD3", CRITIC),
    "sac": ("SAC", CRITIC),
}


def params_of(trainer: Any) -> dict[str, np.ndarray]:
    """The parameters of all policies by path."""
    params = {pid: learner.state.params for pid, learner in trainer.learners.items()}
    return {path: np.asarray(x) for path, x in trees.flatten_with_paths(jax.tree.map(np.asarray, params)).items()}


def make(directory: pathlib.Path) -> None:
    """Writes what `format_1` holds."""
    for name, (algorithm, config) in RECIPES.items():
        with registry.resolve("algorithm", algorithm)(config, results_dir=directory / "results" / name) as trainer:
            trainer.train()
            trainer.train()
            trainer.save(str(directory / name / "checkpoint"))
            trainer.train()
            save_file(params_of(trainer), directory / name / "next.safetensors")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RECIPES]
)
def test_the_next_update_is_the_one_it_made(name: str, tmp_path: pathlib.Path) -> None:
    cls = registry.resolve("algorithm", RECIPES[name][0])
    with cls.from_checkpoint(HERE / name / "checkpoint", results_dir=tmp_path) as trainer:
        assert trainer.iteration == 2
        trainer.train()
        params, expected = params_of(trainer), load_file(HERE / name / "next.safetensors")
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        # Another processor, or programs that are optimised less, may round differently.
        np.testing.assert_allclose(params[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
