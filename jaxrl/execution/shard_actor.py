"""Shards that are Ray actors: starting them, and gathering their items with several requests in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Node
from jaxrl.execution.shards import (
    MAX_BATCH,
    QUICK_ITEMS,
    QUICK_MS,
    Member,
    OnFailure,
    Shard,
    ShardFailure,
    replacement,
    shards_detail,
)
from jaxrl.execution.waiting import NOT_READY, Wait

# A process that starts and imports JAX on a busy machine owes nothing yet: so much is added to the deadline of its
# first answer.
START_ALLOWANCE_S = 60.0


def start_shards(sources: Sequence[Any], repeat: bool, name: str, options: dict[str, Any]) -> list[Any]:
    """One actor with a `Shard` for each source.

    Args:
        sources: what `Shard` takes; a generator does not travel, a function that makes one does.
        repeat, name: as for `Shard`.
        options: of the actors, such as `{"num_cpus": 0.5}`.
    """
    actor = ray.remote(Shard)
    if options:
        actor = actor.options(**options)
    return [actor.remote(source, repeat, name) for source in sources]


def start_relays(members: Sequence[Member], parts: int, batch_ms: float, options: dict[str, Any]) -> list[Any]:
    """Actors that each take one of `parts` slices of every shard; for `repartition`."""
    ray.get([member.shard.par_iter_init.remote(member.steps) for member in members])
    handles = [Member(member.shard, ()) for member in members]
    return start_shards(
        [_Slices(handles, parts, part, batch_ms) for part in range(parts)], False, "repartition", options
    )


class _Slices:
    """Makes, on a relay, the stream of one slice; a class since it has to travel."""

    def __init__(self, members: list[Member], parts: int, part: int, batch_ms: float):
        self.args = (members, parts, part, batch_ms)

    def __call__(self) -> LocalIterator:
        members, parts, part, batch_ms = self.args

        def request(shard: Any) -> Any:
            return shard.par_iter_slice_batch.remote(parts, part, batch_ms)

        return LocalIterator(AsyncActorGather("slices", members, request=request, listed=True, init=False))


def block_on_refs(refs: Sequence[Any], need: int, timeout: float) -> None:
    """Waits until `need` of the references are ready, or for `timeout` seconds."""
    ray.wait(list(refs), num_returns=need, timeout=timeout)


def _get(ref: Any) -> tuple[Any, BaseException | None]:
    try:
        return ray.get(ref), None
    except Exception as error:
        return None, error


def get_all(refs: Sequence[Any]) -> list[tuple[Any, BaseException | None]]:
    """Value and error of each ready reference: one call for all where none failed, else one each."""
    try:
        return [(value, None) for value in ray.get(list(refs))]
    except Exception:
        return [_get(ref) for ref in refs]


def _ended(error: BaseException) -> bool:
    return isinstance(error, StopIteration) or isinstance(getattr(error, "cause", None), StopIteration)


class _Slot:
    """Where a shard stands: its actor, its answers so far, its requests in order, and since when it owes an answer."""

    __slots__ = ("answers", "index", "init", "member", "refs", "since")

    def __init__(self, index: int, member: Member):
        self.index = index
        self.member = member
        self.answers = 0
        self.init: Any = None
        self.refs: deque[Any] = deque()
        self.since = 0.0


class _ActorGather(Node):
    """What both ways of gathering share: starting shards, deadlines, and replacing shards that failed."""

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        request: Callable[[Any], Any],
        on_failure: OnFailure | None,
        timeout_s: float | None,
        init: bool,
    ):
        super().__init__(name, host_only=True)
        self.slots = [_Slot(index, member) for index, member in enumerate(members)]
        self.live: list[bool] = [True] * len(self.slots)
        self.request = request
        self.on_failure = on_failure
        self.timeout_s = timeout_s
        self.depth = 1
        self._init = init
        self._launched = False
        self._broken: BaseException | None = None
        self._last: Any = None

    @property
    def current_shard(self) -> Any:
        return self._last

    @property
    def members(self) -> list[Member]:
        """Shards as they are now, replacements included."""
        return [slot.member for slot in self.slots]

    def _ask(self, slot: _Slot) -> None:
        if not slot.refs:
            slot.since = time.monotonic()
        slot.refs.append(self.request(slot.member.shard))

    def _begin(self, slot: _Slot) -> None:
        """Sends the operators and the first requests together; the actor serves them in that order."""
        slot.refs.clear()
        slot.since = time.monotonic()
        slot.init = slot.member.shard.par_iter_init.remote(slot.member.steps) if self._init else None

    def _in_flight(self) -> list[Any]:
        refs = [slot.init for slot in self.slots if slot.init is not None]
        return refs + [ref for slot in self.slots for ref in slot.refs]

    def _fail(self, slot: _Slot, error: BaseException) -> None:
        """Replaces a shard, or drops it; its requests in flight are forgotten."""
        # An actor that Ray has restarted knows only what its constructor was given.
        forgotten = slot.init is not None or isinstance(error, RayActorError)
        slot.refs.clear()
        slot.init = None
        try:
            failure = ShardFailure(slot.index, slot.member.shard, error, slot.answers)
            fresh = replacement(self.name, self.on_failure, failure)
        except Exception as fatal:
            self._broken = fatal
            raise
        if fresh is None:
            self.live[slot.index] = False
        elif fresh is slot.member.shard and not forgotten:
            slot.since = time.monotonic()
            self._refill(slot)
        else:
            slot.answers = 0
            slot.member = Member(fresh, slot.member.steps)
            self._begin(slot)
            self._refill(slot)

    def _refill(self, slot: _Slot) -> None:
        while len(slot.refs) < self.depth:
            self._ask(slot)

    def _answers(self) -> list[tuple[_Slot, Any]]:
        """Answers that are there, oldest request first; handles ends, failures and deadlines."""
        refs = self._in_flight()
        if not refs:
            return []
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        answers: list[tuple[_Slot, Any]] = []
        taken: list[tuple[_Slot, Any]] = []
        for slot in self.slots:
            if slot.init is not None and slot.init in ready:
                _, error = _get(slot.init)
                if error is not None:
                    self._fail(slot, error)
                    continue
                slot.init = None
                slot.since = time.monotonic()
            # Answers of one shard are taken in the order of the requests, so that a single shard is a stream.
            while slot.refs and slot.refs[0] in ready:
                taken.append((slot, slot.refs.popleft()))
        now = time.monotonic()
        failed: set[int] = set()
        values = get_all([ref for _, ref in taken]) if taken else []
        for (slot, _), (value, error) in zip(taken, values, strict=True):
            if slot.index in failed or not self.live[slot.index]:
                continue
            slot.since = now
            if error is None:
                slot.answers += 1
                answers.append((slot, value))
            elif _ended(error):
                self.live[slot.index] = False
                slot.refs.clear()
            else:
                failed.add(slot.index)
                self._fail(slot, error)
        if self.timeout_s is not None:
            for slot in self.slots:
                if now > self._deadline(slot):
                    self._fail(slot, TimeoutError(f"no answer for {now - slot.since:.1f} s"))
        return answers

    def _deadline(self, slot: _Slot) -> float:
        if self.timeout_s is None or not (slot.refs or slot.init is not None):
            return float("inf")
        return slot.since + self.timeout_s + (0.0 if slot.init is None else START_ALLOWANCE_S)

    def _waits(self, need: int) -> list[Wait]:
        refs = tuple(self._in_flight())
        if not refs:
            return [Wait(self.name, "now")]
        deadline = min(self._deadline(slot) for slot in self.slots) + 1e-3
        return [Wait(self.name, "refs", refs, min(need, len(refs)), block_on_refs, deadline=deadline)]

    def close(self) -> None:
        for slot in self.slots:
            slot.refs.clear()
            slot.init = None
        self.live = [False] * len(self.slots)

    def detail(self) -> str:
        return shards_detail(self.members)


class AsyncActorGather(_ActorGather):
    """Items of actors in order of completion, `num_async` requests in flight for each.

    Received items and requests in flight together never exceed `num_async` for each shard: a shard is asked again
    when its item is handed on.
    """

    kind = "gather_async"
    saveable = False

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        *,
        num_async: int = 1,
        batch_ms: float | None = None,
        on_failure: OnFailure | None = None,
        timeout_s: float | None = None,
        request: Callable[[Any], Any] | None = None,
        listed: bool = False,
        init: bool = True,
    ):
        if request is None:
            request = _next if batch_ms == 0 else _next_batch(batch_ms)
        super().__init__(name, members, request, on_failure, timeout_s, init)
        self.depth = num_async
        self._listed = listed or batch_ms != 0
        self._buffer: deque[tuple[_Slot, Any]] = deque()
        self._items: deque[Any] = deque()

    def step(self) -> Any:
        if self._broken is not None:
            raise self._broken
        if not self._launched:
            self._launched = True
            for slot in self.slots:
                self._begin(slot)
                self._refill(slot)
        while not self._items:
            if not self._buffer:
                self._buffer.extend(self._answers())
                if not self._buffer:
                    if any(slot.refs or slot.init is not None for slot in self.slots):
                        return NOT_READY
                    raise StopIteration
            slot, value = self._buffer.popleft()
            if self.live[slot.index]:
                self._ask(slot)
            self._last = slot.member.shard
            if not self._listed:
                return value
            self._items.extend(value)
        return self._items.popleft()

    def waits(self) -> list[Wait]:
        return self._waits(1)


def _next(shard: Any) -> Any:
    return shard.par_iter_next.remote()


def _next_batch(batch_ms: float | None) -> Callable[[Any], Any]:
    if batch_ms is None:
        return lambda shard: shard.par_iter_next_batch.remote(QUICK_ITEMS, QUICK_MS)
    return lambda shard: shard.par_iter_next_batch.remote(MAX_BATCH, batch_ms)


class SyncActorGather(_ActorGather):
    """Rounds of one item from each live actor, asked for when pulled: lists, or with `flat` their items."""

    kind = "gather_sync"

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        *,
        flat: bool,
        on_failure: OnFailure | None = None,
        timeout_s: float | None = None,
    ):
        super().__init__(name, members, _next, on_failure, timeout_s, init=True)
        self.flat = flat
        self.pending: deque[tuple[int, Any]] = deque()
        self._round: dict[int, Any] = {}
        self._asked = False

    def step(self) -> Any:
        if self._broken is not None:
            raise self._broken
        if not self._launched:
            self._launched = True
            for slot in self.slots:
                if self.live[slot.index]:
                    self._begin(slot)
        if not self.pending:
            if not self._asked:
                self._asked = True
                for slot in self.slots:
                    if self.live[slot.index]:
                        self._ask(slot)
            for slot, value in self._answers():
                self._round[slot.index] = value
            if self._in_flight():
                return NOT_READY
            self.pending.extend(sorted(self._round.items(), key=lambda pair: pair[0]))
            self._round = {}
            self._asked = False
            if not self.pending:
                raise StopIteration
        if not self.flat:
            items = [item for _, item in self.pending]
            self.pending.clear()
            return items
        index, item = self.pending.popleft()
        self._last = self.slots[index].member.shard
        return item

    def waits(self) -> list[Wait]:
        return self._waits(len(self.slots) * 2)

    def get_state(self) -> Any:
        return {"live": list(self.live), "pending": [[index, item] for index, item in self.pending]}

    def set_state(self, state: Any) -> None:
        if len(state["live"]) != len(self.slots):
            raise ValueError(f"{len(self.slots)} shards here, {len(state['live'])} in the saved state")
        self.live = [bool(live) for live in state["live"]]
        self.pending = deque((int(index), item) for index, item in state["pending"])
