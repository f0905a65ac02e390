"""RolloutActor: a RolloutWorker in a Ray actor's process."""

from __future__ import annotations

import os
from typing import Any


class RolloutActor:
    """Runs a RolloutWorker in its own process; made into a Ray actor by `WorkerSet`.

    This module imports neither JAX nor jaxrl, so that the process's environment is set before they are.

    Args:
        arguments: positional arguments of RolloutWorker.
        options: its keyword arguments.
    """

    def __init__(self, arguments: tuple[Any, ...], options: dict[str, Any]):
        # Samplers run on the CPU; one thread each: a machine's cores are shared by its workers.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("NPROC", "1")
        from jaxrl.rollout.worker import RolloutWorker

        self._worker = RolloutWorker(*arguments, **options)

    def ping(self) -> int:
        """The process id, once the worker stands."""
        return os.getpid()

    def call(self, method: str, *args: Any) -> Any:
        """A method of the worker."""
        return getattr(self._worker, method)(*args)

    def set_weights(self, version: int, weights: Any) -> None:
        """See `RolloutWorker.set_weights`."""
        self._worker.set_weights(version, weights)

    def par_iter_init(self, transforms: Any) -> None:
        """See `jaxrl.execution.shards.Shard`."""
        self._worker.par_iter_init(transforms)

    def par_iter_next(self) -> Any:
        """See `jaxrl.execution.shards.Shard`."""
        return self._worker.par_iter_next()

    def par_iter_next_batch(self, max_items: int, batch_ms: float) -> list[Any]:
        """See `jaxrl.execution.shards.Shard`."""
        return self._worker.par_iter_next_batch(max_items, batch_ms)

    def par_iter_slice(self, step: int, start: int) -> Any:
        """See `jaxrl.execution.shards.Shard`."""
        return self._worker.par_iter_slice(step, start)

    def par_iter_slice_batch(self, step: int, start: int, batch_ms: float) -> list[Any]:
        """See `jaxrl.execution.shards.Shard`."""
        return self._worker.par_iter_slice_batch(step, start, batch_ms)
