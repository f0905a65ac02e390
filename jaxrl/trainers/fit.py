"""fit: trains for a number of iterations while showing how it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl.registry import did_you_mean
from jaxrl.trainers.display import Display, open_display
from jaxrl.trainers.history import History, value_at
from jaxrl.trainers.interruption import Interruption
from jaxrl.trainers.results import flatten
from jaxrl.types import ConfigError

# Results that do not have these keys from the first iteration on.
_LATER = ("evaluation/", "custom_metrics/", "policy_reward_", "info/")


def fit(
    trainer: Any,
    iterations: int,
    *,
    stop: Mapping[str, float] | None = None,
    verbose: bool | None = None,
) -> History:
    """Trains, with a live curve in a notebook, a live table in a terminal, or lines where there is neither.

    Ctrl-C (a notebook's stop button) ends it after the iteration that runs, so that the trainer can go on later; a
    second one interrupts at once.

    Args:
        trainer: a Trainer.
        iterations: at most so many.
        stop: ends earlier, once a result's number is at least the one given, as in Tune:
            `{"episode_reward_mean": 450, "timesteps_total": 100_000}`.
        verbose: False: shows nothing.

    Returns:
        A History: `.plot()`, `.to_pandas()`, `[-1]` the last result; `.note` says how it ended.

    Raises:
        ConfigError: `iterations` or `stop` make no sense, or no result has the key of a criterion.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ConfigError(f"fit: iterations should be a whole number of at least 1, got {iterations!r}")
    display = open_display(verbose)
    with Interruption(
        on_first=lambda _: display.note("Ending after this iteration; interrupt again to end at once.")
    ) as (interruption):
        return train_until(
            trainer,
            check_stop(stop),
            iterations=iterations,
            display=display,
            interrupted=lambda: interruption.requested,
        )


def train_until(
    trainer: Any,
    stop: Mapping[str, float],
    *,
    iterations: int | None = None,
    display: Display,
    interrupted: Callable[[], int | None] = lambda: None,
    after: Callable[[Mapping[str, Any]], None] | None = None,
) -> History:
    """Trains until a criterion is met, the iterations are used up or it is interrupted.

    Args:
        trainer: a Trainer.
        stop: checked criteria: see `check_stop`.
        iterations: at most so many more; None: no limit.
        display: shows the results.
        interrupted: asked after each iteration; not None: end.
        after: called with each result.

    Returns:
        The results; `.note` says how it ended.
    """
    history = History(name=f"{trainer.name} on {env_label(trainer)}")
    try:
        while iterations is None or len(history) < iterations:
            result = trainer.train()
            history.results.append(result)
            if len(history) == 1:
                _check_keys(stop, result)
            display.update(history)
            if after is not None:
                after(result)
            met = criterion_met(stop, result)
            if met is not None:
                history.note = f"Stopped: {met} is {value_at(result, met):g}, at least {stop[met]:g}."
                break
            if interrupted() is not None:
                history.note = f"Interrupted after {_iterations(len(history))}."
                break
    except KeyboardInterrupt:
        history.note = f"Interrupted within an iteration, after {_iterations(len(history))} in full."
    finally:
        display.close(history)
    if history.note:
        display.note(history.note)
    return history


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


def _check_keys(stop: Mapping[str, float], result: Mapping[str, Any]) -> None:
    known = dict(flatten(result))
    for key in stop:
        if key not in known and not key.startswith(_LATER):
            raise ConfigError(
                f"stop: results have no {key!r}{did_you_mean(key, known) or '.'} It would never stop there; there are: "
                f"{', '.join(name for name in known if not name.startswith(('config/', 'hist_stats/')))}"
            )


def _iterations(count: int) -> str:
    return f"{count} iteration{'s' * (count != 1)}"
