"""DQN and SAC of stable-baselines3 and sbx as contestants: `contestant_sb3_off_policy.py throughput|solve dqn|sac ...`.

Runs in the peers' environment, hence the imports by name.
"""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any

from child import Reports, serve
from off_policy_settings import DQN, SAC

LIBRARIES = {"sb3": "stable_baselines3", "sbx": "sbx"}
# rl-zoo's tuned DQN for CartPole-v1 and SAC for Pendulum-v1. The former explores over 16% of its 50,000 steps.
DQN_TUNED: dict[str, Any] = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}
EXPLORATION_STEPS = 8000
SAC_TUNED: dict[str, Any] = {"learning_rate": 1e-3}


def make(library: str, algorithm: str, seed: int, **options: Any) -> Any:
    module = importlib.import_module(LIBRARIES[library])
    env = {"dqn": DQN, "sac": SAC}[algorithm]["env"]
    return getattr(module, algorithm.upper())("MlpPolicy", env, seed=seed, verbose=0, device="cpu", **options)


def throughput_options(algorithm: str, fused: bool) -> dict[str, Any]:
    """The common settings in the words of these libraries."""
    settings = {"dqn": DQN, "sac": SAC}[algorithm]
    steps = settings["fused"] if fused else 1
    options: dict[str, Any] = {
        "learning_rate": settings["lr"],
        "batch_size": settings["batch_size"],
        "buffer_size": settings["buffer_size"],
        "learning_starts": settings["learning_starts"],
        "gamma": settings["gamma"],
        "train_freq": steps,
        "gradient_steps": steps,
        "policy_kwargs": {"net_arch": list(settings["hiddens"])},
    }
    if algorithm == "dqn":
        return options | {
            "target_update_interval": DQN["target_update_freq"],
            "exploration_initial_eps": DQN["epsilon"],
            "exploration_final_eps": DQN["epsilon"],
        }
    return options | {"tau": SAC["tau"]}


def throughput(reports: Reports, library: str, algorithm: str, fused: bool) -> None:
    model = make(library, algorithm, 0, **throughput_options(algorithm, fused))

    def work(steps: int) -> dict[str, Any]:
        started, before = time.perf_counter(), model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        return {"steps_per_s": (model.num_timesteps - before) / (time.perf_counter() - started)}

    serve(reports, work)


def solve(reports: Reports, library: str, algorithm: str, arguments: argparse.Namespace) -> None:
    base_callback = importlib.import_module("stable_baselines3.common.callbacks").BaseCallback
    started = time.perf_counter()

    class StopWhenSolved(base_callback):
        solved = out_of_time = False

        def _on_rollout_start(self) -> None:
            rewards = [episode["r"] for episode in self.model.ep_info_buffer]
            enough = len(rewards) == arguments.episodes
            self.solved = enough and sum(rewards) / len(rewards) >= arguments.reward
            self.out_of_time = time.perf_counter() - started >= arguments.max_seconds

        def _on_step(self) -> bool:
            return not (self.solved or self.out_of_time)

    options = dict(DQN_TUNED if algorithm == "dqn" else SAC_TUNED)
    if algorithm == "dqn":
        options["exploration_fraction"] = EXPLORATION_STEPS / arguments.max_steps
    if arguments.episodes != 100:  # the default, which sbx's DQN has no name for
        options["stats_window_size"] = arguments.episodes
    model = make(library, algorithm, arguments.seed, **options)
    callback = StopWhenSolved()
    model.learn(arguments.max_steps, callback=callback)
    seconds = time.perf_counter() - started
    reports.send(solved=bool(callback.solved), seconds=seconds, steps=int(model.num_timesteps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "solve"))
    parser.add_argument("algorithm", choices=("dqn", "sac"))
    parser.add_argument("--library", choices=sorted(LIBRARIES), required=True)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: torch's default")
    parser.add_argument("--fused", action="store_true", help="several env steps, then as many gradient steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--reward", type=float, default=475.0)
    parser.add_argument("--max-steps", type=int, default=150_000)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    out = Reports()
    if arguments.threads:
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if arguments.mode == "throughput":
        throughput(out, arguments.library, arguments.algorithm, arguments.fused)
    else:
        solve(out, arguments.library, arguments.algorithm, arguments)
