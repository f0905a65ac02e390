"""RolloutActor: a RolloutWorker in a Ray actor's process."""

from __future__ import annotations

import os
from typing import Any


def _check_gpu(share: float) -> None:
    """Checks that JAX sees the worker's GPU, on which it learns; sampling stays on the CPU.

    Raises:
        ConfigError: it does not.
    """
    if share < 1:
        # Several workers share it: none may take most of its memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from jaxrl.types import ConfigError

    if jax.default_backend() == "cpu":
        raise ConfigError(
            f"num_gpus_per_worker={share:g}: Ray gave this worker a GPU, but JAX finds none; install JAX for it "
            "(pip install 'jax[cuda13]'), or set num_gpus_per_worker=0."
        )


class RolloutActor:
    """Runs a RolloutWorker in its own process; made into a Ray actor by `WorkerSet`.

    Args:
        options: keyword arguments of RolloutWorker.
        arguments: its positional arguments.
        registrations: the driver's `registry.snapshot()`: names that a user registered there work here.
    """

    def __init__(self, options: dict[str, Any], arguments: tuple[Any, ...], registrations: dict[str, dict[str, Any]]):
        # One thread each: a machine's cores are shared by its workers. Read when JAX makes its backends.
        os.environ.setdefault("NPROC", "1")
        import jax

        from jaxrl import registry
        from jaxrl.rollout.worker import RolloutWorker

        config = arguments[0]
        if config.workers_learn and config.num_gpus_per_worker > 0:
            _check_gpu(config.num_gpus_per_worker)
        else:
            # Samplers run on the CPU. JAX is imported by now, so that an environment variable would come too late.
            jax.config.update("jax_platforms", "cpu")
        registry.install(registrations)
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
