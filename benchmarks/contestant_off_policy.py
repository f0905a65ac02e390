"""jaxrl's DQN and SAC as contestants: `contestant_off_policy.py throughput|solve dqn|sac ...`, as child processes."""

from __future__ import annotations

import argparse
import importlib
import pathlib
import time
from typing import Any

from child import Reports, serve
from off_policy_settings import DQN, SAC

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "tuned_examples"
TUNED_EXAMPLES = {"dqn": EXAMPLES / "dqn" / "cartpole-dqn.yaml", "sac": EXAMPLES / "sac" / "pendulum-sac.yaml"}

# As plain as the peers': neither double Q, nor duelling streams, nor priorities.
DQN_CONFIG: dict[str, Any] = {
    "env": DQN["env"],
    "model": {"fcnet_hiddens": DQN["hiddens"], "fcnet_activation": "relu"},
    "hiddens": (),
    "dueling": False,
    "double_q": False,
    "prioritized_replay": False,
    "train_batch_size": DQN["batch_size"],
    "training_intensity": DQN["batch_size"],
    "rollout_fragment_length": DQN["fused"],
    "buffer_size": DQN["buffer_size"],
    "learning_starts": DQN["learning_starts"],
    "lr": DQN["lr"],
    "gamma": DQN["gamma"],
    "grad_clip": 10.0,
    "target_network_update_freq": DQN["target_update_freq"],
    "exploration_config": {
        "type": "EpsilonGreedy",
        "initial_epsilon": DQN["epsilon"],
        "final_epsilon": DQN["epsilon"],
        "epsilon_timesteps": 1,
    },
    "seed": 0,
}
SAC_CONFIG: dict[str, Any] = {
    "env": SAC["env"],
    "actor_hiddens": SAC["hiddens"],
    "critic_hiddens": SAC["hiddens"],
    "train_batch_size": SAC["batch_size"],
    "rollout_fragment_length": SAC["fused"],
    "buffer_size": SAC["buffer_size"],
    "learning_starts": SAC["learning_starts"],
    "exploration_config": {"type": "StochasticSampling", "random_timesteps": SAC["learning_starts"]},
    "lr": SAC["lr"],
    "gamma": SAC["gamma"],
    "tau": SAC["tau"],
    "seed": 0,
}
CONFIGS = {"dqn": DQN_CONFIG, "sac": SAC_CONFIG}


def trainer_class(algorithm: str) -> Any:
    return getattr(importlib.import_module(f"jaxrl.algorithms.{algorithm}"), f"{algorithm.upper()}Trainer")


def throughput(reports: Reports, algorithm: str) -> None:
    with trainer_class(algorithm)(config=CONFIGS[algorithm]) as trainer:

        def work(steps: int) -> dict[str, Any]:
            started, done = time.perf_counter(), 0
            while done < steps:
                done += trainer.train()["timesteps_this_iter"]
            return {"steps_per_s": done / (time.perf_counter() - started)}

        serve(reports, work)


def solve(reports: Reports, algorithm: str, arguments: argparse.Namespace) -> None:
    import yaml

    make_trainer = trainer_class(algorithm)
    (example,) = yaml.safe_load(TUNED_EXAMPLES[algorithm].read_text(encoding="utf-8")).values()
    config = {
        "env": example["env"],
        **example["config"],
        "seed": arguments.seed,
        "metrics_smoothing_episodes": arguments.episodes,
    }
    started = time.perf_counter()
    with make_trainer(config=config) as trainer:
        while True:
            result = trainer.train()
            seconds, steps = time.perf_counter() - started, int(result["timesteps_total"])
            enough = result["episodes_total"] >= arguments.episodes
            solved = bool(enough and result["episode_reward_mean"] >= arguments.reward)
            if solved or steps >= arguments.max_steps or seconds >= arguments.max_seconds:
                break
        reports.send(solved=solved, seconds=seconds, steps=steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "solve"))
    parser.add_argument("algorithm", choices=("dqn", "sac"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--reward", type=float, default=475.0)
    parser.add_argument("--max-steps", type=int, default=150_000)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.mode == "throughput":
        throughput(Reports(), arguments.algorithm)
    else:
        solve(Reports(), arguments.algorithm, arguments)
