"""From a plan to one pure function: a round of sampling and learning, and the scan over rounds.

The plan is the one that the algorithm wrote. Its nodes are traced in the order in which the plan would be pulled:
rollouts become `CompiledRollouts.sample`, pure operators stay as they are, host-only ones are replaced by their
compiled form. What stands behind the last of them and looks at counters and clocks alone (the cut into iterations, the
results) stays on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.execution.branches import Select, Union
from jaxrl.execution.compiled_form import CompiledForm, Trained, Turn, World
from jaxrl.execution.nodes import ForEach, Node, Operator, Source
from jaxrl.execution.shards import LocalGather
from jaxrl.rollout.compiled_rollouts import CompiledRollouts, Played
from jaxrl.types import Array, ConfigError, PyTree

# A node within the trace of a round: `(turn, world, told) -> (world, item)`.
Pull = Callable[[Turn, World, "_Told"], tuple[World, Any]]


class RoundOutput(NamedTuple):
    """What a round tells the host.

    Attributes:
        played: rewards and ends of its rollouts `[k * T, B]`.
        metrics: of its last learning; zeros where it did not learn.
    """

    played: Played
    metrics: Mapping[str, Array]


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
    """

    run: Callable[[World, Turn], tuple[World, RoundOutput]]
    one_round: Callable[[World, Turn], tuple[World, RoundOutput]]
    init_ops: Callable[[], dict[str, PyTree]]
    schedule: Schedule
    tail: Node


class _Told(NamedTuple):
    """What the nodes of a round under trace have told so far."""

    played: list[Played]
    metrics: list[Mapping[str, Array]]


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
        ConfigError: the plan has a node that no compiled program can hold, named.
    """
    tail, top = _split(root)
    lowering = _Lowering(rollouts, example)
    pull = lowering.node(top)

    def one_round(world: World, turn: Turn) -> tuple[World, RoundOutput]:
        told = _Told([], [])
        if turn.coeffs:
            train = world.train
            world = world._replace(train=train.replace(coeffs={**train.coeffs, **turn.coeffs}))
        world, item = pull(turn, world, told)
        metrics = told.metrics[-1] if told.metrics else {}
        if isinstance(item, Trained):
            metrics = item.metrics
        played = told.played[0] if len(told.played) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *told.played)
        return world, RoundOutput(played, metrics)

    def run(world: World, turns: Turn) -> tuple[World, RoundOutput]:
        return jax.lax.scan(one_round, world, turns)

    return CompiledPlan(run, one_round, lowering.init_ops, lowering.schedule(), tail)


def _split(root: Node) -> tuple[Node, Node]:
    """The lowest of the nodes that stay on the host, and the highest of those that are compiled."""
    node, tail = root, None
    while isinstance(operator := getattr(node, "operator", None), Operator) and operator.between_rounds:
        tail, node = node, node.inputs[0]
    if tail is None:
        raise ConfigError(
            f"engine='compiled': the plan ends in {root.name!r}, expected StandardMetricsReporting, which cuts it into "
            "iterations and makes results."
        )
    return tail, node


class _Lowering:
    """Makes pure functions of nodes; remembers what the host has to know of them."""

    def __init__(self, rollouts: CompiledRollouts, example: Example):
        self.rollouts, self.example = rollouts, example
        self.forms: dict[str, CompiledForm] = {}
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
        if isinstance(node, LocalGather):
            return self._rollouts(node)
        if isinstance(node, Select) and isinstance(node.inputs[0], Union):
            return self._union(node, node.inputs[0])
        if isinstance(node, Source):
            return self._apply(node, node.operator, None)
        if isinstance(node, ForEach):
            return self._combine(node) if node.kind == "combine" else self._for_each(node)
        raise _refused(node)

    def _rollouts(self, node: LocalGather) -> Pull:
        if node.kind == "gather_async" or any(member.steps for member in node.members):
            raise _refused(node)
        rollouts = self.rollouts
        if self.fragments:
            raise ConfigError(f"engine='compiled': the plan samples in two places, the second is {node.name!r}.")
        self.fragments = 1

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            key = jax.random.fold_in(jax.random.fold_in(world.key, turn.number), turn.step)
            after, fragment, played = rollouts.sample(world.train.weights, world.rollouts, key, turn.step)
            told.played.append(played)
            return world._replace(rollouts=after), [fragment] if node.mode == "round" else fragment

        return pull

    def _apply(self, node: Node, operator: Operator, source: Pull | None) -> Pull:
        form = operator.compiled
        if operator.host_only and form is None:
            raise _refused(node)
        if form is None:
            initial = operator.init()

            def pure(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
                assert source is not None
                world, item = source(turn, world, told)
                state, item = operator.apply(initial, item)
                _check_state(node, initial, state)
                return world, item

            return pure
        number = len(self.forms)
        name = f"{number:02d} {operator.name}"
        self.forms[name] = form

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            world, item = (world, None) if source is None else source(turn, world, told)
            # Rollouts fold the number of their vector step in, which is no more than 2^31.
            key = jax.random.fold_in(jax.random.fold_in(world.key, turn.number), jnp.uint32(2**31 + 2**20 + number))
            world, state, item = form.apply(turn, world, world.ops[name], item, key)
            return world._replace(ops={**world.ops, name: state}), item

        return pull

    def _for_each(self, node: ForEach) -> Pull:
        return self._apply(node, node.operator, self.node(node.inputs[0]))

    def _combine(self, node: ForEach) -> Pull:
        """As many items of the input as make the operator give something, in a scan; then the operator on them all."""
        if node.operator.host_only:
            raise _refused(node)
        source, operator = self.node(node.inputs[0]), node.operator
        steps = self.rollouts.length
        item = self._item(source)
        count = self._count(node, item)
        self.fragments = count

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            if count == 1:
                world, item = source(turn, world, told)
                items = [item]
            else:

                def one(world: World, i: Array) -> tuple[World, tuple[Any, Played]]:
                    inner = _Told([], [])
                    world, item = source(turn._replace(step=turn.step + i * steps), world, inner)
                    return world, (item, inner.played[0])

                world, (stacked, played) = jax.lax.scan(one, world, jnp.arange(count, dtype=jnp.int32))
                told.played.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played))
                items = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
            state, out = operator.init(), []
            for item in items:
                state, out = operator.apply(state, item)
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
            raise ConfigError(f"engine='compiled': {node.name!r} gave nothing for 100000 fragments.")

        found: list[tuple[int, int]] = []
        jax.eval_shape(given, item)
        count, gives = found[-1]
        if gives != 1:
            raise ConfigError(
                f"engine='compiled': {node.name!r} gives {gives} items for {count}; a compiled plan learns from one "
                "batch at a time."
            )
        return count

    def _union(self, select: Select, union: Union) -> Pull:
        """Rollouts so many times in a row, then learning from the memory as often as the host says."""
        if len(union.inputs) != 2 or set(select.indexes) != {1} or not union.ordered:
            raise _refused(union)
        store_weight, learn_weight = union.weights
        if isinstance(learn_weight, str) or isinstance(store_weight, str) or int(store_weight) != store_weight:
            raise ConfigError(
                f"engine='compiled': {union.name!r} takes {union.weights} items of its branches in turn; expected a "
                "whole number of rollouts, and a number of updates. Choose a training_intensity so."
            )
        store = self.node(union.inputs[0])
        self.fragments, self.replays = int(store_weight), True
        learn = self.node(union.inputs[1])
        self.learn_weight = float(learn_weight)
        steps, repeats = self.rollouts.length, int(store_weight)

        def pull(turn: Turn, world: World, told: _Told) -> tuple[World, Any]:
            if repeats == 1:
                world, _ = store(turn, world, told)
            else:

                def one(world: World, i: Array) -> tuple[World, Played]:
                    inner = _Told([], [])
                    world, _ = store(turn._replace(step=turn.step + i * steps), world, inner)
                    return world, inner.played[0]

                world, played = jax.lax.scan(one, world, jnp.arange(repeats, dtype=jnp.int32))
                told.played.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played))

            def once(i: Array, carried: tuple[World, Any]) -> tuple[World, Any]:
                number = turn.number * jnp.uint32(2**10) + i.astype(jnp.uint32)
                world, item = learn(turn._replace(number=number), carried[0], _Told([], []))
                self.batch_rows = item.batch.num_rows
                return world, item.metrics

            shapes = jax.eval_shape(lambda w: once(jnp.int32(0), (w, None))[1], world)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))
            world, metrics = jax.lax.fori_loop(0, turn.pulls, once, (world, nothing))
            told.metrics.append(metrics)
            return world, None

        return pull


def _refused(node: Node) -> ConfigError:
    return ConfigError(
        f"engine='compiled': {node.name!r} ({node.kind}) works on the host, so no compiled program can hold it. Leave "
        "it out of the plan, give its operator a compiled form, or set engine='workers'."
    )


def _check_state(node: Node, before: Any, after: Any) -> None:
    if jax.tree.leaves(after) or jax.tree.structure(before) != jax.tree.structure(after):
        raise ConfigError(
            f"engine='compiled': the operator {node.name!r} keeps a state from one round to the next; give it a "
            "compiled form whose state is a pytree of arrays, or set engine='workers'."
        )
