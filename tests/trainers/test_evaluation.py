"""Evaluation: whole episodes in environments of their own, with options of their own, leaving training alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl import ConfigError
from jaxrl.algorithms.ppo import PPOTrainer

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 10,
    "train_batch_size": 20,
    "sgd_minibatch_size": 0,
    "num_sgd_iter": 1,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
    "evaluation_num_episodes": 3,
    "evaluation_config": {"explore": False, "env_config": {"max_episode_steps": 6}},
}


@pytest.fixture(scope="module", autouse=True)
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXRL_RESULTS_DIR", str(tmp_path_factory.mktemp("results")))
        yield


def test_every_so_many_iterations_and_training_goes_on_as_without() -> None:
    with PPOTrainer(config={**TINY, "evaluation_interval": 2}) as trainer:
        rows = [trainer.train() for _ in range(4)]
        evaluated = trainer.get_weights()
    assert ["evaluation" in row for row in rows] == [False, True, False, True]
    found = rows[1]["evaluation"]
    assert found["episode_reward_max"] <= 6 and found["episode_len_mean"] <= 6  # evaluation's own environments
    assert found["episodes_this_iter"] >= 3
    assert rows[3]["episode_reward_max"] > 6
    assert rows[3]["timesteps_total"] == 80
    with PPOTrainer(config=TINY) as trainer:
        plain = [trainer.train() for _ in range(4)]
        jax.tree.map(np.testing.assert_array_equal, evaluated, trainer.get_weights())
    assert plain[3]["hist_stats"] == rows[3]["hist_stats"]


def test_filters_are_applied_and_learn_nothing() -> None:
    with PPOTrainer(config={**TINY, "observation_filter": "MeanStdFilter"}) as trainer:
        trainer.train()
        before = trainer.workers.get_filters()["default_policy"]
        one = trainer.evaluate()
        two = trainer.evaluate()
        assert one == two  # seeds follow from the iteration
        worker = trainer.evaluation_workers().local
        assert worker is not None and worker.get_filters()["default_policy"].rows == before.rows == 20
        np.testing.assert_array_equal(worker.get_filters()["default_policy"].mean, before.mean)


def test_a_function_of_the_users() -> None:
    def mine(trainer: Any, workers: Any) -> dict[str, Any]:
        workers.foreach_worker("sample_episodes")
        return {"mine": len(workers.pop_episodes()), "at": trainer.iteration}

    with PPOTrainer(config={**TINY, "custom_eval_function": mine}) as trainer:
        assert trainer.evaluate() == {"mine": 2, "at": 0}


def test_options_that_make_no_sense() -> None:
    for options in ({"batch_mode": "truncate_episodes"}, {"explorer": 1}):
        with pytest.raises(ConfigError, match="evaluation_config"):
            PPOTrainer(config={**TINY, "evaluation_config": options})
