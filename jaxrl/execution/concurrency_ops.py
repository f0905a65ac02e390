"""Operators that run several plans side by side, and that hand items to and take them from queues of other threads."""

from __future__ import annotations

import queue as queues
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator
from jaxrl.execution.waiting import NOT_READY

# A dequeue looks after the health of the other side this often.
_CHECK_EVERY_S = 0.25
# Queues other than the standard library's cannot be waited on without taking an item.
_FOREIGN_QUEUE_SLEEP_S = 0.01


def Concurrently(
    ops: Sequence[LocalIterator],
    *,
    mode: Literal["round_robin", "async"] = "round_robin",
    output_indexes: Sequence[int] | None = None,
    round_robin_weights: Sequence[float | str] | None = None,
    seed: int | None = None,
) -> LocalIterator:
    """Runs several plans at once; a host-side union.

    Args:
        ops: at least two plans.
        mode: "round_robin" takes an item from each in turn, "async" as they are ready.
        output_indexes: plans whose items come out; the items of the others are dropped once made. Default: all.
        round_robin_weights: items to take from each in a turn, see `LocalIterator.union`.
        seed: of the rounding of fractional weights.

    Raises:
        ValueError: fewer than two plans, an unknown mode, or weights with mode "async".

    Examples:
        >>> store, replay = LocalIterator.from_items([1, 2]), LocalIterator.from_items("ab")
        >>> list(Concurrently([store, replay], output_indexes=[1]))
        ['a', 'b']
    """
    if len(ops) < 2:
        raise ValueError(f"Concurrently: expected at least two plans, got {len(ops)}.")
    if mode not in ("round_robin", "async"):
        raise ValueError(f'Concurrently: mode is "round_robin" or "async", got {mode!r}.')
    if mode == "async" and round_robin_weights is not None:
        raise ValueError('Concurrently: round_robin_weights need mode="round_robin", got mode="async".')
    return ops[0].union(
        *ops[1:],
        deterministic=mode == "round_robin",
        round_robin_weights=round_robin_weights,
        seed=seed,
        output_indexes=output_indexes,
    )


def Enqueue(queue: Any) -> Operator:
    """Puts each item into a queue and passes it on; while the queue is full, the item is held.

    Args:
        queue: a bounded `queue.Queue`, or anything with `put_nowait` that raises `queue.Full`.

    Examples:
        >>> inbox = queue.Queue(maxsize=4)
        >>> LocalIterator.from_items([1, 2]).for_each(Enqueue(inbox)).take(2), inbox.qsize()
        ([1, 2], 2)
    """
    return Operator("Enqueue", _Put(queue), host_only=True, wait=_RoomWait(queue))


def Dequeue(queue: Any, check: Callable[[], Any] | None = None) -> LocalIterator:
    """Stream of what other threads put into a queue; sleeps while it is empty.

    Args:
        queue: a `queue.Queue`, or anything with `get_nowait` that raises `queue.Empty`.
        check: called while the queue is empty. It gives True while the other side is well; False ends the plan, and
            so does what it raises.

    Raises:
        RuntimeError: (while iterating) the other side is not well.

    Examples:
        >>> outbox = queue.Queue()
        >>> outbox.put("batch")
        >>> Dequeue(outbox, check=learner_thread.is_alive).take(1)
        ['batch']
    """
    return LocalIterator.from_operator(Operator("Dequeue", _Get(queue, check), host_only=True, wait=_ItemWait(queue)))


class _Put:
    def __init__(self, queue: Any):
        self.queue = queue

    def __call__(self, state: Any, item: Any) -> tuple[Any, Any]:
        try:
            self.queue.put_nowait(item)
        except queues.Full:
            return state, NOT_READY
        return state, item


class _RoomWait:
    def __init__(self, queue: Any):
        self.queue = queue

    def __call__(self, state: Any, item: Any, timeout: float) -> None:
        queue = self.queue
        if isinstance(queue, queues.Queue):
            with queue.not_full:
                queue.not_full.wait_for(lambda: not 0 < queue.maxsize <= len(queue.queue), timeout)
        else:
            time.sleep(min(timeout, _FOREIGN_QUEUE_SLEEP_S))


class _Get:
    def __init__(self, queue: Any, check: Callable[[], Any] | None):
        self.queue = queue
        self.check = check

    def __call__(self, state: Any, item: Any) -> tuple[Any, Any]:
        try:
            return state, self.queue.get_nowait()
        except queues.Empty:
            self._look_after()
        return state, NOT_READY

    def _look_after(self) -> None:
        if self.check is not None and not self.check():
            raise RuntimeError("Dequeue: the queue is empty, and what fills it has stopped.")


class _ItemWait:
    def __init__(self, queue: Any):
        self.queue = queue

    def __call__(self, state: Any, item: Any, timeout: float) -> None:
        queue = self.queue
        if isinstance(queue, queues.Queue):
            with queue.not_empty:
                queue.not_empty.wait_for(lambda: len(queue.queue) > 0, min(timeout, _CHECK_EVERY_S))
        else:
            time.sleep(min(timeout, _FOREIGN_QUEUE_SLEEP_S))
