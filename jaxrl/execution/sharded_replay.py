"""ShardedReplay: a replay memory in shards on Ray actors, seen from the driver: calls in flight, and lost shards."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from jaxrl import storage
from jaxrl.execution.replay_actor import Drawn, RowUpdates, ShardStats
from jaxrl.execution.waiting import Wait
from jaxrl.replay import ReplayBuffer
from jaxrl.rollout.failures import FailureBudget, describe, logger
from jaxrl.types import CheckpointError, JaxrlError, PolicyID, WorkerError

# Fragments on their way to one shard: one that it stores, one that waits.
ADDS_IN_FLIGHT = 2

RESTARTS = "num_replay_shard_restarts"
ROWS_LOST = "num_replay_rows_lost"


class Origin(NamedTuple):
    """Where a batch was drawn: the shard, which of its lives, and the rows of each policy ever added by then."""

    shard: int
    life: int
    added: Mapping[PolicyID, int]


class _Call(NamedTuple):
    """A call in flight: `method` of the shard, its reference, since when, and rows of a fragment to be stored."""

    method: str
    ref: Any
    since: float
    rows: int = 0


@dataclasses.dataclass(eq=False)
class _Place:
    """Where a shard stands: the actor that is it now, how often its contents began anew, its calls in order."""

    index: int
    actor: Any
    life: int = 0
    stats: ShardStats = ShardStats(False, {})
    answered_at: float | None = None
    calls: deque[_Call] = dataclasses.field(default_factory=deque)
    drawn: deque[Any] = dataclasses.field(default_factory=deque)

    def count(self, method: str) -> int:
        """Calls of a method in flight."""
        return sum(call.method == method for call in self.calls)


class ShardedReplay:
    """A replay memory on actors beside the driver: fragments go to any shard, batches come from all in turn.

    Nothing here blocks but `save` and `load`: `poll` takes the answers that are there. What is in flight is bounded:
    fragments by `has_room`, batches by `num_async`. A shard that dies or hangs is started anew, empty, within the
    budget that rollout workers have too; the rows it held are lost, and counted.

    Args:
        config: options of faults, the seed, `buffer_size`, `learning_starts`, `num_replay_buffer_shards`, ...
        buffers: the functions of each shard's buffers, by policy.
        policies: ids of the policies that learn.
        budget: of restarts.
        counters: counts num_replay_shard_restarts and num_replay_rows_lost.
        num_async: batches of a shard that are asked for, or wait to be taken.
    """

    def __init__(
        self,
        config: Any,
        buffers: Mapping[PolicyID, ReplayBuffer],
        policies: tuple[PolicyID, ...],
        budget: FailureBudget,
        counters: Any,
        *,
        num_async: int = 2,
    ):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from jaxrl.execution.replay_actor import ReplayActor

        self.config, self.budget, self.counters, self.num_async = config, budget, counters, num_async
        self._arguments = (buffers, policies)
        self._options = {
            "learning_starts": -(-config.learning_starts // config.num_replay_buffer_shards),
            "lockstep": config.replay_mode == "lockstep",
        }
        here = ray.get_runtime_context().get_node_id()
        # Beside the driver, which reads what they draw; they wait for most of the time, and take no slot from workers.
        self._actor_class = cast("Any", ray.remote(ReplayActor)).options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
        )
        self.draws = self._turn = 0
        self._random = np.random.default_rng(np.random.SeedSequence([config.seed or 0, 2**20]))
        self._places = [_Place(index, self._start_actor(index, 0)) for index in range(config.num_replay_buffer_shards)]

    def _start_actor(self, index: int, life: int) -> Any:
        seed = (self.config.seed or 0, index, life)
        return self._actor_class.remote(*self._arguments, seed=seed, **self._options)

    # ---- shards

    @property
    def actors(self) -> list[Any]:
        """The actors that are shards now."""
        return [place.actor for place in self._places]

    @property
    def ready(self) -> bool:
        """Whether any shard has enough rows to draw from."""
        return any(place.stats.ready for place in self._places)

    def stats(self) -> dict[int, ShardStats]:
        """What each shard last said that it holds."""
        return {place.index: place.stats for place in self._places}

    # ---- storing

    @property
    def has_room(self) -> bool:
        """Whether a shard would take a fragment now."""
        return any(place.count("add") < ADDS_IN_FLIGHT for place in self._places)

    def add(self, contents: Any, rows: int) -> None:
        """Sends a fragment to one of the shards that have room, drawn at random.

        Args:
            contents: `worker_priorities.Contents`, or an object reference to them.
            rows: in them.
        """
        free = [place for place in self._places if place.count("add") < ADDS_IN_FLIGHT]
        place = free[self._random.integers(len(free))]
        self._call(place, "add", contents, rows=rows)

    def _call(self, place: _Place, method: str, *args: Any, rows: int = 0) -> Any:
        ref = getattr(place.actor, method).remote(*args)
        place.calls.append(_Call(method, ref, time.monotonic(), rows))
        return ref

    # ---- drawing

    def request(self, n: int, beta: float) -> None:
        """Asks every shard that is ready for batches of `n` rows, until `num_async` of each are under way."""
        for place in self._places:
            under_way = place.count("sample") + len(place.drawn)
            for _ in range(self.num_async - under_way if place.stats.ready else 0):
                self._call(place, "sample", n, beta, self.draws)
                self.draws += 1

    def take(self) -> tuple[Any, Origin] | None:
        """A batch that has been drawn, and where; None if there is none. Shards give theirs in turn."""
        import ray
        from ray.exceptions import ObjectLostError

        for _ in range(len(self._places)):
            self._turn += 1
            place = self._places[self._turn % len(self._places)]
            if not place.drawn:
                continue
            try:
                drawn: Drawn | None = ray.get(place.drawn.popleft())
            except ObjectLostError:
                continue  # it is drawn again
            except Exception as error:
                self._fail(place, error)
                continue
            if drawn is not None:
                return drawn.batch, Origin(place.index, place.life, drawn.added)
        return None

    def update(self, origin: Origin, updates: Mapping[PolicyID, RowUpdates]) -> bool:
        """Sends new priorities to the shard that a batch came from; False if that shard is no more."""
        for place in self._places:
            if (place.index, place.life) == (origin.shard, origin.life):
                self._call(place, "update", dict(updates))
                return True
        return False

    # ---- answers and faults

    def poll(self) -> None:
        """Takes what has been answered, in order, and sees to shards that died or are late.

        Raises:
            WorkerError: a shard is lost, and is not to be survived, or the budget is spent.
            JaxrlError: what a shard raised.
        """
        import ray

        refs = [call.ref for place in self._places for call in place.calls]
        if not refs:
            return
        answered = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        now = time.monotonic()
        for place in list(self._places):
            lost = False
            # An actor serves its calls in order.
            while place.calls and place.calls[0].ref in answered and not lost:
                lost = not self._accept(place, place.calls.popleft())
            if not lost and place.calls and now > self._deadline(place):
                waited = now - max(place.calls[0].since, place.answered_at or 0.0)
                self._replace(place, TimeoutError(f"no answer for {waited:.1f} s"))

    def _accept(self, place: _Place, call: _Call) -> bool:
        """Deals with an answer; False if it says that the shard is lost."""
        import ray

        if call.method == "sample":
            place.drawn.append(call.ref)  # it stays where it is until it is wanted
            return True
        try:
            answer = ray.get(call.ref)
        except Exception as error:
            return self._fail(place, error, call.rows)
        place.answered_at = time.monotonic()
        if isinstance(answer, ShardStats):
            place.stats = answer
        return True

    def _fail(self, place: _Place, error: Exception, rows: int = 0) -> bool:
        """Deals with what a call raised; False if the shard is lost."""
        from ray.exceptions import ObjectLostError, RayTaskError

        if not isinstance(error, RayTaskError):
            self._replace(place, error, rows)
            return False
        if isinstance(error.cause, ObjectLostError):  # the worker that made a fragment died before it got here
            self.counters[ROWS_LOST] += rows
            return True
        raise _told(place.index, error) from error

    def _replace(self, place: _Place, error: BaseException, rows: int = 0) -> None:
        import ray

        ray.kill(place.actor)
        lost = place.stats.rows + rows + sum(call.rows for call in place.calls)
        self.counters[ROWS_LOST] += lost
        name, config = f"replay shard {place.index}", self.config
        if not config.recreate_failed_workers:
            if not config.ignore_worker_failures or len(self._places) == 1:
                raise WorkerError(f"{name} failed: {describe(error)}") from error
            logger.warning("%s and its %d rows are left out from now on: %s", name, lost, describe(error))
            self._places.remove(place)
            return
        self.budget.spend(name, error, answered=place.answered_at is not None)
        logger.warning("%s is started anew, empty; %d rows are lost: %s", name, lost, describe(error))
        self.counters[RESTARTS] += 1
        life = place.life + 1
        self._places[self._places.index(place)] = _Place(place.index, self._start_actor(place.index, life), life)

    def _deadline(self, place: _Place) -> float:
        from jaxrl.execution.shard_actor import START_ALLOWANCE_S

        timeout_s = self.config.sample_timeout_s
        if timeout_s is None or not place.calls:
            return float("inf")
        if place.answered_at is None:
            return place.calls[0].since + timeout_s + START_ALLOWANCE_S
        return max(place.calls[0].since, place.answered_at) + timeout_s

    def wait(self, name: str) -> Wait:
        """What a node that can do nothing until shards answer waits for."""
        from jaxrl.execution.shard_actor import block_on_refs

        refs = tuple(call.ref for place in self._places for call in place.calls)
        if not refs:
            return Wait(name, "turn")
        deadline = min(self._deadline(place) for place in self._places) + 1e-3
        return Wait(name, "refs", refs, 1, block_on_refs, deadline=deadline)

    # ---- checkpoints

    def save(self, writer: storage.Writer, prefix: str) -> None:
        """Writes the contents below `prefix`, a directory for each shard; nothing where checkpoints don't hold them."""
        if not self.config.store_buffer_in_checkpoints:
            return
        root = writer.directory.absolute()
        answers = self._on_all("save", lambda place: (str(root), f"{prefix}{_folder(place)}/"))
        for place, digests in answers:
            if digests is None:  # what a lost shard has written of it is half
                shutil.rmtree(root / prefix / _folder(place), ignore_errors=True)
            else:
                writer.digests |= digests

    def load(self, files: storage.Files) -> None:
        """Has every shard read what `save` wrote, to be put in place by `restore`; nothing, where it wrote nothing.

        Raises:
            CheckpointError: of other policies or another number of shards, or a buffer of other options or shapes.
        """
        found = sorted({name.partition("/")[0] for name in files.names})
        if not set(found) <= {_folder(place) for place in self._places}:
            raise CheckpointError(
                f"{files}: holds {found}, and this run has {len(self._places)} replay shards; restore with "
                f"num_replay_buffer_shards={len(found)} and store_buffer_in_checkpoints as it was."
            )
        self._on_all("load", lambda place: (files.below(_folder(place)),))

    def restore(self) -> None:
        """Puts what `load` has read in the place of the contents; forgets batches drawn before."""
        for place in self._places:
            place.drawn.clear()
            place.calls.clear()
            place.life += 1
        self._on_all("restore")

    def _on_all(self, method: str, arguments: Callable[[_Place], tuple[Any, ...]] = lambda _: ()) -> list[Any]:
        """Calls a method of every shard; (place, answer) of each, None where the shard was lost."""
        import ray
        from ray.exceptions import RayTaskError

        calls = [(place, getattr(place.actor, method).remote(*arguments(place))) for place in self._places]
        answers = []
        for place, ref in calls:
            answer = None
            try:
                answer = ray.get(ref, timeout=self.config.sample_timeout_s)
            except RayTaskError as error:
                raise _told(place.index, error) from error
            except Exception as error:
                self._replace(place, error)
            if isinstance(answer, ShardStats):
                place.stats = answer
            answers.append((place, answer))
        return answers

    def stop(self) -> None:
        """Ends the actors."""
        import ray

        for place in self._places:
            ray.kill(place.actor)
        self._places = []


def _folder(place: _Place) -> str:
    return f"shard-{place.index}"


def _told(index: int, error: Any) -> JaxrlError:
    """What a shard's method raised, as it is to be told."""
    if isinstance(error.cause, JaxrlError):
        return error.cause
    return WorkerError(f"replay shard {index} failed: {describe(error)}")
