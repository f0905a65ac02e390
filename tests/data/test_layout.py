"""Slicing, cutting, padding, joining: `new_obs` of every valid row stays right, against a naive oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.data import SampleBatch
from jaxrl.types import FINAL_PAD

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def batches(draw, steps=None, masked=None):
    """A batch whose observation names its row, with final observations, masked rows and dict observations."""
    steps = draw(st.integers(1, 7)) if steps is None else steps
    width = draw(st.integers(1, 3))
    masked = draw(st.booleans()) if masked is None else masked
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    ids = (rng.permutation(steps * width) + 1000 * rng.integers(1, 1000)).astype(np.int32).reshape(steps, width)
    mask = rng.random((steps, width)) < 0.7 if masked else np.ones((steps, width), bool)
    ended = (rng.random((steps, width)) < 0.3) & mask
    slots = np.argwhere(ended)
    spare = int(rng.integers(0, 3))
    index = np.concatenate([slots, np.tile([[FINAL_PAD, 0]], (spare, 1))]).astype(np.int32)
    final = (-ids[tuple(slots.T)] - 1).astype(np.int32)
    final = np.concatenate([final, np.full(spare, -7, np.int32)])
    last = (-np.arange(width) - 10**6).astype(np.int32)
    columns = {
        "obs": {"id": ids, "image": np.stack([ids, ids + 1], axis=-1).astype(np.float32)},
        "last_obs": {"id": last, "image": np.stack([last, last + 1], axis=-1).astype(np.float32)},
        "final_obs": {"id": final, "image": np.stack([final, final + 1], axis=-1).astype(np.float32)},
        "final_index": index,
        "rewards": rng.random((steps, width)).astype(np.float32),
        "terminateds": ended,
        "truncateds": np.zeros((steps, width), bool),
        "eps_id": (
            np.cumsum(np.concatenate([np.zeros((1, width), int), ended[:-1]]), 0) + 100 * np.arange(width)
        ).astype(np.int32),
    }
    return SampleBatch({**columns, "mask": mask} if masked else columns)


def oracle(batch: SampleBatch) -> dict[int, int]:
    """Successor id of each valid row by its id, row by row in Python."""
    ids, mask = np.asarray(batch["obs"]["id"]), np.asarray(batch.valid())
    finals = {tuple(slot): i for i, slot in enumerate(np.asarray(batch["final_index"]).tolist())}
    out = {}
    for b in range(batch.B):
        valid = [t for t in range(batch.T) if mask[t, b]]
        for place, t in enumerate(valid):
            following = ids[valid[place + 1], b] if place + 1 < len(valid) else batch["last_obs"]["id"][b]
            if (t, b) in finals:
                following = batch["final_obs"]["id"][finals[t, b]]
            out[int(ids[t, b])] = int(following)
    return out


def stored(*parts: SampleBatch) -> dict[int, int]:
    """Successor id of each valid row by its id, as the batches themselves say."""
    out = {}
    for part in parts:
        new, mask = part["new_obs"], np.asarray(part.valid())
        np.testing.assert_array_equal(np.asarray(new["image"])[mask][:, 0], np.asarray(new["id"])[mask])
        out |= dict(
            zip(np.asarray(part["obs"]["id"])[mask].tolist(), np.asarray(new["id"])[mask].tolist(), strict=True)
        )
    return out


@QUICK
@given(batches())
def test_new_obs_is_the_successor(batch):
    assert stored(batch) == oracle(batch)


@settings(max_examples=8, deadline=None)
@given(batches(steps=5, masked=True))
def test_jit_equals_numpy(batch):
    def everything(b):
        cut = b.cut(2)
        return b["new_obs"], b.flatten(["obs", "new_obs", "dones"]), cut, cut["new_obs"], b.slice(1, 4), b.pad_to(8)

    host, device = everything(batch), jax.jit(everything)(batch)
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@QUICK
@given(batches(), st.data())
def test_slices_keep_new_obs(batch, data):
    truth = oracle(batch)
    start = data.draw(st.integers(0, batch.T - 1))
    part = batch.slice(start, data.draw(st.integers(start + 1, batch.T + 2)))
    assert stored(part).items() <= truth.items()
    assert stored(*batch.timeslices(data.draw(st.integers(1, 8)))) == truth


@QUICK
@given(batches(), st.integers(1, 9))
def test_cut_keeps_rows_and_new_obs(batch, length):
    states = {"h": np.stack([batch["obs"]["id"], batch["obs"]["id"]], axis=-1).astype(np.float32)}
    cut = batch.cut(length, states)
    assert (cut.T, cut.B, cut.count) == (length, batch.B * -(-batch.T // length), batch.count)
    assert stored(cut) == oracle(batch)
    np.testing.assert_array_equal(cut["state_in"]["h"][:, 0], cut["obs"]["id"][0])
    assert ("mask" in cut) == ("mask" in batch or bool(batch.T % length))


@QUICK
@given(batches(), st.integers(0, 5))
def test_padding_changes_nothing(batch, extra):
    padded = batch.pad_to(batch.T + extra)
    assert padded.count == batch.count and stored(padded) == oracle(batch)
    np.testing.assert_allclose(padded.mean(padded["rewards"]), batch.mean(batch["rewards"]), rtol=1e-6)
    np.testing.assert_allclose(
        padded.flatten().mean(padded.flatten()["rewards"]), batch.mean(batch["rewards"]), rtol=1e-6
    )


@QUICK
@given(st.lists(batches(), min_size=1, max_size=4), st.none() | st.integers(1, 12))
def test_concat_keeps_rows(parts, length):
    for i, part in enumerate(parts):  # ids must differ between the parts
        shift = 10**7 * i
        parts[i] = part.with_columns(obs=jax.tree.map(lambda x, by=shift: (x + by).astype(x.dtype), part["obs"]))
        parts[i] = parts[i].with_columns(obs={**parts[i]["obs"], "image": _image(parts[i]["obs"]["id"])})
    joined = SampleBatch.concat(parts, length)
    assert joined.count == sum(part.count for part in parts) and sum(part.B for part in parts) == joined.B
    longest = max(part.T for part in parts)
    same = all(longest == part.T for part in parts)
    bucket = 1 << (longest - 1).bit_length()
    assert (length if length and length >= longest else longest if same else bucket) == joined.T
    truth = {}
    for part in parts:
        truth |= oracle(part)
    rows = stored_ids(joined)
    assert rows == truth


def _image(ids):
    return np.stack([ids, ids + 1], axis=-1).astype(np.float32)


def stored_ids(batch):
    mask = np.asarray(batch.valid())
    return dict(zip(batch["obs"]["id"][mask].tolist(), batch["new_obs"]["id"][mask].tolist(), strict=True))


@QUICK
@given(batches(), st.integers(0, 99))
def test_shuffle_permutes_columns_and_rows(batch, seed):
    mixed = batch.shuffle(jax.random.key(seed))
    assert mixed.shape == batch.shape and stored(mixed) == oracle(batch)
    flat = batch.flatten(["obs", "new_obs"])
    rows = flat.shuffle(jax.random.key(seed))
    assert rows.count == batch.count and stored(rows) == oracle(batch)


@QUICK
@given(batches(), st.integers(1, 9))
def test_minibatches_cover_each_row_once_in_one_shape(batch, size):
    for source in (batch, batch.flatten(["obs", "new_obs"])):
        parts = list(source.minibatches(size, jax.random.key(0)))
        assert sum(part.count for part in parts) == batch.count and stored(*parts) == oracle(batch)
        assert len({(jax.tree.structure(p), tuple(x.shape for x in jax.tree.leaves(p))) for p in parts}) == 1
        assert parts[0].shape[-1] == size


@QUICK
@given(batches())
def test_split_by_episode(batch):
    pieces = batch.split_by_episode()
    assert sum(piece.count for piece in pieces) == batch.count and stored(*pieces) == oracle(batch)
    assert all(len(np.unique(piece["eps_id"])) == 1 and piece.B == 1 and "mask" not in piece for piece in pieces)
    flat = batch.flatten(["obs", "new_obs", "eps_id"]).split_by_episode()
    assert sum(piece.count for piece in flat) == batch.count and stored(*flat) == oracle(batch)
    assert all(len(np.unique(piece["eps_id"])) == 1 for piece in flat)


def simple(steps, width=2, **more):
    rewards = np.arange(steps * width, dtype=np.float32).reshape(steps, width)
    return SampleBatch({"rewards": rewards, **more})


def test_flatten_orders_rows_by_time():
    np.testing.assert_array_equal(simple(3).flatten()["rewards"], np.arange(6))
    assert simple(3).flatten().flatten().shape == (6,)


def test_state_in_is_kept_at_the_start_only():
    batch = simple(4, state_in={"h": np.ones((2, 5), np.float32)})
    assert batch.slice(0, 2)["state_in"]["h"].shape == (2, 5)
    with pytest.raises(ValueError, match="state_in="):
        batch.slice(1, 3)
    assert batch.slice(1, 3, state_in={"h": np.zeros((2, 5), np.float32)})["state_in"]["h"].sum() == 0
    with pytest.raises(ValueError, match="states="):
        batch.cut(2)
    with pytest.raises(ValueError, match=r"\[4, 2\]"):
        batch.cut(2, {"h": np.zeros((2, 4, 5), np.float32)})
    states = {"h": np.arange(8, dtype=np.float32).reshape(4, 2, 1)}
    np.testing.assert_array_equal(batch.cut(2, states)["state_in"]["h"][:, 0], [0, 1, 4, 5])
    np.testing.assert_array_equal(batch.timeslices(3, states)[1]["state_in"]["h"][:, 0], [6, 7])
    assert batch.cut(6).count == 8


def test_take_in_jit_moves_state_and_columns():
    batch = simple(3, 3, state_in=np.arange(3, dtype=np.float32))
    taken = jax.jit(lambda b, i: b.take(i))(batch, jnp.asarray([2, 0]))
    np.testing.assert_array_equal(taken["rewards"], batch["rewards"][:, [2, 0]])
    np.testing.assert_array_equal(taken["state_in"], [2, 0])
    shuffled = jax.jit(lambda b, k: b.shuffle(k))(batch, jax.random.key(1))
    assert sorted(np.asarray(shuffled["state_in"]).tolist()) == [0, 1, 2]


def test_concat_returns_one_batch_unchanged_and_names_what_differs():
    batch = simple(3)
    assert SampleBatch.concat([batch]) is batch and SampleBatch.concat([batch], length=3) is batch
    assert SampleBatch.concat([batch], length=4).count == 6
    with pytest.raises(ValueError, match=r"'advantages' \(in 1 of 2\)"):
        SampleBatch.concat([batch, batch.with_columns(advantages=batch["rewards"])])
    with pytest.raises(ValueError, match="'rewards' is float32"):
        SampleBatch.concat([batch, batch.with_columns(rewards=np.zeros((3, 2), np.int32))])
    with pytest.raises(ValueError, match="structure"):
        SampleBatch.concat([batch, batch.with_columns(rewards={"a": batch["rewards"]})])
    with pytest.raises(ValueError, match="flatten"):
        SampleBatch.concat([batch, batch.flatten()])
    with pytest.raises(ValueError, match="no batches"):
        SampleBatch.concat([])
    assert SampleBatch.concat([batch.flatten(), batch.pad_to(4).flatten()]).count == 12
    jitted = jax.jit(lambda a, b: SampleBatch.concat([a, b]))(batch, simple(5))
    assert jitted.shape == (8, 4) and jitted.count == 16


def test_bad_sizes_are_errors():
    batch = simple(3)
    for call in (lambda: batch.slice(2, 2), lambda: batch.slice(-1, 2), lambda: batch.cut(0), lambda: batch.pad_to(2),
                 lambda: batch.timeslices(0), lambda: next(batch.minibatches(0))):  # fmt: skip
        with pytest.raises(ValueError, match=r"slice|cut|pad_to|minibatches"):
            call()


def test_flat_episodes_of_two_agents_stay_apart():
    batch = SampleBatch(
        {
            "eps_id": np.zeros(4, np.int32),
            "agent_index": np.asarray([1, 0, 1, 0], np.int32),
            "t": np.arange(4, dtype="i4"),
        },
        time_major=False,
    )
    assert [piece["t"].tolist() for piece in batch.split_by_episode()] == [[0, 2], [1, 3]]
