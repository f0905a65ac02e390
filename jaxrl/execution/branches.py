"""Nodes where a plan forks and joins: duplicate and union."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

from jaxrl.execution.nodes import Node, random_unit
from jaxrl.execution.waiting import NOT_READY, Wait, holds_turn

# A branch of weight "*" gives at most this many items in one turn.
MAX_STAR_PULL = 100


class Duplicate(Node):
    """Copies of one stream: holds what the copies have not taken yet, one item for each at most."""

    kind = "duplicate"

    def __init__(self, source: Node, copies: int):
        if copies < 2:
            raise ValueError(f"duplicate: expected at least 2 copies, got {copies}.")
        super().__init__(f"duplicate({copies})", [source])
        self.queues: list[deque[tuple[Any, Any]]] = [deque() for _ in range(copies)]

    def claim(self) -> None:
        """Starts the input when the first copy starts."""
        if self.inputs[0].consumer is None:
            self.inputs[0].start(self)

    def start(self, consumer: Node | None) -> None:
        """Every copy may consume it."""
        self.claim()

    def step(self) -> Any:
        item = self.fetch()
        if item is not NOT_READY:
            shard = self.inputs[0].current_shard
            for queue in self.queues:
                queue.append((shard, item))
        return item

    def get_state(self) -> Any:
        return {"queues": [[item for _, item in queue] for queue in self.queues]}

    def set_state(self, state: Any) -> None:
        self.queues = [deque((None, item) for item in queue) for queue in state["queues"]]


class DuplicateCopy(Node):
    """One copy of a duplicated stream; while it is ahead of another copy it is not ready."""

    kind = "copy"

    def __init__(self, source: Duplicate, index: int):
        super().__init__(f"copy[{index}]", [source])
        self.source = source
        self.index = index
        self._ahead = False
        self._shard: Any = None

    @property
    def current_shard(self) -> Any:
        return self._shard

    def step(self) -> Any:
        queue = self.source.queues[self.index]
        self._ahead = len(queue) < max(len(other) for other in self.source.queues)
        if self._ahead or (not queue and self.fetch() is NOT_READY):
            return NOT_READY
        self._shard, item = queue.popleft()
        return item

    def waits(self) -> list[Wait]:
        return [Wait(self.name, "turn")] if self._ahead else self.source.waits()


class Union(Node):
    """Items of several streams.

    A branch's turn lasts for as many items as its weight says. In an ordered union a branch that only waits for work
    in flight keeps its turn; one that waits for anything else (a queue, another branch, an operator that is not
    ready) passes it on, since waiting there could last for ever. In an unordered union, and for weight "*", a branch
    that is not ready always passes its turn on.
    """

    kind = "union"

    def __init__(
        self,
        sources: Sequence[Node],
        ordered: bool,
        weights: Sequence[float | str] | None = None,
        seed: int | None = None,
    ):
        if weights is not None and len(weights) != len(sources):
            raise ValueError(
                f"union: expected a weight for each of {len(sources)} branches, got {len(weights)}: {list(weights)}."
            )
        for weight in weights or ():
            if weight != "*" and (isinstance(weight, str) or not weight > 0):
                raise ValueError(
                    f'union: a weight is a positive number or "*", got {weight!r} in {list(weights or ())}.'
                )
        super().__init__("union", sources)
        self.weights: list[float | str] = [1] * len(sources) if weights is None else list(weights)
        self.ordered = ordered or weights is not None
        self.random = secrets.randbits(63) if seed is None else int(seed)
        self.live = [True] * len(sources)
        self.cursor = 0
        self.credit: int | None = None
        self.last = 0
        self._held_by: int | None = None

    @property
    def current_shard(self) -> Any:
        return self.inputs[self.last].current_shard

    def _draw(self, index: int) -> int:
        weight = self.weights[index]
        if isinstance(weight, str):
            return MAX_STAR_PULL
        whole = int(weight)
        if whole == weight:
            return whole
        self.random, unit = random_unit(self.random)
        return whole + (unit < weight - whole)

    def _pass_on(self) -> None:
        self.cursor = (self.cursor + 1) % len(self.inputs)
        self.credit = None

    def step(self) -> Any:
        idle: set[int] = set()
        self._held_by = None
        while any(self.live):
            index = self.cursor
            if self.credit is None and self.live[index]:
                self.credit = self._draw(index)
            if not self.live[index] or not self.credit:
                self._pass_on()
                continue
            try:
                item = self.fetch(index)
            except StopIteration:
                self.live[index] = False
                idle.discard(index)
                self._pass_on()
                continue
            if item is NOT_READY:
                if self.ordered and self.weights[index] != "*" and holds_turn(self.inputs[index].waits()):
                    self._held_by = index
                    return NOT_READY
                self._pass_on()
                idle.add(index)
                if len(idle) == sum(self.live):
                    return NOT_READY
                continue
            self.credit -= 1
            if not self.credit:
                self._pass_on()
            self.last = index
            return item
        raise StopIteration

    def waits(self) -> list[Wait]:
        if self._held_by is not None:
            return self.inputs[self._held_by].waits()
        return [wait for node, live in zip(self.inputs, self.live, strict=True) if live for wait in node.waits()]

    def get_state(self) -> Any:
        return {"random": self.random, "live": list(self.live), "cursor": self.cursor, "credit": self.credit}

    def set_state(self, state: Any) -> None:
        self.random = int(state["random"])
        self.live = [bool(live) for live in state["live"]]
        self.cursor = int(state["cursor"])
        self.credit = None if state["credit"] is None else int(state["credit"])

    def detail(self) -> str:
        if any(weight != 1 for weight in self.weights):
            return "weights " + ", ".join(str(weight) for weight in self.weights)
        return "in turn" if self.ordered else "as ready"


class Select(Node):
    """Items of one union branch list: only what came from the branches in `indexes` is passed on."""

    kind = "select"

    def __init__(self, source: Union, indexes: Sequence[int]):
        super().__init__("outputs " + ", ".join(str(index) for index in indexes), [source])
        self.source = source
        self.indexes = frozenset(indexes)
        self._gave_way = False

    def step(self) -> Any:
        self._gave_way = False
        for _ in range(MAX_STAR_PULL):
            item = self.fetch()
            if item is NOT_READY or self.source.last in self.indexes:
                return item
        self._gave_way = True
        return NOT_READY

    def waits(self) -> list[Wait]:
        return [Wait(self.name, "now")] if self._gave_way else self.source.waits()
