"""What operators are within a compiled program: pure functions of a world, which holds all that a run changes.

An operator that maps batches is traced as it stands. One that touches workers, learners or counters on the host may
have a compiled form beside it; the compiled engine puts that in its place, and refuses a plan with an operator that has
none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrl.types import Array, PyTree


class World(NamedTuple):
    """All that one run changes, as a pytree; a population's has a leading axis of members.

    Attributes:
        train: the learner's TrainState.
        rollouts: where the environments stand.
        memory: state of the replay buffer; `()` without one.
        ops: states of the operators by their number in the plan.
        key: PRNG key of sampling and replay; each round folds its number in, the key itself never changes.
    """

    train: Any
    rollouts: Any
    memory: PyTree
    ops: Mapping[str, PyTree]
    key: Array


class Turn(NamedTuple):
    """What the host knows beforehand of one round, the same for all members of a population; arrays of either side.

    Attributes:
        number: rounds before this one, uint32; folded into keys.
        step: number of the round's first vector step, int32.
        sampled: env steps sampled when the round's rollouts are done, uint32 (it wraps around: compare differences).
        pulls: how often the plan that learns from the memory is pulled, int32; 1 where there is no memory.
        coeffs: values of the coeffs that have schedules.
        controls: further numbers by name that operators ask for (`CompiledForm.controls`).
    """

    number: Any
    step: Any
    sampled: Any
    pulls: Any
    coeffs: Mapping[str, Any]
    controls: Mapping[str, Any]


class Trained(NamedTuple):
    """What learning gives within a compiled program: the batch, metrics, and one value per row of the batch."""

    batch: Any
    metrics: Mapping[str, Array]
    rows: Mapping[str, Array]


class CompiledForm(NamedTuple):
    """An operator within a compiled program.

    Attributes:
        apply: `(turn, world, state, item, key) -> (world, state, item)`, pure; `key` is for this call alone.
        init: `() -> state`, a pytree of arrays.
        controls: `(env steps sampled) -> numbers by name`, evaluated on the host for each round; None: none.
    """

    apply: Callable[[Turn, World, Any, Any, Any], tuple[World, Any, Any]]
    init: Callable[[], PyTree] = tuple
    controls: Callable[[int], Mapping[str, float]] | None = None


def passes(turn: Turn, world: World, state: Any, item: Any, key: Any) -> tuple[World, Any, Any]:
    """`apply` of an operator that has nothing to do within a compiled program: the engine does it between rounds."""
    del turn, key
    return world, state, item
