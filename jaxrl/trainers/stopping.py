"""When a run ends by itself: criteria on its results; and what a run is called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxrl.trainers.history import value_at
from jaxrl.trainers.results import flatten
from jaxrl.types import ConfigError


def check_stop(stop: Mapping[str, Any] | None, where: str = "stop") -> dict[str, float]:
    """The criteria as flat keys and numbers; nested dicts are taken too.

    Raises:
        ConfigError: not a dict of numbers.

    Example:
        >>> check_stop({"evaluation": {"episode_reward_mean": 100}})
        {'evaluation/episode_reward_mean': 100.0}
    """
    if stop is None:
        return {}
    if not isinstance(stop, Mapping):
        raise ConfigError(f'{where}: expected a dict such as {{"training_iteration": 20}}, got {stop!r}')
    checked = {}
    for key, value in flatten(stop):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise ConfigError(f"{where}: {key!r} should be a number, got {value!r}")
        checked[key] = float(value)
    return checked


def criterion_met(stop: Mapping[str, float], result: Mapping[str, Any]) -> str | None:
    """The first criterion that a result meets: its number is at least the one given."""
    return next((key for key, limit in stop.items() if value_at(result, key) >= limit), None)


def env_label(trainer: Any) -> str:
    """What to call a trainer's environment."""
    env = trainer.options.env
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
