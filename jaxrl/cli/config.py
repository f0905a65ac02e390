"""`jaxrl config`: every option of an algorithm."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxrl.cli.reporting import quieten, reported


def config(
    algorithm: Annotated[str, typer.Argument(help="Its name, as for --run.", metavar="ALGORITHM")],
    search: Annotated[str | None, typer.Option(help="Only options whose name or meaning holds this text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the defaults as JSON, a start for --config.")] = False,
) -> None:
    """List every option of an algorithm: type, default and meaning."""
    quieten(0)
    with reported():
        from jaxrl import registry
        from jaxrl.trainers.config_table import ConfigTable

        table: ConfigTable = registry.resolve("algorithm", algorithm).config_help()
        if search is not None:
            table = table.search(search)
        typer.echo(table.to_json() if as_json else repr(table))
