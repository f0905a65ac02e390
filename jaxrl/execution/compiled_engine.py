"""CompiledEngine: runs a plan as one compiled program, an iteration's rounds at a time.

`compiled_rounds` puts it in the place of a plan's nodes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl import trees
from jaxrl.envs.jax_native import JaxEnv, check_jax_env
from jaxrl.execution.compiled_form import Turn, World
from jaxrl.execution.compiled_plan import CompiledPlan, Example, RoundOutput, compile_plan
from jaxrl.execution.context import PlanContext
from jaxrl.execution.device_memory import check_memory
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import random_unit
from jaxrl.execution.programs import Building, ProgramCost
from jaxrl.policies import DATA_AXIS
from jaxrl.rollout.compiled_rollouts import CompiledRollouts, compiled_rollouts
from jaxrl.types import CannotCompileError, ConfigError

# Keys of learners, and those of sampling and replay, are told apart.
_LEARNER_KEY = 2**20
_WORLD_KEY = 2**21
# Fractional numbers of pulls are rounded alike in all runs, whatever their seeds: members of a population share turns.
FIRST_DRAWS = 0
_KEY = jax.eval_shape(jax.random.key, 0)


class CompiledEngine:
    """The sampling and learning of a plan as one jitted program; made by `compiled_engine`.

    Args:
        ctx: the plan's context, of one learner.
        plan: the plan.
        env: the environment.

    Attributes:
        rollouts, plan: the pure parts.
        rounds: rounds of the plan in one call of the program.
        costs: what the programs cost, by name, once they are compiled.
        shapes: of the world that a run saves: without those of learner and memory.
        world_bytes: bytes of all that one run holds.

    Raises:
        CannotCompileError: something that a compiled program cannot hold, by name.
    """

    def __init__(self, ctx: PlanContext, plan: LocalIterator, env: JaxEnv):
        if len(ctx.learners) != 1:
            raise CannotCompileError.of(f"it holds one policy, got {sorted(ctx.learners)}", "Train one")
        check_jax_env(env)
        ((self.policy_id, self.learner),) = ctx.learners.items()
        self.ctx, self.env = ctx, env
        self.policy = self.learner.policy
        self.rollouts: CompiledRollouts = compiled_rollouts(env, self.policy, ctx.config)
        forms = [getattr(node, "operator", None) for node in plan.nodes()]
        self._asked = [op.compiled.controls for op in forms if op and op.compiled and op.compiled.controls]
        train = jax.eval_shape(self.policy.init, _KEY)
        self._world_shapes = jax.eval_shape(self._init_world, _KEY, train)
        example = self._example_turns()
        turn = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), example)
        self.plan: CompiledPlan = compile_plan(plan.node, self.rollouts, Example(self._world_shapes, turn))
        self._world_shapes = self._world_shapes._replace(ops=jax.eval_shape(self.plan.init_ops))
        self.steps_per_round = self.plan.schedule.fragments * self.rollouts.length * self.rollouts.width
        self.rounds = max(1, math.ceil(ctx.config.timesteps_per_iteration / self.steps_per_round))
        self._turn_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.rounds, *x.shape), x.dtype), turn)
        self.costs: dict[str, ProgramCost] = {}
        self._program: Any = None
        self._iteration: Building | None = None
        self._rest_shapes = self._world_shapes._replace(train=())
        self.shapes = self._rest_shapes._replace(memory=())
        self.world_bytes = trees.size_bytes(self._world_shapes)
        if ctx.memory is not None:
            ctx.memory.device_shapes = self._world_shapes.memory

    # ---- pure parts

    def _init_world(self, key: Any, train: Any) -> World:
        """A run's beginning but for the states of operators."""
        env_key, key = jax.random.split(key)
        rollouts = self.rollouts.init(env_key)
        memory = self._empty_memory(train, rollouts, key)
        return World(train, rollouts, memory, {}, key)

    def _empty_memory(self, train: Any, rollouts: Any, key: Any) -> Any:
        if self.ctx.memory is None:
            return ()
        shapes = jax.eval_shape(self.rollouts.sample, train.weights, rollouts, key, jnp.int32(0))[1]
        return self.ctx.memory.compiled.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    def init(self, key: Any, train: Any) -> World:
        """A run's beginning, pure.

        Args:
            key: the run's key.
            train: the learner's TrainState.
        """
        world = self._init_world(jax.random.fold_in(key, _WORLD_KEY), train)
        return world._replace(ops=self.plan.init_ops())

    def begin(self, key: Any, coeffs: Mapping[str, Any] | None = None) -> World:
        """A run's beginning, its learner's too, pure.

        Args:
            key: the run's key.
            coeffs: of its learner, by name, in place of the policy's own values.
        """
        train = self.policy.init(_learners_own(key, 0))
        return self.init(key, train.replace(coeffs={**train.coeffs, **(coeffs or {})}))

    def rows_trained(self, sampled: int, pulls: int) -> int:
        """Rows that were learned from, given the env steps that were sampled and how often the memory was pulled."""
        return sampled if self.plan.schedule.pulls is None else pulls * self.plan.schedule.batch_rows()

    # ---- turns

    def _example_turns(self) -> Turn:
        zeros = np.zeros(1, np.float32)
        coeffs, controls = (dict.fromkeys(names, zeros) for names in (self.policy.spec.schedules, self._controls(0)))
        unsigned, signed = np.zeros(1, np.uint32), np.zeros(1, np.int32)
        return Turn(unsigned, signed, unsigned, signed, coeffs, controls)

    def _controls(self, timestep: int) -> dict[str, float]:
        return {name: value for ask in self._asked for name, value in ask(timestep).items()}

    def turns(self, first: int, sampled: int, draws: int, filled_from: int = 0) -> tuple[Turn, int]:
        """What the host knows of the next rounds.

        Args:
            first: rounds before them.
            sampled: env steps sampled before them.
            draws: state of the random number generator that rounds fractional numbers of updates.
            filled_from: rounds before the memory was made.

        Returns:
            The turns, stacked, and the generator's next state.
        """
        schedule, schedules = self.plan.schedule, self.policy.spec.schedules
        number = first + np.arange(self.rounds, dtype=np.int64)
        before = sampled + np.arange(self.rounds, dtype=np.int64) * self.steps_per_round
        after = before + self.steps_per_round
        pulls = np.ones(self.rounds, np.int32)
        if schedule.pulls is not None:
            first_learning = filled_from + self.rounds_before_learning()
            for i in range(self.rounds):
                draws, unit = random_unit(draws)
                pulls[i] = int(schedule.pulls) + (unit < schedule.pulls % 1) if number[i] >= first_learning else 0
        asked = [self._controls(int(t)) for t in after] if self._asked else []
        turns = Turn(
            number.astype(np.uint32),
            (number * schedule.fragments * self.rollouts.length).astype(np.int32),
            after.astype(np.uint32),
            pulls,
            {name: np.array([each(int(t)) for t in before], np.float32) for name, each in schedules.items()},
            {name: np.array([each[name] for each in asked], np.float32) for name in (asked[0] if asked else {})},
        )
        return turns, draws

    def rounds_before_learning(self) -> int:
        """Rounds that only store, until the memory holds `learning_starts` rows."""
        if self.ctx.memory is None:
            return 0
        return math.ceil(max(1, self.ctx.memory.learning_starts) / self.steps_per_round) - 1

    # ---- running

    def start(self) -> list[Any]:
        """The leaves of a fresh run's world but for the learner's state."""
        check_memory(self._world_shapes, "the environments, the replay memory and the learner of this run")
        key = jax.random.key(self.ctx.config.seed)
        made = (self.learner.state,) if self.learner.has_state else ()
        with self._on_devices(), futures.ThreadPoolExecutor(1) as pool:
            if self._program is None and self.learner.mesh is None:
                # Compiling leaves Python free: in its time the beginning is traced, compiled and run.
                self._iteration = self._build(self._world_shapes.train, self._rest_shapes, self._turn_shapes)
                compiled = pool.submit(self._iteration.compile)
            else:
                compiled = None
            jitted = jax.jit(self.init if made else self.begin)
            program, self.costs["init"] = Building("init", jitted, key, *made, runs_once=True).done()
            world = program(key, *made)
            if compiled is not None:
                compiled.result()
        if not made:
            self.learner.state = world.train
        world = self._placed(world._replace(train=()))
        if self.ctx.memory is not None:
            self.ctx.memory.on_device = world.memory
        return jax.tree.leaves(world._replace(memory=()))

    def fill_anew(self, leaves: list[Any]) -> None:
        """Makes an empty memory for a run that is restored without its contents."""
        memory = self.ctx.memory
        assert memory is not None
        rest = jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)
        made = jax.jit(self._empty_memory)(self.learner.state, rest.rollouts, rest.key)
        memory.on_device = self._placed(rest._replace(memory=made)).memory

    def run(self, leaves: list[Any], turns: Turn) -> tuple[list[Any], RoundOutput]:
        """The rounds that `turns` describes; learner and memory have the states after them.

        Args:
            leaves: of the world, without those of learner and memory; given up.
            turns: see `turns`.
        """
        memory = self.ctx.memory
        rest = jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)
        if memory is not None:
            rest = rest._replace(memory=memory.on_device)

        arguments = (self.learner.state, rest, turns)
        if self._program is None:
            with self._on_devices():
                building, self._iteration = self._iteration or self._build(*arguments), None
                self._program, self.costs["iteration"] = building.done()
        with self._on_devices():
            train, rest, out = self._program(*arguments)
        self.learner.state = train
        if memory is not None:
            memory.on_device = rest.memory
        return jax.tree.leaves(rest._replace(memory=())), out

    def _build(self, train: Any, rest: World, turns: Turn) -> Building:
        """The program of an iteration for arrays, or shapes, of `(learner, rest of the world, turns)`."""

        def rounds(train: Any, rest: World, turns: Turn) -> tuple[Any, World, RoundOutput]:
            world, out = self.plan.run(rest._replace(train=train), turns)
            return world.train, world._replace(train=()), out

        options: dict[str, Any] = {"donate_argnums": 1}
        if self.learner.mesh is not None:
            options["out_shardings"] = (*jax.tree.map(lambda x: x.sharding, (train, rest)), None)
        return Building("iteration", jax.jit(rounds, **options), train, rest, turns)

    # ---- devices

    def _on_devices(self) -> Any:
        mesh = self.learner.mesh
        return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)

    def _placed(self, rest: World) -> World:
        """Spreads the environments over the devices that learn."""
        mesh = self.learner.mesh
        if mesh is None:
            return rest
        if self.rollouts.width % mesh.size:
            raise ConfigError(
                f"num_learner_devices={mesh.size}: {self.rollouts.width} environments do not divide among the "
                "devices; choose num_envs_per_worker divisible by it."
            )
        everywhere, spread = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(DATA_AXIS)))

        def place(x: Any) -> Any:
            return jax.device_put(x, spread if x.ndim and x.shape[0] == self.rollouts.width else everywhere)

        rollouts = jax.tree.map(place, rest.rollouts)
        others = jax.tree.map(lambda x: jax.device_put(x, everywhere), rest._replace(rollouts=()))
        return others._replace(rollouts=rollouts)


def learner_key(seed: Any, index: int = 0) -> Any:
    """The key of a run's `index`-th learner.

    Args:
        seed: of the run.
        index: of the learner.
    """
    return _learners_own(jax.random.key(seed), index)


def _learners_own(key: Any, index: int) -> Any:
    return jax.random.fold_in(key, _LEARNER_KEY + index)
