"""Schedules: pure host functions from the number of timesteps to a number.

They are evaluated once per fragment or iteration and enter compiled functions as coeffs, so that nothing recompiles.
A configuration gives one as a number, as `[[t, value], ...]` or as `{"type": "LinearSchedule", ...}`.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from jaxrl.coercion import Mismatch, Validated, build, coerce, short
from jaxrl.types import ConfigError


@dataclass(frozen=True)
class ConstantSchedule:
    """The same `value` at every timestep."""

    value: float

    def __call__(self, t: int) -> float:
        return self.value


@dataclass(frozen=True)
class PolynomialSchedule:
    """From `initial_p` to `final_p` over `schedule_timesteps`, then `final_p` for ever.

    `p(t) = final_p + (initial_p - final_p) * (1 - min(t, T) / T) ** power`, with `T = schedule_timesteps`.
    """

    schedule_timesteps: int
    final_p: float
    initial_p: float = 1.0
    power: float = 2.0

    def __post_init__(self) -> None:
        _check_timesteps(self)

    def __call__(self, t: int) -> float:
        left = 1.0 - min(max(t, 0), self.schedule_timesteps) / self.schedule_timesteps
        return self.final_p + (self.initial_p - self.final_p) * left**self.power


@dataclass(frozen=True)
class LinearSchedule:
    """From `initial_p` straight to `final_p` over `schedule_timesteps`, then `final_p` for ever.

    Example:
        >>> LinearSchedule(schedule_timesteps=100, final_p=0.0, initial_p=1.0)(25)
        0.75
    """

    schedule_timesteps: int
    final_p: float
    initial_p: float = 1.0

    def __post_init__(self) -> None:
        _check_timesteps(self)

    def __call__(self, t: int) -> float:
        done = min(max(t, 0), self.schedule_timesteps) / self.schedule_timesteps
        return self.initial_p + (self.final_p - self.initial_p) * done


@dataclass(frozen=True)
class ExponentialSchedule:
    """Decay without end: `p(t) = initial_p * decay_rate ** (t / schedule_timesteps)`."""

    schedule_timesteps: int
    initial_p: float = 1.0
    decay_rate: float = 0.1

    def __post_init__(self) -> None:
        _check_timesteps(self)
        if self.decay_rate <= 0:
            raise ConfigError(f"ExponentialSchedule: decay_rate: expected a number > 0, got {self.decay_rate}")

    def __call__(self, t: int) -> float:
        return self.initial_p * self.decay_rate ** (max(t, 0) / self.schedule_timesteps)


@dataclass(frozen=True)
class PiecewiseSchedule:
    """Straight lines between `(t, value)` endpoints.

    Outside them it is `outside_value`, or, if that is None, the value of the nearest endpoint. Two endpoints at one `t`
    make a jump: the later one counts from that `t` on.

    Example:
        >>> PiecewiseSchedule(endpoints=((0, 1.0), (100, 0.0)))(25)
        0.75
    """

    endpoints: tuple[tuple[float, float], ...]
    outside_value: float | None = None

    def __post_init__(self) -> None:
        times = [t for t, _ in self.endpoints]
        if not times:
            raise ConfigError("PiecewiseSchedule: expected at least one [t, value] endpoint, got none")
        if times != sorted(times):
            raise ConfigError(f"PiecewiseSchedule: expected endpoints sorted by t, got t = {times}")
        if not all(math.isfinite(number) for endpoint in self.endpoints for number in endpoint):
            raise ConfigError(f"PiecewiseSchedule: expected finite endpoints, got {short(self.endpoints)}")

    def __call__(self, t: int) -> float:
        times = [time for time, _ in self.endpoints]
        after = bisect.bisect_right(times, t)
        if after == 0 or (after == len(times) and t > times[-1]):
            nearest = self.endpoints[min(after, len(times) - 1)][1]
            return nearest if self.outside_value is None else self.outside_value
        left_t, left = self.endpoints[after - 1]
        if t == left_t or after == len(times):
            return left
        right_t, right = self.endpoints[after]
        return left + (right - left) * (t - left_t) / (right_t - left_t)


Schedule = ConstantSchedule | LinearSchedule | PolynomialSchedule | ExponentialSchedule | PiecewiseSchedule

SCHEDULES: Mapping[str, type[Schedule]] = {cls.__name__: cls for cls in get_args(Schedule)}


def make_schedule(spec: Any, where: str = "schedule") -> Schedule:
    """Makes a schedule from a configuration's value.

    Args:
        spec: a number, `[[t, value], ...]` (piecewise linear, held outside), `{"type": name, **fields}` or a schedule.
        where: what to name in an error, for example `config: key 'lr'`.

    Returns:
        A function from the number of env steps to a float.

    Raises:
        ConfigError: not a schedule, an unknown type or field, no endpoints, or unsorted ones.

    Example:
        >>> make_schedule([[0, 1.0], [100, 0.0]])(50)
        0.5
    """
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, Mapping):
        return _from_mapping(spec, where)
    if isinstance(spec, (list, tuple)):
        return PiecewiseSchedule(coerce(spec, tuple[tuple[float, float], ...], f"{where}: endpoints"))
    return ConstantSchedule(coerce(spec, float, where))


def as_plain(spec: Any) -> Any:
    """Checks a schedulable number and returns it as plain data: a float, nested tuples or a dict."""
    schedule = make_schedule(spec)
    if isinstance(schedule, ConstantSchedule) and not isinstance(spec, (Mapping, ConstantSchedule)):
        return schedule.value
    if isinstance(schedule, PiecewiseSchedule) and isinstance(spec, (list, tuple)):
        return schedule.endpoints
    fields = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    return {"type": type(schedule).__name__, **fields}


# A number that may follow a schedule: the annotation of such configuration fields. Values stay plain data;
# `make_schedule` turns them into functions where they are used.
Coeff = Annotated[float | list | tuple | dict, Validated("number or schedule", as_plain)]


def _from_mapping(spec: Mapping[str, Any], where: str) -> Schedule:
    cls = SCHEDULES.get(str(spec.get("type")))
    if cls is None:
        raise ConfigError(f"{where}: expected 'type' to be one of {', '.join(SCHEDULES)}, got {spec.get('type')!r}")
    try:
        return build(cls, {key: value for key, value in spec.items() if key != "type"})
    except Mismatch as mismatch:
        raise mismatch.error(f"{where}: {cls.__name__}") from None


def _check_timesteps(schedule: PolynomialSchedule | LinearSchedule | ExponentialSchedule) -> None:
    if schedule.schedule_timesteps < 1:
        name = type(schedule).__name__
        raise ConfigError(f"{name}: schedule_timesteps: expected an int >= 1, got {schedule.schedule_timesteps}")
