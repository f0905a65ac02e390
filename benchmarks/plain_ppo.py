"""PPO as one would write it by hand for one problem: the yardstick of what a loop can reach.

A loop over environments, an `act` that does nothing but act, and one jitted update. No filters, no truncated ends (they
count as terminal), no episode statistics, nothing saved, nothing checked, and every number a constant.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
from child import Reports, serve

ENVS, STEPS, EPOCHS, MINIBATCH = 8, 128, 4, 256
LR, GAMMA, LAMBDA, GRAD_CLIP = 3e-4, 0.99, 0.95, 0.5
CLIP, VF_CLIP, VF_COEFF, KL_COEFF, ENTROPY_COEFF = 0.2, 10.0, 0.5, 0.2, 0.0

Columns = Mapping[str, Any]


class MLP(nn.Module):
    """Two layers of 64 with tanh, and an output."""

    outputs: int
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = jnp.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.scale))(x)


POLICY, VALUE = MLP(2, 0.01), MLP(1, 1.0)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(GRAD_CLIP), optax.adam(LR))


class Learned(NamedTuple):
    """What an update changes."""

    params: Any
    opt_state: Any
    key: Any


def init(key: jax.Array) -> Learned:
    policy_key, value_key, key = jax.random.split(key, 3)
    obs = jnp.zeros((1, 4))
    params = {"policy": POLICY.init(policy_key, obs), "value": VALUE.init(value_key, obs)}
    return Learned(params, OPTIMIZER.init(params), key)


@jax.jit
def act(policy_params: Any, obs: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
    """The cheapest act: the policy's head, a key for the step, a sample."""
    logits = POLICY.apply(policy_params, obs)
    return jax.random.categorical(jax.random.fold_in(key, t), jnp.asarray(logits))


def ppo_loss(
    logits: jax.Array, value: jax.Array, batch: Columns, kl_coeff: Any = KL_COEFF
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate, clipped value error, entropy bonus and KL penalty, with the metrics that one would log."""
    logp_all = jax.nn.log_softmax(logits)
    probs = jnp.exp(logp_all)
    logp = jnp.take_along_axis(logp_all, batch["actions"][:, None], axis=1)[:, 0]
    ratio, advantages = jnp.exp(logp - batch["action_logp"]), batch["advantages"]
    surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages).mean()
    old, target = batch["vf_preds"], batch["value_targets"]
    clipped = old + jnp.clip(value - old, -VF_CLIP, VF_CLIP)
    vf_loss = jnp.maximum(jnp.square(value - target), jnp.square(clipped - target)).mean()
    entropy = -(probs * logp_all).sum(axis=1).mean()
    old_logp_all = jax.nn.log_softmax(batch["action_dist_inputs"])
    kl = (jnp.exp(old_logp_all) * (old_logp_all - logp_all)).sum(axis=1).mean()
    loss = -surrogate + VF_COEFF * vf_loss - ENTROPY_COEFF * entropy + kl_coeff * kl
    explained = jnp.maximum(-1.0, 1.0 - jnp.var(target - value) / jnp.var(target))
    metrics = {
        "policy_loss": -surrogate,
        "vf_loss": vf_loss,
        "entropy": entropy,
        "kl": kl,
        "vf_explained_var": explained,
    }
    return loss, {"total_loss": loss, **metrics}


def sgd(
    learned: Learned, rows: Columns, *, policy: Any = POLICY.apply, value: Any = VALUE.apply, kl_coeff: Any = KL_COEFF
) -> tuple[Learned, Columns]:
    """Epochs of minibatches over rows `[N, ...]`; metrics are means over the last epoch.

    Args:
        learned: parameters, optimiser state and key.
        rows: the columns that the loss reads.
        policy, value: `(params, obs) -> logits, values`, to compare another library's networks.
        kl_coeff: of the KL penalty.
    """
    n = rows["actions"].shape[0]
    minibatches = n // MINIBATCH

    def loss_fn(params: Any, batch: Columns) -> tuple[jax.Array, dict[str, jax.Array]]:
        values = value(params["value"], batch["obs"])
        return ppo_loss(policy(params["policy"], batch["obs"]), values.reshape(-1), batch, kl_coeff)

    def step(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], Columns]:
        params, opt_state = carry
        batch = {name: column[index] for name, column in rows.items()}
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), {**metrics, "grad_gnorm": optax.global_norm(grads)}

    key, shuffle_key = jax.random.split(learned.key)
    order = jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(shuffle_key, EPOCHS))
    carry = (learned.params, learned.opt_state)
    (params, opt_state), metrics = jax.lax.scan(step, carry, order.reshape(EPOCHS * minibatches, -1))
    return Learned(params, opt_state, key), {name: value[-minibatches:].mean() for name, value in metrics.items()}


@jax.jit
def update(learned: Learned, fragment: Columns) -> tuple[Learned, Columns]:
    """From a fragment `[T, B]`, as the environments gave it, to new parameters."""
    obs = jnp.concatenate([fragment["obs"], fragment["last_obs"][None]])
    flat = obs.reshape(-1, 4)
    values = jnp.asarray(VALUE.apply(learned.params["value"], flat)).reshape(obs.shape[:2])
    logits = jnp.asarray(POLICY.apply(learned.params["policy"], flat[: STEPS * ENVS]))
    discount = GAMMA * (1.0 - fragment["dones"])
    delta = fragment["rewards"] + discount * values[1:] - values[:-1]

    def backwards(advantage: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        advantage = row[0] + row[1] * LAMBDA * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros(ENVS), (delta, discount), reverse=True)
    actions = fragment["actions"].reshape(-1)
    rows = {
        "obs": flat[: STEPS * ENVS],
        "actions": actions,
        "action_dist_inputs": logits,
        "action_logp": jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], axis=1)[:, 0],
        "vf_preds": values[:-1].reshape(-1),
        "value_targets": (advantages + values[:-1]).reshape(-1),
        "advantages": ((advantages - advantages.mean()) / (advantages.std() + 1e-8)).reshape(-1),
    }
    return sgd(learned, rows)


class PlainLoop:
    """The loop: environments stepped one after the other, rows written in place, one update a fragment."""

    def __init__(self) -> None:
        self.learned = init(jax.random.key(0))
        self.envs = [gym.make("CartPole-v1", disable_env_checker=True) for _ in range(ENVS)]
        self.obs = np.stack([env.reset(seed=i)[0] for i, env in enumerate(self.envs)])
        self.key, self.t = jax.random.key(1), 0

    def iteration(self) -> dict[str, float]:
        rows = np.empty((STEPS, ENVS, 4), np.float32)
        actions = np.empty((STEPS, ENVS), np.int32)
        rewards = np.empty((STEPS, ENVS), np.float32)
        dones = np.zeros((STEPS, ENVS), np.float32)
        policy_params = self.learned.params["policy"]
        for t in range(STEPS):
            obs = rows[t] = self.obs
            chosen = np.asarray(act(policy_params, obs, self.t, self.key))
            actions[t] = chosen
            for b, action in enumerate(chosen.tolist()):
                env = self.envs[b]
                obs[b], rewards[t, b], terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    dones[t, b] = 1.0
                    obs[b], _ = env.reset()
            self.t += 1
        fragment = {"obs": rows, "actions": actions, "rewards": rewards, "dones": dones, "last_obs": self.obs}
        self.learned, metrics = update(self.learned, fragment)
        return {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def main() -> None:
    reports = Reports()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    loop = PlainLoop()

    def work(iterations: int) -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(iterations):
            loop.iteration()
        return {"steps_per_s": iterations * ENVS * STEPS / (time.perf_counter() - started)}

    serve(reports, work)


if __name__ == "__main__":
    main()
