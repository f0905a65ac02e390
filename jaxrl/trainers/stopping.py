"""When a run ends by itself: criteria on its results; and what a run is called."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxrl.terminal import printable_name
from jaxrl.trainers.history import value_at
from jaxrl.trainers.result_table import flatten
from jaxrl.types import ConfigError

# What every result of `StandardMetricsReporting` has, as `Trainer.train` completes it.
_ALWAYS = (
    "training_iteration",
    "timesteps_total",
    "time_total_s",
    "episode_reward_mean",
    "episode_reward_max",
    "episode_reward_min",
    "episode_len_mean",
    "episodes_total",
    "episodes_this_iter",
    "timesteps_this_iter",
    "time_this_iter_s",
    "env_steps_per_s",
    "compile_time_s",
    "num_healthy_workers",
    "num_worker_restarts",
    "num_env_restarts",
    "time_since_restore",
    "timesteps_since_restore",
    "iterations_since_restore",
    "timestamp",
    "done",
)
# Of a population's.
_POPULATIONS = ("members", "timesteps_per_member")
# Results that do not have these keys from the first iteration on.
_LATER = ("evaluation/", "custom_metrics/", "policy_reward_", "info/", "timers/", "sampler_perf/", "hist_stats/")


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


def check_keys(stop: Mapping[str, float], result: Mapping[str, Any], where: str = "stop") -> None:
    """Checks the criteria against the first result.

    Raises:
        ConfigError: results have no such key, so that it would never stop there.
    """
    _check(stop, [key for key, _ in flatten(result) if not key.startswith(("config/", "hist_stats/"))], where)


def check_keys_early(stop: Mapping[str, float], trainer_cls: Any, options: Any, where: str = "stop") -> None:
    """Checks the criteria before anything is compiled, where it is known what results will have.

    Args:
        stop: flat criteria.
        trainer_cls: the Trainer class; results of a plan of the user's may have other keys.
        options: its options; a hook `on_train_result` may add keys.
        where: names the criteria, for the message.

    Raises:
        ConfigError: no result will have such a key.
    """
    hooked = options.callbacks is not None and options.callbacks.on_train_result is not None
    if not hooked and trainer_cls.execution_plan.__module__.startswith("jaxrl."):
        _check(stop, [*_ALWAYS, *_POPULATIONS], where)


def _check(stop: Mapping[str, float], known: Sequence[str], where: str) -> None:
    for key in stop:
        if key not in known and not key.startswith(_LATER):
            raise ConfigError(f"{where}: results have no {key!r}; {nearest_keys(key, known)}")


def nearest_keys(key: str, known: Iterable[str]) -> str:
    """What a mistyped key of results may have meant: the mean of such a number first, five names at most."""
    names = list(known)
    means = [name for name in names if f"_{name}".endswith((f"_{key}_mean", f"/{key}_mean"))]
    usual = [name for name in _ALWAYS[:5] if name in names]
    found = list(dict.fromkeys([*means, *difflib.get_close_matches(key, names, n=5, cutoff=0.5)]))
    guess = f"did you mean {found[0]!r}? " if found else ""
    return f"{guess}There are, among others: {', '.join(list(dict.fromkeys([*found, *usual]))[:5])}"


def criterion_met(stop: Mapping[str, float], result: Mapping[str, Any]) -> str | None:
    """The first criterion that a result meets: its number is at least the one given."""
    return next((key for key, limit in stop.items() if value_at(result, key) >= limit), None)


def iterations(count: int) -> str:
    """So many iterations, in words."""
    return f"{count} iteration{'s' * (count != 1)}"


def env_label(trainer: Any) -> str:
    """What to call a trainer's environment, in one line."""
    env = trainer.options.env
    return printable_name(env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__))
