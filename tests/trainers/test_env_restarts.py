"""`restart_failed_sub_environments` in whole runs: results, batches of one size, checkpoints, actors, learning."""

from __future__ import annotations

import logging
import os
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
import ray

from jaxrl import registry
from jaxrl.types import EnvError, WorkerError

SMALL: dict[str, Any] = {"num_envs_per_worker": 2, "rollout_fragment_length": 20, "seed": 1, "min_iter_time_s": 0}
LSTM = {"fcnet_hiddens": [8], "use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 8}
ON_POLICY: dict[str, Any] = {**SMALL, "train_batch_size": 40, "model": {"fcnet_hiddens": [8]}}
REPLAY = {"train_batch_size": 16, "learning_starts": 40, "buffer_size": 500, "timesteps_per_iteration": 40}
REPLAY["store_buffer_in_checkpoints"] = True


class Fragile(gym.Wrapper):
    """CartPole whose engine breaks at one step in `1 / p`, once all of the process have taken `after` of them."""

    steps = 0

    def __init__(self, config: Any) -> None:
        gym.Wrapper.__init__(self, gym.make("CartPole-v1"))
        self.p, self.after = config.get("p", 0.1), config.get("after", 0)

    def step(self, action: Any) -> Any:
        Fragile.steps += 1
        if Fragile.steps > self.after and self.np_random.random() < self.p:
            raise RuntimeError("the engine broke")
        return self.env.step(action)


def make(algorithm: str = "PPO", **options: Any) -> Any:
    own = {"sgd_minibatch_size": 0, "num_sgd_iter": 2} if algorithm == "PPO" else {}
    config = {"env": Fragile, "restart_failed_sub_environments": True, **ON_POLICY, **own, **options}
    return registry.resolve("algorithm", algorithm)(config)


def test_results_count_what_was_created_anew() -> None:
    with make() as trainer:
        counts = [trainer.train()["num_env_restarts"] for _ in range(4)]
        sampled = trainer.train()["timesteps_total"]
        last = trainer.workers.num_env_restarts
    assert counts[0] > 0 and counts == sorted(counts) and last > counts[-1]
    assert sampled == 5 * 40 - last  # steps that failed are none; each batch is of one fragment of each environment


def test_without_it_one_clear_error() -> None:
    with (
        make(restart_failed_sub_environments=False) as trainer,
        pytest.raises(EnvError, match=r"Fragile \(worker 0, env \d, episode step \d+\): step raised RuntimeError"),
    ):
        for _ in range(5):
            trainer.train()


@pytest.mark.parametrize("options", [{}, {"model": LSTM}, {"observation_filter": "MeanStdFilter"}])
def test_the_first_failure_compiles_nothing(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    Fragile.steps = 0
    with make(env_config={"after": 120}, **options) as trainer:
        assert [trainer.train()["num_env_restarts"] for _ in range(3)] == [0, 0, 0]
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            counts = [trainer.train()["num_env_restarts"] for _ in range(3)]
        assert counts[-1] > 0
        assert not [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("PG", {}),
        ("PPO", {"batch_mode": "complete_episodes", "env_config": {"p": 0.02}}),
        ("IMPALA", {"num_workers": 0, "timesteps_per_iteration": 40, "model": LSTM}),
        ("DQN", {**REPLAY, "n_step": 3, "rollout_fragment_length": 4}),
        ("R2D2", {**REPLAY, "model": LSTM, "rollout_fragment_length": 8, "burn_in": 2}),
    ],
)
def test_a_run_goes_on_bit_for_bit_after_a_checkpoint(algorithm: str, options: dict[str, Any], tmp_path: Any) -> None:
    def results(trainer: Any, count: int) -> list[Any]:
        return [trainer.train() for _ in range(count)]

    with make(algorithm, **options) as trainer:
        results(trainer, 3)
        before = trainer.workers.num_env_restarts
        path = trainer.save(str(tmp_path / "checkpoint"))
        want = results(trainer, 3)
        weights = jax.tree.map(np.asarray, trainer.learners["default_policy"].weights.params)
        assert before > 0 and want[-1]["num_env_restarts"] > before
    with make(algorithm, **options) as trainer:
        trainer.restore(path)
        got = results(trainer, 3)
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.map(np.asarray, trainer.learners["default_policy"].weights.params),
            weights,
        )
        assert got[-1]["num_env_restarts"] == want[-1]["num_env_restarts"] - before
    assert [r["timesteps_total"] for r in got] == [r["timesteps_total"] for r in want]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_workers_on_actors_stay() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        with make(num_workers=2, rollout_fragment_length=10) as trainer:
            pids = ray.get([actor.ping.remote() for actor in trainer.workers.actors])
            results = [trainer.train() for _ in range(4)]
            assert results[-1]["num_env_restarts"] > 0 and results[-1]["num_worker_restarts"] == 0
            assert results[-1]["timesteps_total"] == 4 * 40 - results[-1]["num_env_restarts"]
            assert ray.get([actor.ping.remote() for actor in trainer.workers.actors]) == pids
            assert os.getpid() not in pids
        # An environment that cannot be had fails its worker, which is the business of the budget of workers.
        hopeless = {"p": 1.0, "after": 50}
        with (
            make(num_workers=2, rollout_fragment_length=10, env_config=hopeless, max_worker_restarts=1) as trainer,
            pytest.raises(WorkerError, match=r"max_worker_restarts=1 is spent: .*EnvError.*env \d,.*5 times"),
        ):
            for _ in range(20):
                trainer.train()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_cartpole_is_learned_while_its_engine_breaks_now_and_then() -> None:
    best: dict[str, Any] = {"episode_reward_mean": 0.0}
    options = {
        "num_envs_per_worker": 8,
        "rollout_fragment_length": 64,
        "train_batch_size": 512,
        "sgd_minibatch_size": 128,
        "num_sgd_iter": 10,
        "lr": 0.002,
        "gamma": 0.98,
        "vf_clip_param": float("inf"),
        "vf_loss_coeff": 0.5,
        "kl_coeff": 0.0,
        "grad_clip": 0.5,
        "model": {"fcnet_hiddens": [64, 64]},
    }
    with make(env_config={"p": 0.001}, **options) as trainer:
        while best["episode_reward_mean"] < 150 and trainer.iteration < 100:
            best = max(best, trainer.train(), key=lambda result: result["episode_reward_mean"])
    assert best["episode_reward_mean"] >= 150 and best["num_env_restarts"] >= 5
