"""Which distribution serves which action space."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from jaxrl import registry
from jaxrl.distributions.beta import beta
from jaxrl.distributions.bounds import inner_bounds
from jaxrl.distributions.deterministic import deterministic
from jaxrl.distributions.dirichlet import dirichlet
from jaxrl.distributions.discrete import bernoulli, categorical, multi_categorical
from jaxrl.distributions.distribution import DistClass
from jaxrl.distributions.gaussian import diag_gaussian, squashed_gaussian
from jaxrl.distributions.joint import joint
from jaxrl.distributions.simplex import Simplex
from jaxrl.types import ConfigError, UnsupportedSpaceError

# A Simplex is a Box: the first that fits counts.
_DEFAULTS: tuple[tuple[type, str], ...] = (
    (Simplex, "dirichlet"),
    (spaces.Box, "diag_gaussian"),
    (spaces.Discrete, "categorical"),
    (spaces.MultiDiscrete, "multi_categorical"),
    (spaces.MultiBinary, "bernoulli"),
)


def get_dist_class(action_space: spaces.Space, *, dist_type: str | None = None) -> DistClass:
    """Returns the class of distributions over actions of a space.

    | space | default | others (`dist_type`) |
    | --- | --- | --- |
    | Box (floats) | `diag_gaussian` | `squashed_gaussian`, `beta` (both need finite bounds), `deterministic` |
    | Discrete | `categorical` | |
    | MultiDiscrete | `multi_categorical` | |
    | MultiBinary | `bernoulli` | |
    | Simplex | `dirichlet` | |
    | Tuple, Dict, nested | joint of the leaves' | applied to the leaves that it serves |

    Args:
        action_space: the action space.
        dist_type: one of the names above, or one given to `registry.register_distribution(name, factory)`, where
            `factory(action_space) -> DistClass`; None for the default.

    Returns:
        The class; equal spaces give the same object for built-in families.

    Raises:
        UnsupportedSpaceError: if no distribution, or not this one, serves the space.
        ConfigError: if `dist_type` is unknown or its factory returns something else.

    Example:
        ```python
        dist_class = get_dist_class(gymnasium.spaces.Box(-1.0, 1.0, (3,)), dist_type="squashed_gaussian")
        dist_class.input_size  # 6: three means, three log standard deviations
        ```
    """
    if dist_type is None:
        return _nested(None, action_space)
    dist_class = registry.resolve("distribution", dist_type)(action_space)
    if not isinstance(dist_class, DistClass):
        raise ConfigError(
            f"distribution {dist_type!r}: expected its factory to return a DistClass, got {type(dist_class).__name__}"
        )
    return dist_class


def _nested(dist_type: str | None, space: spaces.Space) -> DistClass:
    leaves: list[str] = []
    tree = _tree(dist_type, space, "action_space", leaves)
    if dist_type is not None and dist_type not in leaves:
        kinds = " or ".join(kind.__name__ for kind in _FAMILIES[dist_type][0])
        raise UnsupportedSpaceError(f"action_space: {dist_type!r} serves {kinds}, got {space}")
    return tree if isinstance(tree, DistClass) else joint(tree)


def _tree(dist_type: str | None, space: spaces.Space, path: str, leaves: list[str]) -> Any:
    """Nested tuples and dicts of classes; appends to `leaves` the type that each leaf got."""
    if isinstance(space, spaces.Dict) and len(space.spaces):
        return {key: _tree(dist_type, sub, f"{path}[{key!r}]", leaves) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and len(space.spaces):
        return tuple(_tree(dist_type, sub, f"{path}[{i}]", leaves) for i, sub in enumerate(space.spaces))
    for kind, default in _DEFAULTS:
        if isinstance(space, kind):
            chosen = dist_type if dist_type is not None and kind in _FAMILIES[dist_type][0] else default
            leaves.append(chosen)
            return _FAMILIES[chosen][1](space, path)
    supported = ", ".join(kind.__name__ for kind, _ in _DEFAULTS)
    raise UnsupportedSpaceError(
        f"{path}: no distribution for {space}; supported are {supported}, and non-empty Tuple and Dict of these. "
        "Give your own with registry.register_distribution or build_policy(dist_fn=...)"
    )


def _box_shape(space: Any, path: str) -> tuple[int, ...]:
    if not np.issubdtype(space.dtype, np.floating):
        raise UnsupportedSpaceError(f"{path}: expected a Box of floats, got {space}; {_of_integers(space)}")
    if 0 in space.shape:
        raise UnsupportedSpaceError(f"{path}: expected at least one number, got {space}")
    return space.shape


def _of_integers(space: Any) -> str:
    """What to declare in the place of a Box of integers."""
    low, high = np.unique(space.low), np.unique(space.high)
    if low.size > 1 or high.size > 1 or int(high[0]) - int(low[0]) >= 1000:
        return "in the environment, declare a MultiDiscrete space for integers, or a Box of floats and round"
    n, start = int(high[0]) - int(low[0]) + 1, int(low[0])
    size = math.prod(space.shape)
    counts = f"[{n}] * {size}" if size > 8 else f"{[n] * size}"
    started = f", start={f'[{start}] * {size}' if size > 8 else [start] * size}" if start else ""
    return f"in the environment, declare the integers as MultiDiscrete({counts}{started})"


def _bounded(name: str, family: Callable[..., DistClass]) -> Callable[[Any, str], DistClass]:
    def make(space: Any, path: str) -> DistClass:
        shape = _box_shape(space, path)
        low, high = (bound.ravel() for bound in inner_bounds(space))
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low < high)))
        if bad.size:
            dims = ", ".join(f"{i}: [{low[i]}, {high[i]}]" for i in bad[:8]) + (", ..." if bad.size > 8 else "")
            raise UnsupportedSpaceError(
                f"{path}: {name!r} needs finite bounds with low < high, got {dims} (flat dimension: bounds); "
                "use 'diag_gaussian', or bound the space"
            )
        return family(tuple(low.tolist()), tuple(high.tolist()), shape)

    return make


def _multi_discrete(space: Any, _: str) -> DistClass:
    nvec, start = space.nvec.ravel().tolist(), space.start.ravel().tolist()
    return multi_categorical(tuple(nvec), space.nvec.shape, tuple(start))


# Kinds of space that a type serves, and its maker: `(space, path) -> DistClass`.
_FAMILIES: Mapping[str, tuple[tuple[type, ...], Callable[[Any, str], DistClass]]] = {
    "bernoulli": ((spaces.MultiBinary,), lambda space, path: bernoulli(space.shape)),
    "beta": ((spaces.Box,), _bounded("beta", beta)),
    "categorical": ((spaces.Discrete,), lambda space, path: categorical(int(space.n), int(space.start))),
    "deterministic": ((spaces.Box,), lambda space, path: deterministic(_box_shape(space, path))),
    "diag_gaussian": ((spaces.Box,), lambda space, path: diag_gaussian(_box_shape(space, path))),
    "dirichlet": ((Simplex,), lambda space, path: dirichlet(space.shape)),
    "multi_categorical": ((spaces.MultiDiscrete,), _multi_discrete),
    "squashed_gaussian": ((spaces.Box,), _bounded("squashed_gaussian", squashed_gaussian)),
}

for _name in _FAMILIES:
    registry.register("distribution", _name, functools.partial(_nested, _name))
