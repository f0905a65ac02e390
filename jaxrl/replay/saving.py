"""Replay buffers on disk: arrays as they lie in memory, a piece at a time, and JSON beside them.

| file | holds |
| --- | --- |
| `replay.json` | format version, what the buffer was made with, counters, the structure of its columns, checksums |
| `rows-*.safetensors` | the arrays, rows that are there only; `replay.json` names it |

`replay.json` is replaced in one step once the arrays are on disk: a reader finds a whole buffer, the old or the new.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import ml_dtypes
import numpy as np

from jaxrl import trees
from jaxrl.data import SampleBatch
from jaxrl.replay import sum_tree
from jaxrl.replay.replay_buffer import ReplayBuffer
from jaxrl.replay.sequence_replay import SequenceSpec, SequenceState
from jaxrl.replay.storage import ReplayState
from jaxrl.types import CheckpointError

FORMAT_VERSION = 1
_FILE = "replay.json"
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
# Fields of a state that hold one entry per row: what is beyond the rows that are there is not written.
_ROW_FIELDS = {
    "transitions": ("columns", "obs", "link", "back", "rewards_n", "last_n", "sampleable"),
    "sequences": ("columns", "owner", "final"),
}


def save(state: ReplayState | SequenceState, directory: str | os.PathLike[str]) -> str:
    """Writes a buffer's state into a directory, whole or not at all; no second copy of it is made in memory.

    Args:
        state: the state of a `uniform_replay`, `prioritized_replay` or `sequence_replay`.
        directory: made if it is not there; a buffer that was saved there before is replaced.

    Returns:
        The directory.
    """
    target = Path(directory).expanduser().absolute()
    target.mkdir(parents=True, exist_ok=True)
    structure, arrays = trees.encode(_to_tree(state))
    handle, name = tempfile.mkstemp(dir=target, prefix="rows-", suffix=".safetensors")
    try:
        with os.fdopen(handle, "wb") as file:
            checks = _write(file, arrays)
        content = {
            "format_version": FORMAT_VERSION,
            "kind": _kind(state),
            "spec": state.spec._asdict(),
            "arrays": Path(name).name,
            "crc32": checks,
            "state": structure,
        }
        _write_json(target, {**content, "checksum": _checksum(content)})
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    for left in target.glob("rows-*.safetensors"):  # older ones, and those of a process that was killed
        if left.name != Path(name).name:
            left.unlink(missing_ok=True)
    return str(target)


def load(
    buffer: ReplayBuffer, directory: str | os.PathLike[str], fragment_like: SampleBatch | None = None
) -> ReplayState | SequenceState:
    """Reads a state that `save` wrote; it goes on bit for bit as the one that was saved.

    Args:
        buffer: the buffer that goes on with it, made with the same arguments.
        directory: the directory.
        fragment_like: a fragment as `buffer.init` takes it, to check the stored columns against; None: they are checked
            when the next fragment is added.

    Returns:
        The state.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or of a buffer or columns other than these; says what was
            expected and what found.
    """
    target = Path(directory).expanduser().absolute()
    content = _read_json(target)
    kind = "sequences" if isinstance(buffer.spec, SequenceSpec) else "transitions"
    expected = {"kind": kind, **_comparable(buffer.spec._asdict())}
    found = {"kind": content["kind"], **_comparable(content["spec"])}
    if found != expected:
        differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        described = ", ".join(
            f"{name}: expected {expected.get(name)!r}, found {found.get(name)!r}" for name in differing
        )
        raise CheckpointError(f"{target}: holds another replay buffer ({described}); restore with the options it had")
    try:
        arrays = _read(target / content["arrays"], content["crc32"], _ROW_FIELDS[kind], buffer.spec.capacity)
        state = _from_tree(buffer.spec, trees.decode(content["state"], arrays))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{target}: damaged ({type(error).__name__}: {error}); restore an older one") from error
    if fragment_like is not None:
        _check_like(target, state, buffer.init(fragment_like))
    return state


def _kind(state: ReplayState | SequenceState) -> str:
    return "sequences" if isinstance(state, SequenceState) else "transitions"


def _comparable(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "debug"}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- states as trees


def _to_tree(state: ReplayState | SequenceState) -> dict[str, Any]:
    """A state as nested values; arrays are views of its own."""
    fields = {name: getattr(state, name) for name in state.__slots__ if name not in ("spec", "tree")}
    if isinstance(state, ReplayState):
        rows = state.size  # until the ring is full, it is filled from its beginning
        obs = state.obs if state.obs_tree is None else [jax.tree.unflatten(state.obs_tree, state.obs)]
        fields |= {"obs": obs, "obs_tree": state.obs_tree is not None}
        lanes = [(*key, row) for key, row in state.lanes.items()]
        fields["lanes"] = np.asarray(lanes, np.int64).reshape(-1, 3)
        weights = rows
    else:
        rows = len(state.owner) if (state.owner[state.head :] >= 0).any() else state.head
        weights = state.tree.capacity
    fields["rows"] = rows
    for name in _ROW_FIELDS[_kind(state)]:
        fields[name] = jax.tree.map(lambda array: array[:rows], fields[name])
    fields["tree"] = None if state.tree is None else state.tree.sums[0][:weights]
    for name in ("free", "finals_free"):
        if name in fields:
            fields[name] = np.asarray(fields[name], np.int64)
    return fields


def _from_tree(spec: Any, fields: dict[str, Any]) -> ReplayState | SequenceState:
    for name in ("free", "finals_free"):
        if name in fields:
            fields[name] = fields[name].tolist()
    weights, rows = fields.pop("tree"), fields.pop("rows")

    def tree(capacity: int) -> sum_tree.SumTree:
        made = sum_tree.init(capacity)
        return sum_tree.fill(made, 0, len(weights), weights) if len(weights) else made

    if isinstance(spec, SequenceSpec):
        for name in ("owner", "final"):
            fields[name][rows:] = -1
        return SequenceState(spec=spec, tree=tree(max(1, len(fields["start"]))), **fields)
    if fields["obs_tree"]:
        fields["obs"], fields["obs_tree"] = jax.tree.flatten(fields["obs"][0])
    else:
        fields["obs_tree"] = None
    fields["lanes"] = {(eps, agent): row for eps, agent, row in fields["lanes"].tolist()}
    return ReplayState(spec=spec, tree=None if weights is None else tree(spec.capacity), **fields)


def _check_like(target: Path, state: Any, like: Any) -> None:
    names = ("columns", "bounds", "finals") if isinstance(state, SequenceState) else ("columns", "obs")
    expected = trees.flatten_with_paths({name: getattr(like, name) for name in names})
    found = trees.flatten_with_paths({name: getattr(state, name) for name in names})
    problems = []
    for path in sorted({*expected, *found}):
        kinds = [
            f"{tree[path].dtype}{list(tree[path].shape[1:])}" if path in tree else "nothing"
            for tree in (expected, found)
        ]
        if kinds[0] != kinds[1]:
            problems.append(f"{path}: expected rows of {kinds[0]}, found {kinds[1]}")
    if problems:
        raise CheckpointError(
            f"{target}: holds other columns ({'; '.join(problems[:5])}); restore with its environment"
        )


# ---------------------------------------------------------------- files


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Writes a safetensors file a piece at a time; returns a checksum of each array."""
    header, offset = {}, 0
    for name, array in arrays.items():
        size = array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    checks = {}
    for name, array in arrays.items():
        check, data = 0, _bytes(np.asarray(array, order="C")) if array.size else b""
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            check = zlib.crc32(piece, check)
            file.write(piece)
        checks[name] = check
    file.flush()
    os.fsync(file.fileno())
    return checks


def _read(path: Path, checks: Mapping[str, int], row_fields: tuple[str, ...], capacity: int) -> dict[str, np.ndarray]:
    """Reads the arrays into new ones, those with one entry per row into ones of `capacity` rows."""
    arrays = {}
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > os.fstat(file.fileno()).st_size:
                raise CheckpointError(f"{path}: damaged (its header does not fit); restore an older one")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            if set(header) != set(checks):
                raise CheckpointError(f"{path}: does not hold the arrays that {_FILE} lists; restore an older one")
            for name, entry in header.items():
                dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
                begin, end = entry["data_offsets"]
                if end - begin != math.prod(shape) * dtype.itemsize:
                    raise CheckpointError(f"{path}: array {name!r} is not of its shape; restore an older one")
                if name.split("/")[0] in row_fields:
                    if shape[0] > capacity:
                        raise CheckpointError(f"{path}: array {name!r} has {shape[0]} rows, expected up to {capacity}")
                    array = np.zeros((capacity, *shape[1:]), dtype)
                else:
                    array = np.zeros(shape, dtype)
                file.seek(8 + length + begin)
                data, check = _bytes(array)[: end - begin] if end > begin else memoryview(b""), 0
                for start in range(0, len(data), _CHUNK):
                    piece = data[start : start + _CHUNK]
                    if file.readinto(piece) != len(piece):
                        raise CheckpointError(f"{path}: array {name!r} is cut short; restore an older one")
                    check = zlib.crc32(piece, check)
                if check != checks[name]:
                    raise CheckpointError(f"{path}: array {name!r} is damaged (checksum differs); restore an older one")
                arrays[name] = array
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; the directory is not a whole replay buffer") from error
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a readable array file ({error}); restore an older one") from error
    return arrays


def _write_json(target: Path, content: Mapping[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=target, prefix=f".{_FILE}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target / _FILE)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(target, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_json(target: Path) -> dict[str, Any]:
    try:
        content = json.loads((target / _FILE).read_text(encoding="utf-8"))
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{target}: replay format {version}, expected {FORMAT_VERSION}; upgrade jaxrl")
        if content.pop("checksum") != _checksum(content):
            raise CheckpointError(f"{target}: {_FILE} is damaged (checksum differs); restore an older one")
        if not isinstance(content["arrays"], str) or Path(content["arrays"]).name != content["arrays"]:
            raise CheckpointError(f"{target}: {_FILE} names an array file outside its directory")
    except FileNotFoundError as error:
        raise CheckpointError(f"{target}: holds no replay buffer ({_FILE} is missing)") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{target}: {_FILE} is not readable ({error}); restore an older one") from error
    return content
