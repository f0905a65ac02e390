"""DD-PPO on Ray actors: equal bits on all workers, faults, checkpoints; the rest is in test_decentralized.py."""

import os
import signal
import time

import numpy as np
import pytest
import ray

from jaxrl.algorithms.ddppo import DDPPOTrainer
from jaxrl.execution.decentralized import PackedState
from jaxrl.execution.worker_group import current_states
from jaxrl.types import ConfigError, WorkerError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:subprocess"),
]
SMALL = {
    "env": "CartPole-v1",
    "num_workers": 2,
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 25,
    "sgd_minibatch_size": 25,
    "num_sgd_iter": 2,
    "lr": [[0, 0.003], [1000, 0.0]],
    "seed": 0,
    "model": {"fcnet_hiddens": [8]},
}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


def make(**options):
    return DDPPOTrainer(config={**SMALL, **options})


def pids(trainer):
    return ray.get([actor.ping.remote() for actor in trainer.workers.actors])


def digests(trainer):
    """Of the driver's copy, then of what each worker holds."""
    of_workers = [states["default_policy"].digest() for states in trainer.workers.apply(current_states)]
    return [PackedState.of(trainer.learners["default_policy"].state).digest(), *of_workers]


def weights_in_use(trainer):
    return [weights["default_policy"].params for weights in trainer.workers.foreach_worker("get_weights")]


def assert_in_step(trainer):
    assert len(set(digests(trainer))) == 1
    own = trainer.get_weights()["default_policy"]
    for params in weights_in_use(trainer):
        for group, names in own.items():
            assert set(params[group]) == set(names)
    return digests(trainer)[0]


def test_workers_stay_equal_to_the_bit_and_a_restored_run_goes_on_with_the_same_bits(tmp_path):
    with make(evaluation_interval=2, evaluation_num_episodes=2) as trainer:
        seen = [digests(trainer)[0]]
        for iteration in range(1, 4):
            result = trainer.train()
            assert assert_in_step(trainer) not in seen
            seen.append(digests(trainer)[0])
            info = result["info"]
            assert (
                info["num_steps_sampled"] == info["num_steps_trained"] == result["timesteps_total"] == 100 * iteration
            )
            assert info["learner"]["default_policy"]["cur_lr"] == pytest.approx(0.003 * (1 - (iteration - 1) / 10))
            assert result["timers"]["all_reduce_time_ms"] < result["timers"]["learn_time_ms"]
            assert ("evaluation" in result) == (iteration % 2 == 0)
        assert trainer.compute_action(np.zeros(4, np.float32), explore=False) in (0, 1)
        path, saved = trainer.save(str(tmp_path / "saved")), trainer.get_weights()
        trainer.train()
        after = digests(trainer)[0]
    with DDPPOTrainer.from_checkpoint(path) as again:
        for one, other in zip(_leaves(again.get_weights()), _leaves(saved), strict=True):
            np.testing.assert_array_equal(one, other)
        result = again.train()
        assert assert_in_step(again) == after
        assert result["timesteps_total"] == 400
        weights = again.get_weights()
        again.set_weights(
            {"default_policy": {name: _zeros(group) for name, group in weights["default_policy"].items()}}
        )
        again.train()
        assert_in_step(again)
        assert max(np.abs(leaf).max() for leaf in _leaves(again.get_weights())) < 0.1  # began from the zeros


def _zeros(tree):
    return {name: _zeros(value) for name, value in tree.items()} if isinstance(tree, dict) else np.zeros_like(tree)


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


@pytest.mark.slow
def test_following_at_results_alone_gives_the_same_run():
    with make() as closely, make(keep_local_weights_in_sync=False, timesteps_per_iteration=200) as loosely:
        closely.train()
        closely.train()
        loosely.train()
        assert digests(closely) == digests(loosely)
        assert len(set(digests(loosely))) == 1


@pytest.mark.slow
def test_killed_workers_come_back_and_all_go_on_from_the_last_round():
    with make() as trainer:
        trainer.train()
        before = pids(trainer)
        os.kill(before[0], signal.SIGKILL)
        result = trainer.train()
        assert result["num_worker_restarts"] == 1
        assert pids(trainer)[1] == before[1]  # the other lives on, and joins the new ring
        # The lost round was sampled by both, and trained nobody.
        assert result["info"]["num_steps_sampled"] == 300
        assert result["info"]["num_steps_trained"] == 200
        assert_in_step(trainer)
        for pid in pids(trainer):
            os.kill(pid, signal.SIGKILL)
        result = trainer.train()
        assert result["num_worker_restarts"] == 3
        assert result["num_healthy_workers"] == 2
        assert result["info"]["num_steps_trained"] == 300
        assert int(trainer.learners["default_policy"].state.step) == 3 * 2 * 2
        assert_in_step(trainer)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced():
    with make(sample_timeout_s=25.0) as trainer:
        trainer.train()
        os.kill(pids(trainer)[1], signal.SIGSTOP)
        start = time.monotonic()
        result = trainer.train()
        assert time.monotonic() - start < 200
        assert result["num_worker_restarts"] >= 1
        assert result["num_healthy_workers"] == 2
        assert_in_step(trainer)


@pytest.mark.slow
def test_without_recovery_a_killed_worker_ends_the_run():
    with make(recreate_failed_workers=False) as trainer:
        trainer.train()
        os.kill(pids(trainer)[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match="rollout worker 2 failed"):
            trainer.train()


@pytest.mark.slow
def test_a_worker_can_be_left_out():
    with make(recreate_failed_workers=False, ignore_worker_failures=True) as trainer:
        trainer.train()
        os.kill(pids(trainer)[0], signal.SIGKILL)
        result = trainer.train()
        assert result["num_healthy_workers"] == 1
        assert result["info"]["num_steps_trained"] == 150
        assert_in_step(trainer)


def test_a_gpu_that_jax_does_not_see_is_an_error():
    with pytest.raises((ConfigError, WorkerError), match="Ray gave this worker a GPU, but JAX finds none"):
        make(num_gpus_per_worker=0.5)
