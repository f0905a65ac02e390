"""Concurrently, Enqueue and Dequeue: order, back-pressure, sleeping and what happens when the other side dies."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from typing import Any

import pytest

from jaxrl.execution.concurrency_ops import Concurrently, Dequeue, Enqueue
from jaxrl.execution.iterators import NOT_READY, LocalIterator

items = LocalIterator.from_items


def test_round_robin_weights_and_outputs():
    assert list(Concurrently([items([1, 2]), items("ab")])) == [1, "a", 2, "b"]
    assert list(Concurrently([items([1, 2]), items("ab")], output_indexes=[1])) == ["a", "b"]
    weighted = Concurrently([items([1] * 4), items([2] * 4)], round_robin_weights=[1, 2])
    assert weighted.take(6) == [1, 2, 2, 1, 2, 2]
    assert Counter(Concurrently([items([1] * 3), items([2] * 3)], mode="async")) == {1: 3, 2: 3}


def test_full_queue_holds_the_item_and_saves_it():
    box: queue.Queue[int] = queue.Queue(maxsize=2)
    it = items(range(5)).for_each(Enqueue(box))
    assert [it.poll(), it.poll(), it.poll(), it.poll()] == [0, 1, NOT_READY, NOT_READY]
    state = it.get_state()
    assert state["nodes"][1]["state"]["held"] == [2]
    assert [box.get(), it.poll(), it.poll()] == [0, 2, NOT_READY]
    other: queue.Queue[int] = queue.Queue()
    restored = items(range(5)).for_each(Enqueue(other))
    restored.set_state(state)
    assert list(restored) == [2, 3, 4]


def test_a_learner_thread_between_two_queues_sees_every_item_without_polling(monkeypatch):
    inbox: queue.Queue[int] = queue.Queue(maxsize=2)
    outbox: queue.Queue[int] = queue.Queue()

    def learn():
        for _ in range(20):
            time.sleep(0.01)
            outbox.put(inbox.get() * 10)

    thread = threading.Thread(target=learn)
    thread.start()
    feed = items(range(20)).for_each(Enqueue(inbox))
    it = Concurrently([feed, Dequeue(outbox)], mode="async", output_indexes=[1])
    pulls = 0
    poll = it.poll

    def counted():
        nonlocal pulls
        pulls += 1
        return poll()

    monkeypatch.setattr(it, "poll", counted)
    assert it.take(20) == [x * 10 for x in range(20)]
    thread.join(timeout=5)
    assert not thread.is_alive() and pulls < 400


def test_empty_queue_blocks_until_an_item_comes():
    box: queue.Queue[str] = queue.Queue()
    it = Dequeue(box)
    threading.Timer(0.3, lambda: box.put("late")).start()
    start = time.monotonic()
    cpu = time.thread_time()
    assert next(it) == "late"
    assert 0.25 < time.monotonic() - start < 3
    assert time.thread_time() - cpu < 0.05  # asleep, not spinning
    assert it.node.items_out == 1


def test_full_queue_blocks_until_there_is_room():
    box: queue.Queue[int] = queue.Queue(maxsize=1)
    box.put(0)
    it = items([1]).for_each(Enqueue(box))
    threading.Timer(0.2, box.get).start()
    cpu = time.thread_time()
    assert next(it) == 1
    assert time.thread_time() - cpu < 0.05


def test_the_death_of_the_other_side_is_its_own_error_in_bounded_time():
    box: queue.Queue[int] = queue.Queue()
    box.put(1)
    failure: list[BaseException] = []

    def check():
        for error in failure:
            raise error
        return True

    it = Dequeue(box, check=check)
    assert next(it) == 1  # what is in the queue still comes out
    cause = ValueError("loss is NaN")
    threading.Timer(0.2, failure.append, [cause]).start()
    start = time.monotonic()
    with pytest.raises(ValueError, match="loss is NaN") as caught:
        next(it)
    assert caught.value is cause and time.monotonic() - start < 3
    with pytest.raises(RuntimeError, match="what fills it has stopped"):
        next(Dequeue(queue.Queue(), check=lambda: False))


def test_in_turn_with_queues_never_waits_for_what_another_branch_must_feed():
    loop: queue.Queue[int] = queue.Queue(maxsize=1)
    it = Concurrently([Dequeue(loop), items(range(3)).for_each(Enqueue(loop))])
    assert it.take(6) == [0, 0, 1, 1, 2, 2]


def test_wrong_arguments():
    anything: Any = "fast"
    with pytest.raises(ValueError, match="at least two"):
        Concurrently([items([1])])
    with pytest.raises(ValueError, match="mode"):
        Concurrently([items([1]), items([2])], mode=anything)
    with pytest.raises(ValueError, match="round_robin_weights"):
        Concurrently([items([1]), items([2])], mode="async", round_robin_weights=[1, 2])
