"""jaxrl as a contestant: `contestant_jaxrl.py throughput|asynchronous|solve|memory ...`, run as a child process."""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

from child import Reports, serve
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

# What all contestants of the throughput rows run: 8 environments x 128 steps, 4 epochs of minibatches of 256, separate
# networks of two layers of 64 with tanh, and the numbers that stable-baselines3 has as defaults.
ENVS, STEPS, EPOCHS, MINIBATCH = 8, 128, 4, 256
CONFIG: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs_per_worker": ENVS,
    "train_batch_size": ENVS * STEPS,
    "sgd_minibatch_size": MINIBATCH,
    "num_sgd_iter": EPOCHS,
    "lr": 3e-4,
    "gamma": 0.99,
    "lambda": 0.95,
    "clip_param": 0.2,
    "vf_clip_param": 10.0,
    "vf_loss_coeff": 0.5,
    "kl_coeff": 0.2,
    "grad_clip": 0.5,
    "model": {"fcnet_hiddens": [64, 64]},
    "seed": 0,
}
# What IMPALA and APPO run.
ASYNCHRONOUS: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_workers": 2,
    "num_envs_per_worker": 5,
    "rollout_fragment_length": 50,
    "train_batch_size": 500,
    "model": {"fcnet_hiddens": [64, 64]},
    "seed": 0,
}
TUNED_EXAMPLE = pathlib.Path(__file__).resolve().parent.parent / "tuned_examples" / "ppo" / "cartpole-ppo.yaml"


def worker_options(workers: int) -> dict[str, Any]:
    """Options that spread the same environments over `workers` Ray workers; 0: in-process."""
    return {"num_workers": workers, "num_envs_per_worker": ENVS // max(1, workers)}


def throughput(reports: Reports, workers: int) -> None:
    from jaxrl.algorithms.ppo import PPOTrainer

    with PPOTrainer(config={**CONFIG, **worker_options(workers)}) as trainer:

        def work(iterations: int) -> dict[str, Any]:
            started, steps = time.perf_counter(), 0
            for _ in range(iterations):
                steps += trainer.train()["timesteps_this_iter"]
            return {"steps_per_s": steps / (time.perf_counter() - started)}

        serve(reports, work)


def asynchronous(reports: Reports, algorithm: str) -> None:
    """IMPALA or APPO: 2 workers, fragments of 50 steps of 5 environments, train batches of 500, else its defaults."""
    from jaxrl import registry

    with registry.resolve("algorithm", algorithm)(config=ASYNCHRONOUS) as trainer:

        def work(iterations: int) -> dict[str, Any]:
            started, steps = time.perf_counter(), 0
            for _ in range(iterations):
                steps += trainer.train()["timesteps_this_iter"]
            return {"steps_per_s": steps / (time.perf_counter() - started)}

        serve(reports, work)


def solve(reports: Reports, seed: int, max_steps: int) -> None:
    import yaml

    from jaxrl.algorithms.ppo import PPOTrainer

    (example,) = yaml.safe_load(TUNED_EXAMPLE.read_text(encoding="utf-8")).values()
    started = time.perf_counter()
    with PPOTrainer(config={"env": example["env"], **example["config"], "seed": seed}) as trainer:
        while True:
            result = trainer.train()
            solved = result["episodes_total"] >= 100 and result["episode_reward_mean"] >= 475
            if solved or result["timesteps_total"] >= max_steps:
                break
        reports.send(solved=bool(solved), seconds=time.perf_counter() - started, steps=int(result["timesteps_total"]))


class PausingCartPole(CartPoleEnv):
    """CartPole as slow as a small simulator: memory is watched for an hour beside whatever else the machine does."""

    def __init__(self, config: Any = None):
        del config
        super().__init__()

    def step(self, action: Any) -> Any:
        time.sleep(0.0005)
        return super().step(action)


def memory(reports: Reports, algorithm: str, workers: int, seconds: float) -> None:
    """Trains for a while; reports the steps, and the files that Ray's object store spilled to disk."""
    from jaxrl import registry

    options = {**CONFIG, **worker_options(workers)}
    if algorithm == "IMPALA":
        options = {**ASYNCHRONOUS, "env": PausingCartPole}
    with registry.resolve("algorithm", algorithm)(config=options) as trainer:
        reports.send(ready=True)
        until, steps = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            steps = int(trainer.train()["timesteps_total"])
        reports.send(steps=steps, spilled=spilled_files() if workers else 0)


def spilled_files() -> int:
    session = pathlib.Path("/tmp/ray/session_latest").resolve()
    return sum(path.is_file() for path in session.glob("*spill*/**/*"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "asynchronous", "solve", "memory"))
    parser.add_argument("--algorithm", default="PPO", help="of asynchronous and memory")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.mode == "throughput":
        throughput(Reports(), arguments.workers)
    elif arguments.mode == "asynchronous":
        asynchronous(Reports(), arguments.algorithm)
    elif arguments.mode == "solve":
        solve(Reports(), arguments.seed, arguments.max_steps)
    else:
        memory(Reports(), arguments.algorithm, arguments.workers, arguments.seconds)
