"""What a run does about actors (rollout workers, replay shards) that die, hang or raise: how many it replaces."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from jaxrl.tracebacks import place_of
from jaxrl.types import WorkerError

logger = logging.getLogger("jaxrl.workers")

# A worker that fails so often without having answered once would go on for ever.
MAX_FRUITLESS = 3


class FailureBudget:
    """Counts restarts of actors, and ends the run where there are too many, or too many in a minute.

    Args:
        max_total: restarts of the whole run.
        max_per_minute: restarts within any 60 seconds.
        clock: seconds.

    Attributes:
        restarts: so far; worker_restarts: those of rollout workers among them.
    """

    def __init__(self, max_total: int, max_per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.max_total, self.max_per_minute = max_total, max_per_minute
        self.restarts = self.worker_restarts = 0
        self._clock = clock
        self._recent: deque[float] = deque()
        self._fruitless: dict[int | str, int] = {}

    def spend(self, worker: int | str, error: BaseException, *, answered: bool) -> None:
        """One restart.

        Args:
            worker: index of a rollout worker, or the name of another actor.
            error: what became of it.
            answered: whether it has given anything since it was started.

        Raises:
            WorkerError: the budget is spent.
        """
        now = self._clock()
        while self._recent and now - self._recent[0] > 60.0:
            self._recent.popleft()
        fruitless = 0 if answered else self._fruitless.get(worker, 0) + 1
        self._fruitless[worker] = fruitless
        reason = None
        if self.restarts >= self.max_total:
            reason = f"max_worker_restarts={self.max_total} is spent"
        elif len(self._recent) >= self.max_per_minute:
            reason = f"{len(self._recent)} workers were restarted within a minute (max_worker_restarts_per_minute)"
        elif fruitless >= MAX_FRUITLESS:
            reason = f"it failed {fruitless} times in a row before it gave a batch"
        if reason is not None:
            name = worker if isinstance(worker, str) else f"rollout worker {worker}"
            raise WorkerError(
                f"{name} failed, and {reason}: {describe(error)}. Mend the cause, or raise the limit."
            ) from error
        self.restarts += 1
        self.worker_restarts += isinstance(worker, int)
        self._recent.append(now)


def describe(error: BaseException) -> str:
    """An error in one line; of one that Ray brought, what was raised on the actor."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not any("ray::" in line for line in lines):
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    text, place = lines[-1], place_of(error)  # after the remote traceback; it begins with the type
    return text if place is None or str(place) in text else f"{text} (at {place})"
