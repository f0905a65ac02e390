"""Gymnasium spaces as plain JSON data, so that a checkpoint says what its policies observe and do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from jaxrl.coercion import short
from jaxrl.types import ConfigError

_DTYPES = frozenset(
    ("bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
)
_MAX_SIZE = 2**22


def encode_space(space: spaces.Space[Any]) -> dict[str, Any] | None:
    """Returns a space as JSON data, or None for a kind of space that has no form here (Text, Graph, a user's own).

    Bounds that are the same everywhere are written once; infinite ones as text.

    Example:
        >>> encode_space(spaces.Box(-1.0, 1.0, (2,)))
        {'type': 'Box', 'low': -1.0, 'high': 1.0, 'shape': [2], 'dtype': 'float32'}
    """
    # A subclass may mean more than what is written here: only the spaces themselves have a form.
    kind = type(space)
    if kind is spaces.Box and isinstance(space, spaces.Box):
        low, high = _bound(space.low), _bound(space.high)
        return {"type": "Box", "low": low, "high": high, "shape": list(space.shape), "dtype": str(space.dtype)}
    if kind is spaces.Discrete and isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if kind is spaces.MultiDiscrete and isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if kind is spaces.MultiBinary and isinstance(space, spaces.MultiBinary):
        # `MultiBinary(3)` and `MultiBinary((3,))` are of one shape and yet not equal.
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(size) for size in space.n]}
    if kind is spaces.Tuple and isinstance(space, spaces.Tuple):
        parts = [encode_space(part) for part in space.spaces]
        return None if None in parts else {"type": "Tuple", "spaces": parts}
    if kind is spaces.Dict and isinstance(space, spaces.Dict):
        named = {name: encode_space(part) for name, part in space.spaces.items()}
        plain = all(isinstance(name, str) for name in named) and None not in named.values()
        return {"type": "Dict", "spaces": named} if plain else None
    return None


def decode_space(data: Any) -> spaces.Space[Any]:
    """Returns the space that `encode_space` wrote.

    Raises:
        ConfigError: the data is not a space's.
    """
    try:
        size = _size(data)
        if size > _MAX_SIZE:
            raise ValueError(f"it has {size} entries, at most {_MAX_SIZE} are read from a file")
        return _decode(data)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, OverflowError, MemoryError) as error:
        raise ConfigError(f"expected a space written by jaxrl, got {short(data)}: {error}") from error


def _size(data: Mapping[str, Any]) -> int:
    """Entries of a space, before anything of that size is made."""
    kind = data["type"]
    if kind in ("Tuple", "Dict"):
        parts = data["spaces"].values() if kind == "Dict" else data["spaces"]
        return sum(_size(part) for part in parts)
    if kind == "Box":
        return math.prod(_count(size) for size in data["shape"])
    if kind == "MultiBinary" and isinstance(data["n"], list):
        return math.prod(_count(size) for size in data["n"])
    return _count(data["n"]) if kind in ("Discrete", "MultiBinary") else int(np.sum(data["nvec"], dtype=np.float64))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _decode(data: Mapping[str, Any]) -> spaces.Space[Any]:
    kind = data["type"]
    if kind == "Box":
        if data["dtype"] not in _DTYPES:
            raise ValueError(f"there is no dtype {data['dtype']!r}")
        dtype, shape = np.dtype(data["dtype"]), tuple(data["shape"])
        low, high = (np.broadcast_to(np.asarray(_number(data[end]), dtype), shape).copy() for end in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(data["n"]), start=int(data["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.asarray(data["nvec"]), start=np.asarray(data["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Tuple":
        return spaces.Tuple([_decode(part) for part in data["spaces"]])
    if kind == "Dict":
        return spaces.Dict({str(name): _decode(part) for name, part in data["spaces"].items()})
    raise ValueError(f"there is no space type {kind!r}")


def _bound(values: np.ndarray) -> Any:
    same = values.size > 0 and (values == values.flat[0]).all()
    return _text(values.flat[0].item() if same else values.tolist())


def _text(data: Any) -> Any:
    if isinstance(data, list):
        return [_text(item) for item in data]
    return repr(data) if isinstance(data, float) and math.isinf(data) else data


def _number(data: Any) -> Any:
    if isinstance(data, list):
        return [_number(item) for item in data]
    return {"inf": math.inf, "-inf": -math.inf}[data] if isinstance(data, str) else data
