"""Shards of a parallel iterator: what one does, and how those of this process are gathered. No Ray here."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import IterableFactory, Node, Operator, as_operator
from jaxrl.execution.waiting import Wait
from jaxrl.tracebacks import raised
from jaxrl.types import JaxrlError, WorkerError

# Most items in one answer of a shard.
MAX_BATCH = 10_000
# Without batch_ms, an answer carries what is made in half a millisecond, about what a Ray call costs: quick items
# share a call, and one that takes longer always travels alone and at once.
QUICK_MS = 0.5
QUICK_ITEMS = 64


class ShardFailure(NamedTuple):
    """A shard that failed.

    Attributes:
        shard_index: its number.
        shard: the object or actor handle.
        error: what it raised; a TimeoutError where it is late.
        answers: how many answers it has given since it took its place.
    """

    shard_index: int
    shard: Any
    error: BaseException
    answers: int


OnFailure = Callable[[ShardFailure], Any]
"""`failure -> shard`: one to take its place (itself: try again), or None to go on without it."""


class ShardStep(NamedTuple):
    """One operator that runs on the shard: a method of LocalIterator and its arguments; it travels and prints."""

    method: str
    args: tuple[Any, ...] = ()

    def __call__(self, iterator: LocalIterator) -> LocalIterator:
        """Applies the step to a shard's iterator."""
        return getattr(iterator, self.method)(*self.args)

    def bound_to(self, worker: Any) -> ShardStep:
        """The step on a worker: operators that ask for it are given it."""
        return ShardStep(self.method, tuple(a.bound_to(worker) if isinstance(a, Operator) else a for a in self.args))

    def __str__(self) -> str:
        if self.method in ("for_each", "filter", "combine"):
            return f"{self.method} {as_operator(self.args[0]).name}"
        if self.method == "transform":
            return f"transform {getattr(self.args[0], '__name__', type(self.args[0]).__name__)}"
        return " ".join([self.method, *(str(arg) for arg in self.args if arg is not None)])


class ShardProtocol(Protocol):
    """What an object, or the class of an actor, offers to be a shard.

    `par_iter_init(transforms)` starts it with callables `LocalIterator -> LocalIterator`; `par_iter_next()` gives an
    item or raises StopIteration. `par_iter_next_batch` serves `gather_async(batch_ms > 0)`, `par_iter_slice` and
    `par_iter_slice_batch` serve `repartition`.
    """

    def par_iter_init(self, transforms: Sequence[Callable[[LocalIterator], LocalIterator]]) -> None: ...
    def par_iter_next(self) -> Any: ...
    def par_iter_next_batch(self, max_items: int, batch_ms: float) -> list[Any]: ...
    def par_iter_slice(self, step: int, start: int) -> Any: ...
    def par_iter_slice_batch(self, step: int, start: int, batch_ms: float) -> list[Any]: ...


class Shard:
    """A shard over a stream. A worker that is to be a shard holds one and passes the `par_iter_*` calls on.

    Args:
        source: a LocalIterator, a sequence (its position is saved), any other iterable, or a function that returns one.
        repeat: start over at the end, for ever.
        name: of the source, for printed plans.
        worker: what operators that ask for their worker are given (see `on_worker.OnWorker`).

    Example:
        >>> shard = Shard([1, 2, 3])
        >>> shard.par_iter_init([ShardStep("for_each", (str,))])
        >>> shard.par_iter_next()
        '1'
    """

    def __init__(
        self,
        source: LocalIterator | IterableFactory,
        repeat: bool = False,
        name: str = "shard",
        worker: Any = None,
    ):
        self._worker = worker
        if isinstance(source, LocalIterator):
            self._source = source
        elif isinstance(source, list | tuple | range):
            self._source = LocalIterator.from_items(source, repeat, name)
        else:
            self._source = LocalIterator.from_iterator(source, repeat, name)
        self._iterator: LocalIterator | None = None
        self._slices: defaultdict[int, deque[Any]] = defaultdict(deque)

    def par_iter_init(self, transforms: Sequence[Callable[[LocalIterator], LocalIterator]]) -> None:
        """Puts the operators on the stream, in place of those before; the stream goes on where it was."""
        self._source.node.consumer = None
        iterator = LocalIterator(self._source.node)
        for transform in transforms:
            bound = transform.bound_to(self._worker) if isinstance(transform, ShardStep) else transform
            iterator = bound(iterator)
        self._iterator = iterator
        self._slices.clear()

    def _started(self) -> LocalIterator:
        if self._iterator is None:
            raise RuntimeError("Shard: par_iter_init() must be called before the first item is asked for.")
        return self._iterator

    def par_iter_next(self) -> Any:
        """The next item; StopIteration at the end."""
        return next(self._started())

    def par_iter_next_batch(self, max_items: int, batch_ms: float) -> list[Any]:
        """At least one item, then more until there are `max_items` or `batch_ms` milliseconds have passed."""
        return _collect(self.par_iter_next, max_items, batch_ms)

    def par_iter_slice(self, step: int, start: int) -> Any:
        """The next item among those whose number is `start` modulo `step`."""
        mine = self._slices[start]
        if not mine:
            for index in range(step):
                try:
                    self._slices[index].append(next(self._started()))
                except StopIteration:
                    break
        if not mine:
            raise StopIteration
        return mine.popleft()

    def par_iter_slice_batch(self, step: int, start: int, batch_ms: float) -> list[Any]:
        """As `par_iter_next_batch`, of a slice."""
        return _collect(lambda: self.par_iter_slice(step, start), MAX_BATCH if batch_ms else 1, batch_ms)

    def get_state(self) -> Any:
        """State of the shard's stream and operators; None before it has started."""
        if self._iterator is None:
            return None
        return {
            "plan": self._iterator.get_state(),
            "slices": [[index, list(items)] for index, items in self._slices.items()],
        }

    def set_state(self, state: Any) -> None:
        """Takes back what `get_state` gave; `par_iter_init` comes first."""
        self._started().set_state(state["plan"])
        self._slices = defaultdict(deque, {int(index): deque(items) for index, items in state["slices"]})


def _collect(next_item: Callable[[], Any], max_items: int, batch_ms: float) -> list[Any]:
    end = time.monotonic() + batch_ms / 1e3
    items = [next_item()]
    while len(items) < max_items and time.monotonic() < end:
        try:
            items.append(next_item())
        except StopIteration:
            break
    return items


def replacement(name: str, on_failure: OnFailure | None, failure: ShardFailure) -> Any:
    """Asks the hook for a shard in place of one that failed.

    Raises:
        WorkerError: there is no hook; one of jaxrl's own errors is raised as it is.
    """
    if on_failure is not None:
        return on_failure(failure)
    index, error = failure.shard_index, failure.error
    if isinstance(cause := getattr(error, "cause", None), JaxrlError):
        raise cause from error  # raised on an actor, wrapped by Ray
    if isinstance(error, JaxrlError):
        raise error  # it says where and what already
    raise WorkerError(
        f"{name}: shard {index} failed: {raised(error)}; pass on_failure= to replace a failed shard."
    ) from error


class Member(NamedTuple):
    """A shard of a gathered iterator and the operators that run on it."""

    shard: Any
    steps: tuple[ShardStep, ...]


class LocalGather(Node):
    """Items of shards that live in this process.

    Modes: "round" gives lists with one item of each live shard, "sync" the same items one by one, "async" asks the
    shards in turn.
    """

    def __init__(self, name: str, members: Sequence[Member], mode: str, on_failure: OnFailure | None = None):
        super().__init__(name, host_only=True)
        self.kind = "gather_async" if mode == "async" else "gather_sync"
        self.members = list(members)
        self.mode = mode
        self.on_failure = on_failure
        self.live = [True] * len(self.members)
        self.answers = [0] * len(self.members)
        self.cursor = 0
        self.pending: deque[tuple[int, Any]] = deque()
        self._launched = False
        self._last: int | None = None

    @property
    def current_shard(self) -> Any:
        return None if self._last is None else self.members[self._last].shard

    def start(self, consumer: Node | None) -> None:
        Node.start(self, consumer)
        self._launch()

    def _launch(self) -> None:
        if not self._launched:
            self._launched = True
            for member in self.members:
                member.shard.par_iter_init(member.steps)

    def _next_of(self, index: int) -> Iterable[Any]:
        """One item of shard `index` in a list, which is empty where the shard has ended."""
        while self.live[index]:
            member = self.members[index]
            try:
                item = member.shard.par_iter_next()
                self.answers[index] += 1
                return [item]
            except StopIteration:
                self.live[index] = False
            except Exception as error:
                failure = ShardFailure(index, member.shard, error, self.answers[index])
                fresh = replacement(self.name, self.on_failure, failure)
                self.live[index] = fresh is not None
                if fresh is not None and fresh is not member.shard:
                    self.answers[index] = 0
                    self.members[index] = Member(fresh, member.steps)
                    fresh.par_iter_init(member.steps)
        return []

    def step(self) -> Any:
        if self.mode == "async":
            while any(self.live):
                index = self.cursor
                self.cursor = (index + 1) % len(self.members)
                for item in self._next_of(index):
                    self._last = index
                    return item
            raise StopIteration
        if self.mode == "round" or not self.pending:
            # The cursor and the items so far are kept, so that a round that failed half-way goes on when it is pulled
            # again.
            while self.cursor < len(self.members):
                self.pending.extend((self.cursor, item) for item in self._next_of(self.cursor))
                self.cursor += 1
            self.cursor = 0
            if not self.pending:
                raise StopIteration
        if self.mode == "round":
            items = [item for _, item in self.pending]
            self.pending.clear()
            return items
        self._last, item = self.pending.popleft()
        return item

    def waits(self) -> list[Wait]:
        return [Wait(self.name, "now")]

    def get_state(self) -> Any:
        return {
            "live": list(self.live),
            "cursor": self.cursor,
            "pending": [[index, item] for index, item in self.pending],
            "shards": [
                member.shard.get_state() if isinstance(member.shard, Shard) else None for member in self.members
            ],
        }

    def set_state(self, state: Any) -> None:
        if len(state["live"]) != len(self.members):
            raise ValueError(f"{len(self.members)} shards here, {len(state['live'])} in the saved state")
        self.live = [bool(live) for live in state["live"]]
        self.cursor = int(state["cursor"])
        self.pending = deque((int(index), item) for index, item in state["pending"])
        self._launch()
        for member, saved in zip(self.members, state["shards"], strict=True):
            if saved is not None:
                member.shard.set_state(saved)

    def detail(self) -> str:
        return shards_detail(self.members)


def shards_detail(members: Sequence[Member]) -> str:
    """`2 shards: for_each f > batch 4`, for printed plans; operators that all shards run are listed once."""
    chains = list(dict.fromkeys(" > ".join(str(step) for step in member.steps) for member in members))
    text = f"{len(members)} shard" + ("" if len(members) == 1 else "s")
    shown = " | ".join(chain or "as they are" for chain in chains)
    return text if chains == [""] else f"{text}: {shown}"
