"""`jaxrl list`: what each algorithm can do."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from jaxrl.cli.reporting import quieten, reported, show
from jaxrl.terminal import printable_name


def list_algorithms(
    envs: Annotated[bool, typer.Option("--envs", help="List the built-in environments instead.")] = False,
) -> None:
    """List the algorithms: action spaces, multi-agent, recurrent models, file and paper."""
    quieten(0)
    with reported():
        _print_table(*(_environments() if envs else _algorithms()))


def _algorithms() -> tuple[list[str], list[list[str]]]:
    from jaxrl import registry

    rows = []
    for name in registry.names("algorithm"):
        cls = registry.resolve("algorithm", name)
        module = sys.modules[cls.__module__]
        support: Any = getattr(module, "SUPPORT", None)
        marks = [_mark(getattr(support, key, None)) for key in ("discrete", "continuous", "multi_agent", "recurrent")]
        file = f"{cls.__module__.replace('.', '/')}.py"
        rows.append([name, *marks, file, getattr(support, "paper", ""), getattr(support, "description", "")])
    head = ["algorithm", "discrete", "continuous", "multi-agent", "recurrent", "file", "paper", "description"]
    return head, rows


def _environments() -> tuple[list[str], list[list[str]]]:
    from jaxrl import registry
    from jaxrl.envs import ENVS

    rows = []
    for name in sorted(ENVS):
        doc = (registry.resolve("env", name).__doc__ or "").strip().splitlines()
        rows.append([name, doc[0] if doc else ""])
    return ["environment", "what it is"], rows


def _mark(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[value]


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        # Another program may read it: nothing is cut or wrapped.
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable_name(cell, 500)) for cell in row))
    console.print(table)
