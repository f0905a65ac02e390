"""MultiAgentBatch: counting, joining, slicing in lockstep."""

import pickle
from typing import Any

import numpy as np
import pytest

from jaxrl import trees
from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent, concat_batches


def make(steps=4, width=2):
    return SampleBatch({"rewards": np.arange(steps * width, dtype=np.float32).reshape(steps, width)})


def flat(times, episode=0):
    times = np.asarray(times, np.int32)
    return SampleBatch({"t": times, "eps_id": np.full(len(times), episode, np.int32)}, time_major=False)


def test_counts_and_mapping():
    batch = MultiAgentBatch({"a": make(), "b": make().pad_to(6)}, env_steps=8)
    assert (batch.env_steps, batch.count, batch.agent_steps, len(batch)) == (8, 8, 16, 2)
    assert list(batch) == ["a", "b"] and batch["a"].T == 4 and batch.size_bytes > 0
    assert set(batch.select("a")) == {"a"} and batch.select(["a", "c"]).env_steps == 8
    assert batch.map(lambda one: one.flatten())["b"].shape == (12,)
    with pytest.raises(KeyError, match=r"'c'.*\['a', 'b'\]"):
        batch["c"]
    wrong: dict[str, Any] = {"a": {}}
    with pytest.raises(TypeError, match="'a'"):
        MultiAgentBatch(wrong, 1)


def test_wrap_as_needed():
    one = make()
    assert as_multi_agent(one).wrap_as_needed() is one
    both = MultiAgentBatch({"default_policy": one, "b": one}, 8)
    assert both.wrap_as_needed() is both and as_multi_agent(both) is both


def test_concat_of_both_kinds():
    joined = concat_batches([make(), MultiAgentBatch({"b": make(3)}, 6)])
    assert isinstance(joined, MultiAgentBatch) and joined.env_steps == 14 and set(joined) == {"default_policy", "b"}
    plain = concat_batches([make(), make(3)])
    assert isinstance(plain, SampleBatch) and plain.count == 14
    with pytest.raises(ValueError, match="no batches"):
        MultiAgentBatch.concat([])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_timeslices_of_rectangles_share_out_env_steps(k):
    slices = MultiAgentBatch({"a": make(7), "b": make(7, 3)}, env_steps=14).timeslices(k)
    assert len(slices) == -(-7 // k) and sum(part.env_steps for part in slices) == 14
    assert all(part["a"].T == part["b"].T for part in slices)
    assert sum(part.agent_steps for part in slices) == 35


def test_timeslices_of_rows_are_in_lockstep():
    batch = MultiAgentBatch({"a": flat([0, 1, 2, 3]), "b": flat([1, 3, 3])}, env_steps=4)
    slices = batch.timeslices(2)
    assert [part["a"]["t"].tolist() for part in slices] == [[0, 1], [2, 3]]
    assert [part["b"]["t"].tolist() for part in slices] == [[1], [3, 3]]
    assert [part.env_steps for part in slices] == [2, 2]
    masked = flat([0, 1]).with_columns(mask=np.asarray([True, False]))
    assert [part.agent_steps for part in MultiAgentBatch({"a": masked}, 1).timeslices(1)] == [1]


def test_timeslices_refuse_what_is_not_aligned():
    with pytest.raises(ValueError, match="one T"):
        MultiAgentBatch({"a": make(3), "b": make(4)}, 4).timeslices(2)
    with pytest.raises(ValueError, match="flatten"):
        MultiAgentBatch({"a": make(3), "b": flat([0])}, 4).timeslices(2)
    with pytest.raises(ValueError, match="at least 1"):
        MultiAgentBatch({"a": make(3)}, 4).timeslices(0)
    assert MultiAgentBatch({}, 0).timeslices(2) == []


def test_pickle_codec_and_repr():
    batch = MultiAgentBatch({"<a>": make()}, env_steps=8)
    for back in (pickle.loads(pickle.dumps(batch)), trees.decode(*trees.encode(batch))):
        assert back.env_steps == 8
        np.testing.assert_array_equal(back["<a>"]["rewards"], batch["<a>"]["rewards"])
    assert "env_steps=8" in repr(batch) and "'rewards': np.ndarray" in repr(batch)
    assert "&lt;a&gt;" in batch._repr_html_() and "<a>" not in batch._repr_html_()
