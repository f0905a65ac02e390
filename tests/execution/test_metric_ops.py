"""Cutting a plan into iterations, and the results' keys."""

from types import SimpleNamespace
from typing import Any

import pytest

from jaxrl import trees
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.execution.metric_ops import (
    CollectMetrics,
    OncePerTimeInterval,
    OncePerTimestepsElapsed,
    StandardMetricsReporting,
)
from jaxrl.metrics import EpisodeRecord


class Workers:
    """Stands in for a WorkerSet whose every round ends one episode."""

    actors = ("worker 1", "worker 2")
    num_restarts = 3
    num_env_restarts = 4

    def __init__(self):
        self.syncs = 0

    def sync_filters(self, timeout_s):
        self.syncs += 1

    def pop_episodes(self, timeout_s):
        return [EpisodeRecord(length=self.syncs, reward=10.0 * self.syncs, agent_rewards={("x", "hunter"): 1.0})]


def make_context(steps=0, seconds=0.0, keep=3):
    config = SimpleNamespace(timesteps_per_iteration=steps, min_iter_time_s=seconds, metrics_smoothing_episodes=keep)
    workers: Any = Workers()
    return PlanContext(config, workers, {})


def rounds(ctx, count, steps=10):
    def sample(number, _):
        if number == count:
            raise StopIteration
        ctx.counters["num_steps_sampled"] += steps
        return number + 1, number

    return LocalIterator.from_operator(Operator("Sample", sample, init=lambda: 0))


def test_results_have_rllibs_keys():
    ctx = make_context()
    ctx.learner_info["hunter"] = {"total_loss": 1.0}
    with ctx.timer("learn"):
        pass
    results = StandardMetricsReporting(ctx, rounds(ctx, 5)).take(5)
    last = results[-1]
    assert last["episode_reward_mean"] == 40.0  # of the last three: 30, 40, 50
    assert (last["episode_reward_min"], last["episode_reward_max"], last["episode_len_mean"]) == (30.0, 50.0, 4.0)
    assert last["episodes_this_iter"] == 1
    assert last["policy_reward_mean"] == {"hunter": 1.0}
    assert last["timesteps_total"] == 50
    assert (last["num_healthy_workers"], last["num_worker_restarts"], last["num_env_restarts"]) == (2, 3, 4)
    assert last["info"] == {"learner": {"hunter": {"total_loss": 1.0}}, "num_steps_sampled": 50}
    assert "learn_time_ms" in last["timers"]
    assert {"hist_stats", "custom_metrics", "policy_reward_min", "policy_reward_max"} <= set(last)
    assert last["hist_stats"]["episode_lengths"] == [3, 4, 5]


def test_an_iteration_lasts_its_steps():
    ctx = make_context(steps=25)
    assert [result["timesteps_total"] for result in StandardMetricsReporting(ctx, rounds(ctx, 9))] == [30, 60, 90]


def test_an_iteration_lasts_its_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ctx = make_context(seconds=5.0)
    plan = rounds(ctx, 10)
    results = StandardMetricsReporting(ctx, plan.for_each(lambda item: now.__setitem__(0, now[0] + 2.0)))
    assert [result["timesteps_total"] for result in results] == [30, 60, 90]


def test_steps_elapsed_are_saved():
    ctx = make_context()
    operator = OncePerTimestepsElapsed(ctx, 20)
    state, seen = operator.init(), []
    for ctx.counters["num_steps_sampled"] in (10, 20, 30, 40, 55, 75):
        state, due = operator.apply(state, None)
        seen.append(due)
    assert seen == [False, True, False, True, False, True]
    assert state == 75
    again = OncePerTimestepsElapsed(ctx, 20)
    assert again.apply(state, None) == (75, False)


def test_time_starts_afresh(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    operator = OncePerTimeInterval(3.0)
    seen = []
    for now[0] in (1.0, 3.0, 5.9, 6.0):
        seen.append(operator.apply((), None)[1])
    assert seen == [False, True, False, True]
    assert operator.host_only


def test_episodes_are_operator_state():
    ctx = make_context()
    operator = CollectMetrics(ctx)
    state = operator.init()
    for _ in range(5):
        state, _ = operator.apply(state, None)
    assert [record.length for record in state] == [3, 4, 5]
    structure, arrays = trees.encode(state)
    restored = trees.decode(structure, arrays)
    assert restored == state
    assert operator.apply(restored, None)[1]["episode_reward_mean"] == pytest.approx(50.0)


def test_no_episode_yet_is_nan():
    ctx = make_context()
    ctx.workers.pop_episodes = lambda timeout_s=None, of_workers=None: []
    result = next(StandardMetricsReporting(ctx, rounds(ctx, 1)))
    assert result["episode_reward_mean"] != result["episode_reward_mean"]
    assert result["episodes_this_iter"] == 0
