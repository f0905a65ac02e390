"""Metrics of the shell: episode records and their summary, timers, counters, and their text."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from jaxrl.types import DEFAULT_POLICY_ID, AgentID, PolicyID


class EpisodeRecord(NamedTuple):
    """What is left of a finished episode.

    Attributes:
        length: env steps.
        reward: sum of all agents' rewards, as the environment gave them.
        agent_rewards: sum of rewards by `(agent_id, policy_id)`.
        custom_metrics: numbers that callbacks wrote.
        hist_data: lists of numbers that callbacks wrote.
    """

    length: int
    reward: float
    agent_rewards: Mapping[tuple[AgentID, PolicyID], float] = {}
    custom_metrics: Mapping[str, float] = {}
    hist_data: Mapping[str, Sequence[float]] = {}


def summarize_episodes(episodes: Sequence[EpisodeRecord], new_episodes: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Summarises finished episodes under RLlib's result keys.

    Args:
        episodes: the episodes to average over (the last `metrics_smoothing_episodes`).
        new_episodes: those among them that ended in this iteration; only counted.

    Returns:
        `episode_reward_{max,min,mean}`, `episode_len_mean`, `episodes_this_iter`, `policy_reward_{min,max,mean}` by
        policy (the default policy, whose rewards are the episode's, is left out), `custom_metrics` and `hist_stats`.
        Where no episode has finished yet, rewards and lengths are NaN: there is nothing to say, and a zero would look
        like a score.
    """
    rewards = [float(episode.reward) for episode in episodes]
    lengths = [int(episode.length) for episode in episodes]
    by_policy: dict[PolicyID, list[float]] = {}
    custom: dict[str, list[float]] = {}
    histograms: dict[str, list[float]] = {}
    for episode in episodes:
        for (_, policy_id), reward in episode.agent_rewards.items():
            if policy_id != DEFAULT_POLICY_ID:
                by_policy.setdefault(policy_id, []).append(float(reward))
        for name, value in episode.custom_metrics.items():
            custom.setdefault(name, []).append(float(value))
        for name, values in episode.hist_data.items():
            histograms.setdefault(name, []).extend(float(value) for value in values)
    return {
        "episode_reward_max": max(rewards, default=math.nan),
        "episode_reward_min": min(rewards, default=math.nan),
        "episode_reward_mean": _mean(rewards),
        "episode_len_mean": _mean(lengths),
        "episodes_this_iter": len(new_episodes),
        "policy_reward_min": {policy_id: min(values) for policy_id, values in by_policy.items()},
        "policy_reward_max": {policy_id: max(values) for policy_id, values in by_policy.items()},
        "policy_reward_mean": {policy_id: _mean(values) for policy_id, values in by_policy.items()},
        "custom_metrics": _summarize_custom(custom),
        "hist_stats": {
            **histograms,
            "episode_reward": rewards,
            "episode_lengths": lengths,
            **{f"policy_{policy_id}_reward": values for policy_id, values in by_policy.items()},
        },
    }


class Timer:
    """Mean time and throughput of a piece of code over its last `window` runs.

    Example:
        >>> timer = Timer()
        >>> with timer:
        ...     batch = sum(range(1000))
        >>> timer.push_units_processed(1000)
        >>> timer.count
        1
    """

    def __init__(self, window: int = 10) -> None:
        self.count = 0
        self.total = 0.0
        self._durations: collections.deque[float] = collections.deque(maxlen=window)
        self._units: collections.deque[float] = collections.deque(maxlen=window)
        self._started: float | None = None

    def __enter__(self) -> Self:
        if self._started is not None:
            raise RuntimeError("this timer runs already; one timer cannot be nested in itself")
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._started is not None:
            self.push(time.perf_counter() - self._started)
            self._started = None

    def push(self, seconds: float) -> None:
        """Records one run."""
        self._durations.append(seconds)
        self.count += 1
        self.total += seconds

    def push_units_processed(self, units: float) -> None:
        """Records how many units (rows, say) the last run processed."""
        self._units.append(units)

    @property
    def mean(self) -> float:
        """Mean seconds of a run; 0 before the first."""
        return sum(self._durations) / len(self._durations) if self._durations else 0.0

    @property
    def mean_throughput(self) -> float:
        """Units per second; 0 where nothing was recorded."""
        seconds = sum(self._durations)
        return sum(self._units) / seconds if self._units and seconds > 0 else 0.0

    def stats(self, name: str) -> dict[str, float]:
        """Returns RLlib's result keys: `<name>_time_ms`, and `<name>_throughput` where units were recorded."""
        stats = {f"{name}_time_ms": round(1000 * self.mean, 3)}
        return {**stats, f"{name}_throughput": round(self.mean_throughput, 3)} if self._units else stats


class Counters(MutableMapping[str, int]):
    """Host integers by name, 0 until counted; they never overflow, and checkpoints save them.

    Example:
        >>> counters = Counters()
        >>> counters["num_steps_sampled"] += 200
        >>> counters.save()
        {'num_steps_sampled': 200}
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts: dict[str, int] = {}
        self.restore(counts or {})

    def __getitem__(self, name: str) -> int:
        return self._counts.get(name, 0)

    def __setitem__(self, name: str, count: int) -> None:
        # A NumPy or JAX integer would stay 32 bits wide and could not be written to JSON.
        self._counts[name] = int(count)

    def __delitem__(self, name: str) -> None:
        self._counts.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"Counters({self._counts})"

    def save(self) -> dict[str, int]:
        """Returns the counts as plain data."""
        return dict(self._counts)

    def restore(self, counts: Mapping[str, int]) -> None:
        """Replaces all counts by saved ones."""
        self._counts = {name: int(count) for name, count in counts.items()}


def format_metrics(metrics: Mapping[str, Any], *, precision: int = 4) -> str:
    """Returns nested metrics as one `path: value` line each; lists and arrays are given by their length and mean.

    Example:
        >>> print(format_metrics({"info": {"kl": 0.012345}, "steps": 4000}))
        info/kl: 0.01234
        steps: 4000
    """
    return "\n".join(f"{path}: {_format(value, precision)}" for path, value in _flatten(metrics))


def _flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _format(value: Any, precision: int) -> str:
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0):
        numbers = [float(item) for item in np.ravel(np.asarray(value, dtype=object)) if _is_number(item)]
        return f"{len(value)} values" + (f", mean {_mean(numbers):.{precision}g}" if numbers else "")
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.{precision}g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _summarize_custom(custom: Mapping[str, Sequence[float]]) -> dict[str, float]:
    summary = {}
    for name, values in custom.items():
        finite = [value for value in values if not math.isnan(value)]
        summary[f"{name}_mean"] = _mean(finite)
        summary[f"{name}_min"] = min(finite, default=math.nan)
        summary[f"{name}_max"] = max(finite, default=math.nan)
    return summary


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
