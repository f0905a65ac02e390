"""Replay buffers saved and loaded: bit-equal, whole or not at all, and never a second copy in memory."""

import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from jaxrl import trees
from jaxrl.replay import load, prioritized_replay, save, sequence_replay, uniform_replay
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
        stored = next((tmp_path / "here").glob("rows-*.safetensors"))
        assert "columns/rewards" in safetensors.numpy.load_file(stored)


def test_what_was_saved_before_stays_until_the_new_is_whole(stream, tmp_path, monkeypatch):
    buffer, source = uniform_replay(50), fragments(stream, "uniform")
    state = buffer.add(buffer.init(next(source)), next(source))
    save(state, tmp_path)
    size = buffer.size(state)
    state = buffer.add(state, next(source))
    with monkeypatch.context() as patch:
        patch.setattr("jaxrl.replay.saving._write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(state, tmp_path)
    assert buffer.size(load(buffer, tmp_path)) == size
    save(state, tmp_path)
    assert buffer.size(load(buffer, tmp_path)) == buffer.size(state)
    assert len(list(tmp_path.iterdir())) == 2


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
    with pytest.raises(CheckpointError, match="holds no replay buffer"):
        load(buffer, tmp_path / "nowhere")


def test_damage_is_noticed(stream, tmp_path):
    fragment = next(fragments(stream, "uniform"))
    buffer = uniform_replay(50)
    save(buffer.add(buffer.init(fragment), fragment), tmp_path)
    rows, described = next(tmp_path.glob("rows-*")), tmp_path / "replay.json"
    whole, text = rows.read_bytes(), described.read_text()
    rng = np.random.default_rng(0)
    for _ in range(40):
        place = int(rng.integers(len(whole)))
        rows.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            load(buffer, tmp_path)
        except CheckpointError:
            continue
        assert whole[place : place + 1] == b" "  # padding of the header
    for cut in (0, 4, 100, len(whole) - 1):
        rows.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            load(buffer, tmp_path)
    rows.write_bytes(whole)
    content = json.loads(text)
    for changed in (
        text[:-20],
        "[]",
        json.dumps({**content, "format_version": 2}),
        json.dumps({**content, "spec": {}}),
        json.dumps({**content, "arrays": "../x"}),
    ):
        described.write_text(changed)
        with pytest.raises(CheckpointError):
            load(buffer, tmp_path)
    described.write_text(text)
    rows.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load(buffer, tmp_path)
