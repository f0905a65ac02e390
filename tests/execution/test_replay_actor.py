"""A replay shard, without Ray: priorities that come along, stale updates, draws, contents on disk."""

import numpy as np
import pytest

from jaxrl.data import MultiAgentBatch, SampleBatch
from jaxrl.execution.replay_actor import ReplayActor, RowUpdates
from jaxrl.execution.worker_priorities import Contents
from jaxrl.replay import ReplayError, prioritized_replay
from jaxrl.storage import Files
from jaxrl.types import CheckpointError

PID = "default_policy"


def fragment(number, steps=4, width=2, mask=None):
    """Rows whose observation is `[number, t, b]`; no episode ends."""
    shape = (steps, width)
    t, b = np.indices(shape)
    columns = {
        "obs": np.stack([np.full(shape, number), t, b], axis=-1).astype(np.float32),
        "last_obs": np.zeros((width, 3), np.float32),
        "actions": np.zeros(shape, np.int32),
        "rewards": np.ones(shape, np.float32),
        "terminateds": np.zeros(shape, bool),
        "truncateds": np.zeros(shape, bool),
        "eps_id": (100 * number + b).astype(np.int32),
        "t": (t if mask is None else mask.cumsum(axis=0) - 1).astype(np.int32),
    }
    return SampleBatch(columns if mask is None else {**columns, "mask": mask})


def contents(number, priorities=None, pid=PID, **options):
    batch = fragment(number, **options)
    given = {} if priorities is None else {pid: np.asarray(priorities, np.float32)}
    return Contents(MultiAgentBatch({pid: batch}, env_steps=batch.count), given)


def shard(capacity=16, policies=(PID,), alpha=1.0, **options):
    return ReplayActor(prioritized_replay(capacity, alpha=alpha, n_step=3), policies, seed=(0, 1), **options)


def draw(actor, n, beta, number):
    drawn = actor.sample(n, beta, number)
    assert drawn is not None
    return drawn


def shares(actor, n=4000, pid=PID):
    """How often each `(number, t, b)` is drawn, as a share."""
    drawn = draw(actor, n, 0.0, 7)
    rows, counts = np.unique(np.asarray(drawn.batch[pid]["obs"]).astype(int), axis=0, return_counts=True)
    return {tuple(row): count / n for row, count in zip(rows.tolist(), counts, strict=True)}


def test_rows_are_drawn_by_the_priorities_that_they_came_with():
    actor = shard()
    actor.add(contents(1, np.arange(1.0, 9.0)))  # of rows in order of t, then b
    found = shares(actor)
    for place in range(8):
        assert found[1, *divmod(place, 2)] == pytest.approx((place + 1) / 36, abs=0.02)


def test_without_priorities_new_rows_get_the_largest():
    actor = shard()
    actor.add(contents(1, np.full(8, 0.5)))
    actor.add(contents(2))
    found = shares(actor)
    assert sum(share for (number, _, _), share in found.items() if number == 2) == pytest.approx(2 / 3, abs=0.03)


def test_masked_rows_have_no_priority():
    actor = shard()
    mask = np.array([[True, True], [True, False], [False, False], [True, True]])
    actor.add(contents(1, [1.0, 2.0, 3.0, 4.0, 10.0], mask=mask))
    found = shares(actor)
    assert set(found) == {(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 3, 0), (1, 3, 1)}
    assert found[1, 3, 1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("steps", [4, 12])  # eight rows, or 24 into a shard of 16
def test_priorities_find_their_rows_when_the_shard_is_full(steps):
    actor = shard()
    for number in range(3):
        actor.add(contents(number, np.full(8, 1.0)))
    given = np.full(2 * steps, 1.0)
    given[-3] = 50.0
    stats = actor.add(contents(9, given, steps=steps))
    assert stats.rows == 16
    found = shares(actor)
    assert max(found, key=lambda row: found[row]) == (9, steps - 2, 1)


def test_updates_of_rows_overwritten_since_are_left_out():
    actor = shard()
    actor.add(contents(1, np.ones(8)))
    drawn = draw(actor, 32, 0.4, 0)
    assert drawn.added == {PID: 8}
    indexes = np.asarray(drawn.batch[PID]["batch_indexes"])
    actor.add(contents(2, np.ones(8)))
    actor.add(contents(3, np.ones(4), steps=2))  # takes the place of the first four rows
    actor.update({PID: RowUpdates(indexes, np.full(32, 100.0), drawn.added[PID])})
    found = shares(actor)
    assert sum(share for (number, _, _), share in found.items() if number == 3) < 0.1
    still = {i for i in indexes.tolist() if i >= 4}
    assert sum(share for (number, _, _), share in found.items() if number == 1) > 0.8 and still
    assert actor.stats().rows == 16


def test_nothing_is_drawn_before_every_policy_has_enough_rows():
    actor = shard(policies=("a", "b"), learning_starts=8)
    assert not actor.stats().ready and actor.sample(4, 0.4, 0) is None
    both = MultiAgentBatch({"a": fragment(1), "b": fragment(2, steps=2)}, env_steps=8)
    assert not actor.add(Contents(both, {})).ready  # eight of the one, four of the other
    stats = actor.add(Contents(both, {}))
    assert stats.ready and {pid: sizes["size"] for pid, sizes in stats.sizes.items()} == {"a": 16, "b": 8}
    drawn = draw(actor, 4, 0.4, 0)
    assert set(drawn.batch) == {"a", "b"} and drawn.batch.env_steps == 4


def test_rows_of_policies_that_do_not_learn_are_not_kept():
    actor = shard(policies=("a",))
    both = MultiAgentBatch({"a": fragment(1), "b": fragment(2)}, env_steps=8)
    assert set(actor.add(Contents(both, {})).sizes) == {"a"}
    assert shard().add(Contents(MultiAgentBatch({}, env_steps=8), {})).rows == 0


def test_a_draw_follows_from_its_number():
    actor, twin, other = shard(), shard(), ReplayActor(prioritized_replay(16), (PID,), seed=(0, 2))
    for each in (actor, twin, other):
        each.add(contents(1))

    def indexes(each, number):
        return np.asarray(draw(each, 16, 0.4, number).batch[PID]["batch_indexes"]).tolist()

    assert indexes(actor, 3) == indexes(twin, 3)
    assert indexes(actor, 4) != indexes(twin, 3)
    assert indexes(other, 3) != indexes(twin, 3)


def test_contents_come_back_from_disk_once_they_are_wanted(tmp_path):
    actor = shard()
    actor.add(contents(1, np.arange(1.0, 9.0)))
    files = Files(str(tmp_path), actor.save(str(tmp_path), "replay/shard-0/"), {}).below("replay").below("shard-0")
    fresh = shard()
    fresh.add(contents(5))
    assert fresh.load(files) == {PID: 8}
    assert {number for number, _, _ in shares(fresh)} == {5}
    assert fresh.restore().rows == 8
    assert shares(fresh) == shares(actor)
    assert shard().load(Files(str(tmp_path), {}, {})) == {}
    with pytest.raises(CheckpointError, match="capacity"):
        shard(capacity=8).load(files)


def test_what_does_not_fit_is_refused_and_changes_nothing():
    actor = shard()
    actor.add(contents(1))
    wrong = Contents(MultiAgentBatch({PID: fragment(2).flatten()}, env_steps=8), {})
    with pytest.raises(ReplayError, match="time-major"):
        actor.add(wrong)
    with pytest.raises(ReplayError, match="1 priorities|priorities for"):
        actor.update({PID: RowUpdates(np.arange(4), np.ones(3), 8)})
    assert actor.stats().rows == 8
