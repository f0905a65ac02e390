"""A population: many runs of one plan, over seeds and coeffs, as one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl.execution.compiled_engine import FIRST_DRAWS, CompiledEngine
from jaxrl.execution.compiled_form import Turn, World
from jaxrl.execution.compiled_plan import RoundOutput
from jaxrl.execution.compiled_rounds import Progress
from jaxrl.execution.device_memory import check_memory
from jaxrl.execution.programs import Building
from jaxrl.types import ConfigError

_AXIS = "members"
_TOGETHER = 8


class Population:
    """The worlds of many runs, stacked on a leading axis of members.

    Members differ in their seeds and in coeffs, which are numbers within the program: it is compiled once, whatever
    their values. Where there are several devices that divide the members, each gets a share.

    Args:
        engine: of the plan that all of them run.
        seeds: of each member.
        coeffs: values of coeffs by name, one for each member.

    Attributes:
        world: the stacked worlds, once `start` has made them.
        size: members.
        costs: what the programs cost, by name.

    Raises:
        ConfigError: a coeff that the policy does not have, or that a schedule sets.
    """

    def __init__(self, engine: CompiledEngine, seeds: Sequence[int], coeffs: Mapping[str, Sequence[float]]):
        spec = engine.policy.spec
        for name in coeffs:
            if name not in spec.coeffs:
                raise ConfigError(f"coeffs: policy {spec.name!r} has no {name!r}; it has {sorted(spec.coeffs)}.")
            if name in spec.schedules:
                raise ConfigError(f"coeffs: a schedule sets {name!r}, so members cannot differ in it; give a number.")
        if engine.learner.mesh is not None:
            raise ConfigError("a population shares the devices out among its members; set num_learner_devices=1.")
        self.engine, self.size = engine, len(seeds)
        self._seeds = np.asarray(seeds, np.uint32)
        self._coeffs = {name: np.asarray(values, np.float32) for name, values in coeffs.items()}
        self._mesh = _mesh(self.size)
        self.costs: dict[str, Any] = {}
        self._program: Any = None
        self.rounds = self.pulls = 0
        self.draws = FIRST_DRAWS
        self.sampled = 0
        self.world: Any = None

    @property
    def is_whole(self) -> bool:
        """Whether there are worlds: none before `start`, nor after an iteration was broken off."""
        return self.world is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.world))

    @property
    def progress(self) -> Progress:
        """How far each member is."""
        return Progress(self.rounds, self.pulls, self.draws)

    def start(self) -> None:
        """Makes the members.

        Raises:
            ConfigError: there is not the memory for them, with what they need and what there is.
        """

        def members(seeds: Any, coeffs: Any) -> World:
            # One after the other: several decompositions at once, as orthogonal weights want, can hang XLA's CPU
            # threads.
            return jax.lax.map(lambda each: self.engine.begin(jax.random.key(each[0]), each[1]), (seeds, coeffs))

        given = (jnp.asarray(self._seeds), {name: jnp.asarray(values) for name, values in self._coeffs.items()})
        check_memory(jax.eval_shape(members, *given), f"a population of {self.size} members")
        program, self.costs["init"] = Building("init", jax.jit(members), *given, runs_once=True).done()
        self.world = self._placed(program(*given))

    def run(self) -> tuple[RoundOutput, Turn]:
        """One iteration of every member.

        Returns:
            What its rounds tell, leaves `[members, rounds, ...]`, and their turns.
        """
        if self.world is None:
            self.start()
        turns, self.draws = self.engine.turns(self.rounds, self.sampled, self.draws)
        if self._program is None:
            run = over_members(self.engine.plan.run, self.size // (1 if self._mesh is None else self._mesh.size))
            if self._mesh is not None:
                members = PartitionSpec(_AXIS)
                run = jax.shard_map(
                    run, mesh=self._mesh, in_specs=(members, PartitionSpec()), out_specs=members, check_vma=False
                )
            jitted = jax.jit(run, donate_argnums=0)
            self._program, self.costs["iteration"] = Building("iteration", jitted, self.world, turns).done()
        self.world, out = self._program(self.world, turns)
        self.rounds += self.engine.rounds
        self.pulls += int(turns.pulls.sum())
        self.sampled += self.engine.rounds * self.engine.steps_per_round
        return out, turns

    def coeffs(self) -> dict[str, np.ndarray]:
        """The current coeffs of every member, by name."""
        return {name: np.asarray(values) for name, values in self.world.train.coeffs.items()}

    def evolve(self, parents: Sequence[int], coeffs: Mapping[str, np.ndarray]) -> None:
        """Members go on from what others have learned; environments and keys stay their own.

        Args:
            parents: for each member, the one whose learner's state it takes (itself: it keeps its own).
            coeffs: new values by name, for each member.
        """
        new = {name: np.asarray(values, np.float32) for name, values in coeffs.items()}
        train = _inherited(self.world.train, np.asarray(parents, np.int32), new)
        self.world = self._placed(self.world._replace(train=train))

    def member(self, index: int) -> World:
        """The world of one member."""
        return jax.tree.map(lambda x: x[index], self.world)

    def _placed(self, world: World) -> World:
        return world if self._mesh is None else jax.device_put(world, NamedSharding(self._mesh, PartitionSpec(_AXIS)))


def over_members(run: Callable[[World, Turn], Any], size: int) -> Callable[[World, Turn], Any]:
    """`run` for `size` members on one device: all at once, or on a CPU a few at a time.

    There the working set of some members stays in the caches, that of many does not: 64 members of PPO on CartPole take
    4.4 ms each an update all at once, 3.8 in eights.

    Args:
        run: `(world, turns) -> (world, output)` of one member.
        size: members.
    """
    together = size
    if jax.default_backend() == "cpu" and size > _TOGETHER:
        together = max(n for n in range(1, _TOGETHER + 1) if size % n == 0)
    if together in (1, size):
        return jax.vmap(run, in_axes=(0, None))
    return lambda world, turns: jax.lax.map(lambda one: run(one, turns), world, batch_size=together)


@jax.jit
def _inherited(train: Any, parents: Any, coeffs: Mapping[str, Any]) -> Any:
    # Keys stay those of the members' own seeds, whoever's weights they have.
    taken = jax.tree.map(lambda x: x[parents], train.replace(key=()))
    return taken.replace(coeffs={**taken.coeffs, **coeffs}, key=train.key)


def _mesh(size: int) -> Mesh | None:
    """As many devices as divide the members; None: the default device alone."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    return None if count == 1 else Mesh(np.array(devices[:count]), (_AXIS,))
