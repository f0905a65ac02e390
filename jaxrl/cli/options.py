"""Options that several commands take, and how their texts are read."""

from __future__ import annotations

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
            value = config_lib.load_yaml(text, where=where)
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise ConfigError(f"{where}: expected a JSON object, got {text!r}")
        elif "=" in text:
            value = config_lib.parse_dotted([text])
        else:
            raise ConfigError(f"{where}: expected a JSON object such as '{{\"lr\": 0.001}}' or lr=1e-3, got {text!r}")
        merged = config_lib.deep_update(merged, value)
    return merged
