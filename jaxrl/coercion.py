"""Checks plain values against type annotations: what a configuration's border does with every value that comes in."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np

from jaxrl import registry
from jaxrl.types import ConfigError

_SEQUENCES = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Validated(NamedTuple):
    """Metadata of an `Annotated` type: `check(value)` returns the value to keep, or raises a ValueError."""

    expected: str
    check: Callable[[Any], Any]


class FieldSpec(NamedTuple):
    """One option: its type, default (`MISSING` if it has none), meaning and bounds.

    Attributes:
        annotation: the type that `coerce` checks.
        default: the value where the configuration gives none.
        help: one line for `jaxrl config`.
        traced: True for a number that may change while training without recompiling.
        choices: the allowed values, or None.
        low: smallest allowed number, or None.
        high: largest allowed number, or None.
        path: True where a text names a file or directory.
    """

    annotation: Any
    default: Any
    help: str
    traced: bool = False
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    path: bool = False


class Mismatch(ValueError):
    """A value is not what its annotation says; `path` grows on the way out, up to the whole configuration."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path

    def within(self, key: str) -> Mismatch:
        """Returns this mismatch as the value that holds it under `key` sees it (`key` is a name, or `[i]`)."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        return Mismatch(str(self), f"{key}{joint}{self.path}")

    def error(self, where: str) -> ConfigError:
        """Returns the error for the user, with the whole place in it."""
        return ConfigError(f"{where}: key {self.path!r}: {self}" if self.path else f"{where}: {self}")


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Returns `value` as `annotation` says, or raises an error that names `where`.

    ints pass as floats, lists as tuples (nested ones too), mappings as dicts or dataclasses, registered names as
    functions. Nothing else is converted: `True` is no number, `"3"` is no int and `4000.0` is no int.

    Raises:
        ConfigError: `where`, what was expected, the value that came and its type.

    Example:
        >>> coerce([64, 64], tuple[int, ...], "fcnet_hiddens")
        (64, 64)
    """
    try:
        return check(value, annotation)
    except Mismatch as mismatch:
        raise mismatch.error(where) from None


def check(value: Any, annotation: Any) -> Any:
    """`coerce` for callers that know the place themselves: raises `Mismatch`."""
    if annotation is Any or annotation is object:
        return value
    if annotation is None or annotation is type(None):
        return _require(value is None, value, annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _annotated(value, annotation)
    if origin in (Union, types.UnionType):
        return _union(value, annotation)
    if origin is Literal:
        return _one_of(value, get_args(annotation))
    if annotation in (bool, int, float, str):
        return _scalar(value, annotation)
    if _is_callable_type(annotation):
        return (
            registry.resolve("function", value)
            if isinstance(value, str)
            else _require(callable(value), value, annotation)
        )
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return build(annotation, value)
    plain = origin or annotation
    if plain in _SEQUENCES:
        return _sequence(value, annotation)
    if plain in _MAPPINGS:
        return _mapping(value, annotation)
    if isinstance(plain, type) and issubclass(plain, tuple) and isinstance(value, Mapping):
        return _named_tuple(value, plain)
    if isinstance(plain, type):
        return _require(isinstance(value, plain), value, annotation)
    raise TypeError(f"{annotation!r} is not an annotation that a configuration field may have")


def build(cls: type, value: Any, base: Any = None) -> Any:
    """Builds the dataclass `cls` from a mapping of border keys, over `base` or the fields' defaults.

    A border key is a field's name without trailing underscores (`lambda_` is `"lambda"`). Fields that are dataclasses
    or mappings are merged over their default; everything else replaces it.

    Args:
        cls: a dataclass of keyword-only fields.
        value: a mapping, or an instance of `cls`, which is returned as it is.
        base: an instance of `cls` to start from, or None.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise Mismatch(f"expected dict, got {short(value)} ({type(value).__name__})")
    specs = specs_of(cls)
    arguments = {} if base is None else {field.name: getattr(base, field.name) for field in _init_fields(cls)}
    for key, item in value.items():
        if key not in specs:
            raise unknown_key(key, specs, {})
        name, spec = field_name(cls, key), specs[key]
        default = arguments.get(name, spec.default)
        try:
            arguments[name] = check_spec(item, spec._replace(default=default))
        except Mismatch as mismatch:
            raise mismatch.within(key) from None
    missing = [key for key, spec in specs.items() if spec.default is MISSING and field_name(cls, key) not in arguments]
    if missing:
        raise Mismatch(f"needs a value for {', '.join(missing)}: it has no default")
    return cls(**arguments)


def check_spec(value: Any, spec: FieldSpec) -> Any:
    """Checks one option's type, choices and bounds; a section is merged over the option's default."""
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        raise Mismatch("grid_search is Tune's: pass this configuration to tune.run or `jaxrl train`")
    if dataclasses.is_dataclass(spec.default) and not isinstance(spec.default, type) and isinstance(value, Mapping):
        value = build(type(spec.default), value, spec.default)
    else:
        value = check(value, spec.annotation)
        if isinstance(value, dict) and isinstance(spec.default, Mapping):
            value = deep_update(spec.default, value)
    if spec.choices is not None:
        _one_of(value, spec.choices)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        below, above = spec.low is not None and value < spec.low, spec.high is not None and value > spec.high
        if below or above:
            bounds = [f">= {spec.low}"] * (spec.low is not None) + [f"<= {spec.high}"] * (spec.high is not None)
            raise Mismatch(f"expected {type_text(spec.annotation)} {' and '.join(bounds)}, got {value!r}")
    return value


def deep_update(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `overrides` merged into it, mapping by mapping; neither is changed.

    A mapping whose `"type"` changes is replaced whole, since the old type's options mean nothing to the new one.

    Example:
        >>> deep_update({"model": {"dim": 84}}, {"model": {"use_lstm": True}})
        {'model': {'dim': 84, 'use_lstm': True}}
    """
    if "type" in overrides and overrides["type"] != base.get("type", overrides["type"]):
        return dict(overrides)
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = deep_update(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def unknown_key(key: Any, known: Mapping[str, Any], retired: Mapping[str, tuple[str, str]]) -> Mismatch:
    """Returns the mismatch for a key that does not exist: retired, misspelt or wholly unknown."""
    if key in retired:
        reason, replacement = retired[key]
        return Mismatch(f"key {key!r} of RLlib is retired: {reason}. {replacement}")
    hint = registry.did_you_mean(str(key), known)
    return Mismatch(f"unknown key {key!r}{hint or '. Keys: ' + ', '.join(sorted(known))}")


@functools.cache
def specs_of(cls: type) -> Mapping[str, FieldSpec]:
    """Returns the options of a dataclass by border key, in the order of its fields."""
    hints = _hints(cls)
    specs = {}
    for field in _init_fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        extra = {
            key: field.metadata[key]
            for key in ("help", "traced", "choices", "low", "high", "path")
            if key in field.metadata
        }
        specs[field.name.rstrip("_")] = FieldSpec(hints[field.name], default, **{"help": "", **extra})
    return specs


@functools.cache
def field_name(cls: type, key: str) -> str:
    """Returns the field that a border key stands for: `"lambda"` is `lambda_`."""
    return next(field.name for field in _init_fields(cls) if field.name.rstrip("_") == key)


def type_text(annotation: Any) -> str:
    """Returns an annotation as people write it: `int | None`, `tuple[int, ...]`, `'a' | 'b'`."""
    named = {Any: "any", type(None): "None", None: "None", Ellipsis: "..."}
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        expected = [meta.expected for meta in annotation.__metadata__ if isinstance(meta, Validated)]
        return expected[0] if expected else type_text(args[0])
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(arg) for arg in args)
    if origin is Literal:
        return " | ".join(repr(arg) for arg in args)
    if _is_callable_type(annotation):
        return "function"
    if annotation in named:
        return named[annotation]
    plain = origin or annotation
    name = (
        "dict" if plain in _MAPPINGS or dataclasses.is_dataclass(annotation) else getattr(plain, "__name__", str(plain))
    )
    return f"{name}[{', '.join(type_text(arg) for arg in args)}]" if args else name


def short(value: Any) -> str:
    """Returns the repr of a value, cut to what an error message can hold."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


MISSING = dataclasses.MISSING


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:
        # dataclasses.make_dataclass leaves annotations as text of the base class's module, in a class of another
        # module.
        names: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            names.update(vars(sys.modules[base.__module__]))
        return typing.get_type_hints(cls, globalns=names, include_extras=True)


def _init_fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _require(condition: bool, value: Any, annotation: Any) -> Any:
    if condition:
        return value
    raise _mismatch(value, annotation)


def _mismatch(value: Any, annotation: Any) -> Mismatch:
    hint = ""
    if isinstance(value, str) and annotation in (int, float) and _is_number(value):
        hint = "; this is text: write the number without quotes (YAML 1.1 reads 1e-3 as text, 1.0e-3 as a number)"
    elif isinstance(value, float) and annotation is int and value.is_integer():
        hint = f"; write {int(value)}"
    return Mismatch(f"expected {type_text(annotation)}, got {short(value)} ({type(value).__name__}){hint}")


def _scalar(value: Any, annotation: type) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    if annotation is float and type(plain) is int:
        plain = float(plain)
    # bool is a subclass of int, but a configuration that says True where a number belongs is a slip: so exact types.
    if type(plain) is not annotation:
        raise _mismatch(value, annotation)
    if annotation is float and math.isnan(plain):
        raise Mismatch("expected a number, got NaN")
    return plain


def _one_of(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    hint = registry.did_you_mean(value, [str(option) for option in options]) if isinstance(value, str) else ""
    expected = " | ".join(repr(option) for option in options)
    raise Mismatch(f"expected {expected}, got {short(value)} ({type(value).__name__}){hint}")


def _annotated(value: Any, annotation: Any) -> Any:
    checks = [meta for meta in annotation.__metadata__ if isinstance(meta, Validated)]
    if not checks:
        return check(value, get_args(annotation)[0])
    for meta in checks:
        try:
            value = meta.check(value)
        except ValueError as error:
            raise Mismatch(f"expected {meta.expected}, got {short(value)} ({type(value).__name__}): {error}") from None
    return value


def _union(value: Any, annotation: Any) -> Any:
    members = get_args(annotation)
    # An exact match goes first: 1 stays an int where the annotation is `float | int`.
    exact = [member for member in members if type(value) is member]
    problems = []
    for member in [*exact, *members]:
        try:
            return check(value, member)
        except Mismatch as mismatch:
            problems.append((member, mismatch))
    deeper = [mismatch for member, mismatch in problems if mismatch.path or dataclasses.is_dataclass(member)]
    # What is wrong inside the one member that fits by shape says more than "expected this or that".
    raise deeper[0] if len(deeper) == 1 else _mismatch(value, annotation)


def _sequence(value: Any, annotation: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(value, annotation)
    kind, args = get_origin(annotation) or annotation, get_args(annotation)
    if kind is tuple and args and Ellipsis not in args:
        if len(args) != len(value):
            raise Mismatch(f"expected {type_text(annotation)}, got {len(value)} elements: {short(value)}")
        return tuple(_within(f"[{i}]", item, arg) for i, (item, arg) in enumerate(zip(value, args, strict=True)))
    if args:
        items = [_within(f"[{i}]", item, args[0]) for i, item in enumerate(value)]
    else:
        items = [_frozen(item) for item in value] if kind is tuple else list(value)
    return items if kind is list else tuple(items)


def _mapping(value: Any, annotation: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _mismatch(value, annotation)
    args = get_args(annotation)
    if not args:
        return dict(value)
    return {_within(str(key), key, args[0]): _within(str(key), item, args[1]) for key, item in value.items()}


def _named_tuple(value: Mapping[str, Any], cls: Any) -> Any:
    for key in value:
        if key not in cls._fields:
            raise unknown_key(key, dict.fromkeys(cls._fields), {})
    return cls(**value)


def _within(key: str, value: Any, annotation: Any) -> Any:
    try:
        return check(value, annotation)
    except Mismatch as mismatch:
        raise mismatch.within(key) from None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _is_callable_type(annotation: Any) -> bool:
    return annotation is collections.abc.Callable or get_origin(annotation) is collections.abc.Callable


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
