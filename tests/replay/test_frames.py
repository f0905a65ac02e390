"""Stacks of frames: stored once, given back as they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.data import SampleBatch
from jaxrl.replay import prioritized_replay, uniform_replay
from jaxrl.types import FINAL_PAD, ConfigError

QUICK = settings(max_examples=60, deadline=None)


def stack_of(e, t, k):
    """The stack at step t of episode e (the final one if t < 0), `[3, 2, k]`."""
    newest, last = (t, -t) if t < 0 else (t, t)
    steps = [max(last - age, 0) if age else newest for age in range(k - 1, -1, -1)]
    frames = [(np.arange(6) * 37 + e * 11 + s * 5 + 100 * (s < 0)) % 256 for s in steps]
    return np.stack(frames, axis=-1).reshape(3, 2, k).astype(np.uint8)


def stacks(ids, k):
    flat = [stack_of(int(e), int(t), k) for e, t in ids.reshape(-1, 2)]
    return np.stack(flat).reshape(*ids.shape[:-1], 3, 2, k)


def framed(fragment, k, nested=False):
    """A fragment of `Stream` with stacks of frames as observations."""
    columns = dict(fragment.items())
    for name in ("obs", "last_obs", "final_obs"):
        ids = columns[name]
        image = stacks(ids, k)
        columns[name] = {"image": image, "mask": ids.astype(np.float32)} if nested else image
    return SampleBatch(columns)


@QUICK
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 2**16),
    st.integers(5, 40), st.sampled_from([0.02, 0.2, 0.5]), st.booleans(),
)  # fmt: skip
def test_stacks_come_back_as_they_were(stream, naive, width, n, k, masked, nested, seed, capacity, end, prioritized):
    experience = stream(width, seed, masked=masked, end=end)
    make = prioritized_replay if prioritized else uniform_replay
    buffer, reference = make(capacity, n_step=n, gamma=0.5, frame_stack=k, debug=True), naive(capacity, n, 0.5)
    rng = np.random.default_rng(seed)
    state = None
    for _ in range(12):
        fragment = experience.fragment(int(rng.integers(1, 9)))
        if rng.random() < 0.2:
            continue  # lost on the way, or gone to another buffer
        reference.add(fragment)
        fragment = framed(fragment, k, nested)
        state = buffer.add(state or buffer.init(fragment), fragment)
        stored = reference.stored()
        if not stored:
            continue
        good = np.flatnonzero(state.sampleable[: state.size])
        assert state.unsampleable == state.size - len(good)
        # Only rows whose older frames were overwritten are not sampled, k - 1 of an episode at most.
        assert state.unsampleable <= (k - 1) * len({reference.rows[i]["eps_id"] for i in stored.values()})
        if not len(good):
            continue
        batch = buffer.take(state, good)
        for i, slot in enumerate(good.tolist()):
            expected = reference.expected(stored[slot])
            for name in ("obs", "new_obs"):
                found = batch[name]["image"] if nested else batch[name]
                np.testing.assert_array_equal(found[i], stack_of(expected[name][0], expected[name][1], k))
                if nested:
                    assert batch[name]["mask"][i].tolist() == expected[name]
            for name in ("rewards", "discounts", "terminateds", "truncateds", "t"):
                assert batch[name][i] == expected[name]
        sampled = buffer.sample(state, rng.random(20))
        assert state.sampleable[sampled["batch_indexes"]].all()
        live = len(state.side_back) - len(state.free)
        owned = int((state.link[: state.size] >= capacity).sum())
        owned += (k - 1) * int((state.back[: state.size] >= capacity).sum()) if state.back is not None else 0
        assert live == owned


def test_observations_that_are_no_stacks_are_refused(stream):
    experience = stream(2, 0, end=0.1)
    buffer = uniform_replay(100, frame_stack=3)
    fragment = framed(experience.fragment(8), 3)
    state = buffer.add(buffer.init(fragment), fragment)
    following = framed(experience.fragment(8), 3)
    wrong = following["obs"].copy()
    wrong[4, 1] = 0
    with pytest.raises(ConfigError, match="padding_type='reset'"):
        buffer.add(state, following.with_columns(obs=wrong))
    with pytest.raises(ConfigError, match="newest last"):
        buffer.add(state, following.with_columns(obs=following["obs"][..., ::-1]))
    assert state.added == 16 and buffer.size(buffer.add(state, following)) == 32
    with pytest.raises(ConfigError, match="frame_stack=4"):
        uniform_replay(100, frame_stack=4).init(fragment)


def test_atari_frames_cost_little_more_than_their_bytes():
    # Bytes per row do not depend on the frames' content: what is added here are frames of one shared block.
    capacity, steps, width, k = 2 * 10**4, 4, 8, 4
    buffer = prioritized_replay(capacity, n_step=3, frame_stack=k)
    rng = np.random.default_rng(0)
    length = rng.integers(500, 1001, width)
    t, eps, next_eps = np.zeros(width, int), np.arange(width), width
    blank = np.zeros((steps, width, 84, 84, k), np.uint8)
    zeros = np.zeros((steps, width), np.int32)
    state = None
    for _ in range(capacity // (steps * width) + 200):
        number, step, ended = zeros.copy(), zeros.copy(), np.zeros((steps, width), bool)
        for i in range(steps):
            number[i], step[i] = eps, t
            t += 1
            for b in np.flatnonzero(t == length):
                ended[i, b] = True
                t[b], eps[b], length[b] = 0, next_eps, rng.integers(500, 1001)
                next_eps += 1
        index = np.full((16, 2), FINAL_PAD, np.int32)
        index[: ended.sum()] = np.argwhere(ended)
        fragment = SampleBatch(
            {
                "obs": blank, "actions": zeros, "rewards": zeros.astype(np.float32), "terminateds": ended,
                "truncateds": np.zeros((steps, width), bool), "eps_id": number, "t": step, "agent_index": zeros,
                "unroll_id": zeros, "last_obs": blank[0], "final_obs": np.zeros((16, 84, 84, k), np.uint8),
                "final_index": index,
            }
        )  # fmt: skip
        state = buffer.add(state or buffer.init(fragment), fragment)
    assert state is not None and buffer.size(state) == capacity
    assert state.unsampleable <= 3 * width
    ratio = buffer.nbytes(state) / (capacity * 84 * 84)
    assert ratio <= 1.05, ratio
