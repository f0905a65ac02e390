"""Learning without a central learner, the driver's side: it forms the ring of workers and follows what they learn."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl.execution.all_reduce import RingError
from jaxrl.execution.context import AGENT_STEPS_SAMPLED, AGENT_STEPS_TRAINED, STEPS_SAMPLED, STEPS_TRAINED, PlanContext
from jaxrl.execution.decentralized import PackedState, Report, group_learner
from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.policies import TrainState
from jaxrl.types import PolicyID, WorkerError

logger = logging.getLogger("jaxrl.workers")

# Rounds lost in a row before the run gives up: without a worker that failed, and however many fail.
MAX_LOST_FOR_NOTHING = 3
MAX_LOST_IN_A_ROW = 10


class WorkerGroup:
    """The workers as one learner: the ring that joins them, and the driver's copy of what they learn.

    A round in which the ring breaks is lost: its steps count as sampled, not as trained. Before the next one a new ring
    is formed of the workers that there are then, and all begin from the driver's copy.

    Args:
        ctx: the plan's context.
    """

    def __init__(self, ctx: PlanContext):
        self.ctx = ctx
        self._formed = False
        self._unformed_why = ""
        self._lost = self._lost_for_nothing = 0
        self._restarts = 0
        self._known: dict[PolicyID, TrainState] = {}

    def prepare(self) -> None:
        """Before a round: forms the ring where there is none, and sends what has changed on the driver."""
        ctx = self.ctx
        for pid in ctx.policies_to_train:
            ctx.learners[pid].update_schedules(ctx.counters[STEPS_SAMPLED])
        if not self._formed:
            self._known = {}
        states = {pid: ctx.learners[pid].state for pid in ctx.policies_to_train}
        news = {pid: new for pid, state in states.items() if (new := _news(state, self._known.get(pid))) is not None}
        # A worker that died meanwhile is seen to by the round itself, which then is lost.
        with self._unless_broken():
            if not self._formed:
                self._form()
            if news:
                ctx.workers.apply(install, news)
                self._known.update(states)
            self._formed = True

    @contextlib.contextmanager
    def _unless_broken(self) -> Any:
        try:
            yield
        except (WorkerError, RingError) as error:
            self._formed, self._unformed_why = False, str(error)
            logger.warning("the workers' ring is broken: %s", error)

    def _form(self) -> None:
        addresses = dict(self.ctx.workers.apply(listen_for_neighbour))
        self.ctx.workers.apply(join_ring, addresses, secrets.token_bytes(32))

    def follow(self, reports: Sequence[Report]) -> list[Any]:
        """After a round: counts, checks and copies; a list with the round's metrics, empty where it was lost.

        Raises:
            WorkerError: the weights differ between workers, or round after round is lost.
            JaxrlError: why the workers could not learn.
        """
        ctx = self.ctx
        ctx.counters[STEPS_SAMPLED] += sum(report.env_steps for report in reports)
        ctx.counters[AGENT_STEPS_SAMPLED] += sum(report.agent_steps for report in reports)
        broken = {report.worker_index: report.broken for report in reports if report.broken is not None}
        if broken or not self._formed:
            self._count_lost(broken)
            return []
        for report in reports:
            if report.error is not None:
                raise report.error
        check_equal(reports)
        self._lost = self._lost_for_nothing = 0
        first = reports[0]
        for pid, packed in (first.states or {}).items():
            self._copy(pid, packed)
        ctx.counters[STEPS_TRAINED] += sum(report.env_steps for report in reports)
        ctx.counters[AGENT_STEPS_TRAINED] += sum(report.trained_agent_steps for report in reports)
        ctx.timer("learn").push(max(report.learn_seconds for report in reports))
        ctx.timer("learn").push_units_processed(sum(report.env_steps for report in reports))
        ctx.timer("all_reduce").push(max(report.all_reduce_seconds for report in reports))
        info = {pid: dict(metrics) for pid, metrics in first.info.items()}
        ctx.learner_info.update(info)
        return [info]

    def _count_lost(self, broken: Mapping[int, str]) -> None:
        restarts = self.ctx.workers.num_restarts
        failed, self._restarts = restarts - self._restarts, restarts
        self._lost += 1
        self._lost_for_nothing = 0 if failed else self._lost_for_nothing + 1
        each = [f"worker {index}: {reason}" for index, reason in broken.items()]
        reasons = "; ".join(each if self._formed else [self._unformed_why, *each])
        self._formed = False
        if self._lost_for_nothing >= MAX_LOST_FOR_NOTHING:
            raise WorkerError(
                f"the workers could not learn together {self._lost_for_nothing} times in a row, though none of them "
                f"failed: {reasons}. Check that they reach one another over the network."
            )
        if self._lost >= MAX_LOST_IN_A_ROW:
            raise WorkerError(
                f"the workers could not learn together {self._lost} times in a row, since one or another failed each "
                f"time: {reasons}. See the warnings above for why; is sample_timeout_s shorter than a round takes?"
            )
        logger.warning("a round is lost, and the workers form a new ring: %s", reasons)

    def _copy(self, pid: PolicyID, packed: PackedState) -> None:
        learner = self.ctx.learners[pid]
        learner.state = packed.unpack()
        self._known[pid] = learner.state

    def download(self) -> None:
        """Copies the workers' states to the driver, where rounds do not bring them."""
        with self._unless_broken():
            for pid, packed in self.ctx.workers.apply(current_states)[0].items():
                self._copy(pid, packed)


def FollowWorkers(group: WorkerGroup) -> Operator:
    """Makes of each round's `Report`s the metrics by policy; for `combine`. Before each round it prepares the workers.

    Changes the counters num_steps_sampled, num_steps_trained and those of agent steps, the timers learn and all_reduce,
    and the learner info of results.

    Args:
        group: the workers.

    Examples:
        >>> group = WorkerGroup(ctx)
        >>> rounds = ParallelRollouts(ctx, mode="raw").for_each(LearnTogether).batch_across_shards()
        >>> info = next(rounds.combine(FollowWorkers(group)))
        >>> sorted(info["default_policy"])[:2]
        ['cur_clip_param', 'cur_entropy_coeff']
    """

    def apply(state: Any, reports: Sequence[Report]) -> tuple[Any, list[Any]]:
        return state, group.follow(reports)

    return Operator(
        "FollowWorkers",
        apply,
        host_only=True,
        counters=(STEPS_SAMPLED, AGENT_STEPS_SAMPLED, STEPS_TRAINED, AGENT_STEPS_TRAINED),
        on_fetch_start=group.prepare,
    )


def DownloadStates(group: WorkerGroup, results: LocalIterator) -> LocalIterator:
    """Copies the workers' states to the driver before each result, instead of after each round.

    Args:
        group: the workers.
        results: of the plan.
    """

    def apply(state: Any, result: Any) -> tuple[Any, Any]:
        group.download()
        return state, result

    return results.for_each(Operator("DownloadStates", apply, host_only=True))


def check_equal(reports: Sequence[Report]) -> None:
    """Checks that all workers hold the same bits.

    Raises:
        WorkerError: a policy's states differ; with the workers that hold each.
    """
    for pid in reports[0].digests:
        holders: dict[str, list[int]] = {}
        for report in reports:
            holders.setdefault(report.digests[pid], []).append(report.worker_index)
        if len(holders) > 1:
            shown = ", ".join(f"workers {indices} hold {digest[:12]}" for digest, indices in holders.items())
            raise WorkerError(
                f"policy {pid!r}: weights and optimiser state should be equal on all workers after a round; {shown}. "
                "Processors of different kinds round differently: run the workers on one kind."
            )


def _news(state: TrainState, known: TrainState | None) -> Any:
    """What workers that hold `known` lack: all of the state, the coeffs that have changed, or None."""
    if state is known:
        return None
    if known is None or any(
        new is not old
        for new, old in zip(
            jax.tree.leaves(state.replace(coeffs={})), jax.tree.leaves(known.replace(coeffs={})), strict=True
        )
    ):
        return PackedState.of(state)
    return {name: np.asarray(value) for name, value in state.coeffs.items() if value is not known.coeffs[name]}


# ---- called on workers


def listen_for_neighbour(worker: Any) -> tuple[int, tuple[str, int]]:
    """The worker's index and the address at which it listens."""
    import ray

    return worker.worker_index, group_learner(worker).listen(ray.util.get_node_ip_address())


def join_ring(worker: Any, addresses: Mapping[int, tuple[str, int]], secret: bytes) -> None:
    """See `GroupLearner.join`."""
    group_learner(worker).join(addresses, secret)


def install(worker: Any, states: Mapping[PolicyID, Any]) -> None:
    """See `GroupLearner.install`."""
    group_learner(worker).install(states)


def current_states(worker: Any) -> dict[PolicyID, PackedState]:
    """The states that the worker has learned, which are those of all workers."""
    return {pid: PackedState.of(learner.state) for pid, learner in group_learner(worker).learners.items()}
