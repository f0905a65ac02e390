"""Operators with a sharded replay memory: back-pressure, the ratio of learning to sampling, what goes where."""

import queue
from collections import deque
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from jaxrl.data import SampleBatch, as_multi_agent
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner_thread import Trained, Work
from jaxrl.execution.replay_actor import ShardStats
from jaxrl.execution.sharded_ops import (
    CountTargetUpdates,
    Intensity,
    ReplayFromShards,
    ReportShards,
    StoreToShards,
    UpdateShardPriorities,
    UpdateWorkerWeights,
)
from jaxrl.execution.sharded_replay import Origin
from jaxrl.execution.waiting import NOT_READY, Wait
from jaxrl.execution.worker_priorities import Fragment
from jaxrl.exploration import per_worker_epsilon_greedy
from jaxrl.metrics import Counters, Timer
from jaxrl.schedules import LinearSchedule
from jaxrl.types import DEFAULT_POLICY_ID, LossError, Weights

PID = DEFAULT_POLICY_ID


def batch(rows=8):
    columns = {"rewards": np.zeros(rows, np.float32), "batch_indexes": np.arange(rows, dtype=np.int32)}
    return as_multi_agent(SampleBatch(columns, time_major=False))


class FakeShards:
    """Takes fragments while it has room, and has batches at hand."""

    def __init__(self, room=10**6, ready=True, batches=10**6):
        self.room, self.ready, self.batches = room, ready, batches
        self.added: list[Any] = []
        self.updates: list[Any] = []
        self.requests: list[Any] = []
        self.actors, self.draws = ["a", "b"], 0

    @property
    def has_room(self):
        return len(self.added) < self.room

    def poll(self):
        pass

    def wait(self, name):
        return Wait(name, "refs", ("ref",))

    def add(self, contents, rows):
        self.added.append((contents, rows))

    def request(self, n, beta):
        self.requests.append((n, beta))

    def take(self):
        if not self.batches:
            return None
        self.batches -= 1
        return batch(), Origin(1, 0, {PID: 40})

    def update(self, origin, updates):
        self.updates.append((origin, updates))
        return True

    def stats(self):
        return {0: ShardStats(True, {PID: {"size": 5, "size_bytes": 100}}), 1: ShardStats(False, {})}


class FakeWorkers:
    def __init__(self):
        self.sent: list[Any] = []

    def send_weights(self, worker, weights, version):
        self.sent.append((worker, weights, version))


def context(**config):
    learner = SimpleNamespace(
        policy=SimpleNamespace(spec=SimpleNamespace(schedules={"scale": LinearSchedule(100, 0.0, 1.0)})),
        weights=Weights("params", {"scale": 0.7, "lr": 0.1}),
    )
    timers: dict[str, Timer] = {}
    ctx: Any = SimpleNamespace(
        counters=Counters(),
        learners={PID: learner},
        workers=FakeWorkers(),
        timer=lambda name: timers.setdefault(name, Timer()),
        config=SimpleNamespace(**config),
    )
    return ctx


def fragment(steps=10, worker=1, rows=None):
    return Fragment("contents", steps if rows is None else rows, steps, 2 * steps, worker, 1)


def fragments(count=10**6, **options):
    return LocalIterator.from_items([fragment(**options)] * min(count, 50))


def thread(size=4):
    published = (3, {PID: Weights("params", {"scale": 0.7, "lr": 0.1})})
    made: Any = SimpleNamespace(inqueue=queue.Queue(size), published=published, version=3)
    return made


def pulled(plan):
    """Items until it is not ready."""
    items = []
    while (item := plan.poll()) is not NOT_READY:
        items.append(item)
    return items


def test_fragments_are_counted_as_they_are_stored():
    ctx, shards = context(), FakeShards()
    assert StoreToShards(ctx, fragments(), as_any(shards), Intensity(None, 0)).take(3) == [fragment()] * 3
    assert shards.added == [("contents", 10)] * 3
    assert ctx.counters.save() == {"num_steps_sampled": 30, "num_agent_steps_sampled": 60}
    assert ctx.timer("sample").count == 3


def as_any(value) -> Any:
    return value


def test_fragments_without_rows_that_learn_are_counted_and_not_sent():
    ctx, shards = context(), FakeShards()
    StoreToShards(ctx, fragments(rows=0), as_any(shards), Intensity(None, 0)).take(2)
    assert not shards.added and ctx.counters["num_steps_sampled"] == 20


def test_no_fragment_is_taken_while_every_shard_is_busy():
    ctx, shards = context(), FakeShards(room=2)
    source = fragments()
    plan = StoreToShards(ctx, source, as_any(shards), Intensity(None, 0))
    assert len(pulled(plan)) == 2
    assert source.node.items_out == 2 and ctx.counters["num_steps_sampled"] == 20
    assert plan.node.waits()[0].refs == ("ref",)  # an answer of theirs
    shards.room = 3
    assert len(pulled(plan)) == 1


def test_sampling_waits_for_learning_and_learning_for_sampling():
    ctx, shards, intensity = context(), FakeShards(), Intensity(4.0, slack=100)
    store = StoreToShards(ctx, fragments(), as_any(shards), intensity)
    replay = ReplayFromShards(ctx, as_any(shards), 8, thread(10**6), intensity)
    assert pulled(replay) == []  # nothing sampled, nothing due
    assert replay.node.waits()[0].kind == "turn"
    assert len(pulled(store)) == 3  # 120 rows are due, more than 100
    assert store.node.waits()[0].kind == "turn"
    assert len(pulled(replay)) == 15
    for _ in range(10):
        pulled(store)
        pulled(replay)
    assert 4 * ctx.counters["num_steps_sampled"] == 8 * (10**6 - shards.batches)


def test_without_a_ratio_both_go_as_they_can():
    ctx, shards, intensity = context(), FakeShards(batches=30), Intensity(None, 0.0)
    assert len(StoreToShards(ctx, fragments(), as_any(shards), intensity).take(50)) == 50
    assert len(pulled(ReplayFromShards(ctx, as_any(shards), 8, thread(10**6), intensity))) == 30


def test_nothing_is_owed_before_there_is_something_to_learn_from():
    """Nor after all of it is lost: else sampling would wait for learning, and learning for sampling."""
    ctx, shards, intensity = context(), FakeShards(ready=False), Intensity(4.0, slack=30)
    plan = StoreToShards(ctx, fragments(), as_any(shards), intensity)
    assert len(plan.take(5)) == 5 and intensity.due == 0.0
    shards.ready = True
    assert len(pulled(plan)) == 1
    shards.ready = False
    assert len(plan.take(5)) == 5


def test_no_batch_is_asked_for_while_the_learners_queue_is_full():
    ctx, shards, learner = context(), FakeShards(), thread(size=2)
    plan = ReplayFromShards(ctx, as_any(shards), 8, learner, Intensity(None, 0), beta=lambda step: 0.5)
    work = next(plan)
    assert isinstance(work, Work) and work.batch.env_steps == 8 and work.tag == Origin(1, 0, {PID: 40})
    assert shards.requests == [(8, 0.5)]
    learner.inqueue.put(work)
    learner.inqueue.put(next(plan))
    assert plan.poll() is NOT_READY and len(shards.requests) == 2
    learner.inqueue.get()
    assert plan.poll() is not NOT_READY


def test_the_number_of_draws_is_saved():
    shards, again = FakeShards(), FakeShards()
    shards.draws = 17
    plans = [ReplayFromShards(context(), as_any(each), 8, thread(), Intensity(None, 0)) for each in (shards, again)]
    plans[1].set_state(plans[0].get_state())
    assert again.draws == 17


def trained(rows):
    return Trained(batch(4), {PID: {}}, {PID: rows}, 5, None, Origin(1, 2, {PID: 40}))


def test_priorities_go_where_the_batch_came_from():
    ctx, shards = context(), FakeShards()
    item = trained({"td_error": np.array([1.0, -2.0, 0.0, 3.0], np.float32)})
    assert UpdateShardPriorities(ctx, as_any(shards), eps=0.5).apply((), item)[1] is item
    ((origin, updates),) = shards.updates
    assert origin == Origin(1, 2, {PID: 40})
    np.testing.assert_array_equal(updates[PID].indexes, [0, 1, 2, 3])
    np.testing.assert_allclose(updates[PID].priorities, [1.5, 2.5, 0.5, 3.5])
    assert updates[PID].added == 40
    with pytest.raises(LossError, match=r"'default_policy'.*'td_error'.*\['other'\]"):
        UpdateShardPriorities(ctx, as_any(shards)).apply((), trained({"other": np.zeros(4)}))


def test_each_worker_gets_weights_after_so_many_of_its_own_steps():
    ctx, learner = context(), thread()
    ages: deque[int] = deque()
    operator = UpdateWorkerWeights(ctx, learner, 25, ages)
    state = operator.init()
    for step in range(6):
        for worker in (1, 2):
            if worker == 1 or step % 2 == 0:
                ctx.counters["num_steps_sampled"] += 10
                state, _ = operator.apply(state, (f"actor {worker}", fragment(worker=worker)))
    assert [worker for worker, _, _ in ctx.workers.sent] == ["actor 1", "actor 2", "actor 1"]
    assert all(version == 3 for _, _, version in ctx.workers.sent)
    assert ctx.counters["num_weight_syncs"] == 3
    assert set(ages) == {2}  # sampled by the weights after one update, and there have been three
    # Schedules go on also while nothing is learned; what no schedule moves stays.
    scales = [float(weights[PID].coeffs["scale"]) for _, weights, _ in ctx.workers.sent]
    np.testing.assert_allclose(scales, [0.6, 0.2, 0.1], atol=1e-6)
    assert ctx.workers.sent[0][1][PID].coeffs["lr"] == 0.1


def test_workers_that_get_the_same_weights_get_the_same_object():
    ctx = context()
    operator = UpdateWorkerWeights(ctx, thread(), 0, deque())
    state = operator.init()
    for worker in (1, 2):
        state, _ = operator.apply(state, (f"actor {worker}", fragment(worker=worker)))
    assert ctx.workers.sent[0][1] is ctx.workers.sent[1][1]
    ctx.counters["num_steps_sampled"] += 1
    operator.apply(state, ("actor 1", fragment()))
    assert ctx.workers.sent[2][1] is not ctx.workers.sent[1][1]


def test_target_updates_are_counted_by_rows_trained():
    ctx = context()
    operator = CountTargetUpdates(ctx, 100)
    for steps, updates, last in ((64, 0, 0), (64, 1, 100), (64, 1, 100), (192, 3, 300)):
        ctx.counters["num_steps_trained"] += steps
        operator.apply((), "item")
        assert (ctx.counters["num_target_updates"], ctx.counters["last_target_update_ts"]) == (updates, last)


def test_results_show_every_shard_and_how_every_worker_explores():
    ctx = context(num_workers=2)
    spec = ctx.learners[PID].policy.spec
    spec.exploration = per_worker_epsilon_greedy(gymnasium.spaces.Discrete(2))
    spec.schedules = dict(spec.exploration.schedules)
    result = ReportShards(ctx, as_any(FakeShards()), deque([1, 4])).apply((), {"info": {}})[1]
    assert result["info"]["replay_shard_0"] == {PID: {"size": 5, "size_bytes": 100}}
    assert result["info"]["replay_shard_1"] == {} and result["info"]["weights_age_mean"] == 2.5
    epsilons = [info[PID]["epsilon"] for info in result["info"]["exploration_infos"]]
    np.testing.assert_allclose(epsilons, [0.4, 0.4**8])
