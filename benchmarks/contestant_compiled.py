"""jaxrl's compiled engine as a contestant: `contestant_compiled.py throughput|population|limit|solve ...`."""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from child import Reports, serve

# What all contestants of the compiled rows run: fragments of 128 steps, 4 epochs of 4 minibatches, separate networks of
# two layers of 64 with tanh; the numbers are PureJaxRL's.
STEPS, EPOCHS, MINIBATCHES = 128, 4, 4


def config(envs: int, updates: int, **options: Any) -> dict[str, Any]:
    """PPO on CartPole as one program of so many updates."""
    return {
        "env": "jax/CartPole-v1",
        "engine": "compiled",
        "num_envs_per_worker": envs,
        "train_batch_size": envs * STEPS,
        "sgd_minibatch_size": envs * STEPS // MINIBATCHES,
        "num_sgd_iter": EPOCHS,
        "timesteps_per_iteration": envs * STEPS * updates,
        "lr": 2.5e-3,
        "gamma": 0.99,
        "lambda": 0.95,
        "clip_param": 0.2,
        "vf_clip_param": 0.2,
        "vf_loss_coeff": 0.5,
        "entropy_coeff": 0.01,
        "kl_coeff": 0.0,
        "grad_clip": 0.5,
        "model": {"fcnet_hiddens": [64, 64]},
        "seed": 0,
        **options,
    }


def trainer_class() -> Any:
    """PPO without the KL penalty, which the others do not have either."""
    from jaxrl import losses
    from jaxrl.algorithms.ppo import PPOPolicy, PPOTrainer

    policy = PPOPolicy.with_updates(
        loss_fn=losses.weighted_sum(
            policy_loss=(1.0, losses.clipped_surrogate()),
            vf_loss=(1.0, losses.clipped_value_error()),
            entropy=(0.0, losses.entropy_bonus()),
        ),
        update_fn=None,
    )
    return PPOTrainer.with_updates(default_policy=policy)


def throughput(reports: Reports, envs: int, updates: int) -> None:
    with trainer_class()(config=config(envs, updates), results_dir=tempfile.mkdtemp()) as trainer:

        def work() -> dict[str, Any]:
            started = time.perf_counter()
            steps = trainer.train()["timesteps_this_iter"]
            seconds = time.perf_counter() - started
            costs = {name: cost._asdict() for name, cost in trainer.compiled.costs.items()}
            return {"steps_per_s": steps / seconds, "programs": costs}

        serve(reports, work)


def population(reports: Reports, members: int, updates: int) -> None:
    from jaxrl.execution.population import Population

    with trainer_class()(config=config(8, updates), results_dir=tempfile.mkdtemp()) as trainer:
        together = Population(trainer.compiled, range(members), {})

        def work() -> dict[str, Any]:
            import jax

            started = time.perf_counter()
            jax.block_until_ready(together.run()[0])
            return {"steps_per_s": members * updates * 8 * STEPS / (time.perf_counter() - started)}

        serve(reports, work)


def limit(reports: Reports, envs: int, updates: int) -> None:
    """Seconds of an update, and those of its parts, each alone as one jitted program."""
    import jax
    import jax.numpy as jnp

    from jaxrl.envs.jax_native import draw_resets, vector_step
    from jaxrl.losses import standardize
    from jaxrl.types import ActInputs

    with trainer_class()(config=config(envs, updates), results_dir=tempfile.mkdtemp()) as trainer:
        engine, policy = trainer.compiled, trainer.get_policy()
        trainer.train()
        world = jax.jit(engine.init)(jax.random.key(0), trainer.learners["default_policy"].state)
        weights = world.train.weights
        _, batch, _ = jax.jit(engine.rollouts.sample)(weights, world.rollouts, jax.random.key(1), jnp.int32(0))
        batch = batch.with_columns(advantages=standardize(batch["advantages"], None))

        def step_envs(states: Any, key: Any) -> Any:
            fresh = draw_resets(engine.env, key, (STEPS, envs))

            def step(states: Any, xs: Any) -> Any:
                actions, fresh = xs
                out = vector_step(engine.env, key, states, actions, fresh)
                return out.states, (out.rewards, out.terminateds, out.truncateds, out.obs)

            return jax.lax.scan(step, states, (batch["actions"], fresh))

        def act(obs: Any, key: Any) -> Any:
            carry = policy.initial_carry(envs)

            def one(carry: Any, xs: Any) -> Any:
                out = policy.act(weights, ActInputs(*xs), carry, key, True)
                return out.carry, out.actions

            return jax.lax.scan(one, carry, (obs, jnp.arange(STEPS)))[1]

        def repeated(fn: Any) -> Any:
            def run(first: Any) -> Any:
                def body(carried: Any, i: Any) -> Any:
                    return fn(carried, jax.random.fold_in(world.key, i))

                return jax.lax.scan(body, first, jnp.arange(updates))

            return jax.jit(run)

        # Acting sees other observations each time, or XLA would do it once.
        parts = {
            "env": (repeated(step_envs), world.rollouts.env),
            "act": (repeated(lambda n, key: (n + 1, act(batch["obs"] + n * 1e-3, key))), jnp.float32(0)),
            "learn": (repeated(lambda train, key: policy.learn(train, batch)), world.train),
        }

        def work() -> dict[str, Any]:
            seconds = {}
            for name, (program, first) in parts.items():
                started = time.perf_counter()
                jax.block_until_ready(program(first))
                seconds[name] = (time.perf_counter() - started) / updates
            started = time.perf_counter()
            trainer.train()
            return {"parts": seconds, "whole": (time.perf_counter() - started) / updates}

        serve(reports, work)


def solve(reports: Reports, seed: int, updates: int) -> None:
    """Seconds from the making of the trainer to the first program whose last 100 episodes average 475."""
    cls = trainer_class()
    started = time.perf_counter()
    with cls(config=config(8, updates, seed=seed), results_dir=tempfile.mkdtemp()) as trainer:
        while True:
            result = trainer.train()
            solved = result["episodes_total"] >= 100 and result["episode_reward_mean"] >= 475
            if solved or result["timesteps_total"] >= 1_000_000:
                break
        seconds = time.perf_counter() - started
        costs = {name: cost._asdict() for name, cost in trainer.compiled.costs.items()}
        steps = int(result["timesteps_total"])
        reports.send(solved=bool(solved), seconds=seconds, steps=steps, programs=costs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "population", "limit", "solve"))
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.mode == "throughput":
        throughput(Reports(), given.envs, given.updates)
    elif given.mode == "population":
        population(Reports(), given.members, given.updates)
    elif given.mode == "limit":
        limit(Reports(), given.envs, given.updates)
    else:
        solve(Reports(), given.seed, given.updates)
