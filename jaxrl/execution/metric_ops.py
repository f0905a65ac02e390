"""Operators that cut a plan into iterations and report results."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from jaxrl import trees
from jaxrl.execution.context import STEPS_SAMPLED, PlanContext
from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.metrics import EpisodeRecord, summarize_episodes

# How long the results of a plan that learns in a thread wait for its workers' episodes, which else come one later.
_PATIENCE_S = 1.0


def StandardMetricsReporting(
    ctx: PlanContext, train_op: LocalIterator, selected_workers: Collection[int] | None = None
) -> LocalIterator:
    """Results in RLlib's form, one for each iteration of a plan.

    An iteration lasts until `timesteps_per_iteration` env steps have been sampled and `min_iter_time_s` seconds have
    passed since the last one; with both 0, until the next item.

    Args:
        ctx: the plan's context.
        train_op: the plan that learns.
        selected_workers: indices of the workers on actors whose episodes the statistics are of; None: all.

    Returns:
        A LocalIterator of result dicts.
    """
    config = ctx.config
    if config.timesteps_per_iteration:
        train_op = train_op.filter(OncePerTimestepsElapsed(ctx, config.timesteps_per_iteration))
    if config.min_iter_time_s:
        train_op = train_op.filter(OncePerTimeInterval(config.min_iter_time_s))
    return train_op.for_each(CollectMetrics(ctx, selected_workers))


def OncePerTimestepsElapsed(ctx: PlanContext, delay_steps: int) -> Operator:
    """True for the first item after each `delay_steps` env steps sampled; for `filter`. Its state is saved."""

    def apply(last: int, _: Any) -> tuple[int, bool]:
        now = ctx.counters[STEPS_SAMPLED]
        return (now, True) if now - last >= delay_steps else (last, False)

    name = f"OncePerTimestepsElapsed({delay_steps})"
    return Operator(name, apply, init=lambda: 0, host_only=True, between_rounds=True)


def OncePerTimeInterval(seconds: float) -> Operator:
    """True for the first item after each `seconds` of wall clock; for `filter`. It starts afresh when restored."""
    last = [time.monotonic()]

    def apply(state: Any, _: Any) -> tuple[Any, bool]:
        now = time.monotonic()
        if now - last[0] < seconds:
            return state, False
        last[0] = now
        return state, True

    return Operator(f"OncePerTimeInterval({seconds:g} s)", apply, host_only=True, between_rounds=True)


def CollectMetrics(ctx: PlanContext, selected_workers: Collection[int] | None = None) -> Operator:
    """Makes a result of each item: episode statistics, learner info, counters, timers.

    Statistics are over the last `metrics_smoothing_episodes` episodes, which are its state and are saved.
    """
    keep = ctx.config.metrics_smoothing_episodes
    chosen = {} if selected_workers is None else {"of_workers": selected_workers}

    def apply(history: list[EpisodeRecord], _: Any) -> tuple[list[EpisodeRecord], dict[str, Any]]:
        thread = ctx.learner_thread
        # Workers that sample all the time answer between two fragments.
        patience = None if thread is None else _PATIENCE_S
        ctx.workers.sync_filters(patience)
        new = ctx.workers.pop_episodes(patience, **chosen)
        history = [*history, *new][-keep:]
        counters = ctx.counters.save()
        result = {
            **summarize_episodes(history, new),
            "timesteps_total": counters.get(STEPS_SAMPLED, 0),
            "num_healthy_workers": len(ctx.workers.actors),
            "num_worker_restarts": ctx.workers.num_restarts,
            "num_env_restarts": ctx.workers.num_env_restarts,
            "info": {"learner": {pid: dict(info) for pid, info in ctx.learner_info.items()}, **counters},
            "timers": {key: value for name, timer in ctx.timers.items() for key, value in timer.stats(name).items()},
        }
        if ctx.memory is not None:
            result["info"]["replay_buffer"] = ctx.memory.stats()
        if thread is not None:
            result["info"]["learner_queue"] = thread.stats()
        return history, result

    return Operator("CollectMetrics", apply, init=list, host_only=True, between_rounds=True)


trees.register_codec(
    EpisodeRecord,
    lambda record: [
        record.length,
        record.reward,
        [[agent, policy, reward] for (agent, policy), reward in record.agent_rewards.items()],
        dict(record.custom_metrics),
        {name: list(values) for name, values in record.hist_data.items()},
    ],
    lambda parts: EpisodeRecord(parts[0], parts[1], {(a, p): r for a, p, r in parts[2]}, parts[3], parts[4]),
)
