"""ParallelIterator: a stream in shards, in-process objects or Ray actors, whose operators run on the shards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxrl.execution.concurrent_calls import concurrent_calls
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import IterableFactory, Node, Operator, as_operator
from jaxrl.execution.shards import LocalGather, Member, OnFailure, Shard, ShardStep, shards_detail


class _Group(NamedTuple):
    shards: tuple[Any, ...]
    steps: tuple[ShardStep, ...]


class ParallelIterator:
    """A lazy stream in shards: operators run on the shards, then a `gather` brings the items here.

    The same code serves shards in this process (no Ray involved) and Ray actors. Build one with `from_items`,
    `from_range`, `from_iterators` or `from_actors`. A callable given to an operator is shared by in-process shards
    but copied to actors, so state belongs in an `Operator`, of which every shard has its own.

    Example:
        >>> list(from_range(4).for_each(lambda x: x * 2).gather_sync())
        [0, 4, 2, 6]
    """

    def __init__(self, groups: Sequence[_Group], name: str, parents: tuple[ParallelIterator, ...] = ()):
        self._groups: tuple[_Group, ...] = tuple(groups)
        self.name = name
        # Relays hold no handles of their parents' actors, and an actor dies with its last handle.
        self._parents = parents

    def __iter__(self) -> Iterator[Any]:
        return self._refuse_iteration()

    def _refuse_iteration(self) -> NoReturn:
        raise TypeError(
            f"{self.name}: a ParallelIterator is not iterated directly; call gather_sync() or gather_async() first."
        )

    def __repr__(self) -> str:
        return f"ParallelIterator[{self.name}, {shards_detail(self._members())}]"

    # -- operators on the shards -------------------------------------------------------------------

    def _with(self, method: str, *args: Any) -> ParallelIterator:
        step = ShardStep(method, args)
        return ParallelIterator([_Group(g.shards, (*g.steps, step)) for g in self._groups], self.name, self._parents)

    def for_each(
        self,
        fn: Callable[[Any], Any] | Operator,
        max_concurrency: int = 1,
        resources: Mapping[str, Any] | None = None,
    ) -> ParallelIterator:
        """Applies `fn` to each item, on the shard.

        Args:
            fn: of an item.
            max_concurrency: calls at a time; 0: all that there are. Above 1 results come as they are ready.
            resources: of the Ray tasks that then make the calls; None: threads of the shard's process do.

        Raises:
            ValueError: a negative number, an operator with a state, or resources for one call at a time.
        """
        calls = concurrent_calls(fn, max_concurrency, resources)
        if calls is not None:
            return self.transform(calls)
        return self._with("for_each", as_operator(fn))

    def combine(self, fn: Callable[[Any], Iterable[Any]] | Operator) -> ParallelIterator:
        """Applies `fn`, which gives a list, and passes the elements on one by one, on the shard."""
        return self._with("combine", as_operator(fn))

    def filter(self, fn: Callable[[Any], Any] | Operator) -> ParallelIterator:
        """Passes on the items for which `fn` gives something true, on the shard."""
        return self._with("filter", as_operator(fn))

    def batch(self, n: int) -> ParallelIterator:
        """Lists of `n` consecutive items of a shard; the last may be shorter."""
        return self._with("batch", n)

    def flatten(self) -> ParallelIterator:
        """The elements of each item, one by one, on the shard."""
        return self._with("flatten")

    def transform(self, fn: Callable[[Iterable[Any]], Iterable[Any]]) -> ParallelIterator:
        """Applies a generator function to the stream of each shard."""
        return self._with("transform", fn)

    def local_shuffle(self, shuffle_buffer_size: int, seed: int | None = None) -> ParallelIterator:
        """Random order within each shard, drawn from a buffer of so many items; every shard has the same seed."""
        return self._with("shuffle", shuffle_buffer_size, seed)

    # -- shards ------------------------------------------------------------------------------------

    def _members(self) -> list[Member]:
        return [Member(shard, group.steps) for group in self._groups for shard in group.shards]

    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._members())

    def select_shards(self, shards_to_keep: Sequence[int]) -> ParallelIterator:
        """The shards with the given numbers; keep the selections of several consumers disjoint.

        Raises:
            ValueError: after `union`, for no number at all, or for one that does not exist.
        """
        if len(self._groups) > 1:
            raise ValueError(f"{self.name}: select_shards() is not possible after union(); select before it.")
        shards, steps = next(iter(self._groups))
        if not shards_to_keep or not set(shards_to_keep) <= set(range(len(shards))):
            raise ValueError(
                f"{self.name}: select_shards() expects numbers from 0 to {len(shards) - 1}, got {list(shards_to_keep)}."
            )
        kept = tuple(shards[index] for index in sorted(set(shards_to_keep)))
        return ParallelIterator([_Group(kept, steps)], f"{self.name}.select_shards", (self, *self._parents))

    def union(self, other: ParallelIterator) -> ParallelIterator:
        """The shards of both."""
        if not isinstance(other, ParallelIterator):
            raise TypeError(f"{self.name}: union() expects a ParallelIterator, got {type(other).__name__}.")
        return ParallelIterator(
            self._groups + other._groups, f"union[{self.name}, {other.name}]", self._parents + other._parents
        )

    def repartition(
        self, num_partitions: int, batch_ms: float = 0, ray_options: Mapping[str, Any] | None = None
    ) -> ParallelIterator:
        """The same items in `num_partitions` shards, dealt out in turn.

        In-process shards are read directly. Where shards are Ray actors, they are started now, and an actor for each
        new shard reads its slice of all of them.

        Args:
            num_partitions: shards afterwards.
            batch_ms: milliseconds for which a shard collects items before it answers; 0 for one item an answer.
            ray_options: of the new actors.
        """
        if num_partitions < 1:
            raise ValueError(f"{self.name}: repartition() needs at least 1 shard, got {num_partitions}.")
        members = self._members()
        if self._remote():
            from jaxrl.execution.shard_actor import start_relays

            shards = start_relays(members, num_partitions, batch_ms, dict(ray_options or {}))
        else:
            dealer = _Dealer(members, num_partitions)
            shards = [Shard(_Deal(dealer, part), name="repartition") for part in range(num_partitions)]
        return ParallelIterator([_Group(tuple(shards), ())], f"{self.name}.repartition", (self, *self._parents))

    def shards(self) -> list[LocalIterator]:
        """A local iterator for each shard."""
        return [self.get_shard(index) for index in range(self.num_shards())]

    def get_shard(self, shard_index: int, batch_ms: float | None = None, num_async: int = 1) -> LocalIterator:
        """A local iterator over one shard, in its order."""
        members = self._members()
        if not 0 <= shard_index < len(members):
            raise ValueError(f"{self.name}: there are shards 0 to {len(members) - 1}, got {shard_index}.")
        return self._gather(
            [members[shard_index]], f"{self.name}.shard[{shard_index}]", batch_ms, num_async, None, None
        )

    # -- gathering ---------------------------------------------------------------------------------

    def gather_async(
        self,
        batch_ms: float | None = None,
        num_async: int = 1,
        *,
        timeout_s: float | None = None,
        on_failure: OnFailure | None = None,
    ) -> LocalIterator:
        """Items of all shards as they become ready; in-process shards are asked in turn, one item at a time.

        Args:
            batch_ms: milliseconds for which a shard collects items before it answers; 0 is one item an answer,
                always. By default the items made in half a millisecond (64 at most) share an answer, so that quick
                ones do not cost a Ray call each; one that takes longer, such as a rollout, travels alone and at once.
            num_async: requests in flight for each shard.
            timeout_s: a shard that has owed an answer for so long counts as failed (a minute more for an actor that
                still starts). In-process shards cannot be timed
                out.
            on_failure: `ShardFailure -> shard`, called when a shard fails, dies or is late. The shard
                it gives takes over (the same one: is asked again); None drops the shard; an error that it raises ends
                the plan. Killing a hung actor is its task too. Without it the plan ends with a WorkerError.

        Raises:
            ValueError: a negative time or no request at all.
        """
        return self._gather(self._members(), f"{self.name}.gather_async", batch_ms, num_async, timeout_s, on_failure)

    def _gather(
        self,
        members: list[Member],
        name: str,
        batch_ms: float | None,
        num_async: int,
        timeout_s: float | None,
        on_failure: OnFailure | None,
    ) -> LocalIterator:
        if num_async < 1:
            raise ValueError(f"{name}: num_async must be at least 1, got {num_async}.")
        if batch_ms is not None and batch_ms < 0:
            raise ValueError(f"{name}: batch_ms cannot be negative, got {batch_ms}.")
        node: Node
        if self._remote():
            from jaxrl.execution.shard_actor import AsyncActorGather

            node = AsyncActorGather(
                name, members, num_async=num_async, batch_ms=batch_ms, on_failure=on_failure, timeout_s=timeout_s
            )
        else:
            node = LocalGather(name, members, "async", on_failure)
        return LocalIterator(node)

    def gather_sync(self, *, timeout_s: float | None = None, on_failure: OnFailure | None = None) -> LocalIterator:
        """Items in a fixed order: one of each shard, then the next of each.

        A round is asked for when its first item is pulled.

        Args:
            timeout_s, on_failure: as for `gather_async`.
        """
        return self._gather_rounds(f"{self.name}.gather_sync", True, timeout_s, on_failure)

    def batch_across_shards(
        self, *, timeout_s: float | None = None, on_failure: OnFailure | None = None
    ) -> LocalIterator:
        """Lists with one item of each shard that has not ended: a barrier.

        Args:
            timeout_s, on_failure: as for `gather_async`.
        """
        return self._gather_rounds(f"{self.name}.batch_across_shards", False, timeout_s, on_failure)

    def _gather_rounds(
        self, name: str, flat: bool, timeout_s: float | None, on_failure: OnFailure | None
    ) -> LocalIterator:
        if self._remote():
            from jaxrl.execution.shard_actor import SyncActorGather

            node: Node = SyncActorGather(name, self._members(), flat=flat, on_failure=on_failure, timeout_s=timeout_s)
        else:
            node = LocalGather(name, self._members(), "sync" if flat else "round", on_failure)
        return LocalIterator(node)

    def _remote(self) -> bool:
        """True for Ray actors, False for objects of this process."""
        kinds = {is_actor(shard) for group in self._groups for shard in group.shards}
        if len(kinds) != 1:
            what = "a mix of Ray actors and in-process objects" if kinds else "no shards"
            raise ValueError(f"{self.name}: expected shards of one kind, got {what}.")
        return kinds.pop()

    def take(self, n: int) -> list[Any]:
        """The first `n` items of `gather_sync()`."""
        return self.gather_sync().take(n)

    def show(self, n: int = 20) -> None:
        """Prints the first `n` items of `gather_sync()`."""
        self.gather_sync().show(n)


def is_actor(shard: Any) -> bool:
    """Whether `shard` is the handle of a Ray actor; does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(shard, ray.actor.ActorHandle)


class _Dealer:
    """Starts the parents of a repartition once, when the first of the new shards is read."""

    def __init__(self, members: list[Member], parts: int):
        self.members = members
        self.parts = parts
        self.started = False

    def start(self) -> None:
        if not self.started:
            self.started = True
            for member in self.members:
                member.shard.par_iter_init(member.steps)


class _Deal:
    """Stream of one slice of in-process shards."""

    def __init__(self, dealer: _Dealer, part: int):
        self.dealer = dealer
        self.part = part

    def __call__(self) -> Iterator[Any]:
        self.dealer.start()
        live = [member.shard for member in self.dealer.members]
        while live:
            for shard in list(live):
                try:
                    item = shard.par_iter_slice(self.dealer.parts, self.part)
                except StopIteration:
                    live.remove(shard)
                    continue
                yield item


def from_iterators(
    generators: Sequence[IterableFactory | LocalIterator],
    repeat: bool = False,
    name: str | None = None,
    *,
    remote: bool = False,
    ray_options: Mapping[str, Any] | None = None,
) -> ParallelIterator:
    """One shard for each iterable, or function that returns one.

    Args:
        generators: what the shards give. A generator object cannot travel to an actor; a function that makes one can.
        repeat: start over at the end, for ever.
        name: of the iterator.
        remote: make the shards Ray actors; else they are objects of this process.
        ray_options: of the actors, such as `{"num_cpus": 0.5}`.

    Example:
        >>> list(from_iterators([range(3), range(3)]).gather_sync())
        [0, 0, 1, 1, 2, 2]
    """
    if not generators:
        raise ValueError("from_iterators: expected at least one iterable, got none.")
    name = name or f"from_iterators[{len(generators)}]"
    if remote:
        from jaxrl.execution.shard_actor import start_shards

        shards = start_shards(list(generators), repeat, name, dict(ray_options or {}))
    else:
        shards = [Shard(source, repeat, name) for source in generators]
    return ParallelIterator([_Group(tuple(shards), ())], name)


def from_items(
    items: Iterable[Any],
    num_shards: int = 2,
    repeat: bool = False,
    *,
    remote: bool = False,
    ray_options: Mapping[str, Any] | None = None,
) -> ParallelIterator:
    """`items` dealt out in turn to `num_shards` shards (see `from_iterators`)."""
    values = list(items)
    _check_shards("from_items", num_shards)
    sources = [values[index::num_shards] for index in range(num_shards)]
    return from_iterators(
        sources, repeat, f"from_items[{len(values)}, {num_shards}]", remote=remote, ray_options=ray_options
    )


def from_range(
    n: int,
    num_shards: int = 2,
    repeat: bool = False,
    *,
    remote: bool = False,
    ray_options: Mapping[str, Any] | None = None,
) -> ParallelIterator:
    """The numbers 0 to `n - 1`, a contiguous piece for each of `num_shards` shards (see `from_iterators`)."""
    _check_shards("from_range", num_shards)
    size = n // num_shards
    sources = [range(index * size, n if index == num_shards - 1 else (index + 1) * size) for index in range(num_shards)]
    return from_iterators(sources, repeat, f"from_range[{n}, {num_shards}]", remote=remote, ray_options=ray_options)


def from_actors(actors: Sequence[Any], name: str | None = None) -> ParallelIterator:
    """Shards that exist already: Ray actors or in-process objects, with the methods of `shards.ShardProtocol`."""
    if not actors:
        raise ValueError("from_actors: expected at least one shard, got none.")
    return ParallelIterator([_Group(tuple(actors), ())], name or f"from_actors[{len(actors)}]")


def _check_shards(where: str, num_shards: int) -> None:
    if num_shards < 1:
        raise ValueError(f"{where}: num_shards must be at least 1, got {num_shards}.")
