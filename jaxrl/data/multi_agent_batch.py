"""MultiAgentBatch: one SampleBatch per policy, and the environment steps they came from."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxrl import trees
from jaxrl.data.sample_batch import SampleBatch
from jaxrl.types import DEFAULT_POLICY_ID, PolicyID


class MultiAgentBatch(Mapping[PolicyID, SampleBatch]):
    """Batches by policy id: an immutable `Mapping`, and no pytree, since it never enters `jax.jit`.

    Args:
        policy_batches: the batch of each policy.
        env_steps: environment steps behind them; several agents acting in one step count once.

    Examples:
        >>> import numpy as np
        >>> one = SampleBatch({"rewards": np.ones((4, 2), np.float32)})
        >>> batch = MultiAgentBatch({"prey": one, "hunter": one}, env_steps=8)
        >>> batch.env_steps, batch.agent_steps
        (8, 16)
    """

    __slots__ = ("_batches", "_env_steps")

    def __init__(self, policy_batches: Mapping[PolicyID, SampleBatch], env_steps: int) -> None:
        for policy_id, batch in policy_batches.items():
            if not isinstance(batch, SampleBatch):
                raise TypeError(
                    f"MultiAgentBatch: policy {policy_id!r} has a {type(batch).__name__}, expected a SampleBatch"
                )
        self._batches = dict(policy_batches)
        self._env_steps = int(env_steps)

    @property
    def policy_batches(self) -> Mapping[PolicyID, SampleBatch]:
        """The batch of each policy."""
        return dict(self._batches)

    @property
    def env_steps(self) -> int:
        """Environment steps."""
        return self._env_steps

    @property
    def count(self) -> int:
        """`env_steps`: what train batch sizes are counted in."""
        return self._env_steps

    @property
    def agent_steps(self) -> int:
        """Valid rows of all policies together."""
        return sum(batch.count for batch in self._batches.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all stored arrays."""
        return sum(batch.size_bytes for batch in self._batches.values())

    def __getitem__(self, policy_id: PolicyID) -> SampleBatch:
        try:
            return self._batches[policy_id]
        except KeyError:
            raise KeyError(f"no policy {policy_id!r} in this batch, which has {sorted(self._batches)}") from None

    def __iter__(self) -> Iterator[PolicyID]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return MultiAgentBatch, (self._batches, self._env_steps)

    def __repr__(self) -> str:
        parts = [f"{policy_id!r}:\n{batch!r}" for policy_id, batch in self._batches.items()]
        return f"MultiAgentBatch(env_steps={self._env_steps}, {{" + ",\n".join(parts) + "})"

    def _repr_html_(self) -> str:
        head = f"<b>MultiAgentBatch: {self._env_steps:,} env steps, {len(self)} policies</b>"
        parts = [f"<p>{html.escape(str(name))}</p>{batch._repr_html_()}" for name, batch in self._batches.items()]
        return f"<div>{head}{''.join(parts)}</div>"

    def select(self, policy_ids: Iterable[PolicyID]) -> MultiAgentBatch:
        """The batches of `policy_ids` that are here; policies without rows in this batch are left out."""
        wanted = {policy_ids} if isinstance(policy_ids, str) else set(policy_ids)
        return MultiAgentBatch(
            {name: batch for name, batch in self._batches.items() if name in wanted}, self._env_steps
        )

    def map(self, fn: Callable[[SampleBatch], SampleBatch]) -> MultiAgentBatch:
        """Applies `fn` to each policy's batch."""
        return MultiAgentBatch({name: fn(batch) for name, batch in self._batches.items()}, self._env_steps)

    def wrap_as_needed(self) -> SampleBatch | MultiAgentBatch:
        """The plain SampleBatch if there is only the default policy, else `self`."""
        return self._batches[DEFAULT_POLICY_ID] if set(self._batches) == {DEFAULT_POLICY_ID} else self

    def timeslices(self, k: int) -> list[MultiAgentBatch]:
        """Slices of `k` steps in which all policies' rows are of the same times (lockstep).

        Time-major batches must have one T and are cut along it, `env_steps` shared out evenly. Flat ones are grouped by
        their columns `eps_id` and `t`, in order of first appearance, `k` environment steps to a slice.
        """
        if k < 1:
            raise ValueError(f"timeslices: expected at least 1 step, got {k}")
        if not self._batches:
            return []
        layouts = {batch.time_major for batch in self._batches.values()}
        if layouts == {True}:
            return self._slices_of_rectangle(k)
        if layouts == {False}:
            return self._slices_of_rows(k)
        raise ValueError("timeslices: some policies' batches are time-major and some flat; flatten() all of them first")

    def _slices_of_rectangle(self, k: int) -> list[MultiAgentBatch]:
        steps = {name: batch.T for name, batch in self._batches.items()}
        if len(set(steps.values())) != 1:
            raise ValueError(f"timeslices: time-major batches must have one T, got {steps}; pad_to the longest")
        total = next(iter(steps.values()))
        sliced = {name: batch.timeslices(k) for name, batch in self._batches.items()}
        shares = np.diff([self._env_steps * min(stop, total) // total for stop in range(0, total + k, k)])
        return [
            MultiAgentBatch({name: slices[i] for name, slices in sliced.items()}, int(share))
            for i, share in enumerate(shares[: -(-total // k)])
        ]

    def _slices_of_rows(self, k: int) -> list[MultiAgentBatch]:
        times: dict[tuple[int, int], int] = {}
        groups: dict[PolicyID, np.ndarray] = {}
        for name, batch in self._batches.items():
            episodes, steps, valid = (np.asarray(x) for x in (batch["eps_id"], batch["t"], batch.valid()))
            # Masked rows belong to no time: group -1.
            groups[name] = np.asarray(
                [
                    times.setdefault((int(e), int(t)), len(times)) // k if v else -1
                    for e, t, v in zip(episodes, steps, valid, strict=True)
                ]
            )
        out = []
        for number in range(-(-len(times) // k)):
            rows = {name: np.flatnonzero(group == number) for name, group in groups.items()}
            batches = {name: self._batches[name].take(index) for name, index in rows.items() if len(index)}
            out.append(MultiAgentBatch(batches, min(k, len(times) - number * k)))
        return out

    def to_numpy(self) -> MultiAgentBatch:
        """The same batches with NumPy arrays."""
        return self.map(SampleBatch.to_numpy)

    @staticmethod
    def concat(batches: Iterable[SampleBatch | MultiAgentBatch], length: int | None = None) -> MultiAgentBatch:
        """Joins per policy (a plain SampleBatch counts as the default policy's); `env_steps` add up.

        Args:
            batches: at least one; a policy may be missing in some.
            length: T to pad time-major batches to, see `SampleBatch.concat`.
        """
        parts = [as_multi_agent(batch) for batch in batches]
        if not parts:
            raise ValueError("concat: no batches to join; give at least one")
        names = dict.fromkeys(name for part in parts for name in part)
        joined = {name: SampleBatch.concat([part[name] for part in parts if name in part], length) for name in names}
        return MultiAgentBatch(joined, sum(part.env_steps for part in parts))


def as_multi_agent(batch: SampleBatch | MultiAgentBatch) -> MultiAgentBatch:
    """`batch` itself, or a SampleBatch as the default policy's with `env_steps = count`."""
    if isinstance(batch, MultiAgentBatch):
        return batch
    return MultiAgentBatch({DEFAULT_POLICY_ID: batch}, batch.count)


def concat_batches(
    batches: Iterable[SampleBatch | MultiAgentBatch], length: int | None = None
) -> SampleBatch | MultiAgentBatch:
    """Joins batches of either kind: a SampleBatch if all are plain, else a MultiAgentBatch.

    Args:
        batches: at least one.
        length: T to pad time-major batches to, see `SampleBatch.concat`.
    """
    plain: list[SampleBatch] = []
    batches = list(batches)
    for batch in batches:
        if isinstance(batch, SampleBatch):
            plain.append(batch)
    return SampleBatch.concat(plain, length) if len(plain) == len(batches) else MultiAgentBatch.concat(batches, length)


def _encode_multi_agent(batch: MultiAgentBatch) -> dict[str, Any]:
    return {"policy_batches": dict(batch), "env_steps": batch.env_steps}


trees.register_codec(
    MultiAgentBatch,
    to_tree=_encode_multi_agent,
    from_tree=lambda tree: MultiAgentBatch(tree["policy_batches"], tree["env_steps"]),
)
