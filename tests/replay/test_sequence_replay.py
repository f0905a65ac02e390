"""Replay of sequences: what comes back is what was cut."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.data import SampleBatch
from jaxrl.replay import ReplayError, sequence_priorities, sequence_replay
from jaxrl.types import ConfigError

QUICK = settings(max_examples=40, deadline=None)


def cut(fragment, length):
    """Sequences of a fragment; the state before a row is the row's own observation, as floats."""
    states = np.asarray(fragment["obs"], np.float32)
    return fragment.with_columns(state_in=states[0]).cut(length, states=states)


def rows_by_id(batch, column):
    """Per valid row of column `column`: what follows it and what it holds, by its observation."""
    mask = np.asarray(batch.valid())[:, column]
    new_obs = batch["new_obs"]
    return [
        (obs.tolist(), new.tolist(), float(reward))
        for obs, new, reward in zip(
            batch["obs"][mask, column], new_obs[mask, column], batch["rewards"][mask, column], strict=True
        )
    ]


@QUICK
@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**16), st.integers(5, 60))
def test_sequences_come_back_whole(stream, width, length, masked, seed, capacity):
    experience = stream(width, seed, masked=masked, end=0.3)
    buffer = sequence_replay(capacity)
    rng = np.random.default_rng(seed)
    state, added = None, []
    for _ in range(10):
        fragment = cut(experience.fragment(int(rng.integers(1, 9))), length)
        state = state or buffer.init(fragment)
        for column in range(fragment.B):
            rows = rows_by_id(fragment, column)
            if rows:
                added.append((rows, fragment["state_in"][column].tolist(), fragment["last_obs"][column].tolist()))
        state = buffer.add(state, fragment)
        if not added:
            continue
        live = np.flatnonzero(state.length)
        assert buffer.size(state) == state.length.sum() <= capacity
        assert state.added <= len(added) and state.born[live].max() == state.added - 1
        # The newest sequences are there: as many as have rows that nothing has overwritten.
        newest = sorted(live.tolist(), key=state.born.__getitem__)
        assert len(newest) == 1 or sum(len(rows) for rows, *_ in added[-len(newest) :]) <= capacity
        batch = buffer.take(state, np.asarray(newest))
        assert batch.time_major and batch.shape == (length, len(newest))
        for column, (rows, state_in, last_obs) in enumerate(added[-len(newest) :]):
            assert rows_by_id(batch, column) == rows
            assert batch["state_in"][column].tolist() == state_in
            assert batch["last_obs"][column].tolist() == last_obs
        absent = ~batch["mask"]
        assert (batch["t"][absent] == -1).all() and (batch["obs"][absent] == 0).all()
        sampled = buffer.sample(state, rng.random(6), beta=0.5)
        assert (state.length[sampled["batch_indexes"][0]] > 0).all()
        assert (sampled["weights"] == 1).all() and sampled["weights"].shape == (length, 6)
        finals = len(state.finals) - len(state.finals_free)
        assert finals == (state.final[state.owner >= 0] >= 0).sum()


def test_nothing_but_the_oldest_sequences_goes(stream):
    experience = stream(2, 0, end=0.05)
    buffer = sequence_replay(24)
    state = None
    for _ in range(9):
        fragment = cut(experience.fragment(4), 4)
        state = buffer.add(state or buffer.init(fragment), fragment)
    assert state is not None and buffer.size(state) == 24
    assert sorted(state.born[state.length > 0].tolist()) == [*range(12, 18)]


def test_priorities_are_those_of_the_paper(stream):
    td = np.asarray([[1.0, -4.0], [-3.0, 9.0], [2.0, 9.0]])
    mask = np.asarray([[True, True], [True, False], [True, False]])
    np.testing.assert_allclose(sequence_priorities(td, mask), [0.9 * 3 + 0.1 * 2, 4.0])
    np.testing.assert_allclose(sequence_priorities(jnp.asarray(td), jnp.asarray(mask), eta=0.5), [2.5, 4.0])
    fragment = cut(stream(1, 0, end=0.0).fragment(16), 4)
    buffer = sequence_replay(100, alpha=1.0)
    state = buffer.add(buffer.init(fragment), fragment)
    indexes = np.arange(4)
    state = buffer.update(state, indexes, np.asarray([1.0, 2.0, 3.0, 4.0]))
    batch = buffer.sample(state, (np.arange(10) + 0.5) / 10, beta=1.0)
    assert batch["batch_indexes"][0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    np.testing.assert_allclose(batch["weights"][2], 1 / (batch["batch_indexes"][0] + 1.0), rtol=1e-6)
    added = state.added
    small = sequence_replay(16, alpha=1.0)
    state = small.add(small.init(fragment), fragment)
    state = small.add(state, fragment.take(np.asarray([0])))
    new = int(np.flatnonzero(state.born == added)[0])
    state = small.update(state, np.arange(4), np.full(4, 0.5), added)
    assert state.tree.sums[0][new] == 1.0 and sorted(state.tree.sums[0][:4].tolist()) == [0.5, 0.5, 0.5, 1.0]


def test_what_is_wrong_is_said(stream):
    fragment = cut(stream(2, 0).fragment(8), 4)
    with pytest.raises(ConfigError, match="capacity"):
        sequence_replay(0)
    with pytest.raises(ConfigError, match="one sequence"):
        sequence_replay(3).init(fragment)
    buffer = sequence_replay(30)
    state = buffer.init(fragment)
    with pytest.raises(ReplayError, match="nothing to sample"):
        buffer.sample(state, np.asarray([0.1]))
    state = buffer.add(state, fragment)
    for wrong, match in (
        (cut(stream(2, 0).fragment(8), 2), "sequences \\[4, B\\]"),
        (fragment.drop("state_in"), "state_in"),
        (fragment.with_columns(extra=fragment["rewards"]), "extra"),
        (fragment.with_columns(rewards=fragment["obs"]), "rewards"),
    ):
        with pytest.raises(ReplayError, match=match):
            buffer.add(state, wrong)
    with pytest.raises(ReplayError, match=r"priorities\[1\]"):
        buffer.update(state, np.asarray([0, 1]), np.asarray([1.0, np.nan]))
    assert buffer.size(state) == 16 and buffer.nbytes(state) > 0
    assert isinstance(buffer.sample(state, np.asarray([0.1])), SampleBatch)
