"""Displays of a run in progress: a curve in a notebook, a table in a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxrl.terminal import printable, printable_name
from jaxrl.trainers.history import History, number, value_at

# How a display names what it shows, in this order; the last number is the decimals. Times are in seconds.
_COLUMNS = (
    ("iter", "training_iteration", 0),
    ("env steps", "timesteps_total", 0),
    ("reward", "episode_reward_mean", 1),
    ("min", "episode_reward_min", 1),
    ("max", "episode_reward_max", 1),
    ("length", "episode_len_mean", 1),
    ("evaluation", "evaluation/episode_reward_mean", 1),
    ("steps/s", "env_steps_per_s", 0),
    ("time", "time_total_s", 1),
    ("compile", "compile_time_s", 1),
)
_ROWS = 12
_SECONDS = 1.0
# Of an iteration that takes long.
FIRST_PAUSE_S = 10.0


class Display(NamedTuple):
    """What shows a run: a family of functions.

    Attributes:
        update: called with the history after each result.
        note: shows one line beside the results; from any thread.
        close: shows the final state; called once.
        status: says on standard error what takes long before there is a result.
    """

    update: Callable[[History], None]
    note: Callable[[str], None]
    close: Callable[[History], None]
    status: Callable[[str], None] = lambda text: print(printable(text), file=sys.stderr, flush=True)


def open_display(verbose: bool | None = None, *, title: str = "") -> Display:
    """The display that fits where the process runs.

    Args:
        verbose: False: shows nothing; None or True: a curve in a notebook, a table in a terminal, else lines.
        title: shown above a table.
    """
    if verbose is False:
        return Display(lambda history: None, lambda text: None, lambda history: None, lambda text: None)
    if in_notebook():
        return notebook_display()
    from rich.console import Console

    console = Console()
    return table_display(console, title) if console.is_terminal and redraws() else line_display()


def enduring(display: Display) -> Display:
    """Wraps a display: if its output fails (closed terminal, full disk), training continues without it."""
    lost = threading.Event()

    def tried(show: Callable[[Any], None]) -> Callable[[Any], None]:
        def attempt(what: Any) -> None:
            if not lost.is_set():
                try:
                    show(what)
                except OSError as error:
                    lost.set()
                    with contextlib.suppress(OSError):
                        display.status(f"Progress cannot be shown any more: {error.strerror}; the run goes on.")

        return attempt

    return Display(tried(display.update), tried(display.note), tried(display.close), tried(display.status))


@contextlib.contextmanager
def waiting(display: Display, iteration: int) -> Iterator[None]:
    """Says now and then, within an iteration that takes long, for how long it has run."""
    over = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        pause = FIRST_PAUSE_S
        while not over.wait(pause):
            display.note(f"Iteration {iteration}: {time.monotonic() - started:,.0f} s so far.")
            pause = min(60.0, pause * 1.5)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def redraws() -> bool:
    """Whether what is printed can be drawn over: in a terminal, but not in the output of a notebook's `!jaxrl train`.

    A kernel gives its children a terminal and asks for colours (FORCE_COLOR), and shows every line they write.
    """
    return sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def notebook_display() -> Display:
    """One output that is updated in place with the curve and the last numbers, at most every second."""
    from IPython.display import HTML, display

    handle: Any = None
    ready = 0.0

    def show(history: History) -> None:
        nonlocal handle, ready
        started = time.monotonic()
        page = HTML(history._repr_html_())
        if handle is None:
            handle = display(page, display_id=True)
        else:
            handle.update(page)
        now = time.monotonic()
        # Drawing never takes more than a twentieth of the time.
        ready = now + max(_SECONDS, 20 * (now - started))

    def update(history: History) -> None:
        if time.monotonic() >= ready:
            show(history)

    def close(history: History) -> None:
        if history:
            show(history)
            history.mark_shown()

    return Display(update, print, close)


def table_display(console: Any, title: str = "") -> Display:
    """A table of the last results that is redrawn in place.

    Args:
        console: a rich Console.
        title: shown above.
    """
    from rich.live import Live

    live = Live(console=console, auto_refresh=False, transient=False)
    ready = 0.0

    def show(history: History) -> None:
        nonlocal ready
        if not live.is_started:
            live.start()
        live.update(_table(history, title), refresh=True)
        ready = time.monotonic() + 0.25

    def update(history: History) -> None:
        if time.monotonic() >= ready:
            show(history)

    def close(history: History) -> None:
        if history:
            show(history)
        live.stop()

    return Display(update, lambda text: console.print(printable(text), markup=False, highlight=False), close)


def line_display(write: Callable[[str], None] | None = None) -> Display:
    """Plain lines, one a result and at most one a second: what a log file can hold.

    Args:
        write: takes a line; None: standard output.
    """
    emit = write or (lambda text: print(printable(text), flush=True))
    ready = 0.0
    shown = 0

    def show(history: History) -> None:
        nonlocal ready, shown
        emit(format_line(history[-1], history.progress))
        ready, shown = time.monotonic() + _SECONDS, len(history)

    def update(history: History) -> None:
        # Evaluations are seldom, and each is worth a line.
        if time.monotonic() >= ready or "evaluation" in history[-1]:
            show(history)

    def close(history: History) -> None:
        if len(history) > shown:
            show(history)

    return Display(update, emit, close)


def format_line(result: Mapping[str, Any], progress: Mapping[str, str] | None = None) -> str:
    """A result in one line.

    Args:
        result: of an iteration.
        progress: more numbers to show, by title.

    Example:
        >>> format_line({"training_iteration": 3, "timesteps_total": 12000, "episode_reward_mean": 42.0})
        'iter 3  env steps 12,000  reward 42.0'
    """
    return "  ".join(f"{title} {text}" for title, text in _cells(result, progress or {}).items() if text != "-")


def _cells(result: Mapping[str, Any], progress: Mapping[str, str]) -> dict[str, str]:
    values = {title: (value_at(result, key), decimals) for title, key, decimals in _COLUMNS}
    cells = {
        title: f"{v:,.{d if abs(v) < 1000 else 0}f}" if math.isfinite(v) else "-" for title, (v, d) in values.items()
    }
    more = {title: value_at(result, key) for title, key in progress.items()}
    return cells | {title: number(value) if math.isfinite(value) else "-" for title, value in more.items()}


def _table(history: History, title: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable_name(title)) if title else None,
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    rows = [_cells(result, history.progress) for result in history[-_ROWS:]]
    titles = [title for title in rows[-1] if any(row[title] != "-" for row in rows)]
    for name in titles:
        table.add_column(Text(printable_name(name)), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[title] for title in titles))
    return table
