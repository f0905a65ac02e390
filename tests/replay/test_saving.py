"""Replay buffers saved and loaded: bit-equal, whole or not at all, and never a second copy in memory."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from jaxrl import storage, trees
from jaxrl.replay import load, prioritized_replay, save, sequence_replay, sum_tree, uniform_replay
from jaxrl.types import CheckpointError

BUFFERS = {
    "uniform": lambda: uniform_replay(50, n_step=3),
    "prioritized": lambda: prioritized_replay(50, n_step=2),
    "frames": lambda: prioritized_replay(50, n_step=2, frame_stack=1),
    "sequences": lambda: sequence_replay(50),
}


def same(a, b):
    a, b = (trees.flatten_with_paths(dict(batch.items())) for batch in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


def fragments(stream, name):
    experience = stream(3, 5, masked=name == "sequences", nested=name != "frames")
    while True:
        fragment = experience.fragment(4)
        if name == "frames":
            fragment = fragment.with_columns(
                {part: fragment[part][..., :1] for part in ("obs", "last_obs", "final_obs")}
            )
        if name == "sequences":
            states = np.asarray(fragment["rewards"])
            fragment = fragment.with_columns(state_in={"h": states[0]}).cut(2, states={"h": states})
        yield fragment


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("count", [0, 2, 11])
def test_a_loaded_buffer_goes_on_bit_for_bit(stream, tmp_path, name, count):
    buffer, source, rng = BUFFERS[name](), fragments(stream, name), np.random.default_rng(0)
    first = next(source)
    state = buffer.init(first)
    for _ in range(count):
        state = buffer.add(state, next(source))
        batch = buffer.sample(state, rng.random(9), 0.4)
        indexes = batch["batch_indexes"][0] if batch.time_major else batch["batch_indexes"]
        state = buffer.update(state, indexes, rng.random(9))
    assert save(state, tmp_path / "here") == str(tmp_path / "here")
    loaded = load(BUFFERS[name](), tmp_path / "here", first)
    assert (loaded.added, loaded.size, loaded.head) == (state.added, state.size, state.head)
    for _ in range(9):
        fragment, uniforms, priorities = next(source), rng.random(9), rng.random(9)
        batches = []
        for one in (state, loaded):
            one = buffer.add(one, fragment)
            batches.append(buffer.sample(one, uniforms, 0.7))
            indexes = batches[-1]["batch_indexes"]
            buffer.update(one, indexes[0] if indexes.ndim == 2 else indexes, priorities)
        same(*batches)
    if count:
        assert "columns/rewards" in safetensors.numpy.load_file(tmp_path / "here" / "rows.safetensors")


def test_what_was_saved_before_stays_until_the_new_is_whole(stream, tmp_path, monkeypatch):
    buffer, source = uniform_replay(50), fragments(stream, "uniform")
    state = buffer.add(buffer.init(next(source)), next(source))
    save(state, tmp_path / "here")
    size = buffer.size(state)
    state = buffer.add(state, next(source))
    with monkeypatch.context() as patch:
        patch.setattr("jaxrl.storage.Writer.json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(state, tmp_path / "here")
    assert buffer.size(load(buffer, tmp_path / "here")) == size
    save(state, tmp_path / "here")
    assert buffer.size(load(buffer, tmp_path / "here")) == buffer.size(state)
    assert [path.name for path in tmp_path.iterdir()] == ["here"] and len(list((tmp_path / "here").iterdir())) == 3


def test_saving_and_loading_make_no_second_copy(stream, tmp_path):
    experience = stream(2, 0, end=0.01)
    buffer = uniform_replay(20_000)

    def wide(fragment):
        rows = {name: fragment[name][..., :1].repeat(300, axis=-1) for name in ("obs", "last_obs", "final_obs")}
        return fragment.with_columns(rows)

    fragment = wide(experience.fragment(500))
    state = buffer.init(fragment)
    for _ in range(20):
        state = buffer.add(state, fragment)
    size = buffer.nbytes(state)
    tracemalloc.start()
    save(state, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 0.2 * size
    tracemalloc.reset_peak()
    loaded = load(buffer, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1.2 * size
    tracemalloc.stop()
    assert abs(buffer.nbytes(loaded) - size) < 0.01 * size


def test_another_buffer_is_refused(stream, tmp_path):
    source = fragments(stream, "uniform")
    fragment = next(source)
    buffer = prioritized_replay(50, n_step=2)
    save(buffer.add(buffer.init(fragment), fragment), tmp_path)
    for other, match in (
        (prioritized_replay(60, n_step=2), "capacity: expected 60, found 50"),
        (prioritized_replay(50, n_step=3), "n_step: expected 3, found 2"),
        (prioritized_replay(50, n_step=2, gamma=0.5), "gamma"),
        (uniform_replay(50, n_step=2), "alpha: expected None, found 0.6"),
        (sequence_replay(50), "kind: expected 'sequences', found 'transitions'"),
    ):
        with pytest.raises(CheckpointError, match=match):
            load(other, tmp_path)
    wrong = fragment.with_columns(actions=fragment["rewards"])
    with pytest.raises(CheckpointError, match=r"columns/actions: expected rows of float32\[\], found int32\[\]"):
        load(buffer, tmp_path, wrong)
    with pytest.raises(CheckpointError, match="no such file"):
        load(buffer, tmp_path / "nowhere")


def test_damage_is_noticed(stream, tmp_path):
    fragment = next(fragments(stream, "uniform"))
    buffer = uniform_replay(50)
    save(buffer.add(buffer.init(fragment), fragment), tmp_path)
    rows = tmp_path / "rows.safetensors"
    whole = rows.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        place = int(rng.integers(len(whole)))
        rows.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="rows"):
            load(buffer, tmp_path)
    for cut in (0, 4, 100, len(whole) - 1):
        rows.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="rows"):
            load(buffer, tmp_path)
    rows.unlink()
    with pytest.raises(CheckpointError, match="lacks rows"):
        load(buffer, tmp_path)


def test_something_else_is_neither_replaced_nor_loaded(stream, tmp_path):
    fragment = next(fragments(stream, "uniform"))
    buffer = uniform_replay(50)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="was not written by jaxrl"):
        save(buffer.init(fragment), tmp_path)
    storage.write(tmp_path / "other", lambda writer: {"format_version": 2})
    with pytest.raises(CheckpointError, match="holds no replay buffer"):
        load(buffer, tmp_path / "other")


BROKEN: dict[str, dict[str, Any]] = {
    "uniform": {
        "size": lambda x: 10**9,
        "head": lambda x: x + 1,
        "added": lambda x: -1,
        "max_priority": lambda x: math.nan,
        "columns": lambda x: {**x, "t": x["t"].astype(np.float32)},
        "link": lambda x: x + 1000,
        "last_n": lambda x: x - 60,
        "rewards_n": lambda x: x.astype(np.float64),
        "side": lambda x: [leaf[:-1] for leaf in x],
        "side_back": lambda x: x - 7,
        "free": lambda x: [*x, *x, -1],
        "lanes": lambda x: dict.fromkeys(x, 49),
        "unsampleable": lambda x: x + 1,
        "stacked": lambda x: [True for _ in x],
        "sampleable": lambda x: x.astype(np.int8),
    },
    "prioritized": {"tree": lambda x: sum_tree.fill(sum_tree.init(50), 0, 50, -1.0), "back": lambda x: x + 500},
    "sequences": {
        "steps": lambda x: 0,
        "size": lambda x: x + 1,
        "owner": lambda x: x + 1,
        "final": lambda x: x + 1000,
        "start": lambda x: x - 1,
        "length": lambda x: x * 3,
        "born": lambda x: x + 1000,
        "free": lambda x: [0, 0],
        "finals_free": lambda x: [0.5],
        "bounds": lambda x: {},
        "tree": lambda x: sum_tree.set(x, np.asarray([0]), np.inf),
    },
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in BROKEN for field in BROKEN[name]])
def test_a_state_that_cannot_be_is_found_out_when_it_is_loaded(stream, tmp_path, name, field):
    buffer, source = BUFFERS[name](), fragments(stream, name)
    state = buffer.init(next(source))
    for _ in range(11):
        state = buffer.add(state, next(source))
    setattr(state, field, BROKEN[name][field](getattr(state, field)))
    save(state, tmp_path / "here")
    with pytest.raises(CheckpointError):
        load(buffer, tmp_path / "here")
