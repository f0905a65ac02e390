"""stable-baselines3 and sbx as contestants: `contestant_sb3.py throughput|solve --library sb3|sbx ...`.

Runs in the peers' environment, hence the imports by name.
"""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any

from child import Reports, serve

LIBRARIES = {"sb3": "stable_baselines3", "sbx": "sbx"}


def make_ppo(library: str, num_envs: int, seed: int, **options: Any) -> Any:
    """PPO with `MlpPolicy`, whose networks are separate, of two layers of 64 with tanh, in both libraries."""
    make_vec_env = importlib.import_module("stable_baselines3.common.env_util").make_vec_env
    dummy_vec_env = importlib.import_module("stable_baselines3.common.vec_env").DummyVecEnv
    env = make_vec_env("CartPole-v1", n_envs=num_envs, seed=seed, vec_env_cls=dummy_vec_env)
    module = importlib.import_module(LIBRARIES[library])
    return module.PPO("MlpPolicy", env, seed=seed, verbose=0, device="cpu", **options)


def throughput(reports: Reports, library: str) -> None:
    model = make_ppo(library, 8, 0, n_steps=128, batch_size=256, n_epochs=4)

    def work(iterations: int) -> dict[str, Any]:
        started, before = time.perf_counter(), model.num_timesteps
        model.learn(iterations * 8 * 128, reset_num_timesteps=False)
        return {"steps_per_s": (model.num_timesteps - before) / (time.perf_counter() - started)}

    serve(reports, work)


def solve(reports: Reports, library: str, seed: int, max_steps: int) -> None:
    base_callback = importlib.import_module("stable_baselines3.common.callbacks").BaseCallback

    class StopWhenSolved(base_callback):
        solved = False

        def _on_rollout_start(self) -> None:
            rewards = [episode["r"] for episode in self.model.ep_info_buffer]
            self.solved = len(rewards) == 100 and sum(rewards) / 100 >= 475

        def _on_step(self) -> bool:
            return not self.solved

    # rl-zoo's tuned PPO for CartPole-v1.
    started = time.perf_counter()
    model = make_ppo(
        library,
        8,
        seed,
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda progress: 0.001 * progress,
        clip_range=lambda progress: 0.2 * progress,
    )
    callback = StopWhenSolved()
    model.learn(max_steps, callback=callback)
    seconds = time.perf_counter() - started
    reports.send(solved=callback.solved, seconds=seconds, steps=int(model.num_timesteps))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "solve"))
    parser.add_argument("--library", choices=sorted(LIBRARIES), required=True)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: torch's default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=100_000)
    arguments = parser.parse_args()
    out = Reports()
    if arguments.threads:
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if arguments.mode == "throughput":
        throughput(out, arguments.library)
    else:
        solve(out, arguments.library, arguments.seed, arguments.max_steps)
