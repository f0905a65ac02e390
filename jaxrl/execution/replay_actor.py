"""ReplayActor: one shard of a replay memory, in a Ray actor's process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrl import storage
from jaxrl.data import MultiAgentBatch
from jaxrl.execution.replay_memory import ReplayMemory
from jaxrl.replay import ReplayBuffer
from jaxrl.types import PolicyID


class ShardStats(NamedTuple):
    """What a shard tells of itself with each answer.

    Attributes:
        ready: it holds `learning_starts` rows of every policy that has acted.
        sizes: rows and bytes held, by policy.
    """

    ready: bool
    sizes: Mapping[PolicyID, Mapping[str, int]]

    @property
    def rows(self) -> int:
        """Rows of all policies together."""
        return sum(size["size"] for size in self.sizes.values())


class Drawn(NamedTuple):
    """A batch drawn from a shard, and how many rows of each policy had ever been added to it by then."""

    batch: MultiAgentBatch
    added: Mapping[PolicyID, int]


class RowUpdates(NamedTuple):
    """New priorities of rows of one policy; fields as of `ReplayMemory.update_rows`."""

    indexes: np.ndarray
    priorities: np.ndarray
    added: int


class ReplayActor:
    """A replay memory that others reach by calls; made into a Ray actor by `ShardedReplay`.

    Args:
        buffers: the functions of its replay buffers, for all policies or by policy.
        policies: ids of the policies that learn.
        seed: of the draws.
        learning_starts, lockstep: as of `ReplayMemory`.

    Example:
        >>> shard = ReplayActor(prioritized_replay(1000), ("default_policy",), seed=(0, 1))
        >>> shard.add(Contents(fragments, {})).rows
        200
        >>> shard.sample(32, 0.4, 0).batch.env_steps
        32
    """

    def __init__(
        self,
        buffers: ReplayBuffer | Mapping[PolicyID, ReplayBuffer],
        policies: tuple[PolicyID, ...],
        *,
        seed: tuple[int, ...],
        learning_starts: int = 0,
        lockstep: bool = False,
    ):
        self._memory = ReplayMemory(
            buffers, policies, learning_starts=learning_starts, lockstep=lockstep, store_in_checkpoints=True
        )
        key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._key = int(key[0]) | int(key[1]) << 64
        self._loaded: dict[PolicyID, Any] = {}

    def ping(self) -> int:
        """The process id, once the shard stands."""
        return os.getpid()

    def stats(self) -> ShardStats:
        """What it holds."""
        return ShardStats(self._memory.ready, self._memory.stats())

    def add(self, contents: Any) -> ShardStats:
        """Stores `Contents(batch, priorities)`, and tells what it holds then."""
        self._memory.add(*contents)
        return self.stats()

    def sample(self, n: int, beta: float, draw: int) -> Drawn | None:
        """`n` rows of every policy; None while it has too few.

        Args:
            n: rows.
            beta: exponent of the importance weights.
            draw: number of the draw, from which with the seed its randomness follows.
        """
        if not self._memory.ready:
            return None
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, draw]))
        return Drawn(self._memory.sample(rng, n, beta), self._memory.added)

    def update(self, updates: Mapping[PolicyID, RowUpdates]) -> None:
        """New priorities of rows; those overwritten since they were drawn are left alone."""
        for pid, (indexes, priorities, added) in updates.items():
            self._memory.update_rows(pid, indexes, priorities, added)

    def save(self, directory: str, prefix: str) -> dict[str, str]:
        """Writes the contents below `prefix` in a directory; the digests of the files, by name."""
        writer = storage.Writer(directory)
        self._memory.save(writer, prefix)
        return writer.digests

    def load(self, files: storage.Files) -> dict[PolicyID, int]:
        """Reads what `save` wrote, and keeps it apart until `restore`; rows by policy.

        Raises:
            CheckpointError: see `ReplayMemory.load`.
        """
        self._loaded = self._memory.load(files)
        return {pid: self._memory.buffers[pid].size(state) for pid, state in self._loaded.items()}

    def restore(self) -> ShardStats:
        """Puts what `load` has read in the place of the contents."""
        self._memory.states, self._loaded = self._loaded, {}
        return self.stats()
