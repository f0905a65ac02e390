"""From a policy's actions to an environment's: normalisation and clipping, of NumPy and JAX arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.envs import gets_sign_rewards
from jaxrl.types import ConfigError, PyTree


def policy_action_space(space: spaces.Space, *, normalize: bool) -> spaces.Space:
    """The space that a policy acts in: bounded Box leaves become [-1, 1] where actions are normalised."""
    if not normalize:
        return space
    if isinstance(space, spaces.Dict):
        return spaces.Dict({k: policy_action_space(s, normalize=True) for k, s in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([policy_action_space(s, normalize=True) for s in space.spaces])
    return spaces.Box(-1.0, 1.0, space.shape, np.float32) if _is_bounded(space) else space


def action_transform(space: spaces.Space, *, normalize: bool, clip: bool) -> Callable[[PyTree], PyTree] | None:
    """What is done to actions `[B, ...]` before they reach an environment; None where that is nothing.

    Args:
        space: the environment's action space.
        normalize: actions in [-1, 1] are mapped to the bounds of bounded Box leaves.
        clip: Box leaves are clipped to their bounds.
    """
    if isinstance(space, spaces.Dict):
        parts: dict[Any, Any] = {
            k: action_transform(s, normalize=normalize, clip=clip) for k, s in space.spaces.items()
        }
        if not any(parts.values()):
            return None
        return lambda actions: {k: fn(actions[k]) if fn else actions[k] for k, fn in parts.items()}
    if isinstance(space, spaces.Tuple):
        fns = [action_transform(s, normalize=normalize, clip=clip) for s in space.spaces]
        if not any(fns):
            return None
        return lambda actions: tuple(fn(a) if fn else a for fn, a in zip(fns, actions, strict=True))
    if not isinstance(space, spaces.Box):
        return None
    low, high = space.low, space.high
    if normalize and _is_bounded(space):
        scale = (high - low) / 2.0

        def denormalize(actions: Any) -> Any:
            return low + (_clip(actions, -1.0, 1.0) + 1.0) * scale

        return denormalize
    return (lambda actions: _clip(actions, low, high)) if clip else None


def _clip(actions: Any, low: Any, high: Any) -> Any:
    # Half of what np.clip costs for a few numbers.
    xp = jnp if isinstance(actions, jax.Array) else np
    return xp.minimum(xp.maximum(actions, low), high)


def _is_bounded(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())


def reward_rule(config: Any) -> Any:
    """The rule for `clip_rewards` that a config asks for; None there: the sign for preprocessed Atari, else None.

    Raises:
        ConfigError: bounds that leave nothing between them.
    """
    rule = config.clip_rewards
    if rule is None and gets_sign_rewards(config.env, config.env_config):
        return True
    low, high = rule if isinstance(rule, tuple | list) else (-1, 1) if rule is None or rule is True else (-rule, rule)
    if rule is not False and not low < high:
        raise ConfigError(f"clip_rewards: expected (low, high) with low < high, or a number above 0, got {rule!r}")
    return rule


def clip_rewards(rewards: Any, rule: Any) -> Any:
    """Rewards as learning sees them, float32.

    Args:
        rewards: `[T, B]`.
        rule: None or False: as they are; True: their sign; a number c: clipped to [-c, c]; a pair: clipped to it.
    """
    xp = jnp if isinstance(rewards, jax.Array) else np
    if rule is None or rule is False:
        clipped = rewards
    elif rule is True:
        clipped = xp.sign(rewards)
    elif isinstance(rule, (tuple, list)):
        clipped = xp.clip(rewards, *rule)
    else:
        clipped = xp.clip(rewards, -rule, rule)
    return clipped.astype(np.float32)
