"""Many environments in one step, each reset in the step that ends its episode, within a compiled program.

The caller hands in the states that ended rows go on from. Drawn for a whole fragment at once (`draw_resets`), outside
the scan, they cost a few vector instructions per row; drawn in each step, their random numbers would cost more than the
dynamics, for rows of which one in hundreds has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.envs.jax_native.env import JaxEnv
from jaxrl.types import Array, PyTree


class VectorStep(NamedTuple):
    """What one step of B environments gives.

    Attributes:
        states: the next states, of ended rows the fresh ones, pytree of `[B, ...]`.
        obs: the observations of `states`: of ended rows the first of the next episode, pytree of `[B, ...]`.
        final_obs: the true successor of every row, ended or not, pytree of `[B, ...]`.
        rewards: float32 `[B]`.
        terminateds: bool `[B]`.
        truncateds: bool `[B]`.
    """

    states: PyTree
    obs: PyTree
    final_obs: PyTree
    rewards: Array
    terminateds: Array
    truncateds: Array


def vector_step(env: JaxEnv, key: Array, states: PyTree, actions: PyTree, fresh: tuple[PyTree, PyTree]) -> VectorStep:
    """Steps B environments and resets those whose episode ended, without a branch.

    Args:
        env: the environment.
        key: one key for the step, or B keys. Deterministic environments ignore it, and XLA drops the split.
        states: pytree of `[B, ...]`.
        actions: pytree of `[B, ...]`, within the action space.
        fresh: `(states, obs)`, pytrees of `[B, ...]`, as `draw_resets(env, key, (B,))` gives: what ended rows take.

    Returns:
        A VectorStep; compilable, to be called within `jit` or `scan`.
    """
    batch = jax.tree.leaves(actions)[0].shape[0]
    keys = key if _is_batch(key) else jax.random.split(key, batch)
    out = jax.vmap(env.step)(keys, states, actions)
    ended = out.terminated | out.truncated
    states, obs = select_rows(ended, fresh, (out.state, out.obs))
    return VectorStep(states, obs, out.obs, out.reward, out.terminated, out.truncated)


def draw_resets(env: JaxEnv, key: Array, shape: Sequence[int]) -> tuple[PyTree, PyTree]:
    """Draws independent fresh episodes in one batched call.

    Args:
        env: the environment.
        key: a key.
        shape: leading axes, e.g. `(T, B)` for the resets of a fragment.

    Returns:
        `(states, obs)`, pytrees of `[*shape, ...]`.
    """
    drawn = jax.vmap(env.reset)(jax.random.split(key, math.prod(shape)))
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), drawn)


def select_rows(rows: Array, chosen: PyTree, other: PyTree) -> PyTree:
    """Takes each leaf's rows from `chosen` where `rows` (bool `[B]`) is True, else from `other`."""

    def select(a: Array, b: Array) -> Array:
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            data = select(jax.random.key_data(a), jax.random.key_data(b))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(b))
        return jnp.where(rows.reshape(rows.shape + (1,) * (b.ndim - rows.ndim)), a, b)

    return jax.tree.map(select, chosen, other)


def _is_batch(key: Array) -> bool:
    """True where `key` is an array of keys rather than one (a raw key is uint32 `[2]`)."""
    return key.ndim == (1 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 2)
