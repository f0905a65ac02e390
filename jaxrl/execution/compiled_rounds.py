"""CompiledRounds: the node that runs the compiled part of a plan, and its state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.jax_native import JaxEnv
from jaxrl.execution.compiled_engine import FIRST_DRAWS, CompiledEngine
from jaxrl.execution.compiled_form import World
from jaxrl.execution.compiled_plan import RoundOutput
from jaxrl.execution.context import AGENT_STEPS_SAMPLED, AGENT_STEPS_TRAINED, STEPS_SAMPLED, STEPS_TRAINED, PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator, Source
from jaxrl.rollout.compiled_rollouts import Played
from jaxrl.rollout.compiled_workers import CompiledWorkers
from jaxrl.types import CheckpointError, NonFiniteError

COMPILED_ROUNDS = "CompiledRounds"
"""What the node of a compiled program is called; in brackets, the rounds of an iteration."""


class _Rounds:
    """`apply` and `init` of the operator that runs the compiled part of a plan."""

    def __init__(self, engine: CompiledEngine, workers: CompiledWorkers):
        self.engine, self.workers = engine, workers

    def init(self) -> dict[str, Any]:
        return {"rounds": 0, "draws": FIRST_DRAWS, "filled_from": 0, "world": []}

    def __call__(self, state: dict[str, Any], _: Any) -> tuple[dict[str, Any], Any]:
        engine, ctx = self.engine, self.engine.ctx
        if state["world"]:
            leaves = _checked(state["world"], engine)
        else:
            kept = None if ctx.memory is None else ctx.memory.on_device
            leaves, state["filled_from"] = engine.start(), state["rounds"]
            if kept is not None and ctx.memory is not None:  # of a checkpoint whose environments are not gone on with
                ctx.memory.on_device = kept
        if ctx.memory is not None and ctx.memory.on_device is None:
            engine.fill_anew(leaves)
            state["filled_from"] = state["rounds"]
        turns, draws = engine.turns(state["rounds"], ctx.counters[STEPS_SAMPLED], state["draws"], state["filled_from"])
        timer = ctx.timer("compiled")
        before = engine.learner.state
        with timer:
            leaves, out = engine.run(leaves, turns)
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
            trained = engine.rows_trained(steps, int(turns.pulls.sum()))
            ctx.counters[STEPS_TRAINED] += trained
            ctx.counters[AGENT_STEPS_TRAINED] += trained
            self._tell(out, learned, before)
        self.workers.add(played)
        return state, None

    def _tell(self, out: RoundOutput, learned: np.ndarray, before: Any) -> None:
        engine = self.engine
        values = np.asarray(out.metrics.values)[learned]
        finite = np.isfinite(values).all(axis=1)
        shown = values[-1 if finite.all() else int(np.argmin(finite))]
        try:
            info = engine.learner.checked(out.metrics._replace(values=shown).unpack())
        except NonFiniteError:
            engine.learner.state = before
            raise
        engine.ctx.learner_info[engine.policy_id] = info


class CompiledRounds(Source):
    """Stands in a plan for all that is compiled, and shows the names of the nodes that it takes the place of."""

    def __init__(self, engine: CompiledEngine, workers: CompiledWorkers):
        rounds = _Rounds(engine, workers)
        super().__init__(Operator(f"{COMPILED_ROUNDS}({engine.rounds})", rounds, init=rounds.init, host_only=True))
        self._detail = ", ".join(engine.plan.names)

    def detail(self) -> str:
        """The nodes that are compiled, in the order in which they run."""
        return self._detail


def _checked(leaves: list[Any], engine: CompiledEngine) -> list[Any]:
    """A world's leaves as device arrays, after a look at their shapes where they come from a checkpoint."""
    if not world_fits(leaves, engine):
        raise CheckpointError(
            "the saved state of the compiled program does not fit: it was made with another environment, policy or "
            "number of environments."
        )
    return jax.tree.map(jnp.asarray, leaves)


def world_fits(leaves: list[Any], engine: CompiledEngine) -> bool:
    """Whether the saved leaves of a world have the shapes of an engine's."""
    shapes = jax.tree.leaves(engine.shapes)
    return len(leaves) == len(shapes) and all(
        (tuple(x.shape), x.dtype) == (s.shape, s.dtype) for x, s in zip(leaves, shapes, strict=True)
    )


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
    engine.plan.tail.inputs = (CompiledRounds(engine, workers),)
    return engine


class Progress(NamedTuple):
    """How far a run of a compiled plan is.

    Attributes:
        rounds: rounds behind it.
        pulls: how often its memory's branch was pulled in them.
        draws: state of the random number generator that rounds fractional numbers of pulls.
    """

    rounds: int
    pulls: int
    draws: int


def adopt_world(ctx: PlanContext, plan: LocalIterator, engine: CompiledEngine, world: World, behind: Progress) -> None:
    """Makes a plan go on from another world: learner, environments, counters.

    Args:
        ctx, plan, engine: of the plan that goes on.
        world: of a member of a population, say.
        behind: how far that world is.
    """
    (source,) = (node for node in plan.nodes() if isinstance(node, CompiledRounds))
    sampled = behind.rounds * engine.steps_per_round
    engine.learner.state = world.train
    leaves = jax.tree.leaves(world._replace(train=(), memory=()))
    source.state = {**source.state, "rounds": behind.rounds, "draws": behind.draws, "world": leaves}
    if ctx.memory is not None:
        ctx.memory.on_device = world.memory
    for names, count in (
        ((STEPS_SAMPLED, AGENT_STEPS_SAMPLED), sampled),
        ((STEPS_TRAINED, AGENT_STEPS_TRAINED), engine.rows_trained(sampled, behind.pulls)),
    ):
        for name in names:
            ctx.counters[name] = count
