"""Arrays by name in the safetensors format: written a piece at a time, and read with every header field checked.

Format: https://github.com/huggingface/safetensors#format. Typed PRNG keys are stored as their data, the name of their
implementation noted in the header's metadata.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxrl.storage.files import parse_json, refusing
from jaxrl.types import CheckpointError

_MAX_HEADER = 8 * 2**20
_CHUNK = 4 * 2**20
_DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "UI" for size in (1, 2, 4, 8)},
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("f4"),
    "F64": np.dtype("f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Older files hold these as unsigned integers, the dtype noted.
_VIEWED = {"bfloat16": ("U16", "BF16"), "float8_e4m3fn": ("U8", "F8_E4M3"), "float8_e5m2": ("U8", "F8_E5M2")}
_KEY_WORDS = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}

Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]


def storable(dtype: Any) -> bool:
    """Whether a file can hold arrays of a dtype: numbers and bools."""
    return np.dtype(dtype).newbyteorder("=") in _NAMES


def write(write_bytes: Callable[[Any], None], arrays: Mapping[str, Any], where: str) -> None:
    """Writes arrays to a file, contiguous ones as they lie in memory.

    Args:
        write_bytes: takes the next bytes of the file.
        arrays: NumPy or JAX arrays of any layout, typed PRNG keys, Python numbers.
        where: names the file in errors.

    Raises:
        TypeError: an array of another dtype (object, string), by name.
    """
    header: dict[str, Any] = {}
    notes, ready, offset = {}, {}, 0
    for name, value in arrays.items():
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            notes[name] = {"key_impl": str(jax.random.key_impl(value))}
            value = jax.random.key_data(value)
        array = np.asarray(value)
        if not storable(array.dtype):
            raise TypeError(f"{where}: array {name!r} has dtype {array.dtype}, expected numbers or bools")
        ready[name] = array
        dtype = _NAMES[array.dtype.newbyteorder("=")]
        header[name] = {
            "dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes],
        }  # fmt: skip
        offset += array.nbytes
    header["__metadata__"] = {"format_version": "1", "notes": json.dumps(notes)}
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise CheckpointError(f"{where}: its header would take {len(text)} bytes, at most {_MAX_HEADER} could be read.")
    write_bytes(struct.pack("<Q", len(text)) + text)
    for array in ready.values():
        if not array.size:
            continue
        array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _CHUNK):
            write_bytes(data[start : start + _CHUNK])


class Source:
    """The bytes of an open file in order; `seen` takes each piece, to digest it.

    Args:
        file: descriptor.
        size: bytes that the file has.
        where: names it in errors.
        seen: called with every piece that is read.
    """

    def __init__(self, file: int, size: int, where: str, seen: Callable[[Any], None]):
        self.file, self.left, self.where, self.seen = file, size, where, seen

    def into(self, data: memoryview) -> None:
        """Fills `data`."""
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            while len(piece):
                got = os.readv(self.file, [piece])
                if got == 0:
                    raise CheckpointError(f"{self.where}: is damaged (cut short); use another checkpoint.")
                self.seen(piece[:got])
                self.left -= got
                piece = piece[got:]

    def bytes(self, count: int) -> bytearray:
        """The next `count` bytes."""
        if count > self.left:
            raise CheckpointError(f"{self.where}: is damaged (cut short); use another checkpoint.")
        data = bytearray(count)
        self.into(memoryview(data))
        return data


def read(source: Source, allocate: Allocate | None = None) -> dict[str, Any]:
    """Reads what `write` wrote; nothing is allocated before the whole header is found to fit the file's size.

    Args:
        source: the file, from its beginning to its end.
        allocate: makes the array that a stored one of `(name, shape, dtype)` is read into the beginning of; None: one
            of that shape. It may refuse with a CheckpointError.

    Returns:
        Arrays by name: NumPy, and typed PRNG keys where keys were stored.

    Raises:
        CheckpointError: header and file do not fit; names the file.
    """
    where = source.where
    with refusing(where, "is damaged, or no array file"):
        (length,) = struct.unpack("<Q", source.bytes(8))
        if length > min(_MAX_HEADER, source.left):
            raise ValueError(f"a header of {length} bytes in a file of {source.left + 8}")
        header = parse_json(bytes(source.bytes(length)), where)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        about = header.pop("__metadata__", {})
        notes = _notes(about, where)
        entries = _entries(header, source.left)
        keys = _apply_notes(notes, entries)
        arrays: dict[str, Any] = {}
        for name, (dtype, shape, size) in entries.items():
            array = np.empty(shape, dtype) if allocate is None else allocate(name, shape, dtype)
            if size:
                source.into(array.reshape(-1).view(np.uint8).data[:size])
            arrays[name] = array
        for name, known in keys.items():
            arrays[name] = jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=known)
    return arrays


def _notes(about: Any, where: str) -> dict[str, Any]:
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its metadata are no texts")
    if about.get("format_version", "1") != "1":
        raise ValueError(f"array format {about['format_version']!r}, expected '1'; upgrade jaxrl")
    notes = parse_json(about.get("notes", "{}").encode(), where)
    if not isinstance(notes, dict):
        raise ValueError("its notes are no object")
    return notes


def _entries(header: Mapping[str, Any], size: int) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """(dtype, shape, bytes) by name, in the order of the data, which they cover exactly and once."""
    entries, begins = {}, {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"array {name[:80]!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"array {name[:80]!r} has the unknown dtype {str(dtype)[:80]!r}")
        if not _counts(shape) or len(shape) > 32 or not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"array {name[:80]!r} has a shape or offsets that cannot be")
        begin, end = offsets
        if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
            raise ValueError(f"array {name[:80]!r} is not of its shape")
        entries[name] = (_DTYPES[dtype], tuple(shape), end - begin)
        begins[name] = (begin, end)
    place = 0
    ordered = sorted(begins, key=begins.__getitem__)
    for name in ordered:
        if begins[name][0] != place:
            raise ValueError(f"array {name[:80]!r} overlaps another, or leaves a gap before it")
        place = begins[name][1]
    if place != size:
        raise ValueError(f"its arrays take {place} bytes, and it has {size}; it is cut short or has more in it")
    return {name: entries[name] for name in ordered}


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _apply_notes(notes: Mapping[str, Any], entries: dict[str, tuple[np.dtype, tuple[int, ...], int]]) -> dict[str, str]:
    """The PRNG's name of every array that is a key's data; a noted dtype, of older files, goes into `entries`."""
    keys = {}
    for name, note in notes.items():
        dtype, shape, size = entries.get(name, (None, (), 0))
        match note:
            case {"key_impl": str(known)} if (
                known in _KEY_WORDS and dtype == np.uint32 and shape[-1:] == (_KEY_WORDS[known],)
            ):
                keys[name] = known
            case {"dtype": str(known)} if known in _VIEWED and dtype == _DTYPES[_VIEWED[known][0]]:
                entries[name] = (_DTYPES[_VIEWED[known][1]], shape, size)
            case _:
                raise ValueError(f"a note of {name[:80]!r} that means nothing")
    return keys
