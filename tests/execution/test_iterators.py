"""LocalIterator: semantics with known answers, state that is saved mid-stream, and sleeping instead of polling."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from typing import Any

import pytest

from jaxrl.execution.iterators import NOT_READY, LocalIterator, Operator
from jaxrl.types import CheckpointError

items = LocalIterator.from_items


def _add(total: int, x: int) -> tuple[int, int]:
    return total + x, total + x


def running_sum() -> Operator:
    return Operator("RunningSum", _add, init=lambda: 0)


def concat(n: int) -> Operator:
    def apply(held, x):
        held = [*held, x]
        return ([], [sum(held), -sum(held)]) if len(held) == n else (held, [])

    return Operator(f"Concat({n})", apply, init=list)


def test_chain_of_basic_steps():
    assert list(items(range(6)).for_each(lambda x: x * 2).filter(lambda x: x > 2)) == [4, 6, 8, 10]
    assert list(items(range(5)).batch(2)) == [[0, 1], [2, 3], [4]]
    assert list(items([[1, 2], [], [3]]).flatten()) == [1, 2, 3]
    assert list(items([1, 2]).combine(lambda x: [x] * x)) == [1, 2, 2]
    assert list(items([1, 2, 3, 4]).combine(concat(2))) == [3, -3, 7, -7]
    assert list(items([1, 2, 3]).for_each(running_sum())) == [1, 3, 6]
    assert items(range(3), repeat=True).take(7) == [0, 1, 2, 0, 1, 2, 0]
    assert items([]).take(3) == [] and items([], repeat=True).take(3) == []


def test_an_ended_iterator_stays_ended():
    it = items(range(3)).batch(2)
    assert it.take(10) == [[0, 1], [2]]
    assert it.take(10) == []


def test_filter_with_state_keeps_every_other_item():
    every_other = Operator("EveryOther", lambda n, x: (n + 1, n % 2 == 0), init=lambda: 0)
    assert list(items(range(6)).filter(every_other)) == [0, 2, 4]


def test_transform_sees_items_only_and_can_hold_them_back():
    def pairs(stream):
        last = None
        for x in stream:
            if last is not None:
                yield (last, x)
            last = x

    assert list(items(range(4)).transform(pairs)) == [(0, 1), (1, 2), (2, 3)]
    assert not items(range(4)).transform(pairs).node.saveable


def test_shuffle_is_a_permutation_that_the_seed_fixes():
    one = list(items(range(50)).shuffle(10, seed=3))
    assert sorted(one) == list(range(50)) and one != list(range(50))
    assert one == list(items(range(50)).shuffle(10, seed=3)) != list(items(range(50)).shuffle(10, seed=4))
    assert all(x <= place + 9 for place, x in enumerate(one))  # an item cannot come before it has entered the buffer


def test_shuffle_is_uniform():
    firsts = Counter(items(range(4)).shuffle(4, seed=seed).take(1)[0] for seed in range(2000))
    assert all(abs(firsts[x] - 500) < 100 for x in range(4))


def test_duplicate_gives_each_copy_everything_and_stops_the_one_ahead():
    a, b = items(range(3)).duplicate(2)
    assert a.poll() == 0 and a.poll() is NOT_READY
    assert b.poll() == 0
    assert [a.poll(), b.poll()] == [1, 1]
    assert [b.poll(), b.poll()] == [2, NOT_READY]
    assert list(a) == [2] and list(b) == []


def test_a_copy_alone_says_why_it_cannot_move():
    a, _ = items(range(3)).duplicate(2)
    next(a)
    with pytest.raises(RuntimeError, match=r"copy\[0\].*ahead of its siblings"):
        next(a)


def test_duplicate_and_union_come_back_in_order():
    a, b = items(range(3)).duplicate(2)
    assert list(a.for_each(lambda x: x * 10).union(b, deterministic=True)) == [0, 0, 10, 1, 20, 2]


def test_union_orders_and_weights():
    assert list(items([1, 2, 3]).union(items([10]), deterministic=True)) == [1, 10, 2, 3]
    assert items([1] * 9).union(items([2] * 9), round_robin_weights=[2, 1]).take(6) == [1, 1, 2, 1, 1, 2]
    assert Counter(items([1] * 5).union(items([2] * 5))) == {1: 5, 2: 5}
    starred = items([1] * 250).union(items([2] * 3), round_robin_weights=["*", 1]).take(202)
    assert starred.index(2) == 100 and starred.count(2) == 2


def test_fractional_weights_are_rounded_at_random_with_the_right_mean():
    it = items([1], repeat=True).union(items([2], repeat=True), round_robin_weights=[1, 0.25], seed=0)
    taken = it.take(5000)
    assert abs(taken.count(2) / taken.count(1) - 0.25) < 0.03
    again = items([1], repeat=True).union(items([2], repeat=True), round_robin_weights=[1, 0.25], seed=0)
    assert again.take(5000) == taken


def test_union_passes_over_a_branch_that_another_branch_has_to_feed():
    stored: list[int] = []

    def replay(x):
        return sum(stored) if len(stored) >= 3 else NOT_READY

    store = items(range(1, 5)).for_each(lambda x: stored.append(x) or "stored")
    it = store.union(items([0], repeat=True).for_each(replay), deterministic=True)
    assert it.take(5) == ["stored", "stored", "stored", 6, "stored"]


def test_output_indexes_drop_the_other_streams():
    it = items([1, 2]).union(items([7, 8]), deterministic=True, output_indexes=[1])
    assert list(it) == [7, 8]
    assert it.nodes()[0].items_out == 2  # the first was pulled too


@pytest.mark.parametrize("weights", [[1], [0, 1], [-1, 1], ["many", 1]])
def test_union_refuses_bad_weights(weights):
    with pytest.raises(ValueError, match="union"):
        items([1]).union(items([2]), round_robin_weights=weights)


def test_a_filter_that_waits_for_another_branch_does_not_block_it():
    seen: list[int] = []
    store = items(range(500)).for_each(lambda x: seen.append(x) or "stored")
    late = items(["late"], repeat=True).filter(lambda _: len(seen) >= 5)
    assert store.union(late, deterministic=True).take(7).count("late") >= 1


def test_not_ready_item_is_held_and_tried_again():
    tries = []

    def third_time(x):
        tries.append(x)
        return x if len(tries) % 3 == 0 else NOT_READY

    assert list(items([1, 2]).for_each(third_time)) == [1, 2]
    assert tries == [1, 1, 1, 2, 2, 2]


def test_an_operator_that_is_not_ready_is_not_polled_hot():
    calls = 0
    ready_at = time.monotonic() + 0.5

    def slow(x):
        nonlocal calls
        calls += 1
        return x if time.monotonic() > ready_at else NOT_READY

    assert items([1]).for_each(slow).take(1) == [1]
    assert calls < 60


def test_two_consumers_of_one_stream_are_refused():
    base = items(range(4)).for_each(lambda x: x)
    left, right = base.batch(2), base.flatten()
    next(left)
    with pytest.raises(RuntimeError, match="duplicate"):
        next(right)


def test_an_iterator_pulled_from_its_own_operator_is_refused():
    it = items(range(4)).for_each(lambda _: next(it))
    with pytest.raises(RuntimeError, match="one consumer"):
        next(it)


def test_operator_error_keeps_the_state_and_stop_iteration_is_no_end():
    def fragile(n, x):
        if x == 2 and not failed:
            failed.append(x)
            raise ValueError("once")
        return n + 1, (n, x)

    failed: list[int] = []
    it = items([1, 2, 3]).for_each(Operator("Fragile", fragile, init=lambda: 0))
    assert next(it) == (0, 1)
    with pytest.raises(ValueError, match="once"):
        next(it)
    assert list(it) == [(1, 3)]

    def stops(x):
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(items([1]).for_each(stops))


def build_plan() -> LocalIterator:
    left, right = items(range(1, 40)).for_each(running_sum()).duplicate(2)
    left = left.combine(concat(3)).shuffle(4, seed=1)
    right = right.filter(Operator("EveryThird", lambda n, x: (n + 1, n % 3 == 0), init=lambda: 0)).batch(2).flatten()
    odd = LocalIterator.from_operator(Operator("Odd", lambda n, _: (n + 2, n), init=lambda: 1))
    return left.union(right, odd, round_robin_weights=[1, 0.6, 0.3], seed=5).batch(2)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_state_saved_mid_stream_continues_bit_for_bit(cut):
    whole = build_plan().take(25)
    first = build_plan()
    head = first.take(cut)
    state = pickle.loads(pickle.dumps(first.get_state()))
    second = build_plan()
    second.set_state(state)
    assert head + second.take(25 - cut) == whole
    assert second.node.items_out == 25


def test_state_of_another_plan_is_refused_by_node():
    state = items([1]).for_each(running_sum()).get_state()
    with pytest.raises(CheckpointError, match=r"node 1 of this plan is batch 'batch', but .* for_each 'RunningSum'"):
        items([1]).batch(2).set_state(state)
    with pytest.raises(CheckpointError, match="nothing"):
        items([1]).set_state(state)
    state["nodes"][1]["state"] = {"wrong": 1}
    with pytest.raises(CheckpointError, match="RunningSum"):
        items([1]).for_each(running_sum()).set_state(state)


def test_counts_seconds_and_marks():
    def nap(x):
        time.sleep(0.01)
        return x

    it = items(range(5)).for_each(nap).batch(2)
    list(it)
    source, each, batch = it.nodes()
    assert (source.items_out, each.items_in, each.items_out, batch.items_in, batch.items_out) == (5, 5, 5, 5, 3)
    assert each.seconds > 0.045 > batch.seconds and batch.fetch_seconds > 0.045
    assert not it.find("nap").host_only and it.find("nap").pure
    with pytest.raises(KeyError, match="the plan has"):
        it.find("nobody")


def test_host_only_is_taken_from_the_callable():
    class Send:
        host_only = True

        def __call__(self, x):
            return x

    it = items([1]).for_each(Send())
    assert it.node.host_only and it.node.name == "Send" and not it.node.pure


def test_not_ready_is_one_object_after_pickling():
    assert pickle.loads(pickle.dumps(NOT_READY)) is NOT_READY and not NOT_READY


def test_fetch_start_is_called_once_for_each_item():
    starts = []
    hold = iter([NOT_READY, 1, NOT_READY, NOT_READY, 2])
    source = LocalIterator.from_operator(Operator("Slow", lambda s, _: (s, next(hold))))
    it = source.for_each(Operator("Timed", lambda s, x: (s, x), on_fetch_start=lambda: starts.append(1)))
    assert it.take(2) == [1, 2] and len(starts) == 2


def test_source_of_generators_and_repeat():
    assert list(LocalIterator.from_iterator(x * x for x in range(3))) == [0, 1, 4]
    assert LocalIterator.from_iterator(lambda: iter("ab"), repeat=True).take(5) == list("ababa")
    with pytest.raises(ValueError, match="only once"):
        LocalIterator.from_iterator((x for x in range(2)), repeat=True).take(5)


def test_wrong_arguments():
    anything: Any
    with pytest.raises(TypeError, match="callable"):
        anything = 3
        items([1]).for_each(anything)
    with pytest.raises(ValueError, match="at least 1"):
        items([1]).batch(0)
    with pytest.raises(ValueError, match="at least 1"):
        items([1]).shuffle(0)
    with pytest.raises(ValueError, match="2 copies"):
        items([1]).duplicate(1)
    with pytest.raises(TypeError, match="LocalIterators"):
        anything = [2]
        items([1]).union(anything)
    with pytest.raises(ValueError, match="no shards"):
        items([1]).zip_with_source_actor()
    with pytest.raises(ValueError, match="output_indexes"):
        items([1]).union(items([2]), output_indexes=[2])
