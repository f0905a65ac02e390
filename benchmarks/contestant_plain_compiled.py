"""PPO as one plain JAX program, in the manner of PureJaxRL, on gymnax's CartPole: `... throughput|solve`.

What PureJaxRL's single file does, written anew: keys split in every step, environments that reset themselves, values
and log-probabilities from acting, an optimiser of one array for each weight, a permutation for each epoch; the end by
time counts as a terminal state. PureJaxRL itself is no package, and runs as fast as this.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections import deque
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from child import Reports, serve
from flax.linen.initializers import orthogonal

STEPS, EPOCHS, MINIBATCHES = 128, 4, 4
GAMMA, LAMBDA, CLIP, VALUE, ENTROPY, LR = 0.99, 0.95, 0.2, 0.5, 0.01, 2.5e-3
gymnax: Any = importlib.import_module("gymnax")
distrax: Any = importlib.import_module("distrax")


class ActorCritic(nn.Module):
    """Two networks of two layers of 64 with tanh."""

    @nn.compact
    def __call__(self, obs: Any) -> tuple[Any, Any]:
        def tower(outputs: int, scale: float) -> Any:
            x = obs
            for _ in range(2):
                x = nn.tanh(nn.Dense(64, kernel_init=orthogonal(np.sqrt(2)))(x))
            return nn.Dense(outputs, kernel_init=orthogonal(scale))(x)

        return distrax.Categorical(logits=tower(2, 0.01)), tower(1, 1.0)[..., 0]


NETWORK = ActorCritic()
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(LR, eps=1e-5))
ENV, ENV_PARAMS = gymnax.make("CartPole-v1")


def init(key: Any, envs: int) -> Any:
    """Parameters, optimiser, environments with their running returns, observations, key."""
    key, net_key, env_key = jax.random.split(key, 3)
    params = NETWORK.init(net_key, jnp.zeros(4))
    obs, states = jax.vmap(ENV.reset, in_axes=(0, None))(jax.random.split(env_key, envs), ENV_PARAMS)
    return params, OPTIMIZER.init(params), (states, jnp.zeros(envs)), obs, key


def step_env(key: Any, state: Any, action: Any) -> Any:
    """One environment, with the return of its episode so far, as a logging wrapper does it."""
    inner, total = state
    obs, inner, reward, done, *_ = ENV.step(key, inner, action, ENV_PARAMS)
    total = total + reward
    return obs, (inner, total * (1 - done)), reward, done, total


def collect(carried: Any, _: None) -> Any:
    params, optimizer, states, obs, key = carried
    key, act_key, env_key = jax.random.split(key, 3)
    dist, value = NETWORK.apply(params, obs)
    action = dist.sample(seed=act_key)
    keys = jax.random.split(env_key, obs.shape[0])
    new_obs, states, reward, done, total = jax.vmap(step_env)(keys, states, action)
    row = {"obs": obs, "action": action, "value": value, "logp": dist.log_prob(action), "reward": reward, "done": done}
    return (params, optimizer, states, new_obs, key), (row, jnp.where(done, total, jnp.nan))


def loss(params: Any, batch: Any) -> Any:
    dist, value = NETWORK.apply(params, batch["obs"])
    clipped = batch["value"] + jnp.clip(value - batch["value"], -CLIP, CLIP)
    errors = jnp.square(value - batch["target"]), jnp.square(clipped - batch["target"])
    advantage = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    ratio = jnp.exp(dist.log_prob(batch["action"]) - batch["logp"])
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
    entropy = dist.entropy().mean()
    value_loss = 0.5 * jnp.maximum(*errors).mean()
    return -surrogate + VALUE * value_loss - ENTROPY * entropy, (surrogate, value_loss, entropy)


def update(carried: Any, _: None) -> Any:
    carried, (rows, returns) = jax.lax.scan(collect, carried, None, STEPS)
    params, optimizer, states, obs, key = carried
    last: Any = NETWORK.apply(params, obs)[1]

    def estimate(later: Any, row: Any) -> tuple[Any, Any]:
        advantage, next_value = later
        going = 1 - row["done"]
        delta = row["reward"] + GAMMA * next_value * going - row["value"]
        advantage = delta + GAMMA * LAMBDA * going * advantage
        return (advantage, row["value"]), advantage

    _, advantage = jax.lax.scan(estimate, (jnp.zeros_like(last), last), rows, reverse=True, unroll=16)
    batch = {**rows, "advantage": advantage, "target": advantage + rows["value"]}
    size = advantage.size
    flat = {name: x.reshape(size, *x.shape[2:]) for name, x in batch.items()}

    def sgd(carried: Any, minibatch: Any) -> Any:
        params, optimizer = carried
        grads, told = jax.grad(loss, has_aux=True)(params, minibatch)
        updates, optimizer = OPTIMIZER.update(grads, optimizer)
        return (optax.apply_updates(params, updates), optimizer), told

    def epoch(carried: Any, key: Any) -> Any:
        order = jax.random.permutation(key, size)
        minibatches = jax.tree.map(lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), flat)
        return jax.lax.scan(sgd, carried, minibatches)

    key, *keys = jax.random.split(key, EPOCHS + 1)
    (params, optimizer), told = jax.lax.scan(epoch, (params, optimizer), jnp.stack(keys))
    return (params, optimizer, states, obs, key), (returns, told)


def compile_program(envs: int, updates: int, members: int, seed: int = 0) -> tuple[Any, Any, dict[str, float]]:
    """The program of so many updates, the state it begins with, and what compiling took."""

    def run(carried: Any) -> Any:
        return jax.lax.scan(update, carried, None, updates)

    began = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), members)
    if members > 1:
        # One after the other: decompositions of orthogonal weights, batched, hang XLA's CPU threads.
        state = jax.lax.map(lambda key: init(key, envs), keys)
    else:
        state = jax.jit(init, static_argnums=1)(keys[0], envs)
    lowering = time.perf_counter()
    lowered = jax.jit(jax.vmap(run) if members > 1 else run).lower(state)
    compiling = time.perf_counter()
    program = lowered.compile()
    times = {"init_s": lowering - began, "trace_s": compiling - lowering}
    return program, state, {**times, "compile_s": time.perf_counter() - compiling}


def throughput(reports: Reports, envs: int, updates: int, members: int) -> None:
    program, state, cost = compile_program(envs, updates, members)

    def work() -> dict[str, Any]:
        nonlocal state
        started = time.perf_counter()
        state, _ = jax.block_until_ready(program(state))
        seconds = time.perf_counter() - started
        return {"steps_per_s": members * envs * STEPS * updates / seconds, "programs": {"iteration": cost}}

    serve(reports, work)


def solve(reports: Reports, seed: int, updates: int) -> None:
    started = time.perf_counter()
    program, state, cost = compile_program(8, updates, 1, seed)
    recent: deque[float] = deque(maxlen=100)
    steps, solved = 0, False
    while steps < 1_000_000 and not solved:
        state, (returns, _) = program(state)
        ended = np.asarray(returns).reshape(-1)
        recent.extend(ended[~np.isnan(ended)].tolist())
        steps += 8 * STEPS * updates
        solved = len(recent) == 100 and float(np.mean(recent)) >= 475
    seconds = time.perf_counter() - started
    reports.send(solved=solved, seconds=seconds, steps=steps, programs={"iteration": cost})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("throughput", "solve"))
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.mode == "throughput":
        throughput(Reports(), given.envs, given.updates, given.members)
    else:
        solve(Reports(), given.seed, given.updates)
