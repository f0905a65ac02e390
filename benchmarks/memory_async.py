"""Resident memory of IMPALA with 2 Ray workers over an hour (`--minutes 60`): trainer, workers, Ray's object store."""

from __future__ import annotations

from measuring import HERE, Options, Row
from memory import INTERVAL, plot, row, save, watch


def measure(options: Options) -> Row:
    seconds = 40.0 if options.quick else 60.0 * options.minutes
    series = {"2 workers": watch("IMPALA", 2, seconds, 1.0 if options.quick else INTERVAL)}
    if not options.quick:
        save(series, HERE / "memory_async.json")
        plot(series, HERE / "memory_async.png", "IMPALA on CartPole-v1, 2 workers of 5 environments")
    return row(
        series,
        "memory of IMPALA with 2 workers over time (environments that pause for 0.5 ms a step)",
        "resident memory and object store flat after warm-up, no spilling, one hour",
        "memory_async",
    )
