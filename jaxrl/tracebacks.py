"""Where the user's own code failed: told in a message, and tracebacks that end there."""

from __future__ import annotations

import linecache
import os
import pathlib
import re
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import NamedTuple

from jaxrl.types import JaxrlError

_OURS = str(pathlib.Path(__file__).parent) + os.sep
_INSTALLED = tuple(
    os.path.join(path, "")
    for path in {*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()}
    # The environment's root is among them, and a project may lie there.
    if path != sysconfig.get_paths()["data"]
)
_REMOTE_FRAME = re.compile(
    r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$(?:\n +(?P<code>.+))?', re.MULTILINE
)

TRACED = (
    "losses are traced, as are models and JAX environments: use jnp.where in place of if, and jnp in place of float(), "
    "int(), bool() and NumPy"
)


class Place(NamedTuple):
    """A line of code.

    Attributes:
        file, line, function: where it stands.
        code: the line, stripped; empty where the source is not at hand.
    """

    file: str
    line: int
    function: str
    code: str

    @property
    def is_users(self) -> bool:
        """Whether the code is neither jaxrl's nor installed."""
        return not self.is_ours and not self.file.startswith(("<frozen", "<__array", *_INSTALLED))

    @property
    def is_ours(self) -> bool:
        """Whether the code is jaxrl's."""
        return self.file.startswith(_OURS)

    def __str__(self) -> str:
        below = os.path.join(os.getcwd(), "")
        inside = f", in {self.function}" if self.function else ""
        return f"{self.file.removeprefix(below)}:{self.line}{inside}{f': {self.code}' if self.code else ''}"


def place_of(error: BaseException) -> Place | None:
    """The innermost line of the user's that an error came through, else of an installed package; None: only jaxrl's.

    Of an error that another process sent, the line is read from the traceback in its text.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return Place(error.filename, error.lineno or 0, "", (error.text or "").strip())
    places = [_place(traceback) for traceback in _chain(error.__traceback__)]
    places += [
        Place(found["file"], int(found["line"]), found["function"], found["code"] or "")
        for found in _REMOTE_FRAME.finditer(str(error))
    ]
    for wanted in (lambda place: place.is_users, lambda place: not place.is_ours):
        found = [place for place in places if wanted(place)]
        if found:
            return found[-1]
    return None


def is_users(error: BaseException) -> bool:
    """Whether the user's code is to blame: the error came through it, and is no fault within jaxrl below it."""
    place = place_of(error)
    if place is None or not place.is_users:
        return False
    inner = [_place(traceback) for traceback in _chain(error.__traceback__)]
    return (
        isinstance(error, JaxrlError)
        or not inner
        or not inner[-1].is_ours
        or _REMOTE_FRAME.search(str(error)) is not None
    )


def raised(error: BaseException) -> str:
    """An error in one line: type, message, and the line of the user's that it came from.

    Example:
        >>> raised(KeyError("speed"))
        "KeyError: 'speed'"
    """
    text = "\n".join(line for line in str(error).splitlines() if line.strip())
    if is_tracing_error(error):
        text = TRACED
    place = place_of(error)
    return f"{type(error).__name__}: {text}".rstrip(": ") + (f" (at {place})" if place is not None else "")


def is_tracing_error(error: BaseException) -> bool:
    """Whether Python asked for the value of an array that JAX only traces."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    errors = jax.errors
    kinds = (
        errors.ConcretizationTypeError,
        errors.TracerArrayConversionError,
        errors.TracerIntegerConversionError,
        errors.NonConcreteBooleanIndexError,
    )
    return isinstance(error, kinds)


class users_frames:
    """Lets the traceback of an error end in the user's code, without jaxrl's frames around it.

    It is for what jaxrl raises on purpose, whose message says all, and for what the user's code raises; faults of jaxrl
    keep their traceback. `JAXRL_TRACEBACKS=full` keeps all frames.

    Example:
        >>> with users_frames():
        ...     pass
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception) or os.environ.get("JAXRL_TRACEBACKS") == "full":
            return
        if not isinstance(error, JaxrlError) and not is_users(error):
            return
        if is_tracing_error(error):
            error.add_note(TRACED)
        frames = _users(error)
        cause = error.__cause__ if isinstance(error, JaxrlError) else None
        if cause is not None and is_users(cause):
            if _REMOTE_FRAME.search(str(cause)) and str(place_of(cause)) in str(error):
                error.__cause__, error.__suppress_context__ = None, True  # the message has all of the user's in it
            inner = _users(cause)
            cause.__traceback__ = _joined(inner)
            frames += inner
        error.__traceback__ = _joined(frames)


def _users(error: BaseException) -> list[types.TracebackType]:
    return [traceback for traceback in _chain(error.__traceback__) if _place(traceback).is_users]


def _chain(traceback: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _place(traceback: types.TracebackType) -> Place:
    code, line = traceback.tb_frame.f_code, traceback.tb_lineno
    text = linecache.getline(code.co_filename, line, traceback.tb_frame.f_globals).strip()
    return Place(code.co_filename, line, code.co_name, text)


def _joined(frames: list[types.TracebackType]) -> types.TracebackType | None:
    joined = None
    for frame in reversed(frames):
        joined = types.TracebackType(joined, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return joined
