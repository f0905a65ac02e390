"""rejax's PPO as a contestant of the compiled rows: `contestant_rejax.py throughput|population|solve ...`."""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any

from child import Reports, serve

STEPS = 128


def make(envs: int, updates: int) -> Any:
    """Its PPO with the numbers of `contestant_compiled.config`; it evaluates nothing."""
    rejax = importlib.import_module("rejax")
    algorithm = rejax.PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=envs,
        num_steps=STEPS,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=2.5e-3,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        vf_coef=0.5,
        ent_coef=0.01,
        max_grad_norm=0.5,
        total_timesteps=envs * STEPS * updates,
        eval_freq=envs * STEPS * updates,
        skip_initial_evaluation=True,
    )
    return algorithm.replace(eval_callback=lambda algorithm, state, rng: ())


def run(reports: Reports, envs: int, updates: int, members: int) -> None:
    jax: Any = importlib.import_module("jax")
    algorithm = make(envs, updates)

    def iterate(state: Any) -> Any:
        return jax.lax.fori_loop(0, updates, lambda _, s: algorithm.train_iteration(s), state)

    many = members > 1
    keys = jax.random.split(jax.random.key(0), members)
    # One after the other: the decompositions of its orthogonal weights, batched, hang XLA's CPU threads.
    state = jax.lax.map(algorithm.init_state, keys) if many else algorithm.init_state(keys[0])
    lowering = time.perf_counter()
    lowered = jax.jit(jax.vmap(iterate) if many else iterate).lower(state)
    compiling = time.perf_counter()
    program = lowered.compile()
    cost = {"trace_s": compiling - lowering, "compile_s": time.perf_counter() - compiling}

    def work() -> dict[str, Any]:
        nonlocal state
        started = time.perf_counter()
        state = jax.block_until_ready(program(state))
        seconds = time.perf_counter() - started
        return {"steps_per_s": members * envs * STEPS * updates / seconds, "programs": {"iteration": cost}}

    serve(reports, work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--updates", type=int, default=100)
    given = parser.parse_args()
    run(Reports(), given.envs, given.updates, given.members)
