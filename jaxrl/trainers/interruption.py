"""Interruption: Ctrl-C and SIGTERM ask a loop to end after its iteration, so that what it leaves is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Self

_open: list[Interruption] = []


def requested() -> int | None:
    """The signal that asked a run of this process to end after its iteration; None: nobody has."""
    return next((one.requested for one in _open if one.requested is not None), None)


class Interruption:
    """While it is open, the first signal is noted and a second one acts at once.

    Ending in the middle of an iteration would leave a learner ahead of its counters; the first signal therefore waits
    for the loop to ask. In threads other than the main one, signals stay as they are.

    Args:
        signals: signal numbers.
        on_first: called with the number when the first one comes.
        on_second: called with the number when another one comes; None: KeyboardInterrupt is raised.

    Example:
        >>> with Interruption() as interruption:
        ...     interruption.requested is None
        True
    """

    def __init__(
        self,
        signals: Sequence[int] = (signal.SIGINT,),
        *,
        on_first: Callable[[int], None] | None = None,
        on_second: Callable[[int], None] | None = None,
    ) -> None:
        self.requested: int | None = None
        self._signals = signals
        self._on_first = on_first
        self._on_second = on_second
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # Who started the process may have had one ignored: nohup, a shell's background job.
            numbers = [number for number in self._signals if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in numbers}
            _open.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            # None: it was set from outside Python, and cannot be set from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        if self in _open:
            _open.remove(self)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested is None:
            self.requested = number
            if self._on_first is not None:
                self._on_first(number)
        elif self._on_second is not None:
            self._on_second(number)
        else:
            raise KeyboardInterrupt
