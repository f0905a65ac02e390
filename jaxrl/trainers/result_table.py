"""result.json and progress.csv: written side by side, and brought back to whole, equal lines after a crash."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl.trainers.appending import AppendedFile, storing

logger = logging.getLogger("jaxrl.storage")

RESULTS, PROGRESS = "result.json", "progress.csv"


class Result(NamedTuple):
    """A result as it is written: its iteration, its line of JSON, and its plain values by flat key."""

    iteration: int
    line: str
    flat: Mapping[str, Any]


class Kept(NamedTuple):
    """What a directory holds: the columns of its table, the env steps of the last result, whether there was a file."""

    columns: list[str]
    timesteps: int
    existed: bool


class ResultTable:
    """Appends results to both files; those that one of them could not take are in it later.

    Args:
        directory: the run's.
        columns: of progress.csv; empty: it does not exist.
    """

    def __init__(self, directory: pathlib.Path, columns: Sequence[str]) -> None:
        with storing(directory):
            sizes = {name: _size(directory / name) for name in (RESULTS, PROGRESS)}
        self._lines = AppendedFile(directory / RESULTS, sizes[RESULTS])
        self._rows = AppendedFile(directory / PROGRESS, sizes[PROGRESS])
        self._columns = list(columns)
        self._without_row: list[Mapping[str, Any]] = []

    def is_as_left(self, size: int) -> bool:
        """Whether result.json has the size that this object left it with."""
        return size == self._lines.size or self._lines.torn

    def write(self, results: list[Result]) -> None:
        """Appends results and takes them from the list.

        Raises:
            StorageError: a file could not take them.
        """
        if results:
            self._lines.append("".join(result.line for result in results).encode())
            self._without_row += [to_cells(result.flat) for result in results]
            results.clear()
        rows = self._without_row
        if rows:
            self._widen(dict.fromkeys(key for row in rows for key in row))
            self._rows.append(_csv_text(self._columns, rows, header=False).encode())
            rows.clear()

    def _widen(self, keys: Iterable[str]) -> None:
        """Adds columns for keys that come later (an evaluation, say): older rows are empty there."""
        new = [key for key in keys if key not in self._columns]
        if not new:
            return
        path = self._rows.path
        rows: list[dict[str, str]] = []
        if self._columns:
            with storing(path), open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        columns = [*self._columns, *new]
        replace_text(path, _csv_text(columns, rows, header=True))
        self._columns, self._rows = columns, AppendedFile(path, _size(path))


def keep_results(directory: pathlib.Path, after: float) -> Kept:
    """Leaves the whole results up to an iteration in a directory, each iteration once, and the same in both files.

    A line that is no result (the machine went down while it was written) is dropped, and told of unless it is the last.

    Args:
        directory: the run's.
        after: the last iteration that stays.

    Raises:
        StorageError: a file cannot be read or written.
    """
    path = directory / RESULTS
    with storing(path):
        (directory / f".{RESULTS}.new").unlink(missing_ok=True)
        if not path.exists():
            (directory / PROGRESS).unlink(missing_ok=True)
            return Kept([], 0, existed=False)
        whole = _whole_lines(path, after)
        _keep_lines(path, whole)
    columns: dict[str, None] = {}
    timesteps = 0
    for flat in _flat_results(path):
        columns |= dict.fromkeys(to_cells(flat))
        timesteps = int(flat.get("timesteps_total") or flat.get("training_iteration") or 0)
    table = _csv_text(list(columns), (to_cells(flat) for flat in _flat_results(path)), header=bool(columns))
    replace_text(directory / PROGRESS, table)
    return Kept(list(columns), timesteps, existed=True)


def last_iteration(directory: pathlib.Path) -> int:
    """The iteration of the last result in a results directory; 0 where there is none."""
    try:
        lines = (directory / RESULTS).read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    return next((iteration for line in reversed(lines) if (iteration := _iteration(line)) is not None), 0)


class _Line(NamedTuple):
    start: int
    end: int
    iteration: int


def _whole_lines(path: pathlib.Path, after: float) -> list[_Line]:
    kept: list[_Line] = []
    damaged: list[int] = []
    with open(path, "rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            iteration = _iteration(line) if line.endswith(b"\n") else None
            if iteration is not None and iteration <= after:
                while kept and kept[-1].iteration >= iteration:  # made again: the later ones count
                    kept.pop()
                kept.append(_Line(start, start + len(line), iteration))
            elif iteration is None and line.endswith(b"\n"):
                damaged.append(number)
            start += len(line)
    if damaged:
        logger.warning("%s: dropped lines that hold no whole result: %s", path, ", ".join(map(str, damaged)))
    return kept


def _keep_lines(path: pathlib.Path, lines: Sequence[_Line]) -> None:
    size = _size(path)
    if sum(line.end - line.start for line in lines) == size:
        return
    if lines and lines[-1].end == sum(line.end - line.start for line in lines):  # all from the start on
        os.truncate(path, lines[-1].end)
        return
    content = path.read_bytes()
    replace_bytes(path, b"".join(content[line.start : line.end] for line in lines))


def _flat_results(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    with storing(path), open(path, "rb") as file:
        for line in file:
            yield dict(flatten({key: value for key, value in json.loads(line).items() if key != "config"}))


def _iteration(line: bytes) -> int | None:
    """The iteration of a line; None where it is no result."""
    try:
        iteration = json.loads(line)["training_iteration"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return iteration if type(iteration) is int else None


def to_cells(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a result: all but lists."""
    return {key: value for key, value in flat.items() if not isinstance(value, list)}


def flatten(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a nested dict with their keys joined by `/`.

    Example:
        >>> dict(flatten({"info": {"kl": 0.1}, "done": False}))
        {'info/kl': 0.1, 'done': False}
    """
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def replace_text(path: pathlib.Path, text: str) -> None:
    """`replace_bytes` of a text."""
    replace_bytes(path, text.encode())


def replace_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file beside its final name, then renames it: a reader finds the old content or the new one.

    Raises:
        StorageError: it cannot be written; the old content stays.
    """
    scratch = path.with_name(f".{path.name}.new")  # one that a killed process left is written over
    with storing(path):
        try:
            with open(scratch, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def _csv_text(columns: list[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
