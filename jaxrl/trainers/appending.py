"""Files that grow: what is appended is in them as a whole or not at all, and a full disk can be waited for."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from jaxrl.trainers import interruption
from jaxrl.types import StorageError

logger = logging.getLogger("jaxrl.storage")

T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "it is mounted read-only",
    errno.EACCES: "change its permissions, or give another directory",
    errno.EPERM: "change its permissions, or give another directory",
    errno.ENOENT: "was it moved or deleted?",
    errno.ENOTDIR: "was it moved or deleted?",
    errno.ENAMETOOLONG: "give a shorter path",
}
# Between two attempts to write to a full disk.
PAUSE_S = 2.0
_NOTICE_S = 60.0


class AppendedFile:
    """A file that one process appends to; half a line is never left in it.

    Args:
        path: where; it is made by the first `append`.
        size: bytes that it holds already.

    Attributes:
        size: bytes that this process knows to be in it.
        torn: whether more is in it, which could not be taken back yet.
    """

    def __init__(self, path: pathlib.Path, size: int = 0) -> None:
        self.path, self.size, self.torn = path, size, False

    def append(self, data: bytes) -> None:
        """Appends all of `data`, in one system call as a rule.

        Raises:
            StorageError: it cannot be written, or was moved, deleted or cut meanwhile; nothing of `data` is in it then.
        """
        with storing(self.path):
            create = 0 if self.size else os.O_CREAT
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | create, 0o644)
            try:
                self._append(descriptor, data)
            finally:
                os.close(descriptor)
        self.size += len(data)

    def _append(self, descriptor: int, data: bytes) -> None:
        found = os.fstat(descriptor).st_size
        if found < self.size:
            raise StorageError(
                f"{self.path}: holds {found:,} of the {self.size:,} bytes that were written there; it was moved or "
                "changed meanwhile. Put it back, or give another directory"
            )
        if self.torn:
            os.ftruncate(descriptor, self.size)
            self.torn = False
        left = memoryview(data)
        try:
            while left:  # a write that is cut short is followed by one that says why
                left = left[os.write(descriptor, left) :]
        except OSError:
            self.torn = len(left) < len(data)
            if self.torn:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, self.size)
                    self.torn = False
            raise


@contextlib.contextmanager
def storing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says of an error of the operating system which file or directory it is about, and what to do.

    Raises:
        StorageError: in place of an OSError.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: {told(error)}") from error


def told(error: OSError) -> str:
    """What to say of an error of the operating system.

    Example:
        >>> told(OSError(errno.ENOSPC, "No space left on device"))
        'No space left on device; make room there'
    """
    advice = _ADVICE.get(error.errno or 0)
    return (error.strerror or str(error)) + (f"; {advice}" if advice else "")


def when_there_is_room(write: Callable[[], T], *, wait: bool) -> T:
    """Calls `write`; with `wait`, again and again for as long as the disk is full and nobody asks the run to end."""
    next_notice = 0.0
    while True:
        try:
            return write()
        except Exception as error:
            if not wait or not is_full(error) or interruption.requested() is not None:
                raise
            if time.monotonic() >= next_notice:
                logger.warning("Waiting for room on the disk (on_full_disk='wait'): %s", error)
                next_notice = time.monotonic() + _NOTICE_S
        time.sleep(PAUSE_S)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or a quota used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False
