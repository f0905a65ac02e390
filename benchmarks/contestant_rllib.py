"""RLlib as a contestant, on its default API stack with 2 env runners (in the peers' environment).

`contestant_rllib.py ppo|impala|appo`: PPO with 4 environments each, IMPALA and APPO with 5 and their own defaults.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from typing import Any

from child import Reports, serve


def ppo_config(name: str) -> Any:
    """PPO as all contestants of the throughput rows run it."""
    algorithm = importlib.import_module(f"ray.rllib.algorithms.{name}")
    config = algorithm.PPOConfig().env_runners(num_env_runners=2, num_envs_per_env_runner=4)
    return with_model(config).training(
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


def async_config(name: str) -> Any:
    """IMPALA or APPO: fragments of 50 steps of 5 environments, train batches of 500, else its defaults."""
    algorithm = importlib.import_module(f"ray.rllib.algorithms.{name}")
    config = getattr(algorithm, f"{name.upper()}Config")().env_runners(
        num_env_runners=2, num_envs_per_env_runner=5, rollout_fragment_length=50
    )
    config.reporting(min_time_s_per_iteration=0.5)  # else an iteration lasts ten seconds
    return with_model(config).training(train_batch_size_per_learner=500)


def with_model(config: Any) -> Any:
    """Two layers of 64 with tanh, on CartPole."""
    model = importlib.import_module("ray.rllib.core.rl_module.default_model_config").DefaultModelConfig
    chosen = model(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
    return config.environment("CartPole-v1").rl_module(model_config=chosen)


def main() -> None:
    reports = Reports()
    ray = importlib.import_module("ray")
    # Its asynchronous algorithms learn on an actor, which asks for a CPU of its own beside the workers', and waits for
    # one for ever where there are two.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = {"ppo": ppo_config, "impala": async_config, "appo": async_config}[sys.argv[1]](sys.argv[1])
    algorithm = config.build_algo()

    def sampled() -> int:
        # A first, short iteration has nothing to tell yet.
        return int(algorithm.train()["env_runners"].get("num_env_steps_sampled_lifetime", 0))

    def work(iterations: int) -> dict[str, Any]:
        before, started, after = sampled(), time.perf_counter(), 0
        for _ in range(iterations):
            after = sampled()
        return {"steps_per_s": (after - before) / (time.perf_counter() - started)}

    serve(reports, work)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
