"""Nodes with one input beside for_each: filter, batch, flatten, shuffle, zip with the source, transform."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxrl.execution.nodes import Node, Operator, like, random_unit
from jaxrl.execution.waiting import NOT_READY, Wait, block_until_ready

# A filter that turned this many items down in one pull lets the other branches of the plan have a turn.
MAX_REJECTS = 100


class Filter(Node):
    """Items for which an operator, used as a predicate, gives something true."""

    kind = "filter"

    def __init__(self, source: Node, operator: Operator):
        super().__init__(operator.name, [source], host_only=operator.host_only)
        self.operator = operator
        self.state = operator.init()
        self._gave_way = False

    def step(self) -> Any:
        self._gave_way = False
        for _ in range(MAX_REJECTS):
            item = self.fetch()
            if item is NOT_READY:
                return item
            try:
                self.state, keep = self.operator.apply(self.state, item)
            except StopIteration as error:
                raise RuntimeError(
                    f"{self.name}: a predicate raised StopIteration; only a source may end a plan."
                ) from error
            if keep:
                return item
        self._gave_way = True
        return NOT_READY

    def waits(self) -> list[Wait]:
        return [Wait(self.name, "now")] if self._gave_way else self.inputs[0].waits()

    def get_state(self) -> Any:
        return {"op": self.state}

    def set_state(self, state: Any) -> None:
        self.state = like(self.operator.init(), state["op"])


class Batch(Node):
    """Lists of `size` consecutive items; the last may be shorter."""

    kind = "batch"

    def __init__(self, source: Node, size: int):
        if size < 1:
            raise ValueError(f"batch: the size must be at least 1, got {size}.")
        super().__init__("batch", [source])
        self.size = size
        self.items: list[Any] = []

    def step(self) -> Any:
        while len(self.items) < self.size:
            try:
                item = self.fetch()
            except StopIteration:
                if not self.items:
                    raise
                break
            if item is NOT_READY:
                return item
            self.items.append(item)
        full, self.items = self.items, []
        return full

    def get_state(self) -> Any:
        return {"items": list(self.items)}

    def set_state(self, state: Any) -> None:
        self.items = list(state["items"])

    def detail(self) -> str:
        return str(self.size)


class Flatten(Node):
    """The elements of each item, one by one."""

    kind = "flatten"

    def __init__(self, source: Node):
        super().__init__("flatten", [source])
        self.pending: deque[Any] = deque()

    def step(self) -> Any:
        while not self.pending:
            items = self.fetch()
            if items is NOT_READY:
                return items
            self.pending.extend(items)
        return self.pending.popleft()

    def get_state(self) -> Any:
        return {"pending": list(self.pending)}

    def set_state(self, state: Any) -> None:
        self.pending = deque(state["pending"])


class Shuffle(Node):
    """Items in random order, drawn from a buffer of `buffer_size`; the buffer and the random state are saved."""

    kind = "shuffle"

    def __init__(self, source: Node, buffer_size: int, seed: int | None = None):
        if buffer_size < 1:
            raise ValueError(f"shuffle: the buffer must hold at least 1 item, got {buffer_size}.")
        super().__init__("shuffle", [source])
        self.buffer_size = buffer_size
        self.seed = seed
        self.random = secrets.randbits(63) if seed is None else int(seed)
        self.buffer: list[Any] = []

    def step(self) -> Any:
        while len(self.buffer) < self.buffer_size:
            try:
                item = self.fetch()
            except StopIteration:
                if not self.buffer:
                    raise
                break
            if item is NOT_READY:
                return item
            self.buffer.append(item)
        self.random, unit = random_unit(self.random)
        return self.buffer.pop(int(unit * len(self.buffer)))

    def get_state(self) -> Any:
        return {"random": self.random, "buffer": list(self.buffer)}

    def set_state(self, state: Any) -> None:
        self.random = int(state["random"])
        self.buffer = list(state["buffer"])

    def detail(self) -> str:
        return f"buffer {self.buffer_size}, seed {self.seed}"


class ZipWithSource(Node):
    """Pairs `(shard, item)`; the shard is None for an item that came back from a checkpoint."""

    kind = "zip"

    def __init__(self, source: Node):
        super().__init__("zip_with_source_actor", [source], host_only=True)

    def step(self) -> Any:
        item = self.fetch()
        return item if item is NOT_READY else (self.inputs[0].current_shard, item)


class Transform(Node):
    """What a generator function makes of the stream; what it keeps in its locals cannot be saved.

    The generator sees items only, and the plan blocks in it while none is ready. One whose attribute
    `passes_not_ready` is true gets `NOT_READY` too and yields it on, so that other branches of the plan can run
    meanwhile.
    """

    kind = "transform"
    saveable = False

    def __init__(self, source: Node, make: Callable[[Iterable[Any]], Iterable[Any]]):
        super().__init__(getattr(make, "__name__", type(make).__name__), [source], host_only=True)
        self.make = make
        self._generator: Iterator[Any] | None = None

    def _stream(self) -> Iterator[Any]:
        passes = bool(getattr(self.make, "passes_not_ready", False))
        idle = 0
        while True:
            try:
                item = self.fetch()
            except StopIteration:
                return
            if item is not NOT_READY or passes:
                idle = 0
                yield item
            else:
                block_until_ready(self.inputs[0].waits(), idle)
                idle += 1

    def step(self) -> Any:
        if self._generator is None:
            self._generator = iter(self.make(self._stream()))
        return next(self._generator)

    def close(self) -> None:
        close = getattr(self._generator, "close", None)
        if close is not None:
            close()
        for node in self.inputs:
            node.close()
