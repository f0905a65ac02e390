"""LocalIterator: the shell that builds a plan step by step, pulls items from its end, and saves its state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from jaxrl.execution.branches import Duplicate, DuplicateCopy, Select, Union
from jaxrl.execution.concurrent_calls import concurrent_calls
from jaxrl.execution.nodes import ForEach, ItemSource, IterableSource, Node, Operator, Source, as_operator, walk
from jaxrl.execution.plan_drawing import draw_svg
from jaxrl.execution.plan_view import Trace, draw_text
from jaxrl.execution.stages import Batch, Filter, Flatten, Shuffle, Transform, ZipWithSource
from jaxrl.execution.waiting import NOT_READY, block_until_ready
from jaxrl.types import CheckpointError

__all__ = ["NOT_READY", "LocalIterator", "Operator"]


class LocalIterator:
    """A lazy stream of items, built by chaining operators; iterate it, or step through it with `trace`.

    Nothing runs before the first item is asked for. An iterator has one consumer: chain from it once, or `duplicate`
    it. While nothing is ready, iterating sleeps on whatever the plan waits for; it never spins.

    Example:
        >>> list(LocalIterator.from_items(range(5)).filter(lambda x: x > 1).batch(2))
        [[2, 3], [4]]
    """

    def __init__(self, node: Node):
        self.node = node
        self._started = False
        self._busy = False

    # -- sources -----------------------------------------------------------------------------------

    @staticmethod
    def from_items(items: Iterable[Any], repeat: bool = False, name: str = "from_items") -> LocalIterator:
        """Stream over `items` (kept as a list, a range as it is), for ever if `repeat`; its position is saved."""
        return LocalIterator(ItemSource(items if isinstance(items, range) else list(items), repeat, name))

    @staticmethod
    def from_iterator(
        make: Iterable[Any] | Callable[[], Iterable[Any]], repeat: bool = False, name: str = "from_iterator"
    ) -> LocalIterator:
        """Stream over an iterable, or what a function returns; its position cannot be saved (see `from_operator`)."""
        return LocalIterator(IterableSource(make, repeat, name))

    @staticmethod
    def from_operator(operator: Operator) -> LocalIterator:
        """Stream of what `operator.apply(state, None)` gives, until it raises StopIteration; its state is saved.

        Example:
            >>> LocalIterator.from_operator(Operator("Odd", lambda n, _: (n + 2, n), init=lambda: 1)).take(3)
            [1, 3, 5]
        """
        return LocalIterator(Source(operator))

    # -- steps -------------------------------------------------------------------------------------

    def _operator(self, fn: Callable[[Any], Any] | Operator) -> Operator:
        operator = as_operator(fn)
        if operator.per_worker:
            raise TypeError(
                f"{operator.name} runs on rollout workers, and {self.node.name} is gathered already; put it before the "
                'gather: ParallelRollouts(ctx, mode="raw").for_each(...).'
            )
        return operator

    def for_each(
        self,
        fn: Callable[[Any], Any] | Operator,
        max_concurrency: int = 1,
        resources: Mapping[str, Any] | None = None,
    ) -> LocalIterator:
        """Applies `fn` to each item. It may give `NOT_READY`, and then gets the same item again later.

        Args:
            fn: of an item.
            max_concurrency: calls at a time; 0: all that there are. Above 1 results come as they are ready.
            resources: of the Ray tasks that then make the calls; None: threads of the this process do.

        Raises:
            ValueError: a negative number, an operator with a state, or resources for one call at a time.
        """
        calls = concurrent_calls(fn, max_concurrency, resources)
        if calls is not None:
            return self.transform(calls)
        return LocalIterator(ForEach(self.node, self._operator(fn)))

    def combine(self, fn: Callable[[Any], Iterable[Any]] | Operator) -> LocalIterator:
        """Applies `fn`, which gives a list, to each item, and passes the elements on one by one."""
        return LocalIterator(ForEach(self.node, self._operator(fn), many=True))

    def filter(self, fn: Callable[[Any], Any] | Operator) -> LocalIterator:
        """Passes on the items for which `fn` gives something true."""
        return LocalIterator(Filter(self.node, self._operator(fn)))

    def batch(self, n: int) -> LocalIterator:
        """Lists of `n` consecutive items; the last may be shorter."""
        return LocalIterator(Batch(self.node, n))

    def flatten(self) -> LocalIterator:
        """The elements of each item, one by one."""
        return LocalIterator(Flatten(self.node))

    def transform(self, fn: Callable[[Iterable[Any]], Iterable[Any]]) -> LocalIterator:
        """Applies a generator function to the stream; its locals are not saved (see `nodes.Transform`)."""
        return LocalIterator(Transform(self.node, fn))

    def shuffle(self, shuffle_buffer_size: int, seed: int | None = None) -> LocalIterator:
        """Random order, drawn from a buffer of so many items."""
        return LocalIterator(Shuffle(self.node, shuffle_buffer_size, seed))

    def zip_with_source_actor(self) -> LocalIterator:
        """Pairs of the shard that an item came from and the item.

        Raises:
            ValueError: no shards feed this plan.
        """
        if not any(node.kind in ("gather_sync", "gather_async") for node in walk(self.node)):
            raise ValueError(
                f"zip_with_source_actor: no shards feed {self.node.name}; expected gather_sync() or gather_async() "
                "above it."
            )
        return LocalIterator(ZipWithSource(self.node))

    def duplicate(self, n: int) -> list[LocalIterator]:
        """`n` copies of the stream. A copy that is ahead of another is not ready until the other has caught up."""
        source = Duplicate(self.node, n)
        return [LocalIterator(DuplicateCopy(source, index)) for index in range(n)]

    def union(
        self,
        *others: LocalIterator,
        deterministic: bool = False,
        round_robin_weights: Sequence[float | str] | None = None,
        seed: int | None = None,
        output_indexes: Sequence[int] | None = None,
    ) -> LocalIterator:
        """Items of this stream and of others.

        Args:
            others: streams to join.
            deterministic: take one item from each in turn, waiting for work in flight; else items come as they are
                ready.
            round_robin_weights: items to take from each in one turn; a fraction is rounded at random, "*" takes what
                is ready (100 at most). Implies turns.
            seed: of the rounding; saved with the plan.
            output_indexes: streams whose items come out; those of the others are pulled and dropped. Default: all.

        Raises:
            TypeError: one of `others` is no LocalIterator.
            ValueError: weights or indexes that do not fit the streams.
        """
        for other in others:
            if not isinstance(other, LocalIterator):
                raise TypeError(
                    f"union: expected LocalIterators, got {type(other).__name__}; gather a ParallelIterator first."
                )
        union = Union([self.node, *(other.node for other in others)], deterministic, round_robin_weights, seed)
        if output_indexes is None:
            return LocalIterator(union)
        if not output_indexes or not set(output_indexes) <= set(range(len(union.inputs))):
            raise ValueError(
                f"union: output_indexes must name some of the streams 0 to {len(union.inputs) - 1}, "
                f"got {list(output_indexes)}."
            )
        return LocalIterator(Select(union, output_indexes))

    # -- consuming ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        idle = 0
        while True:
            item = self.poll()
            if item is not NOT_READY:
                return item
            block_until_ready(self.node.waits(), idle)
            idle += 1

    def poll(self) -> Any:
        """The next item, or `NOT_READY` at once.

        Raises:
            StopIteration: the stream has ended.
            RuntimeError: two threads, or an operator of the plan itself, pull at the same time.
        """
        if self._busy:
            raise RuntimeError(
                f"{self.node.name}: pulled while it is being pulled; an iterator has one consumer at a time."
            )
        self._busy = True
        try:
            if not self._started:
                self.node.start(None)
                self._started = True
            return self.node.pull()
        finally:
            self._busy = False

    def take(self, n: int) -> list[Any]:
        """The first `n` items, fewer if the stream ends."""
        items: list[Any] = []
        while len(items) < n:
            try:
                items.append(next(self))
            except StopIteration:
                break
        return items

    def show(self, n: int = 20) -> None:
        """Prints the first `n` items."""
        for item in self.take(n):
            print(item)

    def close(self) -> None:
        """Drops requests in flight; the stream cannot go on afterwards."""
        self.node.close()

    # -- state -------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """The nodes of the plan, each once, inputs before consumers."""
        return walk(self.node)

    def __str__(self) -> str:
        return draw_text(self.node)

    def __repr__(self) -> str:
        return f"<LocalIterator {self.node.name}, {len(self.nodes())} nodes; print it to see the plan>"

    def _repr_html_(self) -> str:
        return self.draw()

    def draw(self) -> str:
        """The plan as an SVG picture; a notebook shows it for the iterator itself."""
        return draw_svg(self.node)

    def trace(self, n: int = 1) -> Trace:
        """Steps through the next `n` items: an iterator of `TraceStep(number, node, kind, input, output, seconds)`.

        Example:
            >>> for step in LocalIterator.from_items([1, 2]).batch(2).trace():
            ...     print(step)
            1  from_items (source): 1  [0.4 us]
            2  batch (batch): 1 -> (kept)  [0 us]
            3  from_items (source): 2  [0.3 us]
            4  batch (batch): 2 -> list(2: 1, 2)  [4.3 us]
        """
        return Trace(self.node, self.__next__, n)

    def find(self, name: str) -> Node:
        """The one node called `name`.

        Raises:
            KeyError: there is none, or more than one.
        """
        found = [node for node in self.nodes() if node.name == name]
        if len(found) != 1:
            names = ", ".join(node.name for node in self.nodes())
            raise KeyError(f"expected one node called {name!r}, found {len(found)}; the plan has: {names}")
        return found[0]

    def get_state(self) -> dict[str, Any]:
        """State of every node: nested dicts and lists whose leaves are operator states and items.

        Nodes whose progress cannot be saved (`saveable` is False: generators, requests in flight on other processes)
        have state None and start afresh.
        """
        return {
            "nodes": [
                {"name": n.name, "kind": n.kind, "in": n.items_in, "out": n.items_out, "state": n.get_state()}
                for n in self.nodes()
            ]
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` of a plan with the same nodes gave.

        Raises:
            CheckpointError: the plan has other nodes, or a node cannot read its state; nothing is changed if the
                nodes differ.
        """
        nodes = self.nodes()
        saved = cast("Sequence[Mapping[str, Any]]", state["nodes"])
        for index in range(max(len(nodes), len(saved))):
            ours = f"{nodes[index].kind} {nodes[index].name!r}" if index < len(nodes) else "nothing"
            theirs = f"{saved[index]['kind']} {saved[index]['name']!r}" if index < len(saved) else "nothing"
            if ours != theirs:
                raise CheckpointError(
                    f"plan state: node {index} of this plan is {ours}, but that of the saved plan is {theirs}. "
                    "Restore with the execution plan and configuration that the checkpoint was made with."
                )
        for node, entry in zip(nodes, saved, strict=True):
            node.items_in, node.items_out = int(entry["in"]), int(entry["out"])
            if entry["state"] is None:
                continue
            try:
                node.set_state(entry["state"])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise CheckpointError(
                    f"plan state: {node.kind} {node.name!r} cannot read its saved state: {error!r}."
                ) from error
