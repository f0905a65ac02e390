"""Trains while workers are killed: one every 10 s that is at least 10 s old. No error, exact counters, rewards rise.

python benchmarks/chaos.py PPO --minutes 30
python benchmarks/chaos.py APEX --minutes 30
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from jaxrl import registry

EVERY_S = 10.0
LIVED_S = 10.0

RUNS: dict[str, dict[str, Any]] = {
    "PPO": {
        "num_envs_per_worker": 4,
        "train_batch_size": 1024,
        "sgd_minibatch_size": 256,
        "num_sgd_iter": 6,
        "lr": 3e-4,
        "lambda": 0.95,
        "vf_clip_param": float("inf"),
        "entropy_coeff": 0.01,
    },
    "APEX": {
        "num_envs_per_worker": 4,
        "rollout_fragment_length": 10,
        "train_batch_size": 64,
        "learning_starts": 1000,
        "buffer_size": 50_000,
        "timesteps_per_iteration": 2000,
        "target_network_update_freq": 1000,
        "lr": 5e-4,
    },
}
# Steps that a round of all workers, or one worker's fragment, brings.
WHOLE = {"PPO": 1024, "APEX": 40}


class Killer(threading.Thread):
    """Kills, every 10 s, a worker that has answered for 10 s at least."""

    def __init__(self, trainer: Any, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self.over = threading.Event()
        self._trainer, self._rng = trainer, random.Random(seed)
        self._since: dict[int, float] = {}

    def run(self) -> None:
        next_kill = time.monotonic() + EVERY_S
        while not self.over.wait(0.5):
            now, pids = time.monotonic(), self._pids()
            self._since = {pid: self._since.get(pid, now) for pid in pids}
            old = [pid for pid in pids if now - self._since[pid] >= LIVED_S]
            if old and now >= next_kill:
                os.kill(self._rng.choice(old), signal.SIGKILL)
                self.kills += 1
                next_kill = now + EVERY_S

    def _pids(self) -> list[int]:
        pids = []
        for actor in self._trainer.workers.actors:
            try:
                pids.append(ray.get(actor.ping.remote(), timeout=5))
            except RayError:
                continue
        return pids


def check(algorithm: str, result: Mapping[str, Any], total: int) -> None:
    """Checks the counters of a result against the sum of what its iterations sampled."""
    sampled, trained = (result["info"][f"num_steps_{what}"] for what in ("sampled", "trained"))
    assert result["timesteps_total"] == sampled == total, (result["timesteps_total"], sampled, total)
    assert sampled % WHOLE[algorithm] == 0, sampled
    if algorithm == "PPO":
        assert sampled == trained == WHOLE["PPO"] * result["training_iteration"], (sampled, trained)


def run(algorithm: str, minutes: float) -> dict[str, Any]:
    """Trains for so long; returns what came of it."""
    config = {
        "env": "CartPole-v1",
        "num_workers": 2,
        "num_cpus_per_worker": 0.5,
        "seed": 0,
        "max_worker_restarts": 10_000,
        **RUNS[algorithm],
    }
    trainer_cls = registry.resolve("algorithm", algorithm)
    with tempfile.TemporaryDirectory() as place, trainer_cls(config=config, results_dir=place) as trainer:
        killer = Killer(trainer)
        killer.start()
        end = time.monotonic() + 60 * minutes
        total, rewards, trained, longest, since = 0, [], 0, 0.0, time.monotonic()
        result: Any = {}
        while time.monotonic() < end:
            result = trainer.train()
            total += result["timesteps_this_iter"]
            check(algorithm, result, total)
            rewards.append(result["episode_reward_mean"])
            assert result["info"]["num_steps_trained"] >= trained
            trained = result["info"]["num_steps_trained"]
            longest, since = max(longest, time.monotonic() - since), time.monotonic()
        killer.over.set()
        killer.join()
        before = trainer.workers.num_restarts
        while trainer.workers.num_restarts < killer.kills:  # the last kill may not have been met yet
            result = trainer.train()
            total += result["timesteps_this_iter"]
            check(algorithm, result, total)
            assert time.monotonic() < end + 120, f"{before} of {killer.kills} kills were met"
        assert result["num_worker_restarts"] == killer.kills, (result["num_worker_restarts"], killer.kills)
        assert result["num_healthy_workers"] == 2
    third = max(1, len(rewards) // 3)
    return {
        "algorithm": algorithm,
        "minutes": minutes,
        "kills": killer.kills,
        "iterations": len(rewards),
        "env_steps": total,
        "steps_trained": trained,
        "longest_iteration_s": round(longest, 1),
        "mean_reward_of_each_third": [round(sum(part) / len(part), 1) for part in _thirds(rewards, third)],
    }


def _thirds(values: list[float], size: int) -> list[list[float]]:
    finite = [value for value in values if value == value]
    return [part for part in (finite[:size], finite[size:-size], finite[-size:]) if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algorithm", choices=sorted(RUNS))
    parser.add_argument("--minutes", type=float, default=30.0)
    given = parser.parse_args()
    print(run(given.algorithm, given.minutes), flush=True)


if __name__ == "__main__":
    main()
