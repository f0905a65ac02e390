"""Ctrl-C, SIGTERM and SIGHUP, from the start of a command to its end.

Where there is something to save, the first signal asks the run to end after its iteration. Anywhere else, and when it
is the second one, it ends the process at once, with every process below it: those of Ray are there from the moment at
which it begins to start.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxrl.trainers.interruption import Interruption

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A compiler runs for a while without giving Python a chance to handle a signal.
_HANDLED_WITHIN_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


_stderr = 2
_ending = threading.Event()
_handled: list[int] = []
_worth_saving: Callable[[], bool] = bool
_standing: Callable[[], str] = str


def take_over() -> None:
    """Handles signals from now on; those that whoever started the process ignores (nohup) stay ignored."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone
        # What a child leaves behind when it ends is then this process's own child.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    global _stderr
    _stderr = os.dup(2)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _quit)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.siginterrupt(signal.SIGCHLD, False)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()


@contextlib.contextmanager
def asking_to_end(worth_saving: Callable[[], bool], standing: Callable[[], str] = str) -> Iterator[Interruption]:
    """Within it a first signal is noted, for the run to end after its iteration.

    Args:
        worth_saving: whether there is something that is saved then; the process ends at once where there is not.
        standing: says what is saved already, for when the process has to end without Ray.
    """
    # Not before `take_over`: it takes a while to import.
    from jaxrl.trainers.interruption import Interruption

    global _worth_saving, _standing

    def first(number: int) -> None:
        if not worth_saving():
            quit_now(number, "Interrupted; there was nothing to save yet.")
        _handled.append(number)
        if number == signal.SIGHUP:
            _let_go_of_the_terminal()
        # Not print: the signal may have come while something was being printed.
        _tell("Ending after this iteration, with a checkpoint; press Ctrl-C again to quit at once.")

    before = _worth_saving, _standing
    _worth_saving, _standing = worth_saving, standing
    try:
        with Interruption(
            SIGNALS, on_first=first, on_second=lambda number: quit_now(number, "Quit without a checkpoint.")
        ) as interruption:
            yield interruption
    finally:
        _worth_saving, _standing = before


def quit_now(number: int, why: str = "") -> None:
    """Ends the process and every process below it, with the exit code that shells expect."""
    if why:
        _tell(why)
    if os.isatty(1):
        with contextlib.suppress(OSError):
            os.write(1, b"\x1b[?25h")  # a table that is redrawn has hidden the cursor
    end_processes_below()
    os._exit(128 + number)


def end_process(code: int) -> None:
    """Does what the interpreter does at its end, which would stop to handle signals on the way."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def end_processes_below(within_s: float = 5.0) -> None:
    """Kills every process that descends from this one."""
    _ending.set()
    deadline = time.monotonic() + within_s
    while (below := processes_below(os.getpid())) and time.monotonic() < deadline:
        for pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def processes_below(pid: int) -> list[int]:
    """The processes that descend from a process, children first; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # Its name, in parentheses, may hold anything.
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = list(children.get(pid, ()))
    for one in found:
        found += children.get(one, ())
    return found


def _quit(number: int, frame: FrameType | None) -> None:
    del frame
    quit_now(number, "Interrupted.")


def _watch(reading: int) -> None:
    arrived = 0
    while True:
        number = os.read(reading, 1)[0]
        if number == signal.SIGCHLD:
            _end_without_ray()
        elif number in SIGNALS:
            arrived += 1
            threading.Timer(_HANDLED_WITHIN_S, _act_on, (number, arrived)).start()


def _act_on(number: int, arrived: int) -> None:
    """Ends the process where the main thread, in a compiler say, does not get to a signal and nothing would be lost."""
    if len(_handled) < arrived and (arrived > 1 or not _worth_saving()):
        quit_now(number, "Interrupted.")


def _end_without_ray() -> None:
    """Says so where a child that ended was Ray's head or node, without which Ray would end the process in silence."""
    resources = sys.modules.get("jaxrl.trainers.resources")
    lost = resources.lost_parts_of_ray() if resources is not None else []
    if lost and not _ending.is_set():
        with contextlib.suppress(OSError):
            told = f"Error: Ray's {' and '.join(lost)} ended unexpectedly, and the run with it. {_standing()}".strip()
            os.write(_stderr, f"{told}\n".encode())
        end_processes_below()
        os._exit(1)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_stderr, f"\n{text}\n".encode())


def _let_go_of_the_terminal() -> None:
    """Output to a terminal that was closed would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2, _stderr):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
