"""Pytrees: stacking, paths and sizes, and their way to JSON and arrays and back without pickle.

A checkpoint is JSON for structure and safetensors for arrays. `encode`/`decode` carry nested Python values whose
structure the reader does not know (buffers, environment states); `flatten_with_paths`/`restore_like` carry those whose
structure comes from code (a TrainState), and check it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.storage.arrays import storable
from jaxrl.types import CheckpointError, PyTree

# ---------------------------------------------------------------- leaves


def is_key(x: Any) -> bool:
    """True if `x` is an array of typed PRNG keys."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_numpy(tree: PyTree) -> PyTree:
    """`tree` with JAX arrays as NumPy arrays; typed PRNG keys, which NumPy cannot hold, stay as they are."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) and not is_key(x) else x, tree)


def size_bytes(tree: PyTree) -> int:
    """Bytes of all array leaves (abstract ones too); other leaves count nothing."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            total += math.prod(leaf.shape) * int(leaf.dtype.itemsize)
    return total


def _backend(leaves: Sequence[Any]) -> Any:
    return jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np


def stack(trees: Sequence[PyTree], axis: int = 0) -> PyTree:
    """Stacks the leaves of equal trees along a new axis: n trees of `[...]` to one of `[n, ...]`; NumPy stays NumPy."""
    return jax.tree.map(lambda *leaves: _backend(leaves).stack(leaves, axis=axis), *trees)


def concat(trees: Sequence[PyTree], axis: int = 0) -> PyTree:
    """Concatenates the leaves of equal trees along an existing axis; NumPy stays NumPy."""
    return jax.tree.map(lambda *leaves: _backend(leaves).concatenate(leaves, axis=axis), *trees)


def first_nonfinite(tree: PyTree) -> str | None:
    """Path of the first floating leaf that holds NaN or infinity, None if all are finite (reads values: host only)."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if is_key(leaf) or not isinstance(leaf, np.ndarray | np.generic | jax.Array | float):
            continue
        if jnp.issubdtype(getattr(leaf, "dtype", np.float64), jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            return path_string(path)
    return None


# ---------------------------------------------------------------- paths


def path_string(path: Sequence[Any]) -> str:
    """A key path of `jax.tree_util` as text: `params/policy/kernel`; `~` and `/` within a key as `~0` and `~1`."""
    return "/".join(_escape(_key_name(key)) for key in path)


def _key_name(key: Any) -> str:
    if isinstance(key, jax.tree_util.DictKey):
        return str(key.key)
    if isinstance(key, jax.tree_util.SequenceKey):
        return str(key.idx)
    if isinstance(key, jax.tree_util.GetAttrKey):
        return key.name
    return str(getattr(key, "key", key))


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def flatten_with_paths(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by path; ValueError if two paths read the same (dict keys `1` and `"1"`).

    Examples:
        >>> flatten_with_paths({"a": [1.0, 2.0]})
        {'a/0': 1.0, 'a/1': 2.0}
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_string(path)
        if name in flat:
            raise ValueError(f"flatten_with_paths: two leaves are named {name!r}; give their keys different names")
        flat[name] = leaf
    return flat


def restore_like(template: PyTree, flat: Mapping[str, Any], where: str) -> PyTree:
    """Puts stored arrays into the structure of `template`.

    Args:
        template: pytree of arrays, PRNG keys, `jax.ShapeDtypeStruct`s or Python numbers, built by code.
        flat: stored arrays by path, as `flatten_with_paths` gives them.
        where: names the checkpoint or file in errors.

    Returns:
        The template's structure with the stored values: NumPy where the template has NumPy, Python numbers where it has
        these, JAX arrays elsewhere.

    Raises:
        CheckpointError: a leaf is missing, left over, or of another shape or dtype; names each, expected and got.
    """
    expected = flatten_with_paths(template)
    problems = [f"{path}: missing, expected {_kind(leaf)}" for path, leaf in expected.items() if path not in flat]
    problems += [f"{path}: not expected, got {_kind(flat[path])}" for path in flat if path not in expected]
    problems += [
        f"{path}: expected {_kind(leaf)}, got {_kind(flat[path])}"
        for path, leaf in expected.items()
        if path in flat and _kind(leaf) != _kind(flat[path])
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"{where}: {len(problems)} of the stored arrays do not fit what this configuration builds; restore with "
            "the configuration (model, optimizer, environment) that saved it:\n  " + "\n  ".join(problems[:10]) + more
        )
    leaves, structure = jax.tree.flatten(template)
    values = [_as_template(leaf, flat[path]) for leaf, path in zip(leaves, expected, strict=True)]
    return jax.tree.unflatten(structure, values)


def _kind(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _as_template(leaf: Any, value: Any) -> Any:
    if is_key(value):
        return value
    if isinstance(leaf, bool | int | float):
        return type(leaf)(np.asarray(value).item())
    if isinstance(leaf, np.generic):
        return np.asarray(value)[()]
    return np.asarray(value) if isinstance(leaf, np.ndarray) else jnp.array(value)


# ---------------------------------------------------------------- JSON and arrays


class _Codec(NamedTuple):
    type: type
    to_tree: Callable[[Any], Any]
    from_tree: Callable[[Any], Any]


_CODECS: dict[str, _Codec] = {}


def register_codec(type_: type, to_tree: Callable[[Any], Any], from_tree: Callable[[Any], Any]) -> None:
    """Lets `encode` and `decode` carry values of `type_` (stored by its class name).

    Args:
        type_: the class; exact type, subclasses are not covered.
        to_tree: value to a tree that `encode` knows.
        from_tree: that tree, with NumPy arrays, back to a value; KeyError, TypeError and ValueError mean damage.
    """
    name = type_.__name__
    if name in _CODECS and _CODECS[name].type is not type_:
        raise ValueError(f"register_codec: the name {name!r} is taken by {_CODECS[name].type.__module__}.{name}")
    _CODECS[name] = _Codec(type_, to_tree, from_tree)


def encode(tree: Any) -> tuple[Any, dict[str, Any]]:
    """Splits nested Python values into a JSON structure and arrays.

    Knows None, bool, int, float (NaN and infinities too), str, list, tuple, dict (any such keys), NumPy and JAX arrays,
    NumPy scalars, typed PRNG keys and types with a registered codec (SampleBatch).

    Returns:
        `(structure, arrays)`: structure is strict JSON, arrays are named by their path.

    Raises:
        TypeError: another type, by path.

    Examples:
        >>> encode({"a": (1, 2.0)})
        ({'a': {'$tuple': [1, 2.0]}}, {})
    """
    arrays: dict[str, Any] = {}
    return _encode(tree, (), arrays), arrays


def _encode(value: Any, path: tuple[str, ...], arrays: dict[str, Any]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is list:
        return [_encode(item, (*path, str(i)), arrays) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": [_encode(item, (*path, str(i)), arrays) for i, item in enumerate(value)]}
    if type(value) is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(item, (*path, key), arrays) for key, item in value.items()}
        return {
            "$dict": [
                [_encode(key, (*path, "keys"), arrays), _encode(item, (*path, str(key)), arrays)]
                for key, item in value.items()
            ]
        }
    codec = _CODECS.get(type(value).__name__)
    if codec is not None and codec.type is type(value):
        return {"$type": codec.type.__name__, "value": _encode(codec.to_tree(value), path, arrays)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        if not is_key(value) and not storable(value.dtype):
            raise TypeError(f"encode: {_where(path)} is an array of {value.dtype}, which a checkpoint cannot hold")
        name = "/".join(_escape(part) for part in path) or "value"
        while name in arrays:
            name += "~"
        arrays[name] = value
        return {"$scalar" if isinstance(value, np.generic) else "$array": name}
    raise TypeError(
        f"encode: {_where(path)} is a {type(value).__module__}.{type(value).__qualname__}, expected None, bool, int, "
        "float, str, list, tuple, dict, array or PRNG key; turn it into these, or register_codec its type"
    )


def _where(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the value"


def decode(structure: Any, arrays: Mapping[str, Any]) -> Any:
    """Rebuilds what `encode` split; arrays come back as NumPy (PRNG keys as keys). Nothing is imported or executed.

    Raises:
        CheckpointError: a structure that `encode` cannot have written, or an array that is missing.
    """
    try:
        return _decode(structure, arrays)
    except RecursionError as error:
        raise CheckpointError("checkpoint structure is nested too deeply to be one that jaxrl wrote") from error


def _decode(node: Any, arrays: Mapping[str, Any]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [_decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        raise CheckpointError(f"checkpoint structure holds a {type(node).__name__}, expected JSON values")
    marks = {key for key in node if isinstance(key, str) and key.startswith("$")}
    if not marks:
        return {key: _decode(item, arrays) for key, item in node.items()}
    mark = marks.pop()
    if marks or set(node) - {mark} - ({"value"} if mark == "$type" else set()):
        raise CheckpointError(
            f"checkpoint structure has a node with keys {sorted(map(str, node))}, expected {mark} alone"
        )
    content = node[mark]
    if mark in ("$array", "$scalar"):
        if not isinstance(content, str) or content not in arrays:
            raise CheckpointError(f"checkpoint names the array {content!r}, which is not among the stored arrays")
        value = arrays[content]
        return value if is_key(value) else np.asarray(value)[()] if mark == "$scalar" else np.asarray(value)
    if mark == "$float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if mark == "$tuple" and isinstance(content, list):
        return tuple(_decode(item, arrays) for item in content)
    if (
        mark == "$dict"
        and isinstance(content, list)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in content)
    ):
        try:
            return {_decode(key, arrays): _decode(item, arrays) for key, item in content}
        except TypeError as error:
            raise CheckpointError("checkpoint structure has a dict key that cannot be one") from error
    if mark == "$type":
        codec = _CODECS.get(content) if isinstance(content, str) else None
        if codec is None:
            raise CheckpointError(f"checkpoint holds a value of type {content!r}, which is not registered here")
        inner = _decode(node.get("value"), arrays)
        try:
            return codec.from_tree(inner)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint holds a damaged {content}: {error}") from error
    raise CheckpointError(
        f"checkpoint structure has an unknown or damaged node {mark!r}; was it written by a newer jaxrl?"
    )
