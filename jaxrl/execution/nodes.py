"""Operators and the nodes of a plan that have one input: a plan is a graph of these, pulled from its end."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jaxrl.execution.compiled_form import CompiledForm
from jaxrl.execution.waiting import NOT_READY, Wait

IterableFactory = Iterable[Any] | Callable[[], Iterable[Any]]
_MASK64 = (1 << 64) - 1


def no_state() -> tuple[()]:
    """Initial state of an operator that has none: `()`."""
    return ()


class Operator(NamedTuple):
    """A step of a plan: a function of `(state, item)` whose state the plan holds, saves and restores.

    Attributes:
        name: shown in the printed plan and checked when a state is restored.
        apply: `(state, item) -> (state, item)`; may give `NOT_READY` as item, and is then called again with the same
            item.
        init: `() -> state`, a pytree.
        host_only: True if it touches workers, queues or clocks, so that no compiled program can hold it.
        counters: names of the counters that it changes (documentation).
        wait: `(state, item, timeout_s) -> None`, blocks until `apply` may succeed; without it the plan sleeps in
            growing steps.
        on_fetch_start: called once before each new item is fetched, to time the wait for it.
        per_worker: True if `apply` and `init` take the worker that they run on before their other arguments; such an
            operator runs on shards alone (see `on_worker.OnWorker`).
        compiled: what takes a host-only operator's place within a compiled program; None: nothing does.
        between_rounds: True if `apply` looks at the plan's context alone, not at its item, so that a host-only operator
            can stand behind a compiled program.

    Example:
        >>> count = Operator("Count", lambda n, item: (n + 1, (n, item)), init=lambda: 0)
        >>> LocalIterator.from_items("ab").for_each(count).take(2)
        [(0, 'a'), (1, 'b')]
    """

    name: str
    apply: Callable[..., tuple[Any, Any]]
    init: Callable[..., Any] = no_state
    host_only: bool = False
    counters: tuple[str, ...] = ()
    wait: Callable[[Any, Any, float], Any] | None = None
    on_fetch_start: Callable[[], Any] | None = None
    per_worker: bool = False
    compiled: CompiledForm | None = None
    between_rounds: bool = False

    def bound_to(self, worker: Any) -> Operator:
        """The operator on a worker: as it is, or with its functions given the worker."""
        if not self.per_worker:
            return self
        return self._replace(
            apply=functools.partial(self.apply, worker), init=functools.partial(self.init, worker), per_worker=False
        )


class Stateless:
    """Makes `fn(item) -> item` an operator's `apply`; a class, not a closure, so that it pickles wherever `fn` does."""

    def __init__(self, fn: Callable[[Any], Any]):
        self.fn = fn

    def __call__(self, state: Any, item: Any) -> tuple[Any, Any]:
        return state, self.fn(item)


def as_operator(fn: Callable[[Any], Any] | Operator) -> Operator:
    """Wraps a plain callable as a stateless operator; an `Operator` is returned as it is.

    Args:
        fn: an operator, or a callable `item -> item`. Its attributes `host_only` and `compiled`, if it has them, are
            taken over; its name is its `name`, its `__name__` or that of its class.
    """
    if isinstance(fn, Operator):
        return fn
    if not callable(fn):
        raise TypeError(f"for_each: expected a callable or an Operator, got {type(fn).__name__}: {fn!r}.")
    name = getattr(fn, "name", None) or getattr(fn, "__name__", None) or type(fn).__name__
    if name == "<lambda>":
        name = "lambda"
    return Operator(
        str(name),
        Stateless(fn),
        host_only=bool(getattr(fn, "host_only", False)),
        compiled=getattr(fn, "compiled", None),
    )


class Node:
    """One step of a plan: `pull` gives an item, `NOT_READY`, or ends by StopIteration.

    Attributes:
        name, kind: what it is called and what it does.
        inputs: nodes that it pulls.
        host_only: True if it cannot be part of a compiled program; `pure` is its opposite.
        saveable: False if its progress cannot be saved.
        items_in, items_out: items pulled and given so far.
        seconds: time spent in the node itself.
        fetch_seconds: time spent in what it pulls, not counting time asleep.
    """

    kind = "node"
    saveable = True

    def __init__(self, name: str, inputs: Iterable[Node] = (), *, host_only: bool = False):
        self.name = name
        self.inputs: tuple[Node, ...] = tuple(inputs)
        self.host_only = host_only
        self.items_in = 0
        self.items_out = 0
        self.seconds = 0.0
        self.fetch_seconds = 0.0
        self.first_pull: float | None = None
        self.last_out: float | None = None
        self.observer: Callable[[Node, Any, Any, float], None] | None = None
        self.consumer: Node | None = None
        self._last_in: Any = NOT_READY

    @property
    def pure(self) -> bool:
        """True if the node can be part of a compiled program."""
        return not self.host_only

    @property
    def current_shard(self) -> Any:
        """Shard (actor handle or object) that the last item came from, None if unknown."""
        return self.inputs[0].current_shard if self.inputs else None

    def pull(self) -> Any:
        """Gives the next item, or `NOT_READY` without blocking; counts and times it.

        Raises:
            StopIteration: the node has ended.
        """
        start = time.perf_counter()
        if self.first_pull is None:
            self.first_pull = start
        fetched = self.fetch_seconds
        item = NOT_READY
        try:
            item = self.step()
        finally:
            end = time.perf_counter()
            spent = end - start - (self.fetch_seconds - fetched)
            self.seconds += spent
            if item is not NOT_READY:
                self.items_out += 1
                self.last_out = end
            if self.observer is not None:
                self.observer(self, self._last_in, item, spent)
            self._last_in = NOT_READY
        return item

    def fetch(self, index: int = 0) -> Any:
        """Pulls input `index`, counting the item and keeping the time apart from the node's own."""
        if self.observer is not None and self._last_in is not NOT_READY:
            # The item before went in, and nothing came out for it.
            self.observer(self, self._last_in, NOT_READY, 0.0)
            self._last_in = NOT_READY
        start = time.perf_counter()
        try:
            item = self.inputs[index].pull()
        finally:
            self.fetch_seconds += time.perf_counter() - start
        if item is not NOT_READY:
            self.items_in += 1
            self._last_in = item
        return item

    def step(self) -> Any:
        """The node's own work: the next item or `NOT_READY`."""
        raise AssertionError(f"{type(self).__name__} defines no step()")

    def waits(self) -> list[Wait]:
        """What the last `NOT_READY` was about."""
        return self.inputs[0].waits() if self.inputs else [Wait(self.name, "retry")]

    def start(self, consumer: Node | None) -> None:
        """Claims the node for its consumer and starts its inputs; called before the first pull.

        Raises:
            RuntimeError: another part of the plan already consumes this node.
        """
        if consumer is not None:
            if self.consumer is not None and self.consumer is not consumer:
                raise RuntimeError(
                    f"{self.name}: both {self.consumer.name} and {consumer.name} pull from it, so each would miss "
                    "items. Use duplicate(n) to give every consumer its own copy."
                )
            self.consumer = consumer
        for node in self.inputs:
            node.start(self)

    def close(self) -> None:
        """Lets go of work in flight, here and in the inputs."""
        for node in self.inputs:
            node.close()

    def get_state(self) -> Any:
        """Progress of the node as nested containers of items, None if it has none."""
        return None

    def set_state(self, state: Any) -> None:
        """Takes back what `get_state` gave."""

    def detail(self) -> str:
        """Settings shown behind the name in a printed plan."""
        return ""


def walk(root: Node) -> list[Node]:
    """All nodes of the plan that ends in `root`, each once, inputs before consumers."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.inputs))
    return order


class Source(Node):
    """Start of a plan: an operator that makes items from its state alone, `apply(state, None) -> (state, item)`."""

    kind = "source"

    def __init__(self, operator: Operator):
        super().__init__(operator.name, host_only=operator.host_only)
        self.operator = operator
        self.state = operator.init()

    def step(self) -> Any:
        self.state, item = self.operator.apply(self.state, None)
        return item

    def waits(self) -> list[Wait]:
        return [_operator_wait(self.name, self.operator, self.state, None)]

    def get_state(self) -> Any:
        return {"op": self.state}

    def set_state(self, state: Any) -> None:
        self.state = like(self.operator.init(), state["op"])


class ItemSource(Node):
    """The items of a sequence or range, once or over and over; the state is the position."""

    kind = "source"

    def __init__(self, items: Any, repeat: bool = False, name: str = "from_items"):
        super().__init__(name)
        self.items = items
        self.repeat = repeat
        self.position = 0

    def step(self) -> Any:
        if self.position >= len(self.items):
            if not self.repeat or not len(self.items):
                raise StopIteration
            self.position = 0
        item = self.items[self.position]
        self.position += 1
        return item

    def get_state(self) -> Any:
        return {"position": self.position}

    def set_state(self, state: Any) -> None:
        self.position = int(state["position"])

    def detail(self) -> str:
        return f"{len(self.items)} items" + (", repeat" if self.repeat else "")


class IterableSource(Node):
    """Whatever a Python iterable, or a function that returns one, gives; its progress cannot be saved."""

    kind = "source"
    saveable = False

    def __init__(
        self, make: IterableFactory, repeat: bool = False, name: str = "from_iterator", host_only: bool = True
    ):
        super().__init__(name, host_only=host_only)
        self.make = make
        self.repeat = repeat
        self._iterator: Iterator[Any] | None = None

    def _fresh(self) -> Iterator[Any]:
        made: Iterable[Any] = self.make() if callable(self.make) else self.make
        iterator = iter(made)
        if self.repeat and iterator is self.make:
            raise ValueError(
                f"{self.name}: a generator runs only once, so repeat=True needs a function that makes a new one."
            )
        return iterator

    def step(self) -> Any:
        if self._iterator is None:
            self._iterator = self._fresh()
        try:
            return next(self._iterator)
        except StopIteration:
            if not self.repeat:
                raise
        self._iterator = self._fresh()
        return next(self._iterator)

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


class ForEach(Node):
    """`apply` of an operator on every item; an item that it is not ready for is held and tried again.

    With `many` the operator gives a list for each item (kind "combine"): its elements come out one by one, and those
    left over are state.
    """

    def __init__(self, source: Node, operator: Operator, many: bool = False):
        super().__init__(operator.name, [source], host_only=operator.host_only)
        self.kind = "combine" if many else "for_each"
        self.operator = operator
        self.state = operator.init()
        self.held: list[Any] = []
        self.pending: deque[Any] = deque()
        self._many = many
        self._fetching = False

    def step(self) -> Any:
        while not self.pending:
            result = self._apply_to_next()
            if result is NOT_READY or not self._many:
                return result
            self.pending.extend(result)
        return self.pending.popleft()

    def _apply_to_next(self) -> Any:
        if self.held:
            item = self._last_in = self.held[0]
        else:
            if not self._fetching and self.operator.on_fetch_start is not None:
                self.operator.on_fetch_start()
            self._fetching = True
            item = self.fetch()
            if item is NOT_READY:
                return item
            self._fetching = False
        try:
            self.state, result = self.operator.apply(self.state, item)
        except StopIteration as error:
            raise RuntimeError(
                f"{self.name}: an operator raised StopIteration; only a source may end a plan."
            ) from error
        self.held = [item] if result is NOT_READY else []
        return result

    def waits(self) -> list[Wait]:
        if self.held:
            return [_operator_wait(self.name, self.operator, self.state, self.held[0])]
        return self.inputs[0].waits()

    def get_state(self) -> Any:
        return {"op": self.state, "held": list(self.held), "pending": list(self.pending)}

    def set_state(self, state: Any) -> None:
        self.state = like(self.operator.init(), state["op"])
        self.held = list(state["held"])
        self.pending = deque(state["pending"])


def _operator_wait(name: str, operator: Operator, state: Any, item: Any) -> Wait:
    wait = operator.wait
    if wait is None:
        return Wait(name, "retry")
    return Wait(name, "queue", block=lambda timeout: wait(state, item, timeout))


def like(template: Any, state: Any) -> Any:
    """Gives the named tuples of `template` back to a state whose containers came out of a checkpoint as plain ones."""
    if isinstance(template, tuple) and isinstance(state, tuple | list) and len(template) == len(state):
        values = [like(a, b) for a, b in zip(template, state, strict=True)]
        return type(template)(*values) if hasattr(template, "_fields") else tuple(values)
    if isinstance(template, dict) and isinstance(state, dict):
        return {key: like(template[key], value) if key in template else value for key, value in state.items()}
    return state


def random_unit(state: int) -> tuple[int, float]:
    """One step of SplitMix64, `(state) -> (state, u in [0, 1))`; the state is one 64-bit integer.

    Steele et al., "Fast splittable pseudorandom number generators", https://doi.org/10.1145/2660193.2660195.
    """
    state = (state + 0x9E3779B97F4A7C15) & _MASK64
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state, ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53)
