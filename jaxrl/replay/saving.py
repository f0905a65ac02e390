"""Replay buffers on disk: arrays as they lie in memory, a piece at a time, and JSON beside them.

| file | holds |
| --- | --- |
| `replay.json` | what the buffer was made with, counters, the structure of its columns |
| `rows.safetensors` | the arrays, rows that are there only |

`save` makes a directory of its own of them, with a manifest; a checkpoint holds them below `replay/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrl import storage, trees
from jaxrl.data import SampleBatch
from jaxrl.replay import sum_tree
from jaxrl.replay.checking import check_state
from jaxrl.replay.replay_buffer import ReplayBuffer
from jaxrl.replay.sequence_replay import SequenceSpec, SequenceState
from jaxrl.replay.storage import ReplayState
from jaxrl.storage.files import refusing
from jaxrl.types import CheckpointError

FORMAT_VERSION = 2
_FILE, _ARRAYS = "replay.json", "rows.safetensors"
# Fields of a state that hold one entry per row: what is beyond the rows that are there is not written.
_ROW_FIELDS = {
    "transitions": ("columns", "obs", "link", "back", "rewards_n", "last_n", "sampleable"),
    "sequences": ("columns", "owner", "final"),
}


def save(state: ReplayState | SequenceState, directory: str | os.PathLike[str]) -> str:
    """Writes a buffer's state as a directory, whole or not at all; no second copy of it is made in memory.

    Args:
        state: the state of a `uniform_replay`, `prioritized_replay` or `sequence_replay`.
        directory: made if it is not there; a buffer that was saved there before is replaced.

    Returns:
        The directory.
    """

    def fill(writer: storage.Writer) -> dict[str, Any]:
        write(writer, "", state)
        return {"format_version": FORMAT_VERSION, "holds": "replay buffer"}

    return storage.write(directory, fill)


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
    files = storage.opened(directory)
    if files.about.get("holds") != "replay buffer" or files.about.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{files}: holds no replay buffer of format {FORMAT_VERSION}; save it anew.")
    state = read(files, buffer)
    if fragment_like is not None:
        check_like(f"{files}", state, buffer.init(fragment_like))
    return state


def write(writer: storage.Writer, prefix: str, state: ReplayState | SequenceState) -> None:
    """Writes the files of a state, their names below `prefix` (`""` or ending with `/`)."""
    structure, arrays = trees.encode(_to_tree(state))
    writer.arrays(f"{prefix}{_ARRAYS}", arrays)
    writer.json(f"{prefix}{_FILE}", {"kind": _kind(state), "spec": state.spec._asdict(), "state": structure})


def read(files: storage.Files, buffer: ReplayBuffer) -> ReplayState | SequenceState:
    """Reads what `write` wrote, and checks that it is a state that the buffer can have.

    Raises:
        CheckpointError: as of `load`.
    """
    content = files.json(_FILE)
    kind = "sequences" if isinstance(buffer.spec, SequenceSpec) else "transitions"
    expected = {"kind": kind, **_comparable(buffer.spec._asdict())}
    with refusing(f"{files}", "is no replay buffer"):
        found = {"kind": content["kind"], **_comparable(content["spec"])}
        if found != expected:
            differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
            described = ", ".join(
                f"{name}: expected {expected.get(name)!r}, found {found.get(name)!r}" for name in differing
            )
            raise CheckpointError(
                f"{files}: holds another replay buffer ({described}); restore with the options it had"
            )

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            """Arrays with one entry per row get all the rows that the buffer will have."""
            if name.split("/")[0] not in _ROW_FIELDS[kind]:
                return np.zeros(shape, dtype)
            if shape[0] > buffer.spec.capacity:
                raise CheckpointError(f"{files}: array {name!r} has {shape[0]} rows, expected {buffer.spec.capacity}")
            return np.zeros((buffer.spec.capacity, *shape[1:]), dtype)

        arrays = files.arrays(content.get("arrays", _ARRAYS), allocate)
        state = _from_tree(buffer.spec, trees.decode(content["state"], arrays))
        check_state(state, f"{files}")
    return state


def _kind(state: ReplayState | SequenceState) -> str:
    return "sequences" if isinstance(state, SequenceState) else "transitions"


def _comparable(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "debug"}


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


def check_like(where: str, state: Any, like: Any) -> None:
    """Raises CheckpointError unless the columns of `state` are those of `like`, a state of the same buffer."""
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
        raise CheckpointError(f"{where}: holds other columns ({'; '.join(problems[:5])}); restore with its environment")
