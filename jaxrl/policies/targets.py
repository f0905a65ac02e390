"""Target networks: when and how far they follow the parameters that learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl.policies.policy import TrainState
from jaxrl.types import Params


def target_update(state: TrainState, config: Any, *, groups: tuple[str, ...] | None = None) -> Params:
    """A `target_fn` for `build_policy`: `tau * params + (1 - tau) * target` after every gradient step.

    With `target_network_update_freq` above 0 the target waits for the plan's `UpdateTargetNetwork` instead.

    Args:
        state: after the gradient step.
        config: options `tau` and `target_network_update_freq`.
        groups: the top-level groups of params that have targets (bind them with `functools.partial`); None: all.

    Returns:
        The target network's parameters, of these groups alone.
    """
    params, target = state.params, state.target_params
    if groups is not None:
        params, target = ({name: tree[name] for name in groups} for tree in (params, target))
    if config.target_network_update_freq:
        return target
    if config.tau == 1.0:
        return params
    return optax.incremental_update(params, target, config.tau)


def lagged_target(state: TrainState, every: Any) -> Params:
    """For a `target_fn`: the parameters as they were at the last gradient step whose number `every` divides.

    Args:
        state: after the gradient step.
        every: gradient steps between updates.

    Returns:
        The target network's parameters, all groups.
    """
    due = state.step % every == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), state.params, state.target_params)


def followed(params: Params, target: Params) -> Params:
    """The part of `params` that a target follows: `target` may hold some of the top-level groups only."""
    if isinstance(target, Mapping) and isinstance(params, Mapping):
        return {name: params[name] for name in target}
    return params
