"""fit: trains for a number of iterations while showing how it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from jaxrl.trainers import compilation, stopping
from jaxrl.trainers.display import Display, open_display
from jaxrl.trainers.evolution import PopulationBasedTraining
from jaxrl.trainers.history import History, value_at
from jaxrl.trainers.interruption import Interruption
from jaxrl.trainers.population import PopulationHistory, fit_population
from jaxrl.types import ConfigError


@overload
def fit(
    trainer: Any,
    iterations: int,
    *,
    stop: Mapping[str, float] | None = None,
    verbose: bool | None = None,
) -> History: ...
@overload
def fit(
    trainer: Any,
    iterations: int,
    *,
    seeds: int | Sequence[int],
    coeffs: Mapping[str, Sequence[float]] | None = None,
    evolve: PopulationBasedTraining | None = None,
    stop: Mapping[str, float] | None = None,
    verbose: bool | None = None,
) -> PopulationHistory: ...
@overload
def fit(
    trainer: Any,
    iterations: int,
    *,
    coeffs: Mapping[str, Sequence[float]],
    evolve: PopulationBasedTraining | None = None,
    stop: Mapping[str, float] | None = None,
    verbose: bool | None = None,
) -> PopulationHistory: ...
def fit(
    trainer: Any,
    iterations: int,
    *,
    seeds: int | Sequence[int] | None = None,
    coeffs: Mapping[str, Sequence[float]] | None = None,
    evolve: PopulationBasedTraining | None = None,
    stop: Mapping[str, float] | None = None,
    verbose: bool | None = None,
) -> History | PopulationHistory:
    """Trains, with a live curve in a notebook, a live table in a terminal, or lines where there is neither.

    Ctrl-C (a notebook's stop button) ends it after the iteration that runs, so that the trainer can go on later; a
    second one interrupts at once.

    Args:
        trainer: a Trainer.
        iterations: at most so many.
        seeds: train a population in one compiled program: so many seeds, from the trainer's on, or these.
        coeffs: a population of every combination of these values (`{"lr": [1e-3, 3e-4]}`), each with all seeds.
        evolve: population-based training over that population.
        stop: ends earlier, once a result's number is at least the one given, as in Tune:
            `{"episode_reward_mean": 450, "timesteps_total": 100_000}`.
        verbose: False: shows nothing.

    Returns:
        A History: `.plot()`, `.to_pandas()`, `[-1]` the last result; `.note` says how it ended. Of a population a
        PopulationHistory, and the trainer goes on as its best member.

    Raises:
        ConfigError: `iterations` or `stop` make no sense, no result has the key of a criterion, or a population is
            asked of a trainer whose plan is not compiled.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ConfigError(f"fit: iterations should be a whole number of at least 1, got {iterations!r}")
    criteria = stopping.check_stop(stop)
    display = open_display(verbose)
    with Interruption(
        on_first=lambda _: display.note("Ending after this iteration; interrupt again to end at once.")
    ) as interruption:
        if seeds is not None or coeffs is not None or evolve is not None:
            return fit_population(
                trainer,
                iterations,
                seeds=1 if seeds is None else seeds,
                coeffs=coeffs,
                evolve=evolve,
                stop=criteria,
                display=display,
                interrupted=lambda: interruption.requested,
            )
        return train_until(
            trainer,
            criteria,
            iterations=iterations,
            display=display,
            interrupted=lambda: interruption.requested,
        )


@contextlib.contextmanager
def compiling(display: Display) -> Iterator[None]:
    """Says, within a first iteration, which programs take long to compile."""
    with compilation.watched(lambda name: display.status(f"Compiling {name}, which the next run finds in the cache.")):
        yield


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
        stop: checked criteria: see `stopping.check_stop`.
        iterations: at most so many more; None: no limit.
        display: shows the results.
        interrupted: asked after each iteration; not None: end.
        after: called with each result.

    Returns:
        The results; `.note` says how it ended.
    """
    history = History(name=f"{trainer.name} on {stopping.env_label(trainer)}", progress=trainer.progress_keys)
    try:
        while iterations is None or len(history) < iterations:
            with compiling(display) if not history else contextlib.nullcontext():
                result = trainer.train()
            history.results.append(result)
            if len(history) == 1:
                stopping.check_keys(stop, result)
            display.update(history)
            if after is not None:
                after(result)
            met = stopping.criterion_met(stop, result)
            if met is not None:
                history.note = f"Stopped: {met} is {value_at(result, met):g}, at least {stop[met]:g}."
                break
            if interrupted() is not None:
                history.note = f"Interrupted after {stopping.iterations(len(history))}."
                break
    except KeyboardInterrupt:
        history.note = f"Interrupted within an iteration, after {stopping.iterations(len(history))} in full."
    finally:
        display.close(history)
    if history.note:
        display.note(history.note)
    return history
