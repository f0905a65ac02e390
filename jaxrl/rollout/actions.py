"""From a policy's actions to an environment's: normalisation and clipping, of NumPy and JAX arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.distributions import Simplex, inner_bounds, middle_and_half
from jaxrl.envs import gets_sign_rewards
from jaxrl.types import ConfigError, EnvError, PyTree

ActionFn = Callable[[PyTree], PyTree]


def policy_action_space(space: spaces.Space, *, normalize: bool) -> spaces.Space:
    """The space that a policy acts in: bounded Box leaves of floats become [-1, 1] where actions are normalised."""
    if not normalize:
        return space
    if isinstance(space, spaces.Dict):
        return spaces.Dict({k: policy_action_space(s, normalize=True) for k, s in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([policy_action_space(s, normalize=True) for s in space.spaces])
    return spaces.Box(-1.0, 1.0, space.shape, np.float32) if _is_normalized(space) else space


def action_transform(space: spaces.Space, *, normalize: bool, clip: bool) -> ActionFn | None:
    """What is done to actions `[B, ...]` before they reach an environment; None where that is nothing.

    Actions that are normalised or clipped are inside the space, of its dtype (JAX arrays: at most 32 bits).

    Args:
        space: the environment's action space.
        normalize: actions in [-1, 1] are mapped to the bounds of bounded Box leaves of floats.
        clip: Box leaves are clipped to their bounds.
    """

    def of_leaf(leaf: spaces.Space) -> ActionFn | None:
        if not isinstance(leaf, spaces.Box):
            return None
        if normalize and _is_normalized(leaf):
            return _denormalize(leaf)
        return _clip_to(leaf) if clip else None

    return _by_leaf(space, of_leaf)


def inverse_transform(space: spaces.Space, *, normalize: bool) -> ActionFn | None:
    """From an environment's action back to the policy's, up to rounding and clipping; None where they are the same."""
    return _by_leaf(space, lambda leaf: _normalize(leaf) if normalize and _is_normalized(leaf) else None)


def without_bounds(space: spaces.Space) -> spaces.Space:
    """The space, its Box leaves of floats unbounded."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: without_bounds(child) for key, child in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([without_bounds(child) for child in space.spaces])
    if not isinstance(space, spaces.Box) or np.dtype(space.dtype).kind != "f":
        return space
    return spaces.Box(-np.inf, np.inf, space.shape, space.dtype)  # pyright: ignore[reportArgumentType]


def _by_leaf(space: spaces.Space, of_leaf: Callable[[spaces.Space], ActionFn | None]) -> ActionFn | None:
    """Applies to each leaf of an action what `of_leaf` gives for its space; None where that is nothing for all."""
    if isinstance(space, spaces.Dict):
        parts: dict[Any, Any] = {key: _by_leaf(child, of_leaf) for key, child in space.spaces.items()}
        if not any(parts.values()):
            return None
        return lambda actions: {key: fn(actions[key]) if fn else actions[key] for key, fn in parts.items()}
    if isinstance(space, spaces.Tuple):
        fns = [_by_leaf(child, of_leaf) for child in space.spaces]
        if not any(fns):
            return None
        return lambda actions: tuple(fn(a) if fn else a for fn, a in zip(fns, actions, strict=True))
    return of_leaf(space)


def _denormalize(box: Any) -> ActionFn:
    def constants(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        low, high = low / 2, high / 2
        half = high - low
        with np.errstate(over="ignore"):  # rounded up, so that 1 is the upper bound
            half = np.where(low + half < high, np.nextafter(half, np.inf, dtype=half.dtype), half)
        return low, high, half / 2

    def mapped(xp: Any, actions: Any, low: Any, high: Any, quarter: Any) -> Any:
        # At half the size nothing overflows, however wide the bounds are; the sum may round to just outside of them.
        return 2 * _clip(xp, low + (_clip(xp, actions, -1.0, 1.0) + 1.0) * quarter, low, high)

    return _by_backend(box, mapped, *(constants(*bounds) for bounds in _bounds(box)))


def _clip_to(box: Any) -> ActionFn:
    if np.dtype(box.dtype).kind != "f":
        return lambda actions: _clip(jnp if isinstance(actions, jax.Array) else np, actions, box.low, box.high)
    return _by_backend(box, _clip, *_bounds(box))


def _normalize(box: Any) -> ActionFn:
    middle, half = middle_and_half(*_bounds(box)[0])
    scale = np.where(half > 0, half, 1)  # equal bounds: every action was 0
    return lambda actions: ((np.asarray(actions, half.dtype) - middle) / scale).astype(np.float32)


def _bounds(box: Any) -> tuple[Any, Any]:
    """Bounds for NumPy arrays, and those for JAX arrays.

    They are of at least 32 bits: casting down to the space's own dtype afterwards keeps what is inside there.
    """
    return inner_bounds(box, np.promote_types(box.dtype, np.float32)), inner_bounds(box, np.float32)


def _by_backend(box: Any, fn: Callable[..., Any], on_host: Any, on_device: Any) -> ActionFn:
    """`fn(numpy or jax.numpy, actions, *constants)`, whose result is cast to the space's dtype."""
    host_dtype, device_dtype = np.dtype(box.dtype), jax.dtypes.canonicalize_dtype(box.dtype)

    def apply(actions: Any) -> Any:
        if isinstance(actions, jax.Array):
            return fn(jnp, actions, *on_device).astype(device_dtype)
        out = fn(np, actions, *on_host)
        return out if out.dtype is host_dtype else out.astype(host_dtype)

    return apply


def _clip(xp: Any, actions: Any, low: Any, high: Any) -> Any:
    # Half of what np.clip costs for a few numbers.
    return xp.minimum(xp.maximum(actions, low), high)


def _is_normalized(space: spaces.Space) -> bool:
    if not isinstance(space, spaces.Box) or isinstance(space, Simplex) or np.dtype(space.dtype).kind != "f":
        return False
    return bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())


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


def make_mask_check(spec: Any) -> Callable[[PyTree, np.ndarray | None, Callable[[int], str]], None]:
    """A check that observations which are acted on allow an action, where a policy masks its actions.

    Args:
        spec: the policy's.

    Returns:
        `check(obs, acted, where)`: `obs` is `[..., B]`, bool `acted` of the same axes says which rows were acted on
        (None: all), `where(b)` names an environment. It raises EnvError.
    """
    if "action_mask" not in getattr(spec.obs_space, "spaces", {}) or spec.dist_class.mask_inputs is None:
        return lambda obs, acted, where: None

    def check(obs: PyTree, acted: np.ndarray | None, where: Callable[[int], str]) -> None:
        for path, blocked in _blocked(spec.action_space, obs["action_mask"], "obs['action_mask']"):
            wrong = blocked if acted is None else blocked & acted
            if wrong.any():
                raise EnvError(
                    f"{where(int(np.argwhere(wrong)[0][-1]))}: {path}: expected an action that is allowed, since one "
                    "has to be taken, got none; allow one (that does nothing, say), end the episode one step before, "
                    "or, of several agents, observe only those that can act"
                )

    return check


def _blocked(space: spaces.Space, mask: Any, path: str) -> list[tuple[str, np.ndarray]]:
    """For each choice of an action, where its mask allows nothing; bits of a MultiBinary may all be forbidden."""
    if isinstance(space, spaces.Dict):
        parts = [(space.spaces[key], mask[key], f"{path}[{key!r}]") for key in mask]
        return [found for part in parts for found in _blocked(*part)]
    if isinstance(space, spaces.Tuple):
        parts = [(child, mask[i], f"{path}[{i}]") for i, child in enumerate(space.spaces)]
        return [found for part in parts for found in _blocked(*part)]
    if isinstance(space, spaces.MultiDiscrete):
        choices = np.split(np.asarray(mask), np.cumsum(space.nvec.ravel())[:-1], axis=-1)
        return [(f"{path}, component {i}", ~np.any(choice, axis=-1)) for i, choice in enumerate(choices)]
    return [(path, ~np.any(mask, axis=-1))] if isinstance(space, spaces.Discrete) else []
