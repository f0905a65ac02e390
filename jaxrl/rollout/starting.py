"""Starts rollout workers on Ray actors. One that dies while it starts is replaced; one that raises ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from jaxrl import registry
from jaxrl.rollout.failures import FailureBudget, describe, logger
from jaxrl.rollout.worker import PolicyRecipe
from jaxrl.types import ConfigError, PolicyID, WorkerError

# index -> actor
Start = Callable[[int], Any]


def actor_starter(config: Any, recipes: Mapping[PolicyID, PolicyRecipe]) -> Start:
    """What starts the rollout worker of an index; config and recipes are sent to the object store once.

    Args:
        config: a RolloutConfig with the resources per worker.
        recipes: how workers build the policies.

    Raises:
        ConfigError: they cannot be sent.
    """
    import ray

    from jaxrl.rollout.rollout_actor import RolloutActor

    actor_class = cast("Any", ray.remote(RolloutActor)).options(
        num_cpus=config.num_cpus_per_worker,
        num_gpus=config.num_gpus_per_worker,
        resources=dict(config.custom_resources_per_worker) or None,
    )
    try:
        shipped = ray.put((config, recipes)), ray.put(registry.snapshot())
    except TypeError as error:
        raise ConfigError(
            f"num_workers={config.num_workers}: the config or a registered object cannot be sent to a rollout worker: "
            f"{error}. Give environments as names, classes or creator functions, and keep open files, locks and the "
            "like out of them."
        ) from error
    return lambda index: actor_class.remote({"worker_index": index, "num_workers": config.num_workers}, *shipped)


def start_workers(start: Start, config: Any, budget: FailureBudget) -> list[Any]:
    """The actors of workers 1 to `num_workers`, once all of them stand.

    A worker whose process dies meanwhile (the node is taken away, memory runs out) is started anew within the budget.
    One whose constructor raises ends the run: its code or the environment's is wrong, and would be the next time.

    Args:
        start: see `actor_starter`.
        config: a RolloutConfig.
        budget: of restarts.

    Raises:
        WorkerError: a worker raises, or dies too often.
    """
    import ray
    from ray.exceptions import RayActorError, RayError

    actors = {index: start(index) for index in range(1, config.num_workers + 1)}
    waiting = dict(actors)
    try:
        while waiting:
            pings = {actor.ping.remote(): index for index, actor in waiting.items()}
            waiting = {}
            for ping, index in pings.items():
                try:
                    ray.get(ping)
                except RayActorError as error:
                    if error.actor_init_failed or not config.recreate_failed_workers:
                        raise
                    budget.spend(index, error, answered=False)
                    logger.warning("rollout worker %d died while it started, and is started anew", index)
                    waiting[index] = actors[index] = start(index)
    except (RayError, WorkerError) as error:
        for actor in actors.values():
            ray.kill(actor)
        if isinstance(error, WorkerError):
            raise
        raise WorkerError(f"a rollout worker could not start: {describe(error)}") from error
    return [actors[index] for index in sorted(actors)]
