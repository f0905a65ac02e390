"""ReplayMemory: the replay buffers of a plan, one for each policy."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from jaxrl import storage, trees
from jaxrl.data import MultiAgentBatch, SampleBatch
from jaxrl.replay import JaxReplayState, ReplayBuffer, jax_twin, saving
from jaxrl.replay.checking import check_device_state
from jaxrl.types import CheckpointError, ConfigError, PolicyID

# Of the directories that hold the contents: a policy's id may be any text, and is no path.
_PREFIX = "policy-"
_DEVICE_FILE = "device.safetensors"
_LONGEST = 150


def folder_name(policy_id: PolicyID) -> str:
    """The directory of a policy's contents; a long id is cut, and told from others by a digest."""
    quoted = quote(policy_id, safe="")
    if len(quoted) > _LONGEST:
        quoted = f"{quoted[:60]}+{hashlib.sha256(policy_id.encode()).hexdigest()[:32]}"  # `quote` leaves no plus
    return _PREFIX + quoted


class ReplayMemory:
    """Owns the states of the replay buffers, which the operators of a plan share.

    Args:
        buffers: the functions of a replay buffer, the same for all policies or by policy; each policy has a state of
            its own, made with its first fragment.
        policies: ids of the policies that learn; the rows of others are not kept.
        learning_starts: rows of each policy before the first batch is drawn.
        lockstep: all policies' batches are of the same time steps: one draw stands for all.
        store_in_checkpoints: checkpoints hold the contents.

    Attributes:
        states: state of the buffer by policy.
        on_device: state of its twin in JAX arrays, where a compiled program samples and learns; else None.
        device_shapes: the shapes of that state, set by the compiled engine.
    """

    def __init__(
        self,
        buffers: ReplayBuffer | Mapping[PolicyID, ReplayBuffer],
        policies: tuple[PolicyID, ...],
        *,
        learning_starts: int = 0,
        lockstep: bool = False,
        store_in_checkpoints: bool = False,
    ):
        alike = buffers if isinstance(buffers, Mapping) else dict.fromkeys(policies, buffers)
        self.buffers: dict[PolicyID, ReplayBuffer] = {pid: alike[pid] for pid in policies}
        self.policies, self.lockstep = policies, lockstep
        self.learning_starts, self.store_in_checkpoints = learning_starts, store_in_checkpoints
        self.states: dict[PolicyID, Any] = {}
        self.on_device: JaxReplayState | None = None
        self.device_shapes: Any = None

    @functools.cached_property
    def compiled(self) -> ReplayBuffer:
        """The buffer's twin of JAX arrays, for compiled programs.

        Raises:
            ConfigError: it has none: it holds sequences, or the newest frames of stacks.
        """
        return jax_twin(self.buffers[self.policies[0]])

    def add(self, batch: MultiAgentBatch, priorities: Mapping[PolicyID, np.ndarray] | None = None) -> None:
        """Stores the rows of every policy that learns.

        Args:
            batch: fragments by policy.
            priorities: of the valid rows of a policy, in order of t, then b; without them they get the largest so far.
        """
        for pid in self.policies:
            if pid not in batch:
                continue
            buffer = self.buffers[pid]
            if pid not in self.states:
                self.states[pid] = buffer.init(batch[pid])
            head = self.states[pid].head
            self.states[pid] = state = buffer.add(self.states[pid], batch[pid])
            if priorities and pid in priorities:
                capacity, given = buffer.spec.capacity, priorities[pid]
                kept = np.arange(max(0, len(given) - capacity), len(given))
                self.states[pid] = buffer.update(state, (head + kept) % capacity, given[kept])

    @property
    def ready(self) -> bool:
        """Whether every policy that has acted has enough rows to learn from."""
        needed = max(1, self.learning_starts)
        return bool(self.states) and all(size >= needed for size in self._sizes().values())

    def _sizes(self) -> dict[PolicyID, int]:
        return {pid: self.buffers[pid].size(state) for pid, state in self.states.items()}

    def sample(self, rng: np.random.Generator, n: int, beta: float) -> MultiAgentBatch:
        """`n` rows of every policy, with importance weights for `beta`.

        Raises:
            ConfigError: in lockstep, policies hold different numbers of rows.
        """
        if self.lockstep:
            sizes = self._sizes()
            if len(set(sizes.values())) > 1:
                raise ConfigError(
                    f"replay_mode='lockstep': expected as many rows of every policy, got {sizes}; every agent must act "
                    "in every step, and each policy have as many agents. Use 'independent'."
                )
        shared = rng.random(n) if self.lockstep else None
        batches = {
            pid: self.buffers[pid].sample(state, rng.random(n) if shared is None else shared, beta)
            for pid, state in self.states.items()
        }
        return MultiAgentBatch(batches, env_steps=max(batch.count for batch in batches.values()))

    def update(self, policy_id: PolicyID, batch: SampleBatch, priorities: np.ndarray) -> None:
        """New priorities for the rows (or sequences) of a batch that was sampled from this memory."""
        indexes = np.asarray(batch["batch_indexes"])
        if batch.time_major:  # a column is a sequence, whose rows all have its index
            indexes = indexes[0]
        self.update_rows(policy_id, indexes, priorities)

    def update_rows(
        self, policy_id: PolicyID, indexes: np.ndarray, priorities: np.ndarray, added: int | None = None
    ) -> None:
        """New priorities for the rows (or sequences) at `indexes`.

        Args:
            policy_id: whose.
            indexes: the column `batch_indexes`, one entry for each row or sequence.
            priorities: as many.
            added: what `added` was when they were sampled: those overwritten since are left alone. None: none were.
        """
        self.states[policy_id] = self.buffers[policy_id].update(self.states[policy_id], indexes, priorities, added)

    @property
    def added(self) -> dict[PolicyID, int]:
        """Rows ever added, by policy."""
        return {pid: state.added for pid, state in self.states.items()}

    def stats(self) -> dict[PolicyID, dict[str, int]]:
        """Rows and bytes held, by policy."""
        if self.on_device is not None:
            size, size_bytes = int(self.on_device.size), self.compiled.nbytes(self.on_device)
            return {self.policies[0]: {"size": size, "size_bytes": size_bytes}}
        return {
            pid: {"size": self.buffers[pid].size(state), "size_bytes": self.buffers[pid].nbytes(state)}
            for pid, state in self.states.items()
        }

    def save(self, writer: storage.Writer, prefix: str) -> None:
        """Writes the contents below `prefix`, some files for each policy; nothing where checkpoints don't hold them."""
        if self.store_in_checkpoints:
            if self.on_device is not None:
                writer.arrays(f"{prefix}{_DEVICE_FILE}", trees.flatten_with_paths(self.on_device))
            for pid, state in self.states.items():
                saving.write(writer, f"{prefix}{folder_name(pid)}/", state)

    def load(self, files: storage.Files) -> dict[PolicyID, Any]:
        """What `save` wrote, for `restore`; empty where it wrote nothing, or another engine did.

        Raises:
            CheckpointError: of other policies, or a buffer of other options or shapes.
        """
        if self.device_shapes is not None:
            if _DEVICE_FILE not in files:
                return {}
            state = trees.restore_like(self.device_shapes, files.arrays(_DEVICE_FILE), f"{files}/{_DEVICE_FILE}")
            check_device_state(state, self.compiled.spec, f"{files}/{_DEVICE_FILE}")
            return {self.policies[0]: state}
        if _DEVICE_FILE in files:
            return {}
        mine = {folder_name(pid): pid for pid in self.policies}
        found = sorted({name.partition("/")[0] for name in files.names})
        unknown = [unquote(name.removeprefix(_PREFIX)) for name in found if name not in mine]
        if unknown:
            raise CheckpointError(f"{files}: replay contents of policies {unknown}; there are {self.policies}.")
        contents = {mine[name]: saving.read(files.below(name), self.buffers[mine[name]]) for name in found}
        for pid, state in contents.items():
            if pid in self.states:
                saving.check_like(f"{files}: policy {pid!r}", state, self.states[pid])
        return contents

    def restore(self, contents: dict[PolicyID, Any]) -> None:
        """Takes what `load` gave in the place of all contents."""
        if self.device_shapes is not None:
            self.on_device = contents.get(self.policies[0])
        else:
            self.states = contents
