"""SAC's update as one would write it by hand for one problem: the yardstick of what a loop can reach.

Actor, twin critics, temperature, Adam and moving averages in one jitted function, and nothing else: no environment, no
replay, no actions, no checks, and every number a constant. One gradient step per env step, so that updates per second
are a bound on env steps per second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from child import Reports, serve
from off_policy_settings import SAC

ENTRIES, ACTIONS, BOUND = 3, 1, 2.0
HIDDENS, BATCH, FUSED = SAC["hiddens"], SAC["batch_size"], SAC["fused"]
LR, GAMMA, TAU, TARGET_ENTROPY = SAC["lr"], SAC["gamma"], SAC["tau"], -float(ACTIONS)

Columns = Mapping[str, Any]


class MLP(nn.Module):
    """Hidden layers with ReLU, and an output."""

    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in HIDDENS:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.outputs)(x)


ACTOR, CRITIC = MLP(2 * ACTIONS), MLP(1)
OPTIMIZER = optax.adam(LR)


class Learned(NamedTuple):
    """What an update changes."""

    params: Any
    target: Any
    opt_state: Any
    key: Any


def init(key: jax.Array) -> Learned:
    keys = jax.random.split(key, 4)
    obs, both = jnp.zeros((1, ENTRIES)), jnp.zeros((1, ENTRIES + ACTIONS))
    params = {
        "actor": ACTOR.init(keys[0], obs),
        "critics": [CRITIC.init(keys[1], both), CRITIC.init(keys[2], both)],
        "log_alpha": jnp.zeros(()),
    }
    return Learned(params, params["critics"], OPTIMIZER.init(params), keys[3])


def act(actor: Any, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions `[N, A]` in [-1, 1] and their log-densities `[N]`, as actions within the bounds."""
    mean, log_std = jnp.split(jnp.asarray(ACTOR.apply(actor, obs)), 2, axis=-1)
    log_std = jnp.clip(log_std, -20.0, 2.0)
    noise = jax.random.normal(key, mean.shape)
    u = mean + jnp.exp(log_std) * noise
    log_det = 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u)) + jnp.log(BOUND)
    logp = -0.5 * jnp.square(noise) - log_std - 0.5 * jnp.log(2.0 * jnp.pi) - log_det
    return jnp.tanh(u), logp.sum(axis=-1)


def values(critics: Any, obs: jax.Array, actions: jax.Array) -> list[jax.Array]:
    """Of each critic `[N]`."""
    both = jnp.concatenate([obs, actions], axis=-1)
    return [jnp.asarray(CRITIC.apply(critic, both))[:, 0] for critic in critics]


def step(learned: Learned, batch: Columns) -> tuple[Learned, Columns]:
    """A gradient step of all three on a batch, and of the critics' moving averages."""
    old = learned.params
    key, next_key, actor_key = jax.random.split(learned.key, 3)
    alpha = jnp.exp(old["log_alpha"])
    next_actions, next_logp = act(old["actor"], batch["new_obs"], next_key)
    next_value = jnp.minimum(*values(learned.target, batch["new_obs"], next_actions)) - alpha * next_logp
    target = batch["rewards"] + GAMMA * (1.0 - batch["terminateds"]) * next_value

    def critic_loss(critics: Any) -> tuple[jax.Array, jax.Array]:
        q = jnp.stack(values(critics, batch["obs"], batch["actions"] / BOUND))
        return 0.5 * jnp.square(target - q).sum(axis=0).mean(), q.mean()

    def actor_loss(actor: Any) -> tuple[jax.Array, jax.Array]:
        actions, logp = act(actor, batch["obs"], actor_key)
        return (alpha * logp - jnp.minimum(*values(old["critics"], batch["obs"], actions))).mean(), -logp.mean()

    (critic_error, mean_q), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(old["critics"])
    (actor_error, entropy), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(old["actor"])
    grads = {"actor": actor_grads, "critics": critic_grads, "log_alpha": entropy - TARGET_ENTROPY}
    updates, opt_state = OPTIMIZER.update(grads, learned.opt_state, old)
    params: Any = optax.apply_updates(old, updates)
    moved = optax.incremental_update(params["critics"], learned.target, TAU)
    metrics = {"critic": critic_error, "actor": actor_error, "mean_q": mean_q, "entropy": entropy, "alpha": alpha}
    return Learned(params, moved, opt_state, key), metrics


@jax.jit
def one(learned: Learned, batch: Columns) -> tuple[Learned, Columns]:
    """A gradient step per call."""
    return step(learned, batch)


@jax.jit
def several(learned: Learned, batch: Columns) -> tuple[Learned, Columns]:
    """As many gradient steps as jaxrl takes in one call."""
    batches = {name: column.reshape(FUSED, BATCH, *column.shape[1:]) for name, column in batch.items()}
    learned, metrics = jax.lax.scan(step, learned, batches)
    return learned, {name: value.mean() for name, value in metrics.items()}


def rows(rng: np.random.Generator, n: int) -> Columns:
    """`n` rows as Pendulum's replay would give them."""
    return {
        "obs": rng.normal(size=(n, ENTRIES)).astype(np.float32),
        "new_obs": rng.normal(size=(n, ENTRIES)).astype(np.float32),
        "actions": rng.uniform(-BOUND, BOUND, (n, ACTIONS)).astype(np.float32),
        "rewards": rng.uniform(-16.0, 0.0, n).astype(np.float32),
        "terminateds": np.zeros(n, np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fused", action="store_true", help=f"{FUSED} gradient steps a call")
    count = FUSED if parser.parse_args().fused else 1
    reports = Reports()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    rng = np.random.default_rng(0)
    update, learned = several if count > 1 else one, init(jax.random.key(0))
    batches = [rows(rng, count * BATCH) for _ in range(16)]

    def work(steps: int) -> dict[str, Any]:
        nonlocal learned
        calls = -(-steps // count)
        started = time.perf_counter()
        for i in range(calls):
            learned, metrics = update(learned, batches[i % len(batches)])
            _ = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        return {"steps_per_s": calls * count / (time.perf_counter() - started)}

    serve(reports, work)


if __name__ == "__main__":
    main()
