"""The `jaxrl` command: its subcommands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxrl.cli import config, list, plot, rollout, train

app = typer.Typer(
    name="jaxrl",
    help="Reinforcement learning as pure functions in JAX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("rollout")(rollout.rollout)
app.command("plot")(plot.plot)
app.command("list")(list.list_algorithms)
app.command("config")(config.config)


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"jaxrl {importlib.metadata.version('jaxrl')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Reinforcement learning as pure functions in JAX."""
