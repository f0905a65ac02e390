"""ParallelIterator over Ray actors: the same answers as in-process, and faults bounded by time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.execution.parallel import from_actors, from_items, from_iterators, from_range
from jaxrl.execution.shards import Shard
from jaxrl.types import WorkerError

pytestmark = [
    pytest.mark.ray,
]
LIGHT = {"num_cpus": 0}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


class Worker:
    """A shard that dies, hangs or raises when its count reaches `at`."""

    def __init__(self, what: str = "", at: int = 3, pause: float = 0.0, start: int = 0):
        def items():
            count = start
            while True:
                count += 1
                time.sleep(pause)
                if count == at and what == "die":
                    os._exit(1)
                if count == at and what == "hang":
                    time.sleep(3600)
                if count == at and what == "raise":
                    raise ValueError("broken env")
                yield count

        self.shard = Shard(items)

    def par_iter_init(self, transforms):
        self.shard.par_iter_init(transforms)

    def par_iter_next(self):
        return self.shard.par_iter_next()

    def par_iter_next_batch(self, max_items, batch_ms):
        return self.shard.par_iter_next_batch(max_items, batch_ms)


def actor(*args: Any, max_restarts: int = 0, **kwargs: Any) -> Any:
    return ray.remote(num_cpus=0, max_restarts=max_restarts)(Worker).remote(*args, **kwargs)


def running_sum() -> Operator:
    return Operator("RunningSum", lambda total, x: (total + x, total + x), init=lambda: 0)


def test_same_answers_as_in_process():
    for remote in (False, True):
        parallel = from_range(7, 2, remote=remote, ray_options=LIGHT if remote else None)
        it = parallel.for_each(running_sum()).filter(lambda x: x != 7).gather_sync()
        assert list(it) == [0, 3, 1, 12, 3, 18]  # sums of 0, 1, 2 and of 3, 4, 5, 6


def test_rounds_async_shards_union_and_batches():
    parallel = from_items(range(1, 6), 2, remote=True, ray_options=LIGHT)
    assert list(parallel.batch_across_shards()) == [[1, 2], [3, 4], [5]]
    parallel = from_range(40, 2, remote=True, ray_options=LIGHT).for_each(lambda x: x * 2)
    assert sorted(parallel.union(from_range(3, 1, remote=True, ray_options=LIGHT)).gather_async(num_async=3)) == sorted(
        [*range(0, 80, 2), 0, 1, 2]
    )


@pytest.mark.parametrize("batch_ms", [None, 0, 5])
def test_one_shard_is_a_stream_in_order(batch_ms):
    parallel = from_range(60, 2, remote=True, ray_options=LIGHT)
    assert list(parallel.get_shard(1, batch_ms=batch_ms, num_async=4)) == list(range(30, 60))


def test_repartition_over_relays():
    parts = from_range(8, 2, remote=True, ray_options=LIGHT).repartition(3, ray_options=LIGHT)
    assert [sorted(shard) for shard in parts.shards()] == [[0, 3, 4, 7], [1, 5], [2, 6]]


def test_items_come_in_order_of_completion_with_their_actor():
    slow, fast = actor(pause=0.5), actor(pause=0.02)
    it = from_actors([slow, fast]).gather_async().zip_with_source_actor()
    pairs = it.take(10)
    it.close()
    assert sum(shard is fast for shard, _ in pairs) >= 8
    assert all(shard in (slow, fast) for shard, _ in pairs)


def test_waiting_for_actors_blocks_instead_of_polling(monkeypatch):
    it = from_actors([actor(pause=0.4)]).gather_async().batch(2)
    pulls = 0
    gather = it.nodes()[0]
    step = gather.step

    def counted():
        nonlocal pulls
        pulls += 1
        return step()

    monkeypatch.setattr(gather, "step", counted)
    it.take(1)
    it.close()
    assert pulls <= 12


def test_ordered_union_waits_for_work_in_flight_and_unordered_does_not():
    local = LocalIterator.from_items(range(100, 200))
    it = from_actors([actor(pause=0.1)]).gather_async()
    assert it.union(local, deterministic=True).take(4) == [1, 100, 2, 101]
    it.close()
    local = LocalIterator.from_items(range(102, 200))
    it = from_actors([actor(pause=0.5)]).gather_async()
    assert it.union(local).take(5) == [102, 103, 104, 105, 106]
    it.close()


def test_requests_in_flight_are_bounded_while_the_consumer_is_slow():
    worker = actor()
    it = from_actors([worker]).gather_async(batch_ms=0, num_async=2)
    next(it)
    time.sleep(0.5)
    # One was handed on; two more at most may have been made, and this call is the next.
    made: Any = ray.get(worker.par_iter_next.remote())
    assert made <= 4
    it.close()


FAULTS = {"die": "Actor", "raise": "broken env", "hang": "no answer for 1"}


@pytest.mark.parametrize("how", ["gather_async", "gather_sync"])
@pytest.mark.parametrize("what", list(FAULTS))
def test_fault_is_one_clear_error_in_bounded_time(how, what):
    start = time.monotonic()
    it = getattr(from_actors([actor(), actor(what)]), how)(timeout_s=1.0)
    with pytest.raises(WorkerError, match=rf"(?s)shard 1 failed.*{FAULTS[what]}") as caught:
        while True:
            next(it)
    assert time.monotonic() - start < 60
    if what == "raise":
        assert isinstance(caught.value.__cause__, ValueError)
        assert "in items" in str(caught.value.__cause__)  # the remote traceback
    with pytest.raises(WorkerError):  # no silent end afterwards
        next(it)
    it.close()


@pytest.mark.parametrize("how", ["gather_async", "gather_sync"])
@pytest.mark.parametrize("what", list(FAULTS))
def test_fault_is_survived_with_a_replacement(how, what):
    start = time.monotonic()
    failed = []

    def replace(failure):
        failed.append((failure.shard_index, failure.error))
        ray.kill(failure.shard)
        return actor(start=1000)

    parallel = from_actors([actor(pause=0.01), actor(what)]).for_each(lambda x: -x)
    it = getattr(parallel, how)(timeout_s=1.0, on_failure=replace)
    seen: set[int] = set()
    while not any(x <= -1005 for x in seen):  # the replacement, with the operators
        item = next(it)
        seen.update(item if isinstance(item, list) else [item])
        assert time.monotonic() - start < 60
    assert [index for index, _ in failed] == [1]
    if what == "raise":
        assert isinstance(failed[0][1], ValueError)
    it.close()


def test_an_actor_that_ray_restarts_gets_its_operators_again():
    def again(failure):
        time.sleep(0.2)
        return failure.shard

    parallel = from_actors([actor("die", at=4, max_restarts=-1)]).for_each(lambda x: -x)
    it = parallel.gather_async(batch_ms=0, on_failure=again)
    assert it.take(6) == [-1, -2, -3, -1, -2, -3]
    it.close()


def test_dropped_shard_leaves_the_others():
    it = from_actors([actor(), actor("raise")]).gather_async(on_failure=lambda *_: None)
    assert len(it.take(50)) == 50
    it.close()


def test_error_in_an_operator_is_reported_from_the_shard():
    it = from_range(4, 2, remote=True, ray_options=LIGHT).for_each(lambda x: 1 // x).gather_sync()
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        list(it)


def test_mixed_kinds_of_shards_are_refused():
    with pytest.raises(ValueError, match="mix"):
        from_actors([actor(), Shard([1])]).gather_sync()


def test_state_of_a_round_is_saved_between_rounds():
    first = from_range(6, 2, remote=True, ray_options=LIGHT).gather_sync()
    assert first.take(3) == [0, 3, 1]
    state = first.get_state()
    second = from_iterators(
        [range(2, 3), range(5, 6)], remote=True, name="from_range[6, 2]", ray_options=LIGHT
    ).gather_sync()
    second.set_state(state)
    assert list(second) == [4, 2, 5]  # the item already fetched comes first; shards keep their own place


@ray.remote(num_cpus=0)
def consume(stream: LocalIterator) -> list[Any]:
    return list(stream)


def test_iterator_travels_to_another_process():
    it = from_range(6, 2).for_each(running_sum()).gather_sync()
    assert ray.get(consume.remote(it)) == [0, 3, 1, 7, 3, 12]


def test_resources_are_those_of_rays_tasks() -> None:
    def where(x: int) -> tuple[int, float]:
        return x, ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)

    found = sorted(from_range(3, 1).for_each(where, max_concurrency=2, resources={"num_cpus": 0.5}).gather_sync())
    assert found == [(0, 0.5), (1, 0.5), (2, 0.5)]
