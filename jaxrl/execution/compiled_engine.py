"""CompiledEngine: runs a plan as one compiled program, an iteration's rounds at a time."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl.envs.jax_native import JaxEnv
from jaxrl.execution.compiled_form import Turn, World
from jaxrl.execution.compiled_plan import CompiledPlan, Example, RoundOutput, compile_plan
from jaxrl.execution.context import AGENT_STEPS_SAMPLED, AGENT_STEPS_TRAINED, STEPS_SAMPLED, STEPS_TRAINED, PlanContext
from jaxrl.execution.device_memory import check_memory
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator, Source, random_unit
from jaxrl.policies import DATA_AXIS
from jaxrl.rollout.compiled_rollouts import CompiledRollouts, Played, compiled_rollouts
from jaxrl.rollout.compiled_workers import CompiledWorkers
from jaxrl.types import CheckpointError, ConfigError, NonFiniteError

# Keys of sampling and replay are told apart from those of learners.
_WORLD_KEY = 2**21


class ProgramCost(NamedTuple):
    """What a compiled program costs: seconds to trace and to compile, bytes on the device while it runs."""

    trace_s: float
    compile_s: float
    memory_bytes: int


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

    Raises:
        ConfigError: something that a compiled program cannot hold, by name.
    """

    def __init__(self, ctx: PlanContext, plan: LocalIterator, env: JaxEnv):
        if len(ctx.learners) != 1:
            raise ConfigError(f"engine='compiled': expected one policy, got {sorted(ctx.learners)}.")
        ((self.policy_id, self.learner),) = ctx.learners.items()
        self.ctx, self.env = ctx, env
        self.policy = self.learner.policy
        self.rollouts: CompiledRollouts = compiled_rollouts(env, self.policy, ctx.config)
        train = jax.eval_shape(lambda: self.learner.state)
        self._world_shapes = jax.eval_shape(self._init_world, jax.random.key(0), train)
        turn = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._example_turns())
        self.plan: CompiledPlan = compile_plan(plan.node, self.rollouts, Example(self._world_shapes, turn))
        self._world_shapes = self._world_shapes._replace(ops=jax.eval_shape(self.plan.init_ops))
        self.steps_per_round = self.plan.schedule.fragments * self.rollouts.length * self.rollouts.width
        self.rounds = max(1, math.ceil(ctx.config.timesteps_per_iteration / self.steps_per_round))
        self.costs: dict[str, ProgramCost] = {}
        self._program: Any = None

    # ---- pure parts

    def _init_world(self, key: Any, train: Any) -> World:
        """A run's beginning but for the states of operators."""
        env_key, key = jax.random.split(key)
        rollouts, memory = self.rollouts.init(env_key), ()
        if self.ctx.memory is not None:
            shapes = jax.eval_shape(self.rollouts.sample, train.weights, rollouts, key, jnp.int32(0))[1]
            memory = self.ctx.memory.compiled.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        return World(train, rollouts, memory, {}, key)

    def init(self, key: Any, train: Any) -> World:
        """A run's beginning, pure.

        Args:
            key: the run's key.
            train: the learner's TrainState.
        """
        world = self._init_world(jax.random.fold_in(key, _WORLD_KEY), train)
        return world._replace(ops=self.plan.init_ops())

    # ---- turns

    def _example_turns(self) -> Turn:
        names = self.ctx.memory is not None
        zeros = np.zeros(1, np.float32)
        coeffs = dict.fromkeys(self.policy.spec.schedules, zeros)
        controls = {"beta": zeros} if names else {}
        return Turn(*(np.zeros(1, t) for t in (np.uint32, np.int32, np.uint32, np.int32)), coeffs, controls)

    def turns(self, first: int, sampled: int, draws: int) -> tuple[Turn, int]:
        """What the host knows of the next rounds.

        Args:
            first: rounds before them.
            sampled: env steps sampled before them.
            draws: state of the random number generator that rounds fractional numbers of updates.

        Returns:
            The turns, stacked, and the generator's next state.
        """
        schedule, schedules = self.plan.schedule, self.policy.spec.schedules
        number = first + np.arange(self.rounds, dtype=np.int64)
        before = sampled + np.arange(self.rounds, dtype=np.int64) * self.steps_per_round
        after = before + self.steps_per_round
        pulls = np.ones(self.rounds, np.int32)
        if schedule.pulls is not None:
            memory = self.ctx.memory
            assert memory is not None
            # Everything stored since the memory began, which is with the first round of this engine.
            ready = (number + 1) * self.steps_per_round >= max(1, memory.learning_starts)
            for i in range(self.rounds):
                draws, unit = random_unit(draws)
                pulls[i] = int(schedule.pulls) + (unit < schedule.pulls % 1) if ready[i] else 0
        asked = [schedule.controls(int(t)) for t in after] if self.ctx.memory is not None else []
        turns = Turn(
            number.astype(np.uint32),
            (number * schedule.fragments * self.rollouts.length).astype(np.int32),
            after.astype(np.uint32),
            pulls,
            {name: np.array([each(int(t)) for t in before], np.float32) for name, each in schedules.items()},
            {name: np.array([each[name] for each in asked], np.float32) for name in (asked[0] if asked else {})},
        )
        return turns, draws

    # ---- running

    def start(self) -> list[Any]:
        """The leaves of a fresh run's world but for the learner's state."""
        check_memory(self._world_shapes, "the environments, the replay memory and the learner of this run")
        world = self._compiled("init", jax.jit(self.init), jax.random.key(self.ctx.config.seed), self.learner.state)
        return jax.tree.leaves(self._placed(world._replace(train=())))

    def run(self, leaves: list[Any], turns: Turn) -> tuple[list[Any], RoundOutput]:
        """The rounds that `turns` describes; the learner has the state after them.

        Args:
            leaves: of the world, without the learner's state; given up.
            turns: see `turns`.
        """
        template = self._world_shapes._replace(train=())
        rest = jax.tree.unflatten(jax.tree.structure(template), leaves)

        def rounds(train: Any, rest: World, turns: Turn) -> tuple[Any, World, RoundOutput]:
            world, out = self.plan.run(rest._replace(train=train), turns)
            return world.train, world._replace(train=()), out

        arguments = (self.learner.state, rest, turns)
        if self._program is None:
            placed = None if self.learner.mesh is None else jax.tree.map(lambda x: x.sharding, arguments[:2])
            jitted = jax.jit(rounds, donate_argnums=1, **({} if placed is None else {"out_shardings": (*placed, None)}))
            self._program = self._build("iteration", jitted, *arguments)
        with self._on_devices():
            train, rest, out = self._program(*arguments)
        self.learner.state = train
        return jax.tree.leaves(rest), out

    def _compiled(self, name: str, jitted: Any, *arguments: Any) -> Any:
        return self._build(name, jitted, *arguments)(*arguments)

    def _build(self, name: str, jitted: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        with self._on_devices():
            lowered = jitted.lower(*arguments)
            traced = time.perf_counter()
            program = lowered.compile()
        used = program.memory_analysis()
        total = 0
        if used is not None:
            total = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
            total -= used.alias_size_in_bytes
        self.costs[name] = ProgramCost(traced - began, time.perf_counter() - traced, int(total))
        check_memory(total, f"the program {name!r}")
        return program

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


class _Rounds:
    """`apply` and `init` of the operator that stands in the plan for all that is compiled."""

    def __init__(self, engine: CompiledEngine, workers: CompiledWorkers):
        self.engine, self.workers = engine, workers

    def init(self) -> dict[str, Any]:
        return {"rounds": 0, "draws": int(self.engine.ctx.config.seed or 0), "world": []}

    def __call__(self, state: dict[str, Any], _: Any) -> tuple[dict[str, Any], Any]:
        engine, ctx = self.engine, self.engine.ctx
        leaves = state["world"] or engine.start()
        turns, draws = engine.turns(state["rounds"], ctx.counters[STEPS_SAMPLED], state["draws"])
        timer = ctx.timer("compiled")
        before = engine.learner.state
        with timer:
            leaves, out = engine.run(_checked(leaves, engine), turns)
            jax.block_until_ready(out)
        played = Played(*(np.asarray(x).reshape(-1, engine.rollouts.width) for x in out.played))
        steps = played.rewards.size
        timer.push_units_processed(steps)
        # In place: what was given up must not be found again, whatever goes wrong from here on.
        state["world"], state["rounds"], state["draws"] = leaves, state["rounds"] + engine.rounds, draws
        ctx.counters[STEPS_SAMPLED] += steps
        ctx.counters[AGENT_STEPS_SAMPLED] += steps
        learned = np.flatnonzero(turns.pulls)
        if len(learned):
            trained = (
                steps
                if engine.plan.schedule.pulls is None
                else int(turns.pulls.sum()) * engine.plan.schedule.batch_rows()
            )
            ctx.counters[STEPS_TRAINED] += trained
            ctx.counters[AGENT_STEPS_TRAINED] += trained
            self._tell(out, learned, before)
        self.workers.add(played)
        return state, None

    def _tell(self, out: RoundOutput, learned: np.ndarray, before: Any) -> None:
        engine = self.engine
        metrics = {name: np.asarray(value)[learned] for name, value in out.metrics.items()}
        finite = np.all([np.isfinite(value) for value in metrics.values()], axis=0)
        shown = -1 if finite.all() else int(np.argmin(finite))
        try:
            info = engine.learner.checked({name: value[shown] for name, value in metrics.items()})
        except NonFiniteError:
            engine.learner.state = before
            raise
        engine.ctx.learner_info[engine.policy_id] = info


def _checked(leaves: list[Any], engine: CompiledEngine) -> list[Any]:
    """A world's leaves as device arrays, after a look at their shapes where they come from a checkpoint."""
    shapes = jax.tree.leaves(engine._world_shapes._replace(train=()))
    if len(leaves) != len(shapes) or any(
        (tuple(x.shape), x.dtype) != (s.shape, s.dtype) for x, s in zip(leaves, shapes, strict=False)
    ):
        raise CheckpointError(
            "the saved state of the compiled program does not fit: it was made with another environment, policy or "
            "number of environments."
        )
    return leaves


def compiled_engine(ctx: PlanContext, plan: LocalIterator, env: JaxEnv, workers: CompiledWorkers) -> CompiledEngine:
    """Puts a compiled program in the place of a plan's sampling and learning.

    Args:
        ctx: the plan's context.
        plan: the plan; what its results are made by stays.
        env: the environment.
        workers: stands for the workers.

    Raises:
        ConfigError: the plan, the policy or the options do not compile; says what.
    """
    engine = CompiledEngine(ctx, plan, env)
    rounds = _Rounds(engine, workers)
    source = Source(Operator(f"CompiledRounds({engine.rounds})", rounds, init=rounds.init, host_only=True))
    engine.plan.tail.inputs = (source,)
    return engine
