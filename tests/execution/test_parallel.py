"""ParallelIterator over in-process shards: semantics with known answers, failures and saved state."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest

from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.execution.parallel import ParallelIterator, from_actors, from_items, from_iterators, from_range
from jaxrl.execution.shards import Shard
from jaxrl.types import WorkerError


def running_sum() -> Operator:
    return Operator("RunningSum", lambda total, x: (total + x, total + x), init=lambda: 0)


def test_constructors_deal_out_items():
    assert [list(shard) for shard in from_items([1, 2, 3, 4, 5]).shards()] == [[1, 3, 5], [2, 4]]
    assert [list(shard) for shard in from_range(5).shards()] == [[0, 1], [2, 3, 4]]
    assert list(from_range(10, num_shards=2).get_shard(1)) == [5, 6, 7, 8, 9]
    assert list(from_iterators([range(3), range(3)]).gather_sync()) == [0, 0, 1, 1, 2, 2]
    assert from_range(2, repeat=True).take(5) == [0, 1, 0, 1, 0]
    assert from_iterators([lambda: iter("ab")], repeat=True).take(3) == list("aba")


def test_operators_run_on_each_shard_with_state_of_its_own():
    assert list(from_range(4).for_each(lambda x: x * 2).gather_sync()) == [0, 4, 2, 6]
    assert list(from_range(6).for_each(running_sum()).gather_sync()) == [0, 3, 1, 7, 3, 12]
    assert list(from_range(6).batch(2).gather_sync()) == [[0, 1], [3, 4], [2], [5]]
    assert list(from_range(4).batch(2).flatten().filter(lambda x: x != 2).gather_sync()) == [0, 3, 1]
    assert list(from_range(3, 1).combine(lambda x: [x] * x).gather_sync()) == [1, 2, 2]
    assert list(from_range(4, 1).transform(lambda xs: (x + 1 for x in xs)).gather_sync()) == [1, 2, 3, 4]
    shuffled = list(from_range(20, 2).local_shuffle(5, seed=0).gather_sync())
    assert sorted(shuffled) == list(range(20)) and set(shuffled[::2]) == set(range(10))


def test_rounds_drop_shards_that_ended():
    assert list(from_iterators([range(3), range(1)]).batch_across_shards()) == [[0, 0], [1], [2]]


def test_repartition_deals_items_in_turn():
    parts = from_range(8, 2).repartition(3)
    assert [list(shard) for shard in parts.shards()] == [[0, 4, 3, 7], [1, 5], [2, 6]]
    assert sorted(from_range(10, 3).for_each(lambda x: -x).repartition(2).gather_async()) == list(range(-9, 1))


def test_union_and_selection():
    both = from_range(2).for_each(lambda x: x + 10).union(from_range(2))
    assert both.num_shards() == 4 and list(both.gather_sync()) == [10, 11, 0, 1]
    assert list(from_range(6, 3).select_shards([0, 2]).gather_sync()) == [0, 4, 1, 5]
    with pytest.raises(ValueError, match="after union"):
        both.select_shards([0])
    with pytest.raises(ValueError, match="0 to 1"):
        from_range(2).select_shards([2])


def test_gather_async_asks_in_turn_and_pairs_items_with_their_shard():
    shards = [Shard([1, 2]), Shard([3])]
    pairs = list(from_actors(shards).gather_async().zip_with_source_actor())
    assert pairs == [(shards[0], 1), (shards[1], 3), (shards[0], 2)]


def test_source_shard_survives_later_steps():
    shards = [Shard([1, 2]), Shard([3, 4])]
    it = from_actors(shards).gather_sync().for_each(lambda x: [x, x]).flatten().zip_with_source_actor()
    assert [shards.index(shard) for shard, _ in it] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_in_process_shards_do_not_import_ray():
    import subprocess

    code = (
        "import sys; from jaxrl.execution.parallel import from_range as f; f(4).take(4); sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_direct_iteration_is_refused_with_advice():
    with pytest.raises(TypeError, match="gather_sync"):
        iter(from_range(3))


def test_nothing_starts_before_the_first_item():
    started = []

    def make():
        started.append(1)
        return iter([1])

    it = from_iterators([make]).for_each(lambda x: x).gather_sync().batch(1)
    assert not started
    assert next(it) == [1] and started == [1]


class Fragile:
    """A shard of this process that fails at its third item."""

    def __init__(self, fails: bool = True):
        self.fails = fails
        self.count = 0
        self.steps: Any = None

    def par_iter_init(self, transforms):
        self.steps = transforms

    def par_iter_next(self):
        self.count += 1
        if self.fails and self.count == 3:
            raise ValueError("broken env")
        if self.count > 4:
            raise StopIteration
        return self.count


@pytest.mark.parametrize("how", ["gather_async", "gather_sync", "batch_across_shards"])
def test_failing_shard_is_an_error_without_a_hook(how):
    it = getattr(from_actors([Shard([1] * 4), Fragile()]), how)()
    with pytest.raises(WorkerError, match=r"shard 1 failed: ValueError: broken env") as caught:
        list(it)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("how", ["gather_async", "gather_sync"])
def test_failing_shard_is_replaced_dropped_or_tried_again(how):
    seen = []

    def replace(failure):
        seen.append((failure.shard_index, str(failure.error), failure.answers))
        return Fragile(fails=False)

    parallel = from_actors([Shard([10] * 4), Fragile()])
    assert list(getattr(parallel, how)(on_failure=replace)) == [10, 1, 10, 2, 10, 1, 10, 2, 3, 4]
    assert seen == [(1, "broken env", 2)]
    parallel = from_actors([Shard([10] * 4), Fragile()])
    assert list(getattr(parallel, how)(on_failure=lambda *_: None)) == [10, 1, 10, 2, 10, 10]
    parallel = from_actors([Shard([10] * 4), Fragile()])
    assert list(getattr(parallel, how)(on_failure=lambda failure: failure.shard)) == [10, 1, 10, 2, 10, 4, 10]


def test_replacement_runs_the_same_operators():
    fresh = Fragile(fails=False)
    it = from_actors([Fragile()]).for_each(running_sum()).gather_sync(on_failure=lambda *_: fresh)
    list(it)
    assert [step.method for step in fresh.steps] == ["for_each"]


def plan(parallel: ParallelIterator, how: str) -> LocalIterator:
    it = getattr(parallel.for_each(running_sum()).local_shuffle(3, seed=1), how)()
    return (it.flatten() if how == "batch_across_shards" else it).for_each(running_sum())


@pytest.mark.parametrize("how", ["gather_async", "gather_sync", "batch_across_shards"])
@pytest.mark.parametrize("cut", [0, 1, 6])
def test_state_with_in_process_shards_continues_bit_for_bit(how, cut):
    whole = list(plan(from_range(20, 3), how))
    first = plan(from_range(20, 3), how)
    head = first.take(cut)
    state = pickle.loads(pickle.dumps(first.get_state()))
    second = plan(from_range(20, 3), how)
    second.set_state(state)
    assert head + list(second) == whole


def test_wrong_arguments():
    anything: Any = [1]
    with pytest.raises(ValueError, match="num_shards"):
        from_range(3, 0)
    with pytest.raises(ValueError, match="num_async"):
        from_range(3).gather_async(num_async=0)
    with pytest.raises(ValueError, match="batch_ms"):
        from_range(3).gather_async(batch_ms=-1)
    with pytest.raises(ValueError, match="shards 0 to 1"):
        from_range(3).get_shard(2)
    with pytest.raises(ValueError, match="at least one"):
        from_actors([])
    with pytest.raises(ValueError, match="at least one"):
        from_iterators([])
    with pytest.raises(TypeError, match="ParallelIterator"):
        from_range(3).union(anything)
    with pytest.raises(ValueError, match="at least 1 shard"):
        from_range(3).repartition(0)
    with pytest.raises(RuntimeError, match="par_iter_init"):
        Shard([1]).par_iter_next()
