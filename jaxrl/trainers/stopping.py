"""When a run ends by itself: criteria on its results; and what a run is called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxrl.registry import did_you_mean
from jaxrl.trainers.history import value_at
from jaxrl.trainers.results import flatten
from jaxrl.types import ConfigError

# Results that do not have these keys from the first iteration on.
_LATER = ("evaluation/", "custom_metrics/", "policy_reward_", "info/")


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


def check_keys(stop: Mapping[str, float], result: Mapping[str, Any]) -> None:
    """Checks the criteria against the first result.

    Raises:
        ConfigError: results have no such key, so that it would never stop there.
    """
    known = dict(flatten(result))
    for key in stop:
        if key not in known and not key.startswith(_LATER):
            raise ConfigError(
                f"stop: results have no {key!r}{did_you_mean(key, known) or '.'} It would never stop there; there are: "
                f"{', '.join(name for name in known if not name.startswith(('config/', 'hist_stats/')))}"
            )


def criterion_met(stop: Mapping[str, float], result: Mapping[str, Any]) -> str | None:
    """The first criterion that a result meets: its number is at least the one given."""
    return next((key for key, limit in stop.items() if value_at(result, key) >= limit), None)


def iterations(count: int) -> str:
    """So many iterations, in words."""
    return f"{count} iteration{'s' * (count != 1)}"


def env_label(trainer: Any) -> str:
    """What to call a trainer's environment."""
    env = trainer.options.env
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
