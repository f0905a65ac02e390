"""The learner's thread: back-pressure, passes, staleness, errors, pausing; and plans that learn in it."""

import queue
import time
from typing import Any, cast

import numpy as np
import pytest

from jaxrl.data import SampleBatch, as_multi_agent
from jaxrl.execution.async_ops import RecordTrained, TrainedBatches
from jaxrl.execution.learner_thread import LearnerThread, Work
from jaxrl.metrics import Counters, Timer
from jaxrl.types import DEFAULT_POLICY_ID, NonFiniteError


class FakeLearner:
    """Counts what it learns; slow, or broken, if asked to be."""

    def __init__(self, seconds=0.0, error=None):
        self.seconds, self.error = seconds, error
        self.learned: list[float] = []
        self.one_pass: list[bool] = []
        self.rows = {"td_error": np.ones(4)}

    @property
    def weights(self):
        return len(self.learned)

    def update_schedules(self, timestep):
        self.timestep = timestep

    def learn(self, batch, one_pass=False):
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.learned.append(float(batch["rewards"][0, 0]))
        self.one_pass.append(one_pass)
        return {"loss": 1.0}


class FakeWorkers:
    """Notes which weights it was offered."""

    def __init__(self):
        self.version = 1
        self.offered: list[int] = []

    def offer_weights(self, weights, version):
        self.version = version
        self.offered.append(version)


class FakeContext:
    """What the thread and its operators use of a plan's context."""

    def __init__(self, learner):
        self.config = type("Config", (), {"num_workers": 2})()
        self.learners = {DEFAULT_POLICY_ID: learner}
        self.policies_to_train = (DEFAULT_POLICY_ID,)
        self.counters, self.timers, self.learner_info = Counters(), {}, {}
        self.workers = FakeWorkers()

    def timer(self, name):
        return self.timers.setdefault(name, Timer())

    def count_trained(self, batch):
        self.counters["num_steps_trained"] += batch.env_steps


def batch(number, version=1, worker=1):
    shape = (4, 2)
    columns = {
        "rewards": np.full(shape, number, np.float32),
        "weights_version": np.full(shape, version, np.int32),
        "eps_id": np.full(shape, 3 * number + worker, np.int32),
    }
    return as_multi_agent(SampleBatch(columns))


def run(ctx, **options):
    return LearnerThread(cast("Any", ctx), **options)


def test_learns_in_order_and_tells_how_old_each_batch_was():
    ctx = FakeContext(FakeLearner())
    thread = run(ctx)
    for number in range(3):
        thread.inqueue.put(Work(batch(number), tag=f"from {number}"))
    thread.start()
    trained = [thread.outqueue.get(timeout=10) for _ in range(3)]
    thread.stop()
    assert ctx.learners[DEFAULT_POLICY_ID].learned == [0, 1, 2]
    assert [each.tag for each in trained] == ["from 0", "from 1", "from 2"]
    assert [each.version for each in trained] == [2, 3, 4]
    assert [each.staleness for each in trained] == [0.0, 1.0, 2.0]  # all three were sampled with the first weights
    assert thread.published == (4, {DEFAULT_POLICY_ID: 3})
    assert not thread._thread.is_alive()


def test_full_queues_hold_everything_back():
    ctx = FakeContext(FakeLearner())
    thread = run(ctx, queue_size=2)
    thread.start()
    put, deadline = 0, time.monotonic() + 1.0
    while (
        time.monotonic() < deadline
    ):  # nobody takes results: two wait to be taken, one is held, two wait to be learned
        try:
            thread.inqueue.put(Work(batch(put)), timeout=0.05)
            put += 1
        except queue.Full:
            pass
    assert put <= 2 + 1 + 2 + 1
    thread.stop()
    assert not thread._thread.is_alive()


def test_passes_over_several_batches_interleave():
    ctx = FakeContext(FakeLearner())
    thread = run(ctx, minibatch_buffer_size=2, num_passes=2)
    for number in range(4):
        thread.inqueue.put(Work(batch(number)))
    thread.start()
    for _ in range(8):
        thread.outqueue.get(timeout=10)
    thread.stop()
    learner = ctx.learners[DEFAULT_POLICY_ID]
    assert learner.learned == [0, 1, 0, 1, 2, 3, 2, 3]
    assert all(learner.one_pass)


def test_what_the_learner_raises_reaches_the_plan_with_its_traceback_and_origin():
    ctx = FakeContext(FakeLearner(error=NonFiniteError("loss is NaN")))
    thread = run(ctx)
    thread.inqueue.put(Work(batch(5, worker=2)))
    plan = TrainedBatches(thread)
    start = time.monotonic()
    with pytest.raises(NonFiniteError, match="loss is NaN") as caught:
        next(plan)
    assert time.monotonic() - start < 10
    assert any(entry.name == "learn" for entry in caught.traceback)
    assert caught.value.__notes__ == ["Raised while learning from 8 rows of workers [2], in the learner's thread."]
    with pytest.raises(NonFiniteError):  # and again: the run cannot go on as if nothing had been
        next(plan)


def test_pausing_waits_for_the_update_under_way():
    ctx = FakeContext(FakeLearner(seconds=0.3))
    thread = run(ctx)
    thread.inqueue.put(Work(batch(0)))
    thread.inqueue.put(Work(batch(1)))
    thread.start()
    time.sleep(0.1)
    with thread.paused():
        learned = len(ctx.learners[DEFAULT_POLICY_ID].learned)
        assert learned == 1
        time.sleep(0.5)
        assert len(ctx.learners[DEFAULT_POLICY_ID].learned) == learned
        thread.forget()
    thread.stop()


def test_broadcasts_come_at_the_interval_and_carry_the_newest_weights():
    ctx = FakeContext(FakeLearner())
    thread = run(ctx)
    plan = TrainedBatches(thread).for_each(RecordTrained(cast("Any", ctx), thread, broadcast_interval=3))
    for number in range(7):
        thread.inqueue.put(Work(batch(number)))
        next(plan)
    thread.stop()
    assert ctx.counters["num_steps_trained"] == 7 * 8
    assert ctx.workers.offered == [4, 7]
    assert ctx.learner_info[DEFAULT_POLICY_ID] == {"loss": 1.0}


def test_stopping_does_not_wait_for_a_plan_that_takes_nothing():
    ctx = FakeContext(FakeLearner())
    thread = run(ctx, queue_size=1)
    thread.start()
    for number in range(2):
        thread.inqueue.put(Work(batch(number)))
    time.sleep(0.2)
    start = time.monotonic()
    thread.stop()
    assert time.monotonic() - start < 2
    assert not thread._thread.is_alive()
