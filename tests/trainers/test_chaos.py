"""Chaos at length: twenty workers killed at random while a run learns, fifty drivers killed while they save."""

import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from jaxrl import registry
from jaxrl.trainers import checkpoint

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1800)]

KILLS, SAVES = 20, 50
RUNS = {
    "PPO": {
        "num_envs_per_worker": 4,
        "train_batch_size": 1024,
        "sgd_minibatch_size": 256,
        "num_sgd_iter": 6,
        "lr": 1e-3,
        "lambda": 0.95,
        "vf_clip_param": float("inf"),
        "entropy_coeff": 0.01,
    },
    "IMPALA": {
        "num_envs_per_worker": 5,
        "rollout_fragment_length": 50,
        "train_batch_size": 500,
        "lr": 1e-3,
        "learner_queue_size": 2,
        "timesteps_per_iteration": 2000,
    },
}


class Killer(threading.Thread):
    """Kills a worker of a run at random moments, so many times."""

    def __init__(self, trainer, kills, seed=0):
        super().__init__(daemon=True)
        self.trainer, self.left, self.rng = trainer, kills, random.Random(seed)

    def run(self):
        while self.left:
            time.sleep(self.rng.uniform(0.0, 2.0))
            actors = self.trainer.workers.actors
            try:
                pid: Any = ray.get(self.rng.choice(actors).ping.remote(), timeout=60)
            except RayError:
                continue
            os.kill(pid, signal.SIGKILL)
            self.left -= 1


@pytest.mark.ray
@pytest.mark.parametrize("algorithm", RUNS)
def test_twenty_killed_workers_do_not_keep_a_run_from_learning(algorithm):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = {"env": "CartPole-v1", "num_workers": 2, "seed": 0, "max_worker_restarts_per_minute": 60}
    try:
        with registry.resolve("algorithm", algorithm)(config={**config, **RUNS[algorithm]}) as trainer:
            result = trainer.train()
            killer = Killer(trainer, KILLS)
            killer.start()
            deadline, best = time.monotonic() + 1200, 0.0
            while killer.left or best < 150 or trainer.workers.num_restarts < KILLS:
                assert time.monotonic() < deadline, f"{killer.left} kills left, best {best}"
                result = trainer.train()
                best = max(best, result["episode_reward_mean"])
            assert result["num_worker_restarts"] == KILLS
            sampled, trained = (result["info"][f"num_steps_{what}"] for what in ("sampled", "trained"))
            if algorithm == "PPO":
                assert sampled == trained == 1024 * trainer.iteration
            else:  # whole fragments, each trained on once; what waits in the queues is bounded
                assert sampled % 250 == trained % 500 == 0
                assert 0 <= sampled - trained <= 500 * 8
    finally:
        ray.shutdown()


SAVER = """
import tempfile
from jaxrl.algorithms.ppo import PPOTrainer
trainer = PPOTrainer(config={config!r}, results_dir=tempfile.mkdtemp())
trainer.train()
trainer.save({directory!r} + "/checkpoint_000001")
print("ready", flush=True)
while True:
    trainer.save({directory!r} + f"/checkpoint_{{trainer.iteration:06d}}")
    trainer._iteration += 1
"""


def test_whenever_a_driver_is_killed_while_it_saves_the_newest_checkpoint_loads(tmp_path: pathlib.Path):
    config = {
        "env": "CartPole-v1",
        "train_batch_size": 40,
        "sgd_minibatch_size": 20,
        "num_sgd_iter": 1,
        "model": {"fcnet_hiddens": [8]},
        "keep_checkpoints_num": 2,
    }
    code = SAVER.format(config=config, directory=str(tmp_path))
    rng = random.Random(2)
    found: list[pathlib.Path] = []
    for _ in range(SAVES):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = sorted(tmp_path.glob("checkpoint_*"))
        assert found
        for path in found:
            checkpoint.read_metadata(path, "PPO")
    with registry.resolve("algorithm", "PPO").from_checkpoint(found[-1], results_dir=tmp_path / "next") as back:
        assert back.train()["timesteps_total"] == 80
