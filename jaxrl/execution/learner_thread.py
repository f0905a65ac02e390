"""LearnerThread: learns from a bounded queue of train batches while the plan goes on gathering."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent
from jaxrl.execution.context import STEPS_SAMPLED, PlanContext
from jaxrl.execution.train_ops import Info, has_rows
from jaxrl.types import JaxrlError, PolicyID, Weights

# The thread looks this often whether it is to stop.
_LOOK_S = 0.1
_STOP_WITHIN_S = 60.0


class Work(NamedTuple):
    """A train batch for the thread, and whatever is to come back with what it learned."""

    batch: MultiAgentBatch
    tag: Any = None


class Trained(NamedTuple):
    """What came of one update.

    Attributes:
        batch: the train batch.
        info: metrics by policy.
        rows: what the loss returned for each row, by policy (`td_error`), as host arrays.
        version: how many updates the learners have made.
        staleness: updates between sampling a row and learning from it, mean over the batch; None where the batch does
            not say (replayed experience).
        tag: of the Work.
    """

    batch: MultiAgentBatch
    info: Info
    rows: Mapping[PolicyID, Mapping[str, Any]]
    version: int
    staleness: float | None
    tag: Any


class LearnerThread:
    """Learns in a thread of its own; it alone touches the learners while it runs.

    Both queues are bounded: a plan that gathers faster than the thread learns holds its batches back, and with them the
    workers. XLA releases Python's lock while it computes, so that the plan goes on meanwhile.

    Args:
        ctx: the plan's context.
        queue_size: train batches that may wait.
        minibatch_buffer_size: train batches that are learned from in turn; with more than one, each is passed over
            `num_passes` times, the passes of several interleaved, else all of its epochs are one program.
        num_passes: see there.
        wants_rows: fetch what the loss returns for each row.

    Attributes:
        inqueue: of `Work`; outqueue: of `Trained`.
        published: number of updates, and the weights after them.
    """

    def __init__(
        self,
        ctx: PlanContext,
        *,
        queue_size: int = 16,
        minibatch_buffer_size: int = 1,
        num_passes: int = 1,
        wants_rows: bool = False,
    ):
        self.ctx = ctx
        self.inqueue: queue.Queue[Work] = queue.Queue(queue_size)
        self.outqueue: queue.Queue[Trained] = queue.Queue(queue_size)
        # In step with the numbers of the weights that workers sample with.
        self.version = self._first_version = ctx.workers.version
        self.published: tuple[int, dict[PolicyID, Weights]] = (self.version, _weights(ctx))
        self._ring = _Ring(minibatch_buffer_size, num_passes if minibatch_buffer_size > 1 else 1)
        self._single_passes = minibatch_buffer_size > 1
        self._wants_rows = wants_rows
        self._timers = {name: ctx.timer(name) for name in ("learner_wait", "learn")}
        self._staleness: float | None = None
        self._depths: tuple[int, int, int] = (0, 0, 0)  # count, sum, most
        self._error: BaseException | None = None
        # A plain lock would be taken by the thread again before whoever waits to pause it wakes.
        self._turn = threading.Condition()
        self._busy, self._pausing = False, 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxrl-learner", daemon=True)

    # ---- used by the plan's thread

    def start(self) -> None:
        """Starts learning; again is no error."""
        if not self._thread.is_alive() and self._thread.ident is None:
            self._thread.start()

    def check(self) -> bool:
        """True while the thread is well.

        Raises:
            BaseException: what ended it, with its own traceback.
        """
        if self._error is not None:
            raise self._error
        return self._thread.ident is None or self._thread.is_alive()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no update is under way, so that learners may be read, saved or changed as a whole."""
        with self._turn:
            self._pausing += 1
            self._turn.wait_for(lambda: not self._busy)
        try:
            yield
        finally:
            with self._turn:
                self._pausing -= 1
                self._turn.notify_all()

    @contextlib.contextmanager
    def _updating(self) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: not self._pausing)
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def forget(self) -> None:
        """Drops what waits in the queues, as after restoring other weights; within `paused`."""
        for waiting in (self.inqueue, self.outqueue):
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
        self._ring.clear()
        self._publish()

    def stop(self) -> None:
        """Ends the thread after the update under way."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_STOP_WITHIN_S)

    def stats(self) -> dict[str, float]:
        """Depth of the queue as batches were taken from it since the last call, and staleness."""
        (count, total, most), self._depths = self._depths, (0, 0, 0)
        stats = {"size_mean": total / count if count else 0.0, "size_max": float(most)}
        stats["num_updates"] = float(self.version - self._first_version)
        return stats if self._staleness is None else {**stats, "staleness_mean": self._staleness}

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                work = self._next()
                if work is not None:
                    self._hand_out(self._learn(work))
        except BaseException as error:
            self._error = error

    def _next(self) -> Work | None:
        if self._ring.wants_new:
            began = time.perf_counter()
            depth = self.inqueue.qsize()
            try:
                work = self.inqueue.get(timeout=_LOOK_S)
            except queue.Empty:
                return None
            self._timers["learner_wait"].push(time.perf_counter() - began)
            count, total, most = self._depths
            self._depths = (count + 1, total + depth, max(most, depth))
            self._ring.put(work)
        return self._ring.take()

    def _learn(self, work: Work) -> Trained:
        ctx, batch = self.ctx, as_multi_agent(work.batch)
        staleness = self._age(batch)
        with self._updating(), self._timers["learn"]:
            timestep = ctx.counters[STEPS_SAMPLED]
            info: Info = {}
            rows: dict[PolicyID, Mapping[str, Any]] = {}
            for pid in ctx.policies_to_train:
                if not has_rows(batch, pid):
                    continue
                learner = ctx.learners[pid]
                learner.update_schedules(timestep)
                try:
                    info[pid] = learner.learn(batch[pid], one_pass=self._single_passes)
                except JaxrlError as error:
                    error.add_note(_origin(batch[pid], ctx.config.num_workers))
                    raise
                if self._wants_rows:
                    rows[pid] = jax.tree.map(np.asarray, dict(learner.rows))
            self.version += 1
            self._publish()
        self._timers["learn"].push_units_processed(batch.env_steps)
        self._staleness = staleness
        return Trained(batch, info, rows, self.version, staleness, work.tag)

    def _publish(self) -> None:
        self.published = (self.version, _weights(self.ctx))

    def _age(self, batch: MultiAgentBatch) -> float | None:
        ages = [
            self.version - float(np.mean(np.asarray(each["weights_version"])))
            for each in batch.values()
            if "weights_version" in each
        ]
        return sum(ages) / len(ages) if ages else None

    def _hand_out(self, trained: Trained) -> None:
        while not self._stopping.is_set():
            try:
                self.outqueue.put(trained, timeout=_LOOK_S)
            except queue.Full:
                continue
            return


class _Ring:
    """Work that is passed over several times: a place for each of a few, visited in turn, refilled when it is spent."""

    def __init__(self, size: int, passes: int):
        self.passes = passes
        self._slots: list[tuple[Work, int] | None] = [None] * size
        self._at = 0

    @property
    def wants_new(self) -> bool:
        """Whether the place that is next is free."""
        return self._slots[self._at] is None

    def put(self, work: Work) -> None:
        """Fills the place that is next."""
        self._slots[self._at] = (work, self.passes)

    def take(self) -> Work:
        """The work that is next, which is spent after its last pass."""
        slot = self._slots[self._at]
        assert slot is not None
        work, left = slot
        self._slots[self._at] = (work, left - 1) if left > 1 else None
        self._at = (self._at + 1) % len(self._slots)
        return work

    def clear(self) -> None:
        """Frees every place."""
        self._slots = [None] * len(self._slots)


def _weights(ctx: PlanContext) -> dict[PolicyID, Weights]:
    return {pid: learner.weights for pid, learner in ctx.learners.items()}


def _origin(batch: SampleBatch, num_workers: int) -> str:
    """Where the rows of a train batch came from: episodes are numbered so that they tell their worker."""
    if "eps_id" not in batch:
        return "Raised while learning from replayed experience."
    workers = sorted({int(number) % (num_workers + 1) for number in np.unique(np.asarray(batch["eps_id"]))})
    return f"Raised while learning from {batch.num_rows} rows of workers {workers}, in the learner's thread."
