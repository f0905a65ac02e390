"""What a JaxEnv must keep to, checked by tracing alone: nothing is compiled and no environment steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.jax_native.env import JaxEnv, JaxStep
from jaxrl.envs.rows import empty_rows, leaf_spaces, leaves
from jaxrl.types import EnvError


def check_jax_env(env: JaxEnv) -> None:
    """Checks the structure, shapes and dtypes of what `reset` and `step` return.

    Args:
        env: the environment.

    Raises:
        EnvError: it cannot be traced; observations do not fit the space; the state, observation, reward or flags that
            `step` returns differ in structure, shape or dtype from what they must be.
    """
    key = jax.random.key(0)
    state, obs = _trace(env, "reset", env.reset, key)
    _check_obs(env, "reset", obs)
    # The first action of a batch of one: the structure, shape and dtype that a sampler's actions have.
    action = jax.tree.map(lambda rows: jnp.asarray(rows[0]), empty_rows(env.action_space, 1))
    out = _trace(env, "step", env.step, key, state, action)
    if not isinstance(out, JaxStep):
        raise EnvError(f"{env.name}: step: expected a JaxStep, got {type(out).__name__}")
    _check_obs(env, "step", out.obs)
    _check_state(env, state, out.state)
    wanted = {"reward": jnp.float32, "terminated": jnp.bool_, "truncated": jnp.bool_}
    for name, dtype in wanted.items():
        got = getattr(out, name)
        if np.shape(got) != () or getattr(got, "dtype", None) != dtype:
            raise EnvError(f"{env.name}: step: expected {name} to be a {np.dtype(dtype)} scalar, got {_describe(got)}")


def _trace(env: JaxEnv, method: str, fn: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(fn, *args)
    except Exception as error:
        raise EnvError(
            f"{env.name}: {method} cannot be traced by JAX: {type(error).__name__}: {error}; it must be a pure "
            "function of its arguments, without Python branches on array values"
        ) from error


def _check_obs(env: JaxEnv, method: str, obs: Any) -> None:
    try:
        columns = leaves(env.observation_space, obs)
    except (KeyError, TypeError, ValueError) as error:
        raise EnvError(f"{env.name}: {method}: obs has not the structure of observation_space: {error}") from error
    for leaf, column in zip(leaf_spaces(env.observation_space), columns, strict=True):
        if np.shape(column) != leaf.shape or getattr(column, "dtype", None) != leaf.dtype:
            raise EnvError(
                f"{env.name}: {method}: obs{leaf.path}: expected {leaf.dtype}{list(leaf.shape)} (observation_space "
                f"{leaf.space}), got {_describe(column)}"
            )


def _check_state(env: JaxEnv, before: Any, after: Any) -> None:
    first, first_form = jax.tree.flatten_with_path(before)
    later, later_form = jax.tree.flatten_with_path(after)
    if first_form != later_form:
        raise EnvError(
            f"{env.name}: step: expected a state of the structure that reset returns, {first_form}, got {later_form}"
        )
    for (path, a), (_, b) in zip(first, later, strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise EnvError(
                f"{env.name}: step: state{jax.tree_util.keystr(path)}: expected {_describe(a)} as from reset, got "
                f"{_describe(b)}; shapes and dtypes may not change from step to step"
            )


def _describe(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r}"
