"""Learning without a central learner, the workers' side: each learns from what it sampled, all take the same steps.

Gradients are averaged over the workers for every minibatch (`jaxrl.execution.all_reduce`), so that parameters and the
optimiser's state stay equal to the bit. The driver's side is `jaxrl.execution.worker_group`.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent
from jaxrl.execution.all_reduce import Ring, RingError, listen, mean_by
from jaxrl.execution.learner import Learner
from jaxrl.execution.on_worker import OnWorker
from jaxrl.policies import TrainState
from jaxrl.types import Array, ConfigError, NonFiniteError, PolicyID

# Of sample_timeout_s: who waits for a neighbour that hangs gives up before it would count as hanging itself.
_PATIENCE = 0.8


class PackedState(NamedTuple):
    """A TrainState as it travels: host arrays, the key taken apart."""

    state: TrainState
    key_impl: str

    @staticmethod
    def of(state: TrainState) -> PackedState:
        """Packs a state."""
        host = jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))
        return PackedState(host, str(jax.random.key_impl(state.key)))

    def unpack(self) -> TrainState:
        """The state, on the default device."""
        state = jax.tree.map(jnp.asarray, self.state)
        return state.replace(key=jax.random.wrap_key_data(state.key, impl=self.key_impl))

    def digest(self) -> str:
        """A hash of all its bits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.state):
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()


class Report(NamedTuple):
    """What one worker tells of one round of sampling and learning.

    Attributes:
        worker_index: whose it is.
        env_steps, agent_steps: sampled.
        trained_agent_steps: valid rows that were learned from.
        info: metrics by policy, averaged over the workers.
        digests: of each policy's state after the round.
        states: each policy's state after the round; of one worker alone, and only where the driver follows closely.
        learn_seconds, all_reduce_seconds: time it took, the second a part of the first.
        error: why nothing can be learned from this round by anyone, None if all went well.
        broken: why the ring came apart, None if it held.
    """

    worker_index: int
    env_steps: int
    agent_steps: int
    trained_agent_steps: int = 0
    info: Mapping[PolicyID, Mapping[str, float]] = {}
    digests: Mapping[PolicyID, str] = {}
    states: Mapping[PolicyID, PackedState] | None = None
    learn_seconds: float = 0.0
    all_reduce_seconds: float = 0.0
    error: Exception | None = None
    broken: str | None = None


class GroupLearner:
    """What a worker learns with: a learner for each policy to train, and a place in the ring of workers.

    Args:
        worker: a RolloutWorker, whose config has the options of the trainer.
    """

    def __init__(self, worker: Any):
        config = worker.config
        chosen = config.multiagent.policies_to_train
        self.worker = worker
        self.ring: Ring | None = None
        self._server: Any = None
        self._broken: str | None = None
        self._compiled = False
        self.learners = {
            # The state that the key makes is never used: the driver sends one before the first round.
            pid: Learner(worker.policies[pid], jax.random.key(0), policy_id=pid, average=mean_by(self._total))
            for pid in (worker.policies if chosen is None else chosen)
        }

    # ---- the group

    def listen(self, host: str) -> tuple[str, int]:
        """Waits for a neighbour on a free port of this machine; returns the address."""
        self.leave("a new ring is being formed")
        self._server = listen(host)
        return self._server.getsockname()[:2]

    def join(self, addresses: Mapping[int, tuple[str, int]], secret: bytes) -> None:
        """Takes this worker's place in a new ring.

        Args:
            addresses: of all members, by worker index.
            secret: see `Ring.join`.
        """
        order, limit = sorted(addresses), self.worker.config.sample_timeout_s
        server, self._server = self._server, None
        patience = None if limit is None else _PATIENCE * limit
        rank = order.index(self.worker.worker_index)
        self.ring = Ring.join(rank, server, [addresses[index] for index in order], secret, patience)

    def leave(self, reason: str) -> None:
        """Leaves the ring, which breaks it for the others too."""
        if self.ring is not None:
            self.ring.close()
        if self._server is not None:
            self._server.close()
        self.ring = self._server = None
        self._broken = reason

    def install(self, states: Mapping[PolicyID, PackedState | Mapping[str, np.ndarray]]) -> None:
        """Takes states from the driver, or coeffs alone."""
        for pid, new in states.items():
            learner = self.learners[pid]
            if isinstance(new, PackedState):
                learner.state = new.unpack()
            else:
                coeffs = {name: jnp.asarray(value) for name, value in new.items()}
                learner.state = learner.state.replace(coeffs={**learner.state.coeffs, **coeffs})
        self._publish()

    def _publish(self) -> None:
        """The sampler acts with the new weights from the next fragment on."""
        worker = self.worker
        weights = {pid: learner.weights for pid, learner in self.learners.items()}
        worker.set_weights(worker.weights_version + 1, {**worker.weights, **weights})

    # ---- a round

    def learn(self, batch: MultiAgentBatch) -> Report:
        """Learns from this worker's batch, in step with the others."""
        started = time.perf_counter()
        report = Report(self.worker.worker_index, batch.env_steps, batch.agent_steps)
        ring = self.ring
        if ring is None:
            self._compile(batch)
            return report._replace(broken=self._broken or "this worker has not joined the ring yet")
        ring.seconds = 0.0
        trained: list[PolicyID] = []
        info: dict[PolicyID, dict[str, float]] = {}
        try:
            trained = self._shared_policies(ring, batch)
            info = {pid: self.learners[pid].learn(batch[pid]) for pid in trained}
        except RingError as error:
            self.leave(str(error))
        except NonFiniteError as error:
            if self.ring is not None:  # else it is what a broken ring's sums make of everything
                return report._replace(error=error)
        except ConfigError as error:
            return report._replace(error=error)
        if self.ring is None:
            return report._replace(broken=self._broken)
        self._compiled = True
        self._publish()
        states = {pid: PackedState.of(learner.state) for pid, learner in self.learners.items()}
        return report._replace(
            trained_agent_steps=sum(batch[pid].count for pid in trained),
            info=info,
            digests={pid: state.digest() for pid, state in states.items()},
            states=states if ring.rank == 0 and self.worker.config.keep_local_weights_in_sync else None,
            learn_seconds=time.perf_counter() - started,
            all_reduce_seconds=ring.seconds,
        )

    def _compile(self, batch: MultiAgentBatch) -> None:
        """Compiles the learn steps of a worker that is new while nobody waits for it in the ring."""
        if self._compiled:
            return
        for pid, learner in self.learners.items():
            if pid in batch:
                with contextlib.suppress(NonFiniteError):  # without a ring all sums are NaN
                    learner.learn(batch[pid])
        self._compiled = True

    def _shared_policies(self, ring: Ring, batch: MultiAgentBatch) -> list[PolicyID]:
        """The policies that some worker has rows for; each worker has batches of one shape.

        Raises:
            ConfigError: the shapes differ, so that the workers would take different numbers of steps.
        """
        own = [batch.get(pid) for pid in self.learners]
        numbers = [n for b in own for n in ((0, 0, 0) if b is None else (b.count, *_shape(b)))]
        everyone = ring.gather(numbers).reshape(ring.size, len(own), 3)
        trained = []
        for number, pid in enumerate(self.learners):
            rows, shapes = everyone[:, number, 0], everyone[:, number, 1:]
            if (shapes != shapes[0]).any():
                raise ConfigError(
                    f"policy {pid!r}: workers that learn together need batches of one shape, got (T, B) = "
                    f"{[tuple(shape) for shape in shapes.tolist()]}; give all environments the same agents."
                )
            if rows.any():
                trained.append(pid)
        return trained

    def _total(self, vector: Array) -> np.ndarray:
        """The sum over the workers; NaN once the ring is broken: an error cannot leave a compiled program.

        What comes of that is thrown away.
        """
        if self.ring is not None:
            try:
                return self.ring.sum(np.asarray(vector))
            except RingError as error:
                self.leave(str(error))
        return np.full(vector.shape, np.nan, vector.dtype)


def _shape(batch: SampleBatch) -> tuple[int, int]:
    return (batch.T, batch.B) if batch.time_major else (1, batch.num_rows)


_learners: weakref.WeakKeyDictionary[Any, GroupLearner] = weakref.WeakKeyDictionary()


def group_learner(worker: Any) -> GroupLearner:
    """The worker's GroupLearner, made on first use."""
    if worker not in _learners:
        _learners[worker] = GroupLearner(worker)
    return _learners[worker]


def learn_together(worker: Any, state: GroupLearner, batch: SampleBatch | MultiAgentBatch) -> tuple[Any, Report]:
    """One round of a worker: `(worker, state, batch) -> (state, Report)`."""
    del worker
    return state, state.learn(as_multi_agent(batch))


LearnTogether = OnWorker("LearnTogether", learn_together, group_learner)
"""Learns on each worker from its own batches, gradients averaged over all workers for each minibatch; gives `Report`s.

For rollouts that are gathered by `batch_across_shards` and end in `FollowWorkers`.
"""
