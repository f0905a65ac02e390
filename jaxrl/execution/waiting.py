"""How a plan says "not ready", and how it sleeps until something can move again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Nothing blocks for longer than this at a stretch, so that health checks (a dead learner thread, a deadline) run in
# time.
MAX_BLOCK_S = 1.0
_FIRST_SLICE_S = 0.001
_LAST_SLICE_S = 0.02


class _NotReady:
    """Type of `NOT_READY`; there is one instance in each process, also after pickling."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "NOT_READY"

    def __repr__(self) -> str:
        return "NOT_READY"

    def __bool__(self) -> bool:
        return False


NOT_READY = _NotReady()
"""What `pull` gives while no item can be had without blocking. Compare with `is`."""


class Wait(NamedTuple):
    """What a node that gave `NOT_READY` is waiting for.

    Attributes:
        node: name of the node, for messages.
        kind: "refs" (work is in flight elsewhere and will complete by itself), "queue" (a queue fills or empties),
            "retry" (an operator said no more than not ready), "now" (pull again at once) or "turn" (another branch of
            the same plan has to move first).
        refs: references in flight, for "refs".
        need: how many of `refs` must be ready.
        block_refs: `(refs, need, timeout) -> None`, for "refs"; references of several nodes are waited for together.
        block: `(timeout) -> None`, for "queue"; returns early when the node may be pulled again.
        deadline: `time.monotonic()` value at which the node wants to be pulled whatever happens.
    """

    node: str
    kind: str
    refs: tuple[Any, ...] = ()
    need: int = 1
    block_refs: Callable[[Sequence[Any], int, float], Any] | None = None
    block: Callable[[float], Any] | None = None
    deadline: float | None = None


def holds_turn(waits: Sequence[Wait]) -> bool:
    """Whether waiting in line is safe: only work already in flight is missing, so no other branch has to move first."""
    return bool(waits) and all(wait.kind == "refs" for wait in waits)


def block_until_ready(waits: Sequence[Wait], idle_rounds: int = 0) -> None:
    """Sleeps until one of `waits` may be served, `MAX_BLOCK_S` at most.

    A single kind of wait blocks on the thing itself. Where references and queues are mixed, no one call covers both,
    so they take turns in slices that grow from 1 to 20 ms.

    Args:
        waits: what the plan waits for.
        idle_rounds: how many times in a row the plan has been pulled in vain; lengthens the sleep of "retry".

    Raises:
        RuntimeError: nothing that this thread could wait for can ever make the plan move.
    """
    if any(wait.kind == "now" for wait in waits):
        return
    active = [wait for wait in waits if wait.kind != "turn"]
    if not active:
        names = ", ".join(sorted({wait.node for wait in waits})) or "the plan"
        raise RuntimeError(
            f"{names}: the plan cannot move: a copy made by duplicate() is ahead of its siblings and nothing pulls "
            "them. Pull every copy, for example with Concurrently([a, b]) or a.union(b)."
        )
    limit = MAX_BLOCK_S
    deadlines = [wait.deadline for wait in active if wait.deadline is not None]
    if deadlines:
        limit = max(0.0, min(limit, min(deadlines) - time.monotonic()))
    refs = [wait for wait in active if wait.kind == "refs"]
    queues = [wait for wait in active if wait.kind == "queue" and wait.block is not None]
    others = len(active) - len(refs) - len(queues)
    slice_s = min(_LAST_SLICE_S, _FIRST_SLICE_S * 2 ** min(idle_rounds, 10))
    if others:
        limit = min(limit, slice_s)
    if refs and not queues:
        _block_on_refs(refs, limit)
    elif queues and not refs and len(queues) == 1:
        _block_on(queues[0], limit)
    elif queues:
        # The queues share the slice; each returns at once when it can be served.
        limit = min(limit, slice_s)
        if refs:
            _block_on_refs(refs, limit)
        for wait in queues:
            _block_on(wait, 0.0 if refs else limit / len(queues))
    else:
        time.sleep(limit)


def _block_on_refs(waits: Sequence[Wait], timeout: float) -> None:
    block = waits[0].block_refs
    if block is None:
        raise RuntimeError(f"{waits[0].node}: a wait for references needs block_refs.")
    if len(waits) == 1:
        block(waits[0].refs, waits[0].need, timeout)
    else:
        # Two nodes may wait for the same one.
        block(list(dict.fromkeys(ref for wait in waits for ref in wait.refs)), 1, timeout)


def _block_on(wait: Wait, timeout: float) -> None:
    if wait.block is not None:
        wait.block(timeout)
