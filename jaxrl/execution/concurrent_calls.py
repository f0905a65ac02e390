"""ConcurrentCalls: a function applied to several items of a stream at a time; results come as they are ready."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

from jaxrl.execution.nodes import Operator, no_state
from jaxrl.execution.waiting import NOT_READY

# Threads of "all at once": what waits beyond them is taken up as others end.
_MOST_THREADS = 128


class ConcurrentCalls:
    """For `transform`: applies `fn` to the items of a stream, some of them at a time, in no particular order.

    Args:
        fn: of an item. It may not be an operator with a state, nor give `NOT_READY`.
        max_concurrency: calls at a time; 0: all that the stream has.
        resources: options of Ray tasks, `{"num_cpus": 0.5}` say, which then run the calls anywhere in the cluster;
            None: threads of the shard's process do.

    Raises:
        ValueError: a negative number, or a stateful operator.
    """

    passes_not_ready = True

    def __init__(self, fn: Callable[[Any], Any] | Operator, max_concurrency: int, resources: Mapping[str, Any] | None):
        if max_concurrency < 0:
            raise ValueError(f"for_each: max_concurrency must be at least 0, got {max_concurrency}.")
        if isinstance(fn, Operator):
            if fn.init is not no_state or fn.per_worker:
                raise ValueError(
                    f"for_each: {fn.name} has a state, which calls at a time cannot share; leave out max_concurrency."
                )
            fn = functools.partial(_result_of, fn)
        self.fn, self.max_concurrency = fn, max_concurrency
        self.resources = None if resources is None else dict(resources)

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        return self._on_threads(items) if self.resources is None else self._in_tasks(items)

    def _on_threads(self, items: Iterable[Any]) -> Iterator[Any]:
        running: set[futures.Future[Any]] = set()
        with futures.ThreadPoolExecutor(self.max_concurrency or _MOST_THREADS) as pool:
            for item in items:
                if item is NOT_READY:
                    yield item
                    continue
                while self.max_concurrency and len(running) >= self.max_concurrency:
                    done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                    yield from (call.result() for call in done)
                running.add(pool.submit(self.fn, item))
            for call in futures.as_completed(running):
                yield call.result()

    def _in_tasks(self, items: Iterable[Any]) -> Iterator[Any]:
        import ray

        task = ray.remote(self.fn).options(**self.resources or {})
        running: list[Any] = []
        for item in items:
            if item is NOT_READY:
                yield item
                continue
            while self.max_concurrency and len(running) >= self.max_concurrency:
                done, running = ray.wait(running)
                yield from ray.get(done)
            running.append(task.remote(item))
        while running:
            done, running = ray.wait(running)
            yield from ray.get(done)


def _result_of(operator: Operator, item: Any) -> Any:
    return operator.apply((), item)[1]


def concurrent_calls(
    fn: Callable[[Any], Any] | Operator, max_concurrency: int, resources: Mapping[str, Any] | None
) -> ConcurrentCalls | None:
    """What `for_each` is to be with these arguments; None: one call at a time, on the shard itself.

    Raises:
        ValueError: resources for calls that no Ray task makes.
    """
    if max_concurrency != 1:
        return ConcurrentCalls(fn, max_concurrency, resources)
    if resources is not None:
        raise ValueError(
            f"for_each: resources={dict(resources)!r} are of Ray tasks, and with max_concurrency=1 the shard itself "
            "makes the calls; raise max_concurrency, or give resources to the shards (ray_options=)."
        )
    return None
