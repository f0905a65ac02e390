"""JAX environments stepped by rollout workers like any other: in this process, on Ray, saved and restored, played."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.algorithms.sac import SACTrainer
from jaxrl.envs import ResumeWarning
from jaxrl.envs.jax_native import JaxEnv, cart_pole, time_limit
from jaxrl.trainers.episodes import Player
from jaxrl.types import ConfigError

SMALL: dict[str, Any] = {
    "env": "jax/CartPole-v1",
    "engine": "workers",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 20,
    "train_batch_size": 40,
    "sgd_minibatch_size": 20,
    "num_sgd_iter": 2,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
}


def outcome(trainer: Any) -> str:
    result = trainer.train()
    kept = {k: v for k, v in result.items() if k in ("info", "hist_stats", "timesteps_total", "episodes_total")}
    return json.dumps([kept, {k: str(v) for k, v in trainer.get_weights().items()}], default=float)


def test_training_repeats_and_continues_bit_for_bit(tmp_path: pathlib.Path) -> None:
    with PPOTrainer(config=SMALL, results_dir=tmp_path / "one") as trainer:
        first = outcome(trainer)
        path = trainer.save()
        rest = [outcome(trainer) for _ in range(2)]
        assert trainer.train()["episode_reward_mean"] > 5
    with PPOTrainer(config=SMALL, results_dir=tmp_path / "two") as trainer:
        assert outcome(trainer) == first
    with PPOTrainer.from_checkpoint(path, results_dir=tmp_path / "three") as back:
        assert [outcome(back) for _ in range(2)] == rest


@pytest.mark.parametrize(
    "options",
    [
        {"env": cart_pole()},
        {"env": "jax/CartPole-v1", "horizon": 8},
        {"env": "jax/CartPole-v1", "batch_mode": "complete_episodes"},
        {"env": "jax/Pendulum-v1", "normalize_actions": True},
        {
            "env": "jax/RepeatAfterMe",
            "model": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 10, "fcnet_hiddens": [8]},
        },
        {"env": "jax/CartPole-v1", "evaluation_interval": 1, "evaluation_num_episodes": 2},
    ],
    ids=["object", "horizon", "complete episodes", "continuous", "recurrent", "evaluation"],
)
def test_ppo_takes_them_as_any_environment(options: dict[str, Any], tmp_path: pathlib.Path) -> None:
    with PPOTrainer(config={**SMALL, **options}, results_dir=tmp_path) as trainer:
        result = trainer.train()
        assert result["timesteps_total"] >= 40
        if "horizon" in options:
            assert max(trainer.train()["hist_stats"]["episode_lengths"]) == 8


def test_sac_takes_them(tmp_path: pathlib.Path) -> None:
    config = {
        "env": "jax/Pendulum-v1",
        "engine": "workers",
        "learning_starts": 20,
        "train_batch_size": 16,
        "timesteps_per_iteration": 40,
    }
    with SACTrainer(config={**config, "seed": 0, "compile_cache": False}, results_dir=tmp_path) as trainer:
        assert trainer.train()["timesteps_total"] >= 40


def test_an_unnamed_jax_env_has_to_be_given_again(tmp_path: pathlib.Path) -> None:
    env = time_limit(cart_pole(), 9)
    with PPOTrainer(config={**SMALL, "env": env}, results_dir=tmp_path) as trainer:
        trainer.train()
        path = trainer.save()
    assert json.loads((pathlib.Path(path) / "metadata.json").read_text())["env"] == "jax/CartPole-v1"
    with pytest.raises(ConfigError, match="'env'"):
        PPOTrainer.from_checkpoint(path)
    with PPOTrainer.from_checkpoint(path, {"env": env}, results_dir=tmp_path) as back:
        assert back.train()["episode_len_mean"] <= 9


def test_a_checkpoint_plays_in_both_worlds(tmp_path: pathlib.Path) -> None:
    with PPOTrainer(config=SMALL, results_dir=tmp_path) as trainer:
        trainer.train()
        path = trainer.save()
        with contextlib.closing(Player(trainer, render_mode="rgb_array", seed=0)) as player:
            frames: list[np.ndarray] = []
            episode = player.play(max_steps=5, on_step=lambda env: frames.append(env.render()))
            assert episode.length == 5
            assert frames[0].shape == (400, 600, 3) and not np.array_equal(frames[0], frames[-1])
    # Its environments stand where Gymnasium's cannot be brought to.
    with pytest.warns(ResumeWarning, match="2 of 2 environments begin a fresh episode"):
        elsewhere = PPOTrainer.from_checkpoint(path, {"env": "CartPole-v1"}, results_dir=tmp_path)
    with elsewhere, contextlib.closing(Player(elsewhere, seed=0)) as player:
        assert player.play().length > 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def leaning(env_config: Any) -> JaxEnv:
    """A maker of the user's, sent to the workers by value."""
    return time_limit(cart_pole(), env_config["steps"])


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_step_them(cluster: None, tmp_path: pathlib.Path) -> None:
    config = {**SMALL, "num_workers": 2, "num_envs_per_worker": 1}
    with PPOTrainer(config=config, results_dir=tmp_path / "one") as trainer:
        first = outcome(trainer)
        path = trainer.save()
        rest = [outcome(trainer) for _ in range(2)]
    with PPOTrainer.from_checkpoint(path, results_dir=tmp_path / "two") as back:
        assert [outcome(back) for _ in range(2)] == rest
    assert first not in rest
    own = {**config, "env": leaning, "env_config": {"steps": 6}}
    with PPOTrainer(config=own, results_dir=tmp_path / "three") as trainer:
        assert trainer.train()["episode_len_mean"] == 6
    with PPOTrainer(config={**config, "env": time_limit(cart_pole(), 6)}, results_dir=tmp_path / "four") as trainer:
        assert trainer.train()["episode_len_mean"] == 6
