"""Arrays in files: round trips of every dtype, the safetensors package as oracle, and headers that lie."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxrl import storage
from jaxrl.storage.arrays import Source, read
from jaxrl.types import CheckpointError


def save(path, arrays):
    storage.Writer(path.parent).arrays(path.name, arrays)


def load(path, allocate=None):
    with open(path, "rb") as file:
        return read(Source(file.fileno(), path.stat().st_size, f"{path}", lambda piece: None), allocate)


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", "bfloat16", "float8_e5m2"]
)
@pytest.mark.parametrize("shape", [(), (0, 2), (3,), (2, 3, 4)])
def test_arrays_round_trip(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(jnp.dtype(dtype))
    save(tmp_path / "x", {"a": array, "t": array.T, "flip": array[..., ::-1] if shape else array})
    back = load(tmp_path / "x")
    assert back["a"].shape == shape and back["a"].dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back["a"].astype(np.float64), array.astype(np.float64))
    np.testing.assert_array_equal(back["t"].astype(np.float64), array.T.astype(np.float64))
    if shape:
        np.testing.assert_array_equal(back["flip"].astype(np.float64), array[..., ::-1].astype(np.float64))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_round_trip(tmp_path, impl):
    key = jax.random.key(5, impl=impl)
    save(tmp_path / "k", {"key": key})
    back = load(tmp_path / "k")["key"]
    assert back.dtype == key.dtype
    np.testing.assert_array_equal(jax.random.normal(back, (3,)), jax.random.normal(key, (3,)))


def test_the_format_is_that_of_the_safetensors_package(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asarray([True, False]), "c": np.float32(2.5)}
    save(tmp_path / "ours", arrays)
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    safetensors.numpy.save_file({name: np.asarray(array) for name, array in arrays.items()}, tmp_path / "theirs")
    for found in (theirs, load(tmp_path / "theirs")):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_no_arrays_is_a_file_too(tmp_path):
    save(tmp_path / "x", {})
    assert load(tmp_path / "x") == {}


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(TypeError, match="'b'"):
        save(tmp_path / "x", {"b": np.asarray(["x"])})


def test_older_files_note_what_numpy_does_not_know(tmp_path):
    array = np.arange(3).astype(jnp.bfloat16)
    about = {"notes": json.dumps({"a": {"dtype": "bfloat16"}}), "crc32": "{}", "format_version": "1"}
    safetensors.numpy.save_file({"a": array.view("u2")}, tmp_path / "x", metadata=about)
    found = load(tmp_path / "x")["a"]
    assert found.dtype == array.dtype and (found == array).all()


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": []},
        {"a": {**A, "more": 1}},
        {"a": {**A, "dtype": "F128"}},
        {"a": {**A, "dtype": ["F32"]}},
        {"a": {**A, "dtype": "O"}},
        {"a": {**A, "shape": [10**9]}},
        {"a": {**A, "shape": [2.0]}},
        {"a": {**A, "shape": [True, 2]}},
        {"a": {**A, "shape": [-2]}},
        {"a": {**A, "shape": "2"}},
        {"a": {**A, "shape": [2] + [1] * 40}},
        {"a": {**A, "shape": [2**61, 2**61], "data_offsets": [0, 2**62 - 1]}},
        {"a": {**A, "data_offsets": [8, 0]}},
        {"a": {**A, "data_offsets": [0, 8, 8]}},
        {"a": {**A, "data_offsets": [4, 12]}},
        {"a": A, "b": A},
        {"a": {**A, "shape": [1], "data_offsets": [0, 4]}},
        {"a": A, "b": {**A, "data_offsets": [8, 16]}},
        {"a": A, "__metadata__": {"notes": 1}},
        {"a": A, "__metadata__": {"notes": "[]"}},
        {"a": A, "__metadata__": {"format_version": "2"}},
        {"a": A, "__metadata__": {"notes": '{"a": {"key_impl": "fry"}}'}},
        {"a": {**A, "dtype": "U32"}, "__metadata__": {"notes": '{"a": {"key_impl": "rbg"}}'}},
        {"a": A, "__metadata__": {"notes": '{"a": {"dtype": "bfloat16"}}'}},
        {"a": A, "__metadata__": {"notes": '{"b": {"dtype": "bfloat16"}}'}},
        {"a": A, "__metadata__": {"notes": '{"a": null}'}},
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))

    def allocate(*_):
        raise AssertionError("nothing may be allocated")

    with pytest.raises(CheckpointError, match="x: is damaged"):
        load(tmp_path / "x", allocate)


@pytest.mark.parametrize("length", [2**63, 2**40, 9 * 2**20])
def test_header_lengths_that_lie(tmp_path, length):
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="a header of"):
        load(tmp_path / "x")


def test_damage_names_the_file(tmp_path):
    save(tmp_path / "x", {"a": np.arange(100, dtype=np.float32), "k": jax.random.key(0)})
    good = (tmp_path / "x").read_bytes()
    for damage in (
        b"",
        good[:5],
        good[:50],
        good[:-4],
        good + b"x",
        b"PK\x03\x04" + good,
        good.replace(b"fry", b"xxx"),
    ):
        assert damage != good
        (tmp_path / "x").write_bytes(damage)
        with pytest.raises(CheckpointError, match="x: is damaged"):
            load(tmp_path / "x")
