"""The side of a measurement that is measured: a process that works when it is asked to, and reports as JSON lines.

Contestants stay alive between rounds and wait for their turn on standard input, so that rounds of different libraries
alternate without paying for start-up and compilation each time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


class Reports:
    """Keeps the real standard output for reports; whatever else the process prints goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **report: Any) -> None:
        self._file.write(json.dumps(report) + "\n")
        self._file.flush()


def serve(reports: Reports, work: Callable[..., dict[str, Any]]) -> None:
    """Says that it is ready, then does `work(**request)` for each line of standard input, until that ends."""
    reports.send(ready=True)
    for line in sys.stdin:
        reports.send(**work(**json.loads(line)))
