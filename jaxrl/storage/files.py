"""Files of a directory that anyone may have made: regular ones only, of a bounded size, and strict JSON in them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from jaxrl.types import CheckpointError

# Limits of a JSON file. Together they hold what parsing takes below 300 MB, whatever the file says.
MAX_JSON_BYTES = 32 * 2**20
MAX_VALUES = 1_000_000
MAX_NESTING = 64
MAX_TEXT = 2**20  # characters of a string
MAX_KEY = 4096
MAX_DIGITS = 100  # PCG64's state has 39

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%=~+-]{0,199}\Z")
_TOKENS = re.compile(r'"((?:[^"\\]++|\\.)*+)"|[\[\]{}]')


def check_name(name: str, where: str) -> None:
    """Refuses what is no relative path of plain parts: absolute, `..`, hidden, or with other characters."""
    parts = name.split("/") if isinstance(name, str) else []
    if not 0 < len(parts) <= 8 or not all(_NAME.match(part) for part in parts):
        raise CheckpointError(f"{where}: lists a file called {str(name)[:200]!r}, which is no name of a file in it.")


@contextlib.contextmanager
def refusing(where: str, what: str = "cannot be read") -> Iterator[None]:
    """Whatever goes wrong inside is a CheckpointError that names the file and the reason."""
    try:
        yield
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{where}: {what}: it is nested too deeply.") from None
    except MemoryError as error:
        raise CheckpointError(f"{where}: {what}: it asks for more memory than there is.") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{where}: {what}: there is no such file.") from error
    except OSError as error:
        raise CheckpointError(f"{where}: {what}: {error.strerror or error}.") from error
    except Exception as error:
        raise CheckpointError(f"{where}: {what} ({type(error).__name__}: {error}).") from error


def open_directory(path: str | os.PathLike[str], name: str = "") -> int:
    """A descriptor of a directory; links are followed in `path`, which the user gave, and not in `name` below it."""
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in name.split("/") if name else ():
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        finally:
            os.close(root)
        root = below
    return root


@contextlib.contextmanager
def open_file(root: str | os.PathLike[str], name: str) -> Iterator[tuple[int, int]]:
    """Opens a regular file below a directory for reading, without following links: its descriptor and size.

    Raises:
        CheckpointError: it is a link, a pipe, a device or a directory, it lies behind a link, or the system refuses.
    """
    where = f"{root}: {name}"
    check_name(name, str(root))
    folder, _, last = name.rpartition("/")
    with refusing(where):
        directory = open_directory(root, folder)
        try:
            about = os.stat(last, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(about.st_mode):
                raise CheckpointError(f"{where}: is {_kind(about.st_mode)}, expected a regular file.")
            # What it was may have changed since: opening waits for nothing, and the descriptor is looked at again.
            file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{where}: is {_kind(about.st_mode)}, expected a regular file.")
        yield file, about.st_size
    finally:
        os.close(file)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def parse_json(data: bytes, where: str) -> Any:
    """JSON as `write_json` writes it: ASCII, no key twice, numbers finite, nesting and lengths within the limits.

    Raises:
        CheckpointError: it is not; names `where` and the reason.
    """
    with refusing(where, "cannot be read"):
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"{len(data)} bytes, at most {MAX_JSON_BYTES} are read")
        text = data.decode("ascii")
        del data
        _check_text(text)
        # json.loads reads NaN, duplicates and 1e999 unless told otherwise.
        return json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_refuse_constant
        )


def _check_text(text: str) -> None:
    """Bounds what parsing can make of a text before it is parsed."""
    values = text.count(",") + text.count("[") + text.count("{")
    if values > MAX_VALUES:
        raise ValueError(f"about {values} values, at most {MAX_VALUES} are read")
    depth = 0
    for token in _TOKENS.finditer(text):
        mark = token[0]
        if mark in "[{":
            depth += 1
            if depth > MAX_NESTING:
                raise ValueError(f"nested more than {MAX_NESTING} levels deep")
        elif mark in "]}":
            depth -= 1
        elif len(mark) > MAX_TEXT:
            raise ValueError(f"a string of {len(mark)} characters, at most {MAX_TEXT} are read")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if len(key) > MAX_KEY:
            raise ValueError(f"a key of {len(key)} characters, at most {MAX_KEY} are read")
        if key in found:
            raise ValueError(f"the key {key[:80]!r} stands twice in one object")
        found[key] = value
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits, at most {MAX_DIGITS} are read")
    return int(text)


def _number(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}, which is too large or too long")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text}, which is no JSON")


def encode_json(value: Any, where: str) -> bytes:
    """`value` as bytes that `parse_json` reads; CheckpointError if it would refuse them."""
    with refusing(where, "cannot be written"):
        text = json.dumps(value, indent=1, allow_nan=False)
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"{len(text)} bytes, at most {MAX_JSON_BYTES} could be read again")
        _check_text(text)
    return text.encode("ascii")
