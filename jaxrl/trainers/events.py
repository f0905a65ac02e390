"""TensorBoard's event files: numbers as curves, lists as histograms."""

from __future__ import annotations

import importlib
import logging
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl.trainers.appending import AppendedFile
from jaxrl.types import StorageError

logger = logging.getLogger("jaxrl.storage")


class EventFile:
    """Writes a new event file; if a write fails, the curves have a gap and training continues.

    Args:
        directory: the run's.
        start: curves of earlier files in the directory end before this step; None: they do not change.
    """

    def __init__(self, directory: pathlib.Path, start: int | None = None) -> None:
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        # TensorBoard reads the files of a directory in the order of their names.
        name = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{microseconds:06d}"
        self._file = AppendedFile(directory / name)
        self._start = start
        self._failed = False

    def add(self, flat: Mapping[str, Any], step: int) -> None:
        """Adds a result.

        Args:
            flat: plain values by key; those that are no numbers or lists of numbers are passed over.
            step: env steps behind it.
        """
        # Importing it takes a while, and a trainer that is never trained needs none of it.
        from tensorboardX.summary import histogram, scalar

        event = _messages().Event(wall_time=time.time(), step=step)
        for key, value in flat.items():
            if isinstance(value, list):
                numbers = [float(item) for item in np.ravel(np.asarray(value, dtype=object)) if _is_number(item)]
                if numbers:
                    event.summary.MergeFrom(histogram(key, np.asarray(numbers), bins=30))
            elif _is_number(value):
                event.summary.MergeFrom(scalar(key, float(value)))
        if event.summary.value:
            self._write(b"" if self._file.size else self._header(), _record(event))

    def _header(self) -> bytes:
        messages = _messages()
        header = _record(messages.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if self._start is not None:
            session = messages.SessionLog(status=messages.SessionLog.START)
            header += _record(messages.Event(wall_time=time.time(), step=self._start, session_log=session))
        return header

    def _write(self, *records: bytes) -> None:
        try:
            self._file.append(b"".join(records))
            self._failed = False
        except StorageError as error:
            if not self._failed:
                logger.warning("TensorBoard's curves have a gap: %s", error)
            self._failed = True


def _messages() -> Any:
    # Generated from a description of the messages when it is imported, so that their names are known only then.
    return importlib.import_module("tensorboardX.proto.event_pb2")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _record(event: Any) -> bytes:
    """An event as TensorBoard's files hold it: its length, the length's checksum, the event, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
