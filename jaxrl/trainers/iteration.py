"""One iteration of a trainer: the plan's next result, completed."""

from __future__ import annotations

import time
from typing import Any

from jaxrl.callbacks import named
from jaxrl.trainers import compilation


def iterate(trainer: Any) -> dict[str, Any]:
    """Pulls a result from the plan and adds what it took, an evaluation where one is due, and what a hook adds."""
    started, compiled = time.perf_counter(), compilation.compile_seconds()
    sampled = trainer.context.counters["num_steps_sampled"]
    result = dict(next(trainer.plan))
    result["sampler_perf"] = trainer.workers.sampler_perf
    result["timesteps_this_iter"] = trainer.context.counters["num_steps_sampled"] - sampled
    result["compile_time_s"] = compilation.compile_seconds() - compiled
    result["engine"] = "workers" if trainer.compiled is None else "compiled"
    if trainer.compiled is not None:
        result["programs"] = {name: cost._asdict() for name, cost in trainer.compiled.costs.items()}
    result["env_steps_per_s"] = result["timesteps_this_iter"] / (time.perf_counter() - started)
    interval = trainer.options.evaluation_interval
    if interval is not None and (trainer.iteration + 1) % interval == 0:
        result["evaluation"] = trainer.evaluate()
    hooks = named(trainer.options.callbacks)
    if hooks is not None and hooks.on_train_result is not None:
        hooks.on_train_result(trainer=trainer, result=result)
    return result
