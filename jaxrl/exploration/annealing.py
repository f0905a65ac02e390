"""Options that many explorations share: checked numbers, and coeffs that fall from a first to a last value."""

from __future__ import annotations

import math
from typing import Any

from jaxrl.schedules import Schedule, make_schedule
from jaxrl.types import ConfigError


def number(where: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """Checks a numeric option.

    Args:
        where: exploration and option, for the message.
        value: what was given.
        low: smallest allowed number.
        high: largest allowed number.

    Returns:
        The number.

    Raises:
        ConfigError: if it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ConfigError(f"exploration_config: {where}: expected a number {bounds}, got {value!r}")
    return value


def annealed(
    where: str,
    option: str,
    initial: float,
    final: float,
    timesteps: float,
    schedule: Any,
    *,
    start: float = 0,
    high: float = math.inf,
) -> Schedule:
    """A straight line from `initial` to `final` over `timesteps` env steps from `start` on, or the schedule given.

    Args:
        where: the exploration, for messages.
        option: what falls; its options are `initial_{option}`, `final_{option}`, `{option}_timesteps` and
            `{option}_schedule`.
        initial: value up to `start`.
        final: value from `start + timesteps` on.
        timesteps: env steps between the two.
        schedule: takes the place of all of these (a number, `[[t, value], ...]`, `{"type": ...}`), or None.
        start: env step at which the line begins.
        high: largest allowed value of `initial` and `final`.

    Returns:
        The schedule over env steps.

    Raises:
        ConfigError: a number out of range, or no schedule.
    """
    if schedule is not None:
        return make_schedule(schedule, f"exploration_config: {where}: {option}_schedule")
    number(f"{where}: initial_{option}", initial, high=high)
    number(f"{where}: final_{option}", final, high=high)
    number(f"{where}: {option}_timesteps", timesteps)
    return make_schedule([[start, initial], [start + timesteps, final]], f"exploration_config: {where}: {option}")
