"""Episode summaries with hand-checked numbers, timers, counters, text."""

import json
import math

import numpy as np
import pytest

from jaxrl.metrics import Counters, EpisodeRecord, Timer, format_metrics, summarize_episodes


def test_summary_by_hand():
    episodes = [
        EpisodeRecord(10, 3.0, {("a", "p0"): 1.0, ("b", "p1"): 2.0}, {"x": 1.0}, {"h": [1, 2]}),
        EpisodeRecord(20, 5.0, {("a", "p0"): 5.0}, {"x": 4.0, "y": 7}, {"h": [3]}),
    ]
    summary = summarize_episodes(episodes, episodes[1:])
    assert summary["episode_reward_max"] == 5.0
    assert summary["episode_reward_min"] == 3.0
    assert summary["episode_reward_mean"] == 4.0
    assert summary["episode_len_mean"] == 15.0
    assert summary["episodes_this_iter"] == 1
    assert summary["policy_reward_min"] == {"p0": 1.0, "p1": 2.0}
    assert summary["policy_reward_max"] == {"p0": 5.0, "p1": 2.0}
    assert summary["policy_reward_mean"] == {"p0": 3.0, "p1": 2.0}
    assert summary["custom_metrics"] == {
        "x_mean": 2.5,
        "x_min": 1.0,
        "x_max": 4.0,
        "y_mean": 7.0,
        "y_min": 7.0,
        "y_max": 7.0,
    }
    assert summary["hist_stats"] == {
        "h": [1.0, 2.0, 3.0],
        "episode_reward": [3.0, 5.0],
        "episode_lengths": [10, 20],
        "policy_p0_reward": [1.0, 5.0],
        "policy_p1_reward": [2.0],
    }


def test_no_finished_episode_is_nan_and_not_zero():
    summary = summarize_episodes([], [])
    for key in ("episode_reward_max", "episode_reward_min", "episode_reward_mean", "episode_len_mean"):
        assert math.isnan(summary[key])
    assert summary["episodes_this_iter"] == 0
    assert summary["hist_stats"] == {"episode_reward": [], "episode_lengths": []}


def test_the_default_policy_is_not_reported_twice():
    record = EpisodeRecord(1, 1.0, {("agent0", "default_policy"): 1.0})
    assert summarize_episodes([record], [record])["policy_reward_mean"] == {}


def test_custom_metrics_skip_nan():
    records = [EpisodeRecord(1, 1.0, custom_metrics={"x": value}) for value in (math.nan, 2.0)]
    assert summarize_episodes(records, [])["custom_metrics"] == {"x_mean": 2.0, "x_min": 2.0, "x_max": 2.0}


def test_timer_means_over_its_window():
    timer = Timer(window=2)
    assert timer.mean == 0.0
    assert timer.mean_throughput == 0.0
    for seconds, units in ((100.0, 1), (1.0, 10), (3.0, 30)):
        timer.push(seconds)
        timer.push_units_processed(units)
    assert timer.mean == 2.0
    assert timer.mean_throughput == 10.0
    assert timer.count == 3
    assert timer.total == 104.0
    assert timer.stats("sample") == {"sample_time_ms": 2000.0, "sample_throughput": 10.0}
    with timer:
        pass
    assert timer.count == 4
    with pytest.raises(RuntimeError, match="runs already"), timer, timer:
        pass


def test_counters_are_host_ints_and_round_trip():
    counters = Counters()
    assert counters["steps"] == 0
    assert "steps" not in counters
    counters["steps"] += int(np.int32(2**31 - 1))
    counters["steps"] += 1
    assert counters["steps"] == 2**31
    saved = json.loads(json.dumps(counters.save()))
    counters["steps"] += 1
    counters["other"] += 1
    counters.restore(saved)
    assert dict(counters) == {"steps": 2**31}
    assert Counters(saved) == counters


def test_format_metrics():
    text = format_metrics({"a": {"b": 0.123456, "c": [1, 2]}, "d": 3, "e": np.float32(2), "f": [], "g": "x"})
    assert text.splitlines() == ["a/b: 0.1235", "a/c: 2 values, mean 1.5", "d: 3", "e: 2", "f: 0 values", "g: x"]
