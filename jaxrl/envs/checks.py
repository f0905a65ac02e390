"""Checks of what environments return; every error says which environment and step, what was expected and what came."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from jaxrl.envs.rows import leaf_spaces, leaves
from jaxrl.tracebacks import raised
from jaxrl.types import EnvError

_OLD_GYM = (
    "this is the API of gym before 0.26; return (obs, reward, terminated, truncated, info) from step and (obs, info) "
    "from reset "
    "(https://gymnasium.farama.org/introduction/migration_guide/)"
)


class EnvPlace(NamedTuple):
    """Where environments run, for messages: their id, their worker, the number of the first one within its worker."""

    env_id: str
    worker_index: int = 0
    first_index: int = 0

    def describe(self, vector_index: int, step: int | None = None) -> str:
        """Returns e.g. `CartPole-v1 (worker 0, env 3, episode step 17)`."""
        at = "" if step is None else f", episode step {step}"
        return f"{self.env_id} (worker {self.worker_index}, env {self.first_index + vector_index}{at})"


def env_failure(where: str, method: str, error: BaseException) -> EnvError:
    """Builds the EnvError for an exception raised by an environment; the caller chains it with `from error`."""
    return EnvError(f"{where}: {method} raised {raised(error)}; fix the environment, or drop the failing case there.")


def check_reset_result(space: spaces.Space, result: Any, where: str) -> tuple[Any, Any]:
    """Checks what `reset` returned.

    Args:
        space: observation space.
        result: the returned value; a tuple `(obs, info)` is expected.
        where: description of the environment, for the message.

    Returns:
        `(obs, info)`.

    Raises:
        EnvError: wrong arity, shape, dtype, bounds, or a NaN.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise EnvError(f"{where}: reset: expected a tuple (obs, info dict), got {_short(result)}; {_OLD_GYM}")
    check_observation(space, result[0], f"{where}: reset")
    return result


def check_step_result(space: spaces.Space, result: Any, where: str) -> tuple[Any, float, bool, bool, Any]:
    """Checks what `step` returned.

    Args:
        space: observation space.
        result: the returned value; a tuple `(obs, reward, terminated, truncated, info)` is expected.
        where: description of the environment, for the message.

    Returns:
        The five values.

    Raises:
        EnvError: wrong arity, a reward that is no finite number, flags that are no bools, or a bad observation.
    """
    if not isinstance(result, tuple) or len(result) != 5:
        count = f"{len(result)} values" if isinstance(result, tuple | list) else _short(result)
        hint = f"; {_OLD_GYM}" if isinstance(result, tuple | list) and len(result) == 4 else ""
        raise EnvError(f"{where}: step: expected (obs, reward, terminated, truncated, info), got {count}{hint}")
    obs, reward, terminated, truncated, info = result
    check_reward(reward, f"{where}: step")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if np.shape(flag) != () or np.asarray(flag).dtype != np.bool_:
            raise EnvError(f"{where}: step: expected {name} to be a bool, got {_short(flag)}")
    if not isinstance(info, dict):
        raise EnvError(f"{where}: step: expected info to be a dict, got {_short(info)}")
    check_observation(space, obs, f"{where}: step")
    return obs, reward, terminated, truncated, info


def check_reward(reward: Any, where: str) -> None:
    """Raises EnvError unless the reward is one finite number."""
    value = np.asarray(reward)
    if value.dtype == object or value.dtype.kind not in "fiub" or value.shape != ():
        raise EnvError(f"{where}: expected the reward to be one finite number, got {_short(reward)}")
    if not np.isfinite(value).all():
        raise EnvError(f"{where}: expected a finite reward, got {float(value.reshape(()))}")


def check_observation(space: spaces.Space, obs: Any, where: str, path: str = "obs") -> None:
    """Raises EnvError unless the observation has the space's structure, shapes, dtypes and bounds, and is finite.

    Args:
        space: observation space.
        obs: one environment's observation; nested lists and Python scalars pass for arrays.
        where: description of the environment and call, for the message.
        path: key path of this part, for the message.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or set(obs) != set(space.spaces):
            got = f"keys {sorted(map(str, obs))}" if isinstance(obs, dict) else _short(obs)
            raise EnvError(f"{where}: {path}: expected a dict with keys {sorted(map(str, space.spaces))}, got {got}")
        for key, child in space.spaces.items():
            check_observation(child, obs[key], where, f"{path}[{key!r}]")
        return
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise EnvError(f"{where}: {path}: expected a tuple of {len(space.spaces)}, got {_short(obs)}")
        for i, child in enumerate(space.spaces):
            check_observation(child, obs[i], where, f"{path}[{i}]")
        return
    (leaf,) = leaf_spaces(space)
    try:
        value = np.asarray(obs)
    except ValueError as error:  # ragged lists
        raise EnvError(f"{where}: {path}: expected an array of shape {leaf.shape}, got {_short(obs)}") from error
    if value.dtype == object or value.dtype.kind not in "fiubc":
        raise EnvError(f"{where}: {path}: expected an array of dtype {space.dtype}, got {_short(obs)}")
    if value.shape != leaf.shape:
        hint = "; is this the tuple (obs, info) of another API?" if isinstance(obs, tuple) else ""
        raise EnvError(
            f"{where}: {path}: expected shape {leaf.shape} (observation_space {space}), got {value.shape}{hint}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        at = _first(~np.isfinite(value))
        raise EnvError(f"{where}: {path}: expected finite numbers, got {value[at]} at index {at}")
    if value.dtype.kind == "f" and leaf.dtype.kind in "iub":
        raise EnvError(
            f"{where}: {path}: expected dtype {space.dtype}, got {value.dtype}; cast it in the environment, "
            "or declare a float observation_space"
        )
    low, high = bounds(space)
    if low is None or high is None:
        return
    if leaf.dtype.kind in "iu":
        info = np.iinfo(leaf.dtype)
        low, high = np.maximum(low, info.min), np.minimum(high, info.max)
    outside = (value < low) | (value > high)
    if outside.any():
        at = _first(outside)
        raise EnvError(
            f"{where}: {path}: expected values within [{_pick(low, at)}, {_pick(high, at)}], got {value[at]} at index "
            f"{at}; widen the observation_space or clip the observation in the environment"
        )


def bounds(space: spaces.Space) -> tuple[Any, Any]:
    """Returns (low, high) of a leaf space, with room for rounding in float spaces; (None, None) where it has none."""
    if isinstance(space, spaces.Box):
        if space.dtype is not None and np.dtype(space.dtype).kind == "f":
            slack = 1e-6 * np.maximum(1.0, np.minimum(np.abs(space.low), np.abs(space.high)), dtype=np.float64)
            return space.low - slack, space.high + slack
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    return None, None


def check_fragment(
    space: spaces.Space, obs: Any, rewards: np.ndarray, place: EnvPlace, *, first_t: np.ndarray | None = None
) -> None:
    """Checks a whole fragment at once for NaN, infinity and values outside the observation space.

    Args:
        space: single observation space.
        obs: pytree of arrays `[T, B, ...]` (T + 1 rows are fine too).
        rewards: `[T, B]`.
        place: names the environments in the message.
        first_t: `[B]` episode step of row 0, for the message; absent: the row of the fragment is named alone.

    Raises:
        EnvError: names the environment, the row, the key path and the value. A reward of None arrives here as NaN.
    """
    if not np.isfinite(rewards).all():
        t, b = _first(~np.isfinite(rewards))[:2]
        raise EnvError(
            f"{_row(place, b, t, first_t)}: reward: expected a finite number, got {rewards[t, b]} "
            "(a reward of None counts as NaN)"
        )
    for leaf, column in zip(leaf_spaces(space), leaves(space, obs), strict=True):
        if column.dtype.kind == "f":
            if not np.isfinite(column).all():
                at = _first(~np.isfinite(column))
                raise EnvError(
                    f"{_row(place, at[1], at[0], first_t)}: obs{leaf.path}: expected finite numbers, "
                    f"got {column[at]} at index {at[2:]}"
                )
        elif column.dtype.kind == "u" and isinstance(leaf.space, spaces.Box):
            continue  # images: the dtype bounds them, and a pass over them is not nearly free
        low, high = bounds(leaf.space)
        if low is None or high is None:
            continue
        outside = (column < low) | (column > high)
        if outside.any():
            at = _first(outside)
            raise EnvError(
                f"{_row(place, at[1], at[0], first_t)}: obs{leaf.path}: expected values within "
                f"[{_pick(low, at[2:])}, {_pick(high, at[2:])}], got {column[at]} at index {at[2:]}; "
                "widen the observation_space or clip the observation in the environment"
            )


def _row(place: EnvPlace, b: int, t: int, first_t: np.ndarray | None) -> str:
    step = "" if first_t is None else f" (the fragment began at episode step {int(first_t[b])})"
    return f"{place.describe(b)}: row {t} of the fragment{step}"


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _pick(bound: Any, at: tuple[int, ...]) -> Any:
    return bound[at] if np.ndim(bound) else bound


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
