"""Atari-shaped experience (84x84x4 uint8, 4 envs a worker, CNN) from a Ray worker: bytes per step, and copies."""

from __future__ import annotations

import logging
import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
from measuring import Options, Row

FRAME = 84 * 84 * 4
ENVS, STEPS = 4, 50


class Frames(gym.Env):
    """An image that changes with every step, and no more."""

    observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = gym.spaces.Discrete(6)

    def __init__(self, config: Any = None):
        del config
        self.image = np.zeros((84, 84, 4), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.image, {}

    def step(self, action: Any) -> Any:
        self.image = self.image + np.uint8(1)
        return self.image, 0.0, False, False, {}


def peak_of_sample(worker: Any) -> tuple[int, int]:
    """Bytes of a fragment, and the most that NumPy held while it was made, both on the worker."""
    worker.sample()
    tracemalloc.start()
    batch = worker.sample()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return batch.size_bytes, peak


def measure(options: Options) -> Row:
    import ray

    from jaxrl.algorithms.ppo import PPOTrainer
    from jaxrl.execution.rollout_ops import ParallelRollouts

    del options
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = {"env": Frames, "num_workers": 1, "num_envs_per_worker": ENVS, "rollout_fragment_length": STEPS}
    config |= {"train_batch_size": ENVS * STEPS, "sgd_minibatch_size": 0, "num_cpus_per_worker": 1}
    try:
        with PPOTrainer(config=config) as trainer:
            ((size, peak),) = trainer.workers.apply(peak_of_sample)
            batch: Any = next(ParallelRollouts(trainer.context, mode="async"))
            obs = batch["obs"]
            in_store = not obs.flags.writeable and not obs.flags.owndata
    finally:
        ray.shutdown()
    per_step, copies = size / (ENVS * STEPS), peak / size
    return Row(
        work="Atari-shaped fragments from a Ray worker: bytes per env step; most memory of a fragment while it is made",
        target="no copy beyond the object store's: <= 1.1 fragments on the worker, a view of the store on the driver",
        measured=(
            f"{per_step:,.0f} bytes a step = {per_step / FRAME:.3f} x the frames' own; {copies:.2f} fragments; on the "
            f"driver {'a view' if in_store else 'a copy'}"
        ),
        met=copies <= 1.1 and in_store,
        figures={"bytes_per_step": per_step, "peak_in_fragments": copies, "view_on_driver": bool(in_store)},
    )
