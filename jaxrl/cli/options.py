"""Options that several commands take, and how their texts are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Verbosity = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="Show logs and tracebacks (-vv: debug logs).")
]
TrustImports = Annotated[
    bool,
    typer.Option("--trust-imports", help="Import functions and classes that the checkpoint names (runs their code)."),
]

Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE", help="Import your module first: it registers environments, models, algorithms."
    ),
]


def import_modules(names: Sequence[str]) -> None:
    """Imports the user's modules, from the working directory too.

    Raises:
        ConfigError: there is no such module.
    """
    import importlib

    from jaxrl.types import ConfigError

    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            raise ConfigError(f"--import {name}: there is no module {error.name!r} here or installed") from error


def read_mapping(texts: Sequence[str], where: str) -> dict[str, Any]:
    """Reads JSON objects and dotted assignments; later ones are merged over earlier ones.

    Args:
        texts: each `{"lr": 0.001}` (JSON or YAML) or `model.use_lstm=true`.
        where: the option's name, for errors.

    Raises:
        ConfigError: neither of the two.
    """
    from jaxrl import config as config_lib
    from jaxrl.types import ConfigError

    merged: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            value = _read_object(text, where)
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise ConfigError(f"{where}: expected a JSON object, got {text!r}")
        elif "=" in text:
            value = config_lib.parse_dotted([text])
        else:
            raise ConfigError(f"{where}: expected a JSON object such as '{{\"lr\": 0.001}}' or lr=1e-3, got {text!r}")
        merged = config_lib.deep_update(merged, value)
    return merged


def _read_object(text: str, where: str) -> Any:
    """Reads JSON, or YAML in braces; where it is neither, the error is JSON's."""
    from jaxrl import config as config_lib
    from jaxrl.types import ConfigError

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        try:
            return config_lib.load_yaml(text, where=where)
        except ConfigError:
            pointer = f"{text}\n{' ' * (error.colno - 1)}^" if "\n" not in text else text
            raise ConfigError(
                f"{where}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}:\n{pointer}"
            ) from error
