"""PlanContext: what the operators of a plan share: workers, learners, counters, timers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jaxrl.data import MultiAgentBatch
from jaxrl.execution.learner import Learner
from jaxrl.execution.replay_memory import ReplayMemory
from jaxrl.metrics import Counters, Timer
from jaxrl.rollout import WorkerSet
from jaxrl.types import PolicyID

if TYPE_CHECKING:
    from jaxrl.execution.learner_thread import LearnerThread
    from jaxrl.execution.sharded_replay import ShardedReplay

STEPS_SAMPLED = "num_steps_sampled"
STEPS_TRAINED = "num_steps_trained"
AGENT_STEPS_SAMPLED = "num_agent_steps_sampled"
AGENT_STEPS_TRAINED = "num_agent_steps_trained"


class PlanContext:
    """Shared by the operators of one plan; given to them when the plan is built.

    Attributes:
        config: the trainer's config.
        workers: the worker set.
        learners: the learners by policy.
        counters: host counters by name, saved in checkpoints.
        timers: timers by name; never saved.
        learner_info: metrics of the last learning by policy.
        memory: the replay memory of a plan that has one; shards: one that lies in shards on actors.
        learner_thread: the thread of a plan that learns in one; else None, and the plan itself learns.
    """

    def __init__(self, config: Any, workers: WorkerSet, learners: Mapping[PolicyID, Learner]):
        self.config, self.workers, self.learners = config, workers, dict(learners)
        self.counters = Counters()
        self.timers: dict[str, Timer] = {}
        self.learner_info: dict[PolicyID, dict[str, Any]] = {}
        self.memory: ReplayMemory | None = None
        self.shards: ShardedReplay | None = None
        self.learner_thread: LearnerThread | None = None

    def fault_tolerance(self) -> dict[str, Any]:
        """What a gather of rollout workers is to do about those that die, hang or raise: its keyword arguments."""
        if self.workers.local is not None:
            return {}  # an error in this process is the user's to see
        return {"timeout_s": self.config.sample_timeout_s, "on_failure": self.workers.on_failure}

    def timer(self, name: str) -> Timer:
        """The timer called `name`, made on first use."""
        return self.timers.setdefault(name, Timer())

    @property
    def policies_to_train(self) -> tuple[PolicyID, ...]:
        """Ids of the policies that learn."""
        chosen = self.config.multiagent.policies_to_train
        return tuple(self.learners) if chosen is None else tuple(chosen)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it no learner moves: for reading, saving or changing them from outside the plan."""
        with contextlib.nullcontext() if self.learner_thread is None else self.learner_thread.paused():
            yield

    def stop(self) -> None:
        """Ends the learner's thread and the replay shards, where there are any."""
        if self.learner_thread is not None:
            self.learner_thread.stop()
        if self.shards is not None:
            self.shards.stop()

    def sync_weights(self) -> None:
        """Evaluates the schedules of coeffs and broadcasts the learners' weights to the workers."""
        timestep = self.counters[STEPS_SAMPLED]
        for learner in self.learners.values():
            learner.update_schedules(timestep)
        self.workers.sync_weights({pid: learner.weights for pid, learner in self.learners.items()})

    def count_sampled(self, batch: MultiAgentBatch) -> None:
        """Adds a batch to the counters of sampled steps."""
        self.counters[STEPS_SAMPLED] += batch.env_steps
        self.counters[AGENT_STEPS_SAMPLED] += batch.agent_steps

    def count_trained(self, batch: MultiAgentBatch) -> None:
        """Adds a batch to the counters of trained steps."""
        self.counters[STEPS_TRAINED] += batch.env_steps
        self.counters[AGENT_STEPS_TRAINED] += batch.agent_steps
