"""Operators of plans that learn from replayed experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent
from jaxrl.execution.compiled_form import CompiledForm, Trained, Turn, World
from jaxrl.execution.context import STEPS_SAMPLED, STEPS_TRAINED, PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator, random_unit
from jaxrl.execution.replay_memory import ReplayMemory
from jaxrl.execution.train_ops import Info
from jaxrl.execution.waiting import NOT_READY
from jaxrl.policies import followed
from jaxrl.types import LossError, PolicyID

Batch = SampleBatch | MultiAgentBatch

NUM_TARGET_UPDATES = "num_target_updates"
LAST_TARGET_UPDATE_TS = "last_target_update_ts"


def StoreToReplayBuffer(ctx: PlanContext, memory: ReplayMemory) -> Operator:
    """Stores each batch in the replay memory and passes it on.

    Until learning begins it also evaluates the schedules of coeffs and sends them to the workers, so that exploration
    goes on as planned.

    Args:
        ctx: the plan's context.
        memory: the replay memory.

    Examples:
        >>> store = ParallelRollouts(ctx).for_each(StoreToReplayBuffer(ctx, memory))
        >>> next(store).count, memory.stats()["default_policy"]["size"]
        (4, 4)
    """

    def apply(state: Any, batch: Batch) -> tuple[Any, Batch]:
        memory.add(as_multi_agent(batch))
        if not memory.ready and any(learner.policy.spec.schedules for learner in ctx.learners.values()):
            ctx.sync_weights()
        return state, batch

    def store(turn: Turn, world: World, state: Any, batch: SampleBatch, key: Any) -> tuple[World, Any, SampleBatch]:
        return world._replace(memory=memory.compiled.add(world.memory, batch)), state, batch

    return Operator("StoreToReplayBuffer", apply, host_only=True, compiled=CompiledForm(store))


def Replay(
    ctx: PlanContext,
    memory: ReplayMemory,
    batch_size: int,
    *,
    num_batches: int = 1,
    beta: Callable[[int], float] = lambda timestep: 0.0,
) -> LocalIterator:
    """Stream of train batches drawn from the replay memory; not ready until it holds `learning_starts` rows.

    The randomness of a draw follows from the run's seed and the draw's number, which is the operator's state.

    Args:
        ctx: the plan's context.
        memory: the replay memory.
        batch_size: rows (or sequences) of a batch.
        num_batches: batches drawn at once, joined: a learner whose `sgd_minibatch_size` is `batch_size` takes as many
            gradient steps on them in one program.
        beta: exponent of the importance weights after so many env steps.

    Examples:
        >>> Replay(ctx, memory, 32, num_batches=4).take(1)[0]["default_policy"].count
        128
    """
    seed = int(ctx.config.seed or 0)

    def apply(draws: int, _: Any) -> tuple[int, Any]:
        if not memory.ready:
            return draws, NOT_READY
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, draws]))
        with ctx.timer("replay"):
            batch = memory.sample(rng, num_batches * batch_size, beta(ctx.counters[STEPS_SAMPLED]))
        return draws + 1, batch

    def draw(turn: Turn, world: World, state: Any, item: Any, key: Any) -> tuple[World, Any, SampleBatch]:
        uniforms = jax.random.uniform(key, (num_batches * batch_size,))
        return world, state, memory.compiled.sample(world.memory, uniforms, turn.controls["beta"])

    form = CompiledForm(draw, controls=lambda timestep: {"beta": beta(timestep)})
    name = f"Replay({num_batches} x {batch_size})" if num_batches > 1 else f"Replay({batch_size})"
    return LocalIterator.from_operator(Operator(name, apply, init=lambda: 0, host_only=True, compiled=form))


def UpdatePriorities(
    ctx: PlanContext,
    memory: ReplayMemory,
    *,
    eps: float = 1e-6,
    priorities: Callable[[SampleBatch, Any, Any], Any] = lambda batch, td_error, config: abs(td_error),
) -> Operator:
    """Gives the rows of a batch that was learned from new priorities: `|td_error| + eps`.

    Takes and gives `(batch, info)`, as `TrainOneStep` does; reads the rows `td_error` that the loss returned.

    Args:
        ctx: the plan's context.
        memory: the replay memory that the batch came from.
        eps: added, so that every row can be drawn again.
        priorities: `(batch, td_error, the policy's options) -> priorities`, before eps; of each row, or sequence.

    Raises:
        LossError: (while iterating) the loss returns no such row.
    """

    def apply(state: Any, item: tuple[MultiAgentBatch, Info]) -> tuple[Any, tuple[MultiAgentBatch, Info]]:
        batch, info = item
        for pid in info:
            td_error = np.asarray(_td_error(ctx.learners[pid].rows, pid))
            new = priorities(batch[pid], td_error, ctx.learners[pid].policy.spec.config)
            memory.update(pid, batch[pid], new + eps)
        return state, item

    def update(turn: Turn, world: World, state: Any, item: Trained, key: Any) -> tuple[World, Any, Trained]:
        ((pid, learner),) = ctx.learners.items()
        new = priorities(item.batch, _td_error(item.rows, pid), learner.policy.spec.config) + eps
        indexes = item.batch["batch_indexes"]
        return world._replace(memory=memory.compiled.update(world.memory, indexes, new)), state, item

    return Operator("UpdatePriorities", apply, host_only=True, compiled=CompiledForm(update))


def _td_error(rows: Mapping[str, Any], policy_id: PolicyID) -> Any:
    if "td_error" not in rows:
        raise LossError(
            f"policy {policy_id!r}: priorities need the row 'td_error' of its loss, which returns {sorted(rows)}; "
            "return (loss, LearnOutput(metrics, {'td_error': ...})), or set prioritized_replay to false."
        )
    return rows["td_error"]


def UpdateTargetNetwork(
    ctx: PlanContext, target_update_freq: int, *, tau: float | None = 1.0, by_steps_trained: bool = False
) -> Operator:
    """Moves the target networks towards the networks that learn, after each `target_update_freq` env steps.

    Passes its items on. Changes the counters num_target_updates and last_target_update_ts.

    Args:
        ctx: the plan's context.
        target_update_freq: env steps between updates.
        tau: `target = tau * params + (1 - tau) * target`; None: by each policy's own option `tau`.
        by_steps_trained: count the steps trained on instead of those sampled.
    """
    counter = STEPS_TRAINED if by_steps_trained else STEPS_SAMPLED

    def tau_of(pid: PolicyID) -> float:
        return ctx.learners[pid].policy.spec.config.tau if tau is None else tau

    def apply(last: int, item: Any) -> tuple[int, Any]:
        now = ctx.counters[counter]
        if now - last < target_update_freq:
            return last, item
        for pid in ctx.policies_to_train:
            ctx.learners[pid].update_target(tau_of(pid))
        ctx.counters[NUM_TARGET_UPDATES] += 1
        ctx.counters[LAST_TARGET_UPDATE_TS] = now
        return now, item

    def follow(turn: Turn, world: World, last: Any, item: Any, key: Any) -> tuple[World, Any, Any]:
        due = turn.sampled - last >= np.uint32(target_update_freq)
        train, tau = world.train, tau_of(next(iter(ctx.learners)))
        params = followed(train.params, train.target_params)
        target = jax.lax.cond(
            due,
            lambda: optax.incremental_update(params, train.target_params, tau) if tau < 1.0 else params,
            lambda: train.target_params,
        )
        world = world._replace(train=train.replace(target_params=target))
        return world, jnp.where(due, turn.sampled, last), item

    # Steps trained on are counted by no compiled program.
    form = None if by_steps_trained else CompiledForm(follow, init=lambda: jnp.zeros((), jnp.uint32))
    name = f"UpdateTargetNetwork({target_update_freq})"
    return Operator(name, apply, init=lambda: 0, host_only=True, compiled=form)


def WaitUntilTimestepsElapsed(ctx: PlanContext, timesteps: int) -> Operator:
    """True once so many env steps have been sampled; for `filter`."""

    def apply(state: Any, _: Any) -> tuple[Any, bool]:
        return state, ctx.counters[STEPS_SAMPLED] >= timesteps

    return Operator(f"WaitUntilTimestepsElapsed({timesteps})", apply, host_only=True)


def MixInReplay(num_slots: int, replay_proportion: float, *, seed: int = 0) -> Operator:
    """Each batch, and batches seen before, at random: `replay_proportion` of them for each new one; for `combine`.

    Its state is pure: the batches held, the next slot and the random number generator.

    Args:
        num_slots: batches held.
        replay_proportion: replayed batches for each new one; a fraction is rounded at random.
        seed: of the draws.

    Raises:
        ValueError: no slots with a positive proportion, or a negative one.

    Examples:
        >>> mixed = LocalIterator.from_items([a, b]).combine(MixInReplay(num_slots=8, replay_proportion=1.0))
        >>> len(mixed.take(4))
        4
    """
    if replay_proportion < 0 or (replay_proportion > 0 and num_slots < 1):
        raise ValueError(
            f"MixInReplay: expected replay_proportion >= 0 and at least one slot, got {replay_proportion} and "
            f"{num_slots} slots."
        )

    def apply(state: tuple[list[Batch], int, int], batch: Batch) -> tuple[tuple[list[Batch], int, int], list[Batch]]:
        held, slot, random = state
        if replay_proportion == 0:
            return state, [batch]
        held = [*held, batch] if len(held) < num_slots else [*held[:slot], batch, *held[slot + 1 :]]
        random, unit = random_unit(random)
        count = int(replay_proportion) + (unit < replay_proportion % 1)
        out = [batch]
        for _ in range(count):
            random, unit = random_unit(random)
            out.append(held[int(unit * len(held))])
        return (held, (slot + 1) % num_slots, random), out

    return Operator(f"MixInReplay({num_slots}, {replay_proportion:g})", apply, init=lambda: ([], 0, seed))


def updates_in_turn(updates_per_round: float) -> tuple[int, list[float | str] | None]:
    """How a plan that stores one round of rollouts and learns `updates_per_round` times is run.

    Returns:
        `(num_batches, round_robin_weights)`: whole numbers of updates are drawn together, for one program to take
        them all; other ratios are rounded at random, turn by turn.
    """
    if updates_per_round >= 1 and updates_per_round == int(updates_per_round):
        return int(updates_per_round), None
    if updates_per_round < 1 and (1 / updates_per_round) == int(1 / updates_per_round):
        return 1, [int(1 / updates_per_round), 1]
    return 1, [1, updates_per_round]
