"""Gathering experience and shaping train batches."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxrl import trees
from jaxrl.data import MultiAgentBatch, SampleBatch
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.rollout_ops import (
    ConcatBatches,
    ParallelRollouts,
    SelectExperiences,
    StandardizeFields,
    batch_steps,
)
from jaxrl.execution.shards import Shard


def batch_of(steps=4, columns=2, *, mask=None, value=0.0, **more):
    shape = (steps, columns)
    filled = {
        "rewards": np.full(shape, value, np.float32),
        "terminateds": np.zeros(shape, bool),
        "truncateds": np.zeros(shape, bool),
        **more,
    }
    return SampleBatch(filled if mask is None else {**filled, "mask": np.asarray(mask, bool)})


def whole_episodes(lengths, steps=8):
    """Columns of one episode each, padded."""
    mask = np.arange(steps)[:, None] < np.asarray(lengths)
    terminateds = np.arange(steps)[:, None] == np.asarray(lengths) - 1
    return batch_of(steps, len(lengths), mask=mask, terminateds=terminateds)


def context(shards=()):
    workers: Any = SimpleNamespace(shards=list(shards), local=True)
    return PlanContext(SimpleNamespace(), workers, {})


class TestParallelRollouts:
    def test_bulk_sync_joins_one_batch_of_each_worker(self):
        shards = [Shard([batch_of(value=10 * w + i) for i in range(3)]) for w in range(2)]
        ctx = context(shards)
        rollouts = ParallelRollouts(ctx, mode="bulk_sync")
        batch = next(rollouts)
        assert batch.shape == (4, 4)
        np.testing.assert_array_equal(batch["rewards"][0], [0, 0, 10, 10])
        assert ctx.counters.save() == {"num_steps_sampled": 16, "num_agent_steps_sampled": 16}
        assert ctx.timers["sample"].count == 1
        np.testing.assert_array_equal(next(rollouts)["rewards"][0], [1, 1, 11, 11])
        assert ctx.counters["num_steps_sampled"] == 32

    def test_async_gives_each_as_it_comes(self):
        ctx = context([Shard([batch_of(value=w)], worker=SimpleNamespace(weights_version=7 + w)) for w in range(2)])
        seen = {
            (float(batch["rewards"][0, 0]), int(batch["weights_version"][3, 1]))
            for batch in ParallelRollouts(ctx, mode="async")
        }
        assert seen == {(0.0, 7), (1.0, 8)}
        assert ctx.counters["num_steps_sampled"] == 16

    def test_raw_counts_nothing(self):
        ctx = context([Shard([1, 2]), Shard([3, 4])])
        assert sorted(ParallelRollouts(ctx, mode="raw").for_each(lambda x: 10 * x).gather_sync()) == [10, 20, 30, 40]
        assert ctx.counters.save() == {}

    def test_multi_agent_batches_count_env_and_agent_steps(self):
        batch = MultiAgentBatch({"a": batch_of(), "b": batch_of(4, 4)}, env_steps=8)
        ctx = context([Shard([batch]), Shard([batch])])
        joined = next(ParallelRollouts(ctx))
        assert {name: one.shape for name, one in joined.items()} == {"a": (4, 4), "b": (4, 8)}
        assert ctx.counters.save() == {"num_steps_sampled": 16, "num_agent_steps_sampled": 48}

    def test_masked_rows_are_not_counted(self):
        ctx = context([Shard([batch_of(2, 2, mask=[[1, 0], [1, 1]])])])
        next(ParallelRollouts(ctx))
        assert ctx.counters["num_steps_sampled"] == 3

    def test_unknown_mode(self):
        mode: Any = "sync"
        with pytest.raises(ValueError, match="mode should be 'bulk_sync', 'async' or 'raw', got 'sync'"):
            ParallelRollouts(context([Shard([])]), mode=mode)


class TestConcatBatches:
    def test_fragments_make_exactly_one_batch(self):
        joined = (
            LocalIterator.from_items([batch_of(8, 2, value=i) for i in range(5)]).combine(ConcatBatches(32)).take(5)
        )
        assert [batch.shape for batch in joined] == [(8, 4), (8, 4)]
        np.testing.assert_array_equal(joined[1]["rewards"][0], [2, 2, 3, 3])

    @pytest.mark.parametrize(
        ("batch", "steps"),
        [
            (batch_of(4, 2), 8),
            # A fragment with rows of another kind in it (autoreset) counts its slots: 8 x 128 is 1024 whatever ends.
            (batch_of(4, 2, mask=[[1, 1], [0, 1], [1, 1], [1, 0]]), 8),
            (whole_episodes([3, 8, 5]), 16),
            (whole_episodes([3, 0]), 3),
            (batch_of(4, 2, mask=[[1, 1], [1, 0], [1, 0], [1, 0]], state_in=np.zeros((2, 3), np.float32)), 5),
            (batch_of(4, 2, mask=[[1, 1], [0, 1], [1, 1], [1, 0]]).flatten(), 6),
            (MultiAgentBatch({"a": batch_of(4, 2), "b": batch_of(4, 2)}, env_steps=5), 5),
        ],
    )
    def test_steps(self, batch, steps):
        assert batch_steps(batch) == steps

    def test_whole_episodes_of_different_lengths(self):
        items = [whole_episodes([3, 4], 4), whole_episodes([6, 2], 8)]
        (joined,) = LocalIterator.from_items(items).combine(ConcatBatches(15))
        assert joined.shape == (8, 4)
        assert joined.count == 15

    def test_plain_and_multi_agent_batches(self):
        items = [MultiAgentBatch({"a": batch_of()}, env_steps=8), MultiAgentBatch({"b": batch_of()}, env_steps=8)]
        (joined,) = LocalIterator.from_items(items).combine(ConcatBatches(16))
        assert sorted(joined) == ["a", "b"]
        assert joined.env_steps == 16

    @pytest.mark.parametrize("wrap", [lambda b: b, lambda b: MultiAgentBatch({"a": b}, env_steps=8)])
    def test_what_is_pending_is_saved(self, wrap):
        def plan():
            return LocalIterator.from_items([wrap(batch_of(value=i)) for i in range(6)]).combine(ConcatBatches(24))

        first = plan()
        next(first)
        structure, arrays = trees.encode(first.get_state())
        second = plan()
        second.set_state(trees.decode(structure, arrays))
        expected, restored = next(first), next(second)
        if isinstance(expected, MultiAgentBatch):
            expected, restored = expected["a"], restored["a"]
        np.testing.assert_array_equal(restored["rewards"], expected["rewards"])

    def test_pending_in_the_middle(self):
        plan = LocalIterator.from_items([batch_of(value=i) for i in range(3)]).combine(ConcatBatches(16))
        next(plan)
        operator = ConcatBatches(16)
        pending, out = operator.apply(operator.init(), batch_of(value=7))
        assert out == []
        structure, arrays = trees.encode(pending)
        (restored,) = trees.decode(structure, arrays)
        np.testing.assert_array_equal(restored["rewards"], 7)
        pending, (joined,) = operator.apply([restored], batch_of(value=8))
        assert pending == []
        np.testing.assert_array_equal(joined["rewards"][0], [7, 7, 8, 8])


class TestSelectExperiences:
    def test_keeps_policies_and_env_steps(self):
        batch = MultiAgentBatch({"a": batch_of(), "b": batch_of()}, env_steps=8)
        (kept,) = LocalIterator.from_items([batch]).for_each(SelectExperiences(["a", "c"]))
        assert list(kept) == ["a"]
        assert kept.env_steps == 8

    def test_sample_batches_pass(self):
        batch = batch_of()
        assert next(LocalIterator.from_items([batch]).for_each(SelectExperiences(["a"]))) is batch


class TestStandardizeFields:
    def test_mean_0_deviation_1_and_the_rest_untouched(self):
        values = np.arange(8, dtype=np.float32).reshape(4, 2)
        batch = batch_of(advantages=values)
        _, out = StandardizeFields(["advantages", "absent"]).apply((), batch)
        assert isinstance(out["advantages"], np.ndarray)
        np.testing.assert_allclose(out["advantages"], (values - 3.5) / values.std(), rtol=1e-6)
        assert out["rewards"] is batch["rewards"]

    def test_masked_rows_do_not_count(self):
        values = np.array([[1.0, 1e9], [3.0, np.nan]], np.float32)
        _, out = StandardizeFields(["advantages"]).apply((), batch_of(2, 2, mask=[[1, 0], [1, 0]], advantages=values))
        np.testing.assert_allclose(out["advantages"], [[-1, 0], [1, 0]])

    def test_a_constant_becomes_0(self):
        _, out = StandardizeFields(["advantages"]).apply((), batch_of(advantages=np.full((4, 2), 3.0, np.float32)))
        np.testing.assert_array_equal(out["advantages"], 0.0)

    def test_each_policy_apart(self):
        parts = {
            name: batch_of(2, 1, advantages=np.array([[scale], [0]], np.float32))
            for name, scale in (("a", 1), ("b", 100))
        }
        _, out = StandardizeFields(["advantages"]).apply((), MultiAgentBatch(parts, env_steps=2))
        for part in out.values():
            np.testing.assert_allclose(part["advantages"], [[1], [-1]], rtol=1e-5)

    def test_batch_operators_are_pure(self):
        for operator in (ConcatBatches(4), SelectExperiences(["a"]), StandardizeFields(["advantages"])):
            assert not operator.host_only
