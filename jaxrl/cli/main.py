"""Entry point of the `jaxrl` script."""

from __future__ import annotations

import os
import sys

from jaxrl.cli import signals


def main() -> None:
    """Runs the command that the process was started with."""
    signals.take_over()  # before anything that takes a while to import
    from jaxrl.cli.app import app

    # As `python -m jaxrl` does: modules of the user's (`--env my_envs:Env`) lie where the command is run.
    sys.path.append(os.getcwd())
    try:
        app(prog_name="jaxrl")
    finally:
        if "ray" in sys.modules:  # some of its processes take a while to notice that they are alone
            signals.end_processes_below()
