"""Checks of what environments return; every error says which environment and step, what was expected and what came.

Types, shapes and dtypes are looked at whenever a value is written into a row, before it is cast: what is of exactly the
row's form costs a few comparisons. Numbers (finite, within bounds) are looked at once a fragment, over all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from jaxrl.envs.fitting import MisfitError, first_index, fitter, short, wrong_number
from jaxrl.envs.leaves import leaf_spaces, leaves, unflatten
from jaxrl.tracebacks import raised
from jaxrl.types import EnvError

_OLD_GYM = (
    "this is the API of gym before 0.26; return (obs, reward, terminated, truncated, info) from step and (obs, info) "
    "from reset "
    "(https://gymnasium.farama.org/introduction/migration_guide/)"
)


# What a reward, and what a flag of an episode's end, is an instance of; anything else is looked at closely.
NUMBERS = frozenset(
    {float, int, bool, np.bool_, np.float16, np.float32, np.float64}
    | {np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
FLAGS = frozenset({bool, np.bool_})

_MAX_REWARD = float(np.finfo(np.float32).max)


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
    check_reset_types(result, where)
    check_observation(space, result[0], f"{where}: reset")
    return result


def check_reset_types(result: Any, where: str) -> None:
    """Raises EnvError unless `reset` returned `(obs, info)`; the observation is not looked at."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise EnvError(f"{where}: reset: expected a tuple (obs, info dict), got {short(result)}; {_OLD_GYM}")


def check_step_result(space: spaces.Space, result: Any, where: str) -> tuple[Any, float, bool, bool, Any]:
    """Checks what `step` returned.

    Args:
        space: observation space.
        result: the returned value; a tuple `(obs, reward, terminated, truncated, info)` is expected.
        where: description of the environment, for the message.

    Returns:
        The five values.

    Raises:
        EnvError: wrong arity, a reward that is no finite number, flags that are no bools, or a bad observation. One
            that follows a terminal state need not be finite.
    """
    check_step_types(result, where)
    check_observation(space, result[0], f"{where}: step", finite=not result[2])
    return result


def check_step_types(result: Any, where: str) -> None:
    """Raises EnvError unless `step` returned five values of the right types; the observation is not looked at."""
    if not isinstance(result, tuple) or len(result) != 5:
        count = f"{len(result)} values" if isinstance(result, tuple | list) else short(result)
        count += " in a list instead of a tuple" if isinstance(result, list) and len(result) == 5 else ""
        hint = f"; {_OLD_GYM}" if isinstance(result, tuple | list) and len(result) == 4 else ""
        raise EnvError(f"{where}: step: expected (obs, reward, terminated, truncated, info), got {count}{hint}")
    _, reward, terminated, truncated, info = result
    check_reward(reward, f"{where}: step")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        check_flag(flag, f"{where}: step: expected {name}")
    if not isinstance(info, dict):
        raise EnvError(f"{where}: step: expected info to be a dict, got {short(info)}")


def check_vector_step(result: Any, num_envs: int, where: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Any]:
    """Returns the five values of a vector env's step; the observations are not looked at.

    Args:
        result: the returned value; `(obs, rewards [B], terminateds [B], truncateds [B], infos)` is expected.
        num_envs: B.
        where: description of the environments, for the message.

    Raises:
        EnvError: wrong arity, or an array of another dtype or shape.
    """
    if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
        count = f"{len(result)} values" if isinstance(result, tuple | list) else short(result)
        raise EnvError(f"{where}: step: expected (obs, rewards, terminateds, truncateds, infos dict), got {count}")
    for name, kinds, value in zip(
        ("rewards", "terminateds", "truncateds"), ("fiub", "b", "b"), result[1:4], strict=True
    ):
        array = np.asarray(value)
        if array.dtype.kind not in kinds or array.shape != (num_envs,):
            kind = "numbers" if name == "rewards" else "bools"
            raise EnvError(f"{where}: step: expected {name} to be {num_envs} {kind}, got {short(value)}")
    return result


def has_step_types(result: Any) -> bool:
    """Whether `step` returned five values whose types are the usual ones: a quick `check_step_types`."""
    return (
        result.__class__ is tuple
        and len(result) == 5
        and result[1].__class__ in NUMBERS
        and result[2].__class__ in FLAGS
        and result[3].__class__ in FLAGS
        and isinstance(result[4], dict)
    )


def check_flag(flag: Any, expected: str) -> None:
    """Raises EnvError unless an episode's flag is a bool; `expected` begins the message."""
    if flag.__class__ not in FLAGS and (np.shape(flag) != () or np.asarray(flag).dtype != np.bool_):
        raise EnvError(f"{expected} to be a bool, got {short(flag)}")


def check_reward(reward: Any, where: str) -> None:
    """Raises EnvError unless the reward is one finite number."""
    value = np.asarray(reward)
    if value.dtype == object or value.dtype.kind not in "fiub" or value.shape != ():
        raise EnvError(f"{where}: expected the reward to be one finite number, got {short(reward)}")
    if not np.isfinite(value).all():
        raise EnvError(f"{where}: expected a finite reward, got {float(value.reshape(()))}")


def check_observation(space: spaces.Space, obs: Any, where: str, path: str = "obs", *, finite: bool = True) -> None:
    """Raises EnvError unless the observation has the space's structure, shapes, dtypes and bounds, and is finite.

    Args:
        space: observation space.
        obs: one environment's observation; nested lists and Python scalars pass for arrays.
        where: description of the environment and call, for the message.
        path: what the message calls the observation.
        finite: numbers must be finite.
    """
    try:
        flat = fitter(space, path)(obs)
    except MisfitError as error:
        raise EnvError(f"{where}: {error}") from None
    for leaf, value in zip(leaf_spaces(space), flat, strict=True):
        problem = wrong_number(leaf, value, 0, finite=finite)
        if problem is not None:
            raise EnvError(f"{where}: {path}{leaf.path}: {problem[1]}")


def check_fragment(
    space: spaces.Space,
    obs: Any,
    rewards: np.ndarray,
    place: EnvPlace,
    *,
    first_t: np.ndarray | None = None,
    starts: np.ndarray | None = None,
) -> None:
    """Checks a whole fragment at once for NaN, infinity and values outside the observation space.

    Args:
        space: single observation space.
        obs: pytree of arrays `[T, B, ...]` (T + 1 rows are fine too).
        rewards: `[T, B]`.
        place: names the environments in the message.
        first_t: `[B]` episode step of row 0, for the message; absent: the row of the fragment is named alone.
        starts: bool `[T + 1, B]`, the rows with which episodes start; with them the message names the episode step.

    Raises:
        EnvError: names the environment, the row, the key path and the value.
    """
    # Rewards are float64 here; learning sees float32.
    if rewards.size and not (rewards.min() >= -_MAX_REWARD and rewards.max() <= _MAX_REWARD):
        t, b = first_index(~(np.abs(rewards) <= _MAX_REWARD))
        where = _row(place, t, b, first_t) if starts is None else step_at(place, t, b, first_t, starts)
        raise EnvError(f"{where}: reward: expected a finite number of 32 bits, got {rewards[t, b]}")
    for leaf, column in zip(leaf_spaces(space), leaves(space, obs), strict=True):
        problem = wrong_number(leaf, column, 2)
        if problem is None:
            continue
        (t, b), message = problem
        if starts is None:
            where = _row(place, t, b, first_t)
        elif starts[t, b]:
            where = f"{place.describe(b)}: reset"
        else:
            where = step_at(place, t - 1, b, first_t, starts)
        raise EnvError(f"{where}: obs{leaf.path}: {message}")


def _row(place: EnvPlace, t: int, b: int, first_t: np.ndarray | None) -> str:
    step = "" if first_t is None else f" (the fragment began at episode step {int(first_t[b])})"
    return f"{place.describe(b)}: row {t} of the fragment{step}"


def check_rows(space: spaces.Space, rows: Any, where: Callable[[int], str]) -> None:
    """Raises EnvError unless all numbers of observation rows are finite and within the space's bounds.

    Args:
        space: single observation space.
        rows: pytree of arrays `[N, ...]`.
        where: describes row n, for the message.
    """
    for leaf, column in zip(leaf_spaces(space), leaves(space, rows), strict=True):
        problem = wrong_number(leaf, column, 1)
        if problem is not None:
            raise EnvError(f"{where(*problem[0])}: obs{leaf.path}: {problem[1]}")


def check_finals(space: spaces.Space, finals: Any, terminated: np.ndarray, where: Callable[[int], str]) -> Any:
    """Checks the final observations of the episodes that ended in a fragment.

    What follows a terminal state counts for nothing, so that its numbers need not be finite; but it is multiplied by
    zero, and NaN times zero is NaN: they become zeros.

    Args:
        space: single observation space.
        finals: pytree of arrays `[K, ...]`.
        terminated: bool `[K]`, whether the episode ended in a terminal state.
        where: describes the end k, for the message.

    Returns:
        The final observations, with zeros where a terminal one is not finite.

    Raises:
        EnvError: names the environment, its step, the key path and the value.
    """
    flat = []
    for leaf, column in zip(leaf_spaces(space), leaves(space, finals), strict=True):
        for ends, finite in ((np.flatnonzero(~terminated), True), (np.flatnonzero(terminated), False)):
            problem = wrong_number(leaf, column[ends], 1, finite=finite) if len(ends) else None
            if problem is not None:
                raise EnvError(f"{where(int(ends[problem[0]]))}: final obs{leaf.path}: {problem[1]}")
        known = np.isfinite(column) if column.dtype.kind in "fc" else True
        flat.append(column if np.all(known) else np.where(known, column, np.zeros((), column.dtype)))
    return unflatten(space, flat)


def step_at(place: EnvPlace, t: int, b: int, first_t: np.ndarray | None, starts: np.ndarray) -> str:
    """Describes the step taken in row `t` (-1: the last one of the fragment before); see `check_fragment`."""
    began = np.flatnonzero(starts[: t + 1, b])
    number = t - began[-1] if len(began) else t + (0 if first_t is None else int(first_t[b]))
    return f"{place.describe(b, int(number))}: step"
