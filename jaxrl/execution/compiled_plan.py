"""From a plan to one pure function: a round of sampling and learning, and the scan over rounds.

The plan is the one that the algorithm wrote. Its nodes are traced in the order in which the plan would be pulled:
rollouts become `CompiledRollouts.sample`, pure operators stay as they are, host-only ones are replaced by their
compiled form. What stands behind the last of them and looks at counters and clocks alone (the cut into iterations, the
results) stays on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.execution.branches import Select, Union
from jaxrl.execution.compiled_form import CompiledForm, Trained, Turn, World
from jaxrl.execution.nodes import ForEach, Node, Operator, Source
from jaxrl.execution.shards import LocalGather
from jaxrl.policies.scalars import Scalars
from jaxrl.rollout.compiled_rollouts import CompiledRollouts, Played
from jaxrl.types import Array, CannotCompileError, PyTree

# What the keys of pulls of the memory's branch fold in, which is no number of a vector step, nor an operator's.
_PULLS = 2**31 + 2**21

# A node within the trace of a round: `(turn, world, told) -> (world, item)`.
Pull = Callable[[Turn, World, "_Told"], tuple[World, Any]]


class RoundOutput(NamedTuple):
    """What a round tells the host.

    Attributes:
        played: rewards and ends of its rollouts `[k * T, B]`.
        metrics: of its last learning; zeros where it did not learn.
    """

    played: Played
    metrics: Scalars


class Schedule(NamedTuple):
    """How the rounds of a plan follow one another, for the host that prepares their turns.

    Attributes:
        fragments: rollouts of a round, k.
        pulls: how often the plan that learns from a memory is pulled a round, on average; None without one.
        batch_rows: rows that one pull learns from, once the plan has been traced.
    """

    fragments: int
    pulls: float | None
    batch_rows: Callable[[], int]


class CompiledPlan(NamedTuple):
    """A plan as pure functions.

    Attributes:
        run: `(world, turns) -> (world, RoundOutput)` over the rounds that `turns` describes, stacked on axis 0.
        one_round: `(world, turn) -> (world, RoundOutput)`.
        init_ops: `() -> states of the operators`.
        schedule: see `Schedule`.
        tail: the node of the plan that takes what a round gives, on the host.
        names: of the nodes that are compiled, in the order in which they are pulled.
    """

    run: Callable[[World, Turn], tuple[World, RoundOutput]]
    one_round: Callable[[World, Turn], tuple[World, RoundOutput]]
    init_ops: Callable[[], dict[str, PyTree]]
    schedule: Schedule
    tail: Node
    names: list[str]


class _Told(NamedTuple):
    """What the nodes of a round under trace have told so far: one `Played`, and what was learned last."""

    played: list[Played]
    metrics: list[Scalars]


class Example(NamedTuple):
    """Abstract values of a run, to find out shapes: its world and a turn."""

    world: World
    turn: Turn


def compile_plan(root: Node, rollouts: CompiledRollouts, example: Example) -> CompiledPlan:
    """Composes the nodes of a plan.

    Args:
        root: the plan's last node.
        rollouts: in place of the plan's rollouts.
        example: shapes of the run.

    Raises:
        CannotCompileError: the plan has a node that no compiled program can hold, named.
    """
    tail, top = _split(root)
    lowering = _Lowering(rollouts, example)
    pull = lowering.node(top)
    if not lowering.fragments:
        raise CannotCompileError.of(
            f"the plan {top.name!r} gathers no rollouts, so that no environment is ever stepped",
            "Begin it with ParallelRollouts",
        )

    def one_round(world: World, turn: Turn) -> tuple[World, RoundOutput]:
        told = _Told([], [])
        if turn.coeffs:
            train = world.train
            world = world._replace(train=train.replace(coeffs={**train.coeffs, **turn.coeffs}))
        world, item = pull(turn, world, told)
        if isinstance(item, Trained):
            told.metrics.append(Scalars.pack(item.metrics))
        (played,) = told.played
        return world, RoundOutput(played, told.metrics[-1] if told.metrics else Scalars.pack({}))

    def run(world: World, turns: Turn) -> tuple[World, RoundOutput]:
        return jax.lax.scan(one_round, world, turns)

    return CompiledPlan(run, one_round, lowering.init_ops, lowering.schedule(), tail, lowering.names)


def _split(root: Node) -> tuple[Node, Node]:
    """The lowest of the nodes that stay on the host, and the highest of those that are compiled."""
    node, tail = root, None
    while isinstance(operator := getattr(node, "operator", None), Operator) and operator.between_rounds:
        tail, node = node, node.inputs[0]
    if tail is None:
        raise CannotCompileError.of(
            f"the plan ends in {root.name!r}", "End it in StandardMetricsReporting, which makes its results"
        )
    return tail, node


class _Lowering:
    """Makes pure functions of nodes; remembers what the host has to know of them."""

    def __init__(self, rollouts: CompiledRollouts, example: Example):
        self.rollouts, self.example = rollouts, example
        self.forms: dict[str, CompiledForm] = {}
        self.names: list[str] = []
        self.fragments = 0
        self.learn_weight = 1.0
        self.replays = False
        self.batch_rows = 0

    def init_ops(self) -> dict[str, PyTree]:
        return {name: form.init() for name, form in self.forms.items()}

    def schedule(self) -> Schedule:
        pulls = self.learn_weight if self.replays else None
        return Schedule(self.fragments, pulls, lambda: self.batch_rows)

    # ---- nodes

    def node(self, node: Node) -> Pull:
        pull = self._pull(node)
        self.names.append(node.name)
        return pull

    def _pull(self, node: Node) -> Pull:
        if isinstance(node, LocalGather):
            return self._rollouts(node)
        if isinstance(node, Select) and isinstance(node.inputs[0], Union):
            return self._union(node, node.inputs[0])
        if isinstance(node, Source) and node.operator.compiled is not None:
            return self._compiled(node.operator.name, node.operator.compiled, None)
        if isinstance(node, ForEach):
            return self._combine(node) if node.kind == "combine" else self._for_each(node)
        raise _refused(node)

    def _rollouts(self, node: LocalGather) -> Pull:
        if node.kind == "gather_async" or any(member.steps for member in node.members):
            raise _refused(node)
        rollouts = self.rollouts
        if self.fragments:
            raise CannotCompileError.of(f"the plan samples in two places, the second is {node.name!r}", "Sample in one")
        self.fragments = 1

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            # No two fragments of a run begin with the same step; operators' keys fold in what is no step below.
            key = jax.random.fold_in(world.key, turn.step)
            after, fragment, played = rollouts.sample(world.train.weights, world.rollouts, key, turn.step)
            told.played.append(played)
            return world._replace(rollouts=after), [fragment] if node.mode == "round" else fragment

        return pull

    def _for_each(self, node: ForEach) -> Pull:
        source, operator = self.node(node.inputs[0]), node.operator
        if operator.compiled is not None:
            return self._compiled(operator.name, operator.compiled, source)
        if operator.host_only:
            raise _refused(node)
        initial = operator.init()
        _check_state(node, initial, initial)

        def pure(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            world, item = source(turn, world, told)
            state, item = operator.apply(initial, item)
            _check_state(node, initial, state)
            return world, item

        return pure

    def _compiled(self, operator: str, form: CompiledForm, source: Pull | None) -> Pull:
        number = len(self.forms)
        name = f"{number:02d} {operator}"
        self.forms[name] = form

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            world, item = (world, None) if source is None else source(turn, world, told)
            # Rollouts fold the number of their vector step in, which is no more than 2^31.
            key = jax.random.fold_in(jax.random.fold_in(world.key, turn.number), jnp.uint32(2**31 + 2**20 + number))
            world, state, item = form.apply(turn, world, world.ops[name], item, key)
            return world._replace(ops={**world.ops, name: state}), item

        return pull

    def _in_turn(self, source: Pull, count: int, *, keep: bool) -> Pull:
        """A branch that samples, `count` times in a scan: its items stacked on axis 0 (`keep`), or nothing."""
        steps = self.fragments * self.rollouts.length
        self.fragments *= count

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            def one(world: World, i: Array) -> tuple[World, tuple[Any, Played]]:
                inner = _Told([], [])
                world, item = source(turn._replace(step=turn.step + i * steps), world, inner)
                (played,) = inner.played
                return world, (item if keep else None, played)

            if count == 1:
                world, (item, played) = one(world, jnp.int32(0))
                told.played.append(played)
                return world, jax.tree.map(lambda x: x[None], item)
            world, (items, played) = jax.lax.scan(one, world, jnp.arange(count, dtype=jnp.int32))
            told.played.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played))
            return world, items

        return pull

    def _combine(self, node: ForEach) -> Pull:
        """As many items of the input as make the operator give something, in a scan; then the operator on them all."""
        if node.operator.host_only:
            raise _refused(node)
        source, operator = self.node(node.inputs[0]), node.operator
        count = self._count(node, self._item(source))
        items = self._in_turn(source, count, keep=True)

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            world, stacked = items(turn, world, told)
            state, out = operator.init(), []
            for i in range(count):
                state, out = operator.apply(state, jax.tree.map(lambda x, i=i: x[i], stacked))
            _check_state(node, operator.init(), state)
            return world, out[0]

        return pull

    def _item(self, source: Pull) -> Any:
        def item(world: World, turn: Turn) -> Any:
            return source(turn, world._replace(ops=self.init_ops()), _Told([], []))[1]

        return jax.eval_shape(item, self.example.world, self.example.turn)

    def _count(self, node: ForEach, item: Any) -> int:
        """How many items the operator takes until it gives one."""

        def given(item: Any) -> Any:
            state = node.operator.init()
            for count in range(1, 100_001):
                state, out = node.operator.apply(state, item)
                if out:
                    found.append((count, len(out)))
                    return out
            raise CannotCompileError.of(f"{node.name!r} gave nothing for 100000 fragments", "Combine fewer")

        found: list[tuple[int, int]] = []
        jax.eval_shape(given, item)
        count, gives = found[-1]
        if gives != 1:
            raise CannotCompileError.of(
                f"{node.name!r} gives {gives} items for {count}", "Learn from one batch at a time"
            )
        return count

    def _union(self, select: Select, union: Union) -> Pull:
        """Rollouts so many times in a row, then learning from the memory as often as the host says."""
        if len(union.inputs) != 2 or set(select.indexes) != {1} or not union.ordered:
            raise _refused(union)
        store_weight, learn_weight = union.weights
        if isinstance(learn_weight, str) or isinstance(store_weight, str) or int(store_weight) != store_weight:
            raise CannotCompileError.of(
                f"{union.name!r} takes {union.weights} items of its branches in turn",
                "Choose a training_intensity that makes it a whole number of rollouts, and a number of updates",
            )
        store = self._in_turn(self.node(union.inputs[0]), int(store_weight), keep=False)
        learn = self.node(union.inputs[1])
        self.replays, self.learn_weight = True, float(learn_weight)

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            world, _ = store(turn, world, told)
            round_key = jax.random.fold_in(world.key, turn.number)

            def once(i: Array, carried: tuple[World, Any]) -> tuple[World, Any]:
                world, _ = carried
                own = world._replace(key=jax.random.fold_in(round_key, i.astype(jnp.uint32) + jnp.uint32(_PULLS)))
                after, item = learn(turn, own, _Told([], []))
                self.batch_rows = item.batch.num_rows
                return after._replace(key=world.key), Scalars.pack(item.metrics)

            shapes = jax.eval_shape(lambda w: once(jnp.int32(0), (w, None))[1], world)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            world, metrics = jax.lax.fori_loop(0, turn.pulls, once, (world, nothing))
            told.metrics.append(metrics)
            return world, None

        return pull


def _refused(node: Node) -> CannotCompileError:
    return CannotCompileError.of(
        f"{node.name!r} ({node.kind}) works on the host, so no compiled program can hold it",
        "Leave it out of the plan, give its operator a compiled form",
    )


def _check_state(node: Node, before: Any, after: Any) -> None:
    if jax.tree.leaves(after) or jax.tree.structure(before) != jax.tree.structure(after):
        raise CannotCompileError.of(
            f"the operator {node.name!r} keeps a state from one round to the next",
            "Give it a compiled form whose state is a pytree of arrays",
        )
