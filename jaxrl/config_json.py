"""Configurations as plain JSON: how functions, classes and other objects are named, and which names are imported.

A file may come from anywhere, so reading one runs no code outside jaxrl's own components unless the caller trusts it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl import registry
from jaxrl.coercion import deep_update, short
from jaxrl.types import ConfigError

logger = logging.getLogger("jaxrl")

REF, REGISTERED, HOLE, FLOAT, FIELDS, SPACE = "$ref", "$registered", "$hole", "$float", "$fields", "$space"

# References into these packages are imported without asking: they hold jaxrl's own functions and classes, and nothing
# that imports or runs what its arguments say.
COMPONENTS = (
    "jaxrl.algorithms",
    "jaxrl.callbacks",
    "jaxrl.distributions",
    "jaxrl.envs.examples",
    "jaxrl.envs.probes",
    *(f"jaxrl.envs.jax_native.{name}_env" for name in ("acrobot", "cart_pole", "mountain_car", "pendulum")),
    "jaxrl.envs.jax_native.memory",
    "jaxrl.envs.jax_native.probes",
    "jaxrl.exploration",
    "jaxrl.losses",
    "jaxrl.models",
    "jaxrl.policies",
    "jaxrl.schedules",
)

_NOT_GIVEN: Any = object()

# Texts that an environment, or what else takes one, could import or open: `module:attr`, `module:Id-v0`, paths, URLs.
_REFERENCE = re.compile(r"[^\s:]+:\S|[/~\\]|\.{1,2}[/\\]|.*[/\\]\.\.([/\\]|\Z)|[A-Za-z]:[/\\]", re.DOTALL)
# Values here are only ever compared with ids of agents and policies; ale_py is what Atari ids need in any form.
_IDS, _ATARI = ("multiagent.policy_mapping_fn", "multiagent.policies_to_train"), "ale_py:ALE/"


def encode(value: Any, key: str = "") -> Any:
    """Returns `value` as JSON data; `key` is its dotted place, for holes.

    Tuples become lists, NumPy scalars and arrays numbers and lists, infinities `{"$float": "inf"}`, spaces `{"$space":
    {...}}`, NamedTuples and dataclasses (callbacks, say) `{"$ref": class, "$fields": {...}}`, functions and classes
    `{"$registered": "kind:name"}` or `{"$ref": "module:attr"}`. Anything else has no name (a lambda, say) and becomes
    `{"$hole": key}`.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biuf":
        return encode(value.tolist(), key)
    if isinstance(value, float):
        return value if math.isfinite(value) else {FLOAT: repr(value)}
    space = _space(value)
    if space is not None:
        return {SPACE: space}
    registered = _registered_name(value)
    if registered is not None:
        return {REGISTERED: registered}
    fields = _fields_of(value)
    if fields is not None:
        ref = registry.ref_of(type(value))
        return (
            {HOLE: key}
            if ref is None
            else {
                REF: ref,
                # A hole in it names the whole value: that is what can be passed again.
                FIELDS: {name: encode(item, key) for name, item in fields.items()},
            }
        )
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) and not name.startswith("$") for name in value):
        return {name: encode(item, f"{key}.{name}" if key else name) for name, item in value.items()}
    ref = registry.ref_of(value)
    return {HOLE: key} if ref is None else {REF: ref}


def decode(data: Mapping[str, Any], overrides: Mapping[str, Any], trust_imports: bool, where: str) -> dict[str, Any]:
    """Returns the configuration that `encode` wrote, with `overrides` merged in: see `jaxrl.config.fill_holes`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a JSON object, got {short(data)}")
    reader = _Reader(trust_imports, where)
    read = {name: reader.read(item, overrides.get(name, _NOT_GIVEN), name) for name, item in data.items()}
    reader.report()
    return deep_update(read, overrides)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Decodes a configuration; `named` collects what it names outside jaxrl, by key."""

    trust_imports: bool
    where: str
    named: dict[str, str] = dataclasses.field(default_factory=dict)

    def report(self) -> None:
        """Refuses what is named outside jaxrl, all of it at once; says what it is where it is trusted."""
        if not self.named:
            return
        listed = ", ".join(f"{key!r} refers to {ref!r}" for key, ref in self.named.items())
        if self.trust_imports:
            logger.warning("%s: imports, or opens, what it names: %s", self.where, listed)
            return
        raise ConfigError(
            f"{self.where}: key {listed}; importing that would run its module's code, or opening it read a file that "
            f"somebody else chose. Pass it yourself: config={_as_dict(next(iter(self.named)))}; or, for a trusted "
            "file, trust_imports=True (--trust-imports)"
        )

    def _text(self, text: str, key: str) -> str:
        refers = _REFERENCE.match(text) and not key.startswith(_IDS) and not text.startswith(_ATARI)
        if refers and not any(text in registry.names(kind) for kind in registry.KINDS):
            self.named[key] = text
        return text

    def read(self, node: Any, given: Any, key: str) -> Any:
        """Decodes one node; what the user gave at its place stands in for it, so that it is never looked at."""
        if given is not _NOT_GIVEN and not (isinstance(given, Mapping) and _is_section(node)):
            return given
        if isinstance(node, list):
            return [self.read(item, _NOT_GIVEN, f"{key}[{i}]") for i, item in enumerate(node)]
        if isinstance(node, str):
            return self._text(node, key)
        if not isinstance(node, Mapping):
            return node
        if _is_section(node):
            section = given if isinstance(given, Mapping) else {}
            if section.get("type", node.get("type")) != node.get("type"):
                return section  # the old type's options mean nothing to the new one
            return {
                name: self.read(item, section.get(name, _NOT_GIVEN), f"{key}.{name}") for name, item in node.items()
            }
        return self._special(node, key)

    def _special(self, node: Mapping[str, Any], key: str) -> Any:
        tags = set(node)
        if tags == {HOLE}:
            raise ConfigError(
                f"{self.where}: key {key!r} held an object without a name (a lambda or local function, say) when this "
                f"was saved, so it has to be passed again: config={_as_dict(key)}"
            )
        if tags == {FLOAT} and node[FLOAT] in ("inf", "-inf", "nan"):
            return float(node[FLOAT])
        if tags == {SPACE}:
            from jaxrl.space_json import decode_space

            return decode_space(node[SPACE])
        if tags == {REGISTERED} and isinstance(node[REGISTERED], str):
            kind, _, name = node[REGISTERED].partition(":")
            return registry.resolve(kind, name)
        if tags == {REF} and isinstance(node[REF], str):
            return self._import(node[REF], key)
        if tags == {REF, FIELDS} and isinstance(node[REF], str) and isinstance(node[FIELDS], Mapping):
            cls = self._import(node[REF], key)
            if cls is None:
                return None  # it is reported with the others
            if not isinstance(cls, type) or not (dataclasses.is_dataclass(cls) or issubclass(cls, tuple)):
                raise ConfigError(f"{self.where}: key {key!r}: {node[REF]!r} is no NamedTuple and no dataclass")
            fields = {name: self.read(item, _NOT_GIVEN, key) for name, item in node[FIELDS].items()}
            try:
                return cls(**fields)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{self.where}: key {key!r}: {node[REF]!r} does not take its fields: {error}"
                ) from error
        raise ConfigError(f"{self.where}: key {key!r}: expected a configuration value, got {short(dict(node))}")

    def _import(self, ref: str, key: str) -> Any:
        module, _, attr = ref.partition(":")
        own = any(module == package or module.startswith(f"{package}.") for package in COMPONENTS)
        if not own or any(part.startswith("_") for part in attr.split(".")):
            self.named[key] = ref
            return registry.import_ref(ref) if self.trust_imports else None
        value = registry.import_ref(ref)
        # What a component module merely imported (os, say) is not a component.
        if not self.trust_imports and registry.ref_of(value) != ref:
            raise ConfigError(f"{self.where}: key {key!r}: {ref!r} is not defined there; pass the object itself")
        return value


def _is_section(node: Any) -> bool:
    return isinstance(node, Mapping) and not any(str(name).startswith("$") for name in node)


def _fields_of(value: Any) -> dict[str, Any] | None:
    if isinstance(value, tuple) and type(value) is not tuple:
        names = getattr(type(value), "_fields", ())
        return dict(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return None


def _space(value: Any) -> dict[str, Any] | None:
    # There can be no space before gymnasium is loaded, and a configuration without one need not wait for its import.
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is None or not isinstance(value, gymnasium.Space):
        return None
    from jaxrl.space_json import encode_space

    return encode_space(value)


def _registered_name(value: Any) -> str | None:
    if isinstance(value, (list, dict)):
        return None
    for kind in registry.KINDS:
        name = registry.name_of(kind, value)
        if name is not None:
            return f"{kind}:{name}"
    return None


def _as_dict(key: str) -> str:
    """Shows where an object goes: `a.b[0]` is `{'a': {'b': ...}}`, since lists are replaced whole."""
    text = "..."
    for name in reversed(key.partition("[")[0].split(".")):
        text = f"{{{name!r}: {text}}}"
    return text
