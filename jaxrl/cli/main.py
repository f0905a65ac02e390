"""Entry point of the `jaxrl` script."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from jaxrl.cli import signals


def main() -> None:
    """Runs the command that the process was started with."""
    signals.take_over()  # before anything that takes a while to import
    from jaxrl.cli.app import app

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does: names may hold anything
    # As `python -m jaxrl` does: modules of the user's (`--env my_envs:Env`) lie where the command is run.
    sys.path.append(os.getcwd())
    code: Any = 0
    try:
        app(prog_name="jaxrl")
    except SystemExit as end:
        code = end.code
    if "ray" in sys.modules:  # some of its processes take a while to notice that they are alone
        signals.end_processes_below()
    signals.end_process(code if isinstance(code, int) else 0 if code is None else 1)
