"""Configuration: generic parsing, validation, suggestion and storage of flat dicts as frozen dataclasses.

At the border a configuration is a dict with RLlib's names; inside it is a frozen, keyword-only dataclass, whose fields
say type, default, meaning and bounds through `option`. Nothing here knows a single option.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import yaml

from jaxrl.coercion import (
    MISSING,
    FieldSpec,
    Mismatch,
    check_spec,
    coerce,
    deep_update,
    field_name,
    specs_of,
    type_text,
    unknown_key,
)
from jaxrl.coercion import build as _build
from jaxrl.config_json import decode, encode
from jaxrl.registry import did_you_mean
from jaxrl.retired import RETIRED
from jaxrl.types import ConfigError

__all__ = [
    "RETIRED",
    "FieldSpec",
    "OptionDoc",
    "coerce",
    "deep_update",
    "describe",
    "did_you_mean",
    "fill_holes",
    "from_json",
    "load_yaml",
    "option",
    "parse",
    "parse_dotted",
    "spec_of",
    "to_dict",
    "to_json",
]

ConfigT = TypeVar("ConfigT")


class OptionDoc(NamedTuple):
    """One line of `jaxrl config`: `key` is dotted for options of a section (`model.fcnet_hiddens`)."""

    key: str
    type: str
    default: Any
    help: str
    choices: tuple[Any, ...] | None
    traced: bool


def option(
    default: Any,
    help: str,
    *,
    traced: bool = False,
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    begins: str | None = None,
    of_policy: bool = False,
    path: bool = False,
) -> Any:
    """Declares one field of a configuration dataclass.

    Args:
        default: its default; lists, dicts and dataclasses are copied for each instance.
        help: one line that says what it means, with the unit.
        traced: True for a number that may change while training without recompiling.
        choices: the allowed values, or None.
        low: smallest allowed number, or None.
        high: largest allowed number, or None.
        of_policy: whether single policies of a multi-agent run may differ in it, where its class is not a policy's.
        path: whether a text in it names a file or directory: those of a checkpoint are not followed.
        begins: the parameter that it is the first value of; where it changes, a restored run begins with that anew.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Config:
        ...     gamma: float = option(0.99, "discount per env step", low=0, high=1)
        >>> parse(Config, {"gamma": 1})
        Config(gamma=1.0)
    """
    allowed = None if choices is None else tuple(choices)
    metadata = {"help": help, "traced": traced, "choices": allowed, "low": low, "high": high, "begins": begins}
    metadata |= {"of_policy": of_policy, "path": path}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: deep_update({}, default), metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def spec_of(cls: type, key: str) -> FieldSpec:
    """The option of a configuration dataclass that has a border key."""
    return specs_of(cls)[key]


def parse(
    cls: type[ConfigT],
    mapping: Mapping[str, Any],
    *,
    extra: Mapping[str, FieldSpec] | None = None,
    where: str = "config",
    base: ConfigT | None = None,
) -> ConfigT:
    """Makes an instance of a configuration dataclass from a flat dict, checking every key and type.

    Args:
        cls: frozen dataclass with keyword-only fields. A key is a field's name without trailing underscores (`lambda_`
            is `"lambda"`). Sections (dataclass or dict fields) are merged over their default; other values replace it.
        mapping: the user's configuration; never changed.
        extra: options that `cls` does not have, by key (a custom loss's coeffs, say). All of them, given or default,
            land in the field `extras: Mapping[str, Any]`, which `cls` must have.
        where: what to call the configuration in errors.
        base: an instance to start from instead of the defaults.

    Returns:
        The instance; lists have become tuples where the annotation says so, ints floats.

    Raises:
        ConfigError: an unknown key (with the nearest one), one that RLlib had and jaxrl retires (with the reason and
            the replacement), a wrong type, a value out of bounds.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a dict, got {mapping!r} ({type(mapping).__name__})")
    extra = extra or {}
    own = {key: value for key, value in mapping.items() if key not in extra}
    try:
        # Extra keys count as known ones in suggestions, so an unknown key is reported from here.
        known = {**{key: spec for key, spec in specs_of(cls).items() if key != "extras"}, **extra}
        for key in own:
            if key not in known:
                raise unknown_key(key, known, RETIRED)
        config = _build(cls, own, base)
        return _with_extras(config, mapping, extra) if extra else config
    except Mismatch as mismatch:
        raise mismatch.error(where) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as the flat dict that `parse` takes: sections are dicts, extras lie on the top level."""
    result = {}
    for key in specs_of(type(config)):
        value = getattr(config, field_name(type(config), key))
        if key == "extras":
            result.update(value)
        else:
            result[key] = _plain(value)
    return result


def to_json(config: Any) -> dict[str, Any]:
    """Returns a configuration as plain JSON data, to be written to a file.

    Functions and classes become `{"$registered": "kind:name"}` or `{"$ref": "module:attr"}`; one that cannot be
    imported again (a lambda, a local function, `__main__`) becomes `{"$hole": key}`, to be given again on loading.
    """
    return encode(config if isinstance(config, Mapping) else to_dict(config))


def from_json(
    cls: type[ConfigT],
    data: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    trust_imports: bool = False,
    extra: Mapping[str, FieldSpec] | None = None,
    where: str = "config",
) -> ConfigT:
    """Parses what `to_json` wrote, with its holes filled: see `fill_holes`."""
    return parse(cls, fill_holes(data, overrides, trust_imports, where=where), extra=extra, where=where)


def fill_holes(
    data: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    trust_imports: bool = False,
    *,
    where: str = "config",
) -> dict[str, Any]:
    """Turns the JSON data of `to_json` into a configuration dict again, merged with `overrides`.

    Args:
        data: what `to_json` returned, for example read from a checkpoint.
        overrides: configuration to merge in; an object given here stands in for the reference or hole at its place.
        trust_imports: import `$ref`s, which runs the code of their modules. References into jaxrl itself are always
            imported, and registered names always resolved.
        where: what to call the configuration in errors.

    Raises:
        ConfigError: a hole or an untrusted reference that `overrides` does not give; it names the key and how to pass
            it.
    """
    return decode(data, overrides or {}, trust_imports, where)


def describe(cls: type, prefix: str = "", base: Any = None) -> list[OptionDoc]:
    """Returns every option of a configuration dataclass, sections expanded, in the order of the fields.

    Args:
        cls: the dataclass.
        prefix: put before each key.
        base: an instance that the defaults come from (a section that differs from its class, say), or None.
    """
    docs = []
    for key, spec in specs_of(cls).items():
        default = spec.default if base is None else getattr(base, field_name(cls, key))
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            docs += describe(type(default), f"{prefix}{key}.", default)
        elif key != "extras":
            default = "required" if default is MISSING else _plain(default)
            docs.append(
                OptionDoc(prefix + key, type_text(spec.annotation), default, spec.help, spec.choices, spec.traced)
            )
    return docs


def parse_dotted(assignments: Iterable[str]) -> dict[str, Any]:
    """Parses command-line assignments into a nested dict; values are YAML.

    Raises:
        ConfigError: no `=`, an empty key, a value that is not YAML, or a key that is both a value and a section.

    Example:
        >>> parse_dotted(["model.fcnet_hiddens=[64,64]", "lr=1e-3"])
        {'model': {'fcnet_hiddens': [64, 64]}, 'lr': 0.001}
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"expected key=value, for example lr=1e-3 or model.use_lstm=true, got {assignment!r}")
        section = result
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{assignment!r}: {part!r} has a value already, so it cannot be a section too")
        if isinstance(section.get(parts[-1]), dict):
            raise ConfigError(f"{assignment!r}: {parts[-1]!r} is a section already, so it cannot have a value too")
        section[parts[-1]] = load_yaml(text, where=repr(assignment))
    return result


def load_yaml(text: str, *, where: str = "YAML") -> Any:
    """Reads plain data (no tags, no objects) from YAML text; `1e-3` is a number, as in YAML 1.2.

    Raises:
        ConfigError: not YAML; the message has the line and column.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2, which need no dot before the exponent."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _with_extras(config: Any, mapping: Mapping[str, Any], extra: Mapping[str, FieldSpec]) -> Any:
    clash = sorted(set(extra) & set(specs_of(type(config))))
    if clash:
        raise Mismatch(f"extra options {clash} clash with options of {type(config).__name__}; rename them")
    extras = {**config.extras, **{key: spec.default for key, spec in extra.items() if key not in config.extras}}
    for key, spec in extra.items():
        if key in mapping:
            try:
                extras[key] = check_spec(mapping[key], spec)
            except Mismatch as mismatch:
                raise mismatch.within(key) from None
    return dataclasses.replace(config, extras=extras)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
