"""RLlib as a contestant, on its default API stack with 2 env runners of 4 environments (in the peers' environment)."""

from __future__ import annotations

import importlib
import logging
import time
from typing import Any

from child import Reports, serve


def main() -> None:
    reports = Reports()
    ray = importlib.import_module("ray")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ppo = importlib.import_module("ray.rllib.algorithms.ppo")
    model_config = importlib.import_module("ray.rllib.core.rl_module.default_model_config").DefaultModelConfig
    config = (
        ppo.PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4)
        .training(
            train_batch_size_per_learner=1024,
            minibatch_size=256,
            num_epochs=4,
            lr=3e-4,
            gamma=0.99,
            lambda_=0.95,
            clip_param=0.2,
            vf_loss_coeff=0.5,
            grad_clip=0.5,
        )
        .rl_module(
            model_config=model_config(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False),
        )
    )
    algorithm = config.build_algo()

    def work(iterations: int) -> dict[str, Any]:
        started, steps = time.perf_counter(), 0
        for _ in range(iterations):
            steps += algorithm.train()["env_runners"]["num_env_steps_sampled"]
        return {"steps_per_s": steps / (time.perf_counter() - started)}

    serve(reports, work)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
