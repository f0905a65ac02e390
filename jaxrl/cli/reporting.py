"""What the commands say: errors in one line, and silence from the libraries underneath."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from jaxrl.terminal import printable

USAGE, FAILURE = 2, 1
_LIBRARIES = ("ray", "jax", "jax._src", "absl", "matplotlib")


def quieten(verbosity: int) -> None:
    """Silences the logs of the libraries underneath, or lets them speak.

    Called before they are imported (they read the environment then) and again afterwards (some set their level then).

    Args:
        verbosity: 0: errors alone; 1: as much as INFO; 2: DEBUG.
    """
    if verbosity == 0:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Without it Ray warns at length that a default will change, to this.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray forks as it starts, after JAX has; what it forks runs another program at once.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    if verbosity > 1:
        os.environ.setdefault("JAXRL_TRACEBACKS", "full")
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(level)
    # Tune logs the traceback of a trial that fails; what failed is reported at the end, in one line.
    logging.getLogger("ray.tune").setLevel(level if verbosity else logging.CRITICAL)
    if verbosity:
        logging.basicConfig(level=level)


@contextmanager
def reported(verbosity: int = 0) -> Iterator[None]:
    """Turns the errors that jaxrl raises on purpose into one message and an exit code.

    Code 2 is for what the user gave (configuration, checkpoint, path), 1 for what failed while it ran, the user's code
    among it. Other exceptions are faults of jaxrl, and keep their traceback.

    Args:
        verbosity: with 1 or more, tracebacks are shown.
    """
    from jaxrl.tracebacks import is_users
    from jaxrl.types import CheckpointError, ConfigError, JaxrlError

    try:
        yield
    except JaxrlError as error:
        user = isinstance(error, (ConfigError, CheckpointError)) or type(error) is JaxrlError
        fail(error, verbosity)
        raise typer.Exit(USAGE if user else FAILURE) from error
    except Exception as error:
        if not is_users(error) and not isinstance(error, OSError):  # which files and networks raise, not faults
            raise
        fail(error, verbosity)
        raise typer.Exit(FAILURE) from error
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(130) from None


def fail(error: BaseException, verbosity: int, more: str = "") -> None:
    """Prints an error: one message with `more` at its end, and with `verbosity` its traceback."""
    from jaxrl.tracebacks import is_users, raised
    from jaxrl.types import JaxrlError

    if verbosity:
        traceback.print_exception(error)
    text = str(error) if isinstance(error, JaxrlError) and str(error) else raised(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    traced = not verbosity and (is_users(error) or (error.__cause__ is not None and is_users(error.__cause__)))
    if more and not text.endswith((".", "?")):
        text += "."
    say(f"Error: {text}{more}" + (" [-v shows the traceback]" if traced else ""))


def say(text: str) -> None:
    """Prints to standard error: what the user should know, and no part of a command's output."""
    with contextlib.suppress(OSError):  # the terminal was closed
        print(printable(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Prints a command's output; where it cannot be written, says so and lets the command do the rest of its work."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        pass  # whoever read it has read enough
    except OSError as error:
        say(f"Standard output cannot be written: {error.strerror}")
