"""Replay of transitions: known answers, and a plain Python buffer that keeps whole episodes."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.data import SampleBatch
from jaxrl.replay import ReplayError, prioritized_replay, uniform_replay
from jaxrl.types import FINAL_PAD, ConfigError

QUICK = settings(max_examples=50, deadline=None)


def one_column(obs, rewards, last_obs, *, t0=0, eps=0, ends=(), agent=0, mask=None):
    """A fragment [T, 1] of scalar observations; `ends` are (t, terminated, final observation)."""
    steps = len(obs)
    terminateds, truncateds = np.zeros((2, steps, 1), bool)
    for t, terminated, _ in ends:
        (terminateds if terminated else truncateds)[t, 0] = True
    eps_id, number, step = np.zeros((steps, 1), np.int32), eps, np.zeros((steps, 1), np.int32)
    count = t0
    for i in range(steps):
        eps_id[i], step[i] = number, count
        present = mask is None or mask[i]
        count += bool(present)
        if terminateds[i, 0] or truncateds[i, 0]:
            number, count = number + 1, 0
    columns = {
        "obs": np.asarray(obs, np.float32)[:, None],
        "actions": np.zeros((steps, 1), np.int32),
        "rewards": np.asarray(rewards, np.float32)[:, None],
        "terminateds": terminateds,
        "truncateds": truncateds,
        "eps_id": eps_id,
        "t": step,
        "agent_index": np.full((steps, 1), agent, np.int32),
        "last_obs": np.asarray([last_obs], np.float32),
        "final_obs": np.asarray([final for *_, final in ends] + [-1], np.float32),
        "final_index": np.asarray([(t, 0) for t, *_ in ends] + [(FINAL_PAD, 0)], np.int32),
    }
    if mask is not None:
        columns["mask"] = np.asarray(mask, bool)[:, None]
    return SampleBatch(columns)


def everything(buffer, state):
    return buffer.take(state, np.arange(buffer.size(state)))


def test_one_step_rows_by_hand():
    buffer = uniform_replay(8, gamma=0.9)
    fragment = one_column([1, 2, 3, 4], [10, 20, 30, 40], 5, ends=[(1, True, 2.5), (2, False, 3.5)])
    batch = everything(buffer, buffer.add(buffer.init(fragment), fragment))
    assert not batch.time_major
    assert batch["new_obs"].tolist() == [2, 2.5, 3.5, 5]
    assert batch["rewards"].tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(batch["discounts"], [0.9, 0, 0.9, 0.9])
    assert batch["terminateds"].tolist() == [False, True, False, False]
    assert batch["weights"].tolist() == [1, 1, 1, 1] and batch["weights"].dtype == np.float32
    assert batch["batch_indexes"].tolist() == [0, 1, 2, 3] and batch["batch_indexes"].dtype == np.int32
    assert batch["dones"].tolist() == [False, True, True, False]


def test_n_step_sums_by_hand_over_two_fragments():
    buffer = uniform_replay(16, n_step=3, gamma=0.5)
    first = one_column([0, 1, 2, 3], [1, 2, 4, 8], 4)
    state = buffer.add(buffer.init(first), first)
    batch = everything(buffer, state)
    # Rows 2 and 3 sum what there is: two rewards and one.
    assert batch["rewards"].tolist() == [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8]
    assert batch["discounts"].tolist() == [0.125, 0.125, 0.25, 0.5]
    assert batch["new_obs"].tolist() == [3, 4, 4, 4]
    state = buffer.add(state, one_column([4, 5, 6], [16, 32, 64], 7, t0=4, ends=[(1, True, 5.5)]))
    batch = everything(buffer, state)
    assert batch["rewards"].tolist() == [3, 6, 4 + 4 + 4, 8 + 8 + 8, 16 + 16, 32, 64]
    assert batch["discounts"].tolist() == [0.125, 0.125, 0.125, 0, 0, 0, 0.5]
    assert batch["new_obs"].tolist() == [3, 4, 5, 5.5, 5.5, 5.5, 7]
    assert batch["terminateds"].tolist() == [False, False, False, True, True, True, False]


def test_a_truncation_bootstraps_from_the_final_observation():
    buffer = uniform_replay(16, n_step=3, gamma=0.5)
    fragment = one_column([0, 1, 2, 3], [1, 2, 4, 8], 4, ends=[(1, False, 1.5)])
    batch = everything(buffer, buffer.add(buffer.init(fragment), fragment))
    assert batch["rewards"].tolist() == [2, 2, 8, 8]
    assert batch["discounts"].tolist() == [0.25, 0.5, 0.25, 0.5]  # gamma^m of the m steps really summed
    assert batch["new_obs"].tolist() == [1.5, 1.5, 4, 4]
    assert batch["truncateds"].tolist() == [True, True, False, False]


def test_masked_rows_are_left_out_and_passed_over():
    buffer = uniform_replay(16, n_step=2, gamma=0.5)
    fragment = one_column([0, 99, 1, 99], [1, 77, 2, 77], 2, mask=[1, 0, 1, 0])
    state = buffer.add(buffer.init(fragment), fragment)
    assert buffer.size(state) == 2
    state = buffer.add(state, one_column([99, 2], [77, 4], 3, t0=2, mask=[0, 1]))
    batch = everything(buffer, state)
    assert batch["obs"].tolist() == [0, 1, 2]
    assert batch["rewards"].tolist() == [2, 4, 4]
    assert batch["new_obs"].tolist() == [2, 3, 3]
    nothing = one_column([99], [7], 3, t0=3, mask=[0])
    assert buffer.size(buffer.add(state, nothing)) == 3


def test_agents_of_one_episode_are_apart():
    buffer = uniform_replay(16, n_step=2, gamma=0.5)
    first = one_column([0], [1], 1, agent=0)
    state = buffer.init(first)
    for fragment in (first, one_column([10], [2], 11, agent=1), one_column([1], [4], 2, agent=0, t0=1)):
        state = buffer.add(state, fragment)
    batch = everything(buffer, state)
    assert batch["rewards"].tolist() == [3, 2, 4]
    assert batch["new_obs"].tolist() == [2, 11, 2]


def test_a_lost_fragment_leaves_a_gap_that_nothing_crosses():
    buffer = uniform_replay(16, n_step=3, gamma=0.5)
    first = one_column([0, 1], [1, 2], 2)
    state = buffer.add(buffer.init(first), first)
    state = buffer.add(state, one_column([5, 6], [4, 8], 7, t0=5))
    batch = everything(buffer, state)
    assert batch["rewards"].tolist() == [2, 2, 8, 8]
    assert batch["new_obs"].tolist() == [2, 2, 7, 7]


def test_a_row_without_known_successor_is_not_sampled():
    fragment = one_column([0, 1, 2, 3], [1, 2, 4, 8], 4)
    eps = np.asarray([[0], [0], [5], [5]], np.int32)  # the episode vanished between two rows
    fragment = fragment.with_columns(eps_id=eps, t=np.asarray([[0], [1], [0], [1]], np.int32))
    for make in (uniform_replay, prioritized_replay):
        buffer = make(8, n_step=3, gamma=0.5)
        state = buffer.add(buffer.init(fragment), fragment)
        batch = buffer.sample(state, np.linspace(0, 1, 200, endpoint=False))
        assert set(batch["batch_indexes"].tolist()) == {0, 2, 3}
        assert set(batch["new_obs"][batch["batch_indexes"] == 0].tolist()) == {1.0}
        first = buffer.take(state, np.asarray([0]))
        assert first["rewards"].tolist() == [1.0] and first["discounts"].tolist() == [0.5]
        state = buffer.update(state, np.arange(4), np.ones(4))
        assert 1 not in buffer.sample(state, np.linspace(0, 1, 50, endpoint=False))["batch_indexes"]


@QUICK
@given(
    st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 2**16), st.integers(5, 40),
    st.sampled_from([0.0, 0.1, 0.5]),
)  # fmt: skip
def test_it_does_what_a_plain_buffer_does(stream, naive, check_against, width, n, masked, nested, seed, capacity, end):
    experience = stream(width, seed, masked=masked, end=end, nested=nested)
    buffer, reference = uniform_replay(capacity, n_step=n, gamma=0.5), naive(capacity, n, 0.5)
    rng = np.random.default_rng(seed)
    state = None
    for _ in range(12):
        fragment = experience.fragment(int(rng.integers(1, 9)))
        if rng.random() < 0.1:
            continue  # lost on the way
        state = buffer.add(buffer.init(fragment) if state is None else state, fragment)
        reference.add(fragment)
        assert buffer.size(state) == min(capacity, len(reference.rows))
        if buffer.size(state):
            check_against(everything(buffer, state), reference)
            lanes_and_ends = (state.link[: state.size] >= capacity).sum()
            assert len(state.side_back) - len(state.free) == lanes_and_ends
            assert len(state.lanes) <= lanes_and_ends


def test_a_million_rows_lose_nothing_but_the_oldest():
    buffer = uniform_replay(10**5)
    steps, width = 100, 100
    state, added = None, 0
    while added < 10**6:
        t = (added // width + np.arange(steps, dtype=np.int32))[:, None].repeat(width, axis=1)
        number = (added + np.arange(steps * width, dtype=np.int32)).reshape(steps, width)
        zeros = np.zeros((steps, width), bool)
        fragment = SampleBatch(
            {
                "obs": number, "actions": number, "rewards": number.astype(np.float32), "terminateds": zeros,
                "truncateds": zeros, "eps_id": np.arange(width, dtype=np.int32)[None].repeat(steps, axis=0), "t": t,
                "last_obs": number[-1] + width,
            }
        )  # fmt: skip
        state = buffer.add(state or buffer.init(fragment), fragment)
        added += steps * width
    batch = everything(buffer, state)
    assert sorted(batch["obs"].tolist()) == list(range(9 * 10**5, 10**6))
    assert (batch["new_obs"] == batch["obs"] + width).all() and (batch["actions"] == batch["obs"]).all()
    assert state is not None and len(state.lanes) == width and len(state.side_back) < 4 * width


def test_a_fragment_larger_than_the_buffer_leaves_its_newest_rows(stream, naive, check_against):
    experience = stream(3, 1)
    buffer, reference = uniform_replay(10, n_step=2, gamma=0.5), naive(10, 2, 0.5)
    fragment = experience.fragment(20)
    state = buffer.add(buffer.init(fragment), fragment)
    reference.add(fragment)
    check_against(everything(buffer, state), reference)
    with pytest.raises(ReplayError, match="12 environments step at once"):
        wide = stream(12, 1).fragment(2)
        buffer.add(buffer.init(wide), wide)


def test_a_column_that_comes_twice_does_no_harm():
    buffer = uniform_replay(20, n_step=2, gamma=0.5)
    first = one_column([0, 1], [1, 2], 2)
    state = buffer.add(buffer.init(first), first)
    following = one_column([2, 3], [4, 8], 4, t0=2)
    state = buffer.add(state, SampleBatch.concat([following, following]))
    state = buffer.add(state, one_column([4], [16], 5, t0=4))
    batch = everything(buffer, state)
    assert batch["obs"].tolist() == [0, 1, 2, 2, 3, 3, 4]
    assert batch["rewards"].tolist() == [2, 4, 8, 8, 8, 16, 16]  # one of the two goes on, and only that
    assert batch["new_obs"].tolist() == [2, 3, 4, 4, 4, 5, 5]
    assert len(state.side_back) - len(state.free) == 2


def test_lanes_that_never_go_on_are_forgotten():
    buffer = uniform_replay(20, n_step=2)
    state = None
    for eps in range(100):
        fragment = one_column([0, 1], [0, 0], 2, eps=eps)
        state = buffer.add(buffer.init(fragment) if state is None else state, fragment)
        assert len(state.lanes) <= 11 and len(state.side_back) <= 32


# ---------------------------------------------------------------- sampling and priorities


def test_uniform_numbers_decide_what_is_sampled(stream):
    fragment = stream(2, 3).fragment(5)
    buffer = uniform_replay(100)
    state = buffer.add(buffer.init(fragment), fragment)
    batch = buffer.sample(state, np.asarray([0.0, 0.1, 0.55, 0.999, np.nextafter(1.0, 0.0)]))
    assert batch["batch_indexes"].tolist() == [0, 1, 5, 9, 9]


def test_priorities_weigh_as_the_paper_says(stream):
    fragment = stream(1, 3).fragment(4)
    buffer = prioritized_replay(100, alpha=0.5)
    state = buffer.add(buffer.init(fragment), fragment)
    state = buffer.update(state, np.arange(4), np.asarray([1.0, 4.0, 9.0, 16.0]))
    uniforms = (np.arange(10) + 0.5) / 10
    batch = buffer.sample(state, uniforms, beta=0.5)
    assert batch["batch_indexes"].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    chance = np.asarray([1, 2, 3, 4]) / 10
    weights = (4 * chance) ** -0.5
    np.testing.assert_allclose(batch["weights"], (weights / weights.max())[batch["batch_indexes"]], rtol=1e-6)
    assert buffer.sample(state, uniforms)["weights"].tolist() == [1.0] * 10
    state = buffer.add(state, stream(1, 4).fragment(1))  # a new row gets the largest priority so far
    assert buffer.sample(state, np.asarray([11.0 / 14]))["batch_indexes"].tolist() == [4]


def test_priorities_of_rows_overwritten_since_are_left_alone(stream):
    experience = stream(1, 3)
    fragment = experience.fragment(6)
    buffer = prioritized_replay(6, alpha=1.0)
    state = buffer.add(buffer.init(fragment), fragment)
    added = state.added
    state = buffer.add(state, experience.fragment(2))
    state = buffer.update(state, np.arange(6), np.full(6, 0.25), added)
    assert state.tree.sums[0][:6].tolist() == [1, 1, 0.25, 0.25, 0.25, 0.25]
    state = buffer.add(state, experience.fragment(6))
    state = buffer.update(state, np.arange(6), np.full(6, 0.25), added)
    assert state.tree.sums[0][:6].tolist() == [1] * 6


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
def test_a_bad_priority_is_named_and_changes_nothing(stream, bad):
    fragment = stream(1, 3).fragment(6)
    buffer = prioritized_replay(6)
    state = buffer.add(buffer.init(fragment), fragment)
    before = state.tree.sums[0].copy()
    with pytest.raises(ReplayError, match=r"priorities\[1\] \(of index 4\)"):
        buffer.update(state, np.asarray([3, 4, 5]), np.asarray([2.0, bad, bad]))
    assert (state.tree.sums[0] == before).all()
    with pytest.raises(ReplayError, match=r"indexes\[1\] is 6"):
        buffer.update(state, np.asarray([3, 6]), np.ones(2))
    with pytest.raises(ReplayError, match="3 priorities|priorities for"):
        buffer.update(state, np.asarray([3, 5]), np.ones(3))
    with pytest.raises(ReplayError, match="all priorities are 0"):
        buffer.sample(buffer.update(state, np.arange(6), np.zeros(6)), np.asarray([0.5]))


def test_bad_arguments_and_fragments_are_refused(stream):
    for arguments in ({"capacity": 0}, {"capacity": 2.5}, {"n_step": 0}, {"gamma": 1.5}, {"frame_stack": -1}):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            uniform_replay(**{"capacity": 10, **arguments})
    with pytest.raises(ConfigError, match="alpha"):
        prioritized_replay(10, alpha=-0.1)
    experience = stream(2, 0)
    fragment = experience.fragment(4)
    buffer = uniform_replay(50, n_step=2)
    with pytest.raises(ConfigError, match="eps_id"):
        buffer.init(fragment.drop("eps_id"))
    with pytest.raises(ConfigError, match="flat"):
        buffer.init(fragment.flatten())
    state = buffer.init(fragment)
    with pytest.raises(ReplayError, match="nothing to sample"):
        buffer.sample(state, np.asarray([0.5]))
    state = buffer.add(state, fragment)
    before = jax.tree.map(np.copy, everything(buffer, state).flatten()._columns)
    following = experience.fragment(4)
    for wrong, match in (
        (following.with_columns(rewards=following["rewards"].astype(np.float16)), "rewards.*float16"),
        (following.with_columns(vf_preds=following["rewards"]), "vf_preds"),
        (following.drop("actions"), "actions"),
        (following.flatten(), "flat"),
        (stream(2, 0, nested=True).fragment(4), "structure"),
        (following.with_columns(truncateds=np.ones((4, 2), bool)).drop(["final_obs", "final_index"]), "no final"),
    ):
        with pytest.raises(ReplayError, match=match):
            buffer.add(state, wrong)
    after = everything(buffer, state)
    for name, column in before.items():
        np.testing.assert_array_equal(column, after[name])
    for uniforms in (np.asarray([1.0]), np.asarray([np.nan]), np.asarray(0.5), np.asarray([-0.1])):
        with pytest.raises(ReplayError):
            buffer.sample(state, uniforms)
    with pytest.raises(ReplayError, match="nothing|rows are stored"):
        buffer.take(state, np.asarray([8]))


def test_abstract_fragments_lay_out_the_buffer(stream):
    fragment = stream(2, 0).fragment(4)
    buffer = uniform_replay(50)
    state = buffer.init(jax.eval_shape(lambda batch: batch, fragment))
    assert buffer.size(buffer.add(state, fragment)) == 8
    assert buffer.nbytes(state) > 50 * (8 + 4 * 6)
