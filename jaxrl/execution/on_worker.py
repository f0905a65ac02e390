"""OnWorker: a step of a plan that runs on rollout workers and sees its worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxrl.execution.nodes import Operator


def no_worker_state(worker: Any) -> tuple[()]:
    """Initial state, on a worker, of an operator that has none: `()`."""
    del worker
    return ()


def OnWorker(
    name: str, apply: Callable[[Any, Any, Any], tuple[Any, Any]], init: Callable[[Any], Any] = no_worker_state
) -> Operator:
    """A step that runs on rollout workers and sees its worker; each worker holds a state of its own.

    It travels to actors: give functions of a module, not closures over what cannot be sent.

    Args:
        name: of the operator.
        apply: `(worker, state, item) -> (state, item)`.
        init: `(worker) -> state`.

    Example:
        >>> index = OnWorker("Index", lambda worker, state, batch: (state, (worker.worker_index, batch)))
        >>> ParallelRollouts(ctx, mode="raw").for_each(index).gather_async()
    """
    return Operator(name, apply, init, host_only=True, per_worker=True)
