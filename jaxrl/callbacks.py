"""Callbacks: functions that a user hangs into sampling and training, and the episode that they see.

| hook | may change |
| --- | --- |
| `on_episode_start`, `_step`, `_end` | `episode.custom_metrics`, `user_data` and `hist_data`, in place |
| `on_postprocess_trajectory` | returns a batch to use instead, or None to keep it |
| `on_sample_end` | returns samples to use instead, or None to keep them |
| `on_train_result` | adds to `result`, in place |

Everything else that a hook is given is read-only. A hook that is None costs nothing: the sampler never looks at
episodes for it. Under Ray, hooks of workers run in the workers' processes, so that they share no variables with the
driver. An episode that a failure of its environment broke off (`restart_failed_sub_environments`) has no end: its hook
is not called, and another episode starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from jaxrl.tracebacks import raised
from jaxrl.types import AgentID, CallbackError, PolicyID


@dataclass
class Episode:
    """One episode as callbacks see it, from its first observation to its end.

    Attributes:
        episode_id: number of the episode, unique within its worker.
        worker_index: 0 in the trainer's own process, 1.. on rollout actors.
        env_index: index of the environment within the worker's vector.
        length: env steps so far.
        total_reward: sum of all agents' rewards so far, as the environment gave them.
        agent_rewards: the same by agent.
        custom_metrics: numbers to report as `custom_metrics/<name>_{mean,min,max}` of the result; yours to write.
        user_data: anything you carry from hook to hook; never reported.
        hist_data: lists of numbers to report under `hist_stats`; yours to write.
    """

    episode_id: int
    worker_index: int = 0
    env_index: int = 0
    length: int = 0
    total_reward: float = 0.0
    agent_rewards: dict[AgentID, float] = field(default_factory=dict)
    custom_metrics: dict[str, float] = field(default_factory=dict)
    user_data: dict[str, Any] = field(default_factory=dict)
    hist_data: dict[str, list[float]] = field(default_factory=dict)


class EpisodeHook(Protocol):
    """Called with an episode at its start (after the reset), after each env step, or at its end."""

    def __call__(self, *, worker: Any, env_index: int, episode: Episode) -> None: ...


class PostprocessHook(Protocol):
    """Called with a policy's batch after its postprocessing, and with the same batch before it."""

    def __call__(self, *, worker: Any, policy_id: PolicyID, batch: Any, original_batch: Any) -> Any: ...


class SampleHook(Protocol):
    """Called with what a worker's `sample()` is about to return."""

    def __call__(self, *, worker: Any, samples: Any) -> Any: ...


class ResultHook(Protocol):
    """Called with the trainer and the result of one `train()`, before the result is logged."""

    def __call__(self, *, trainer: Any, result: dict[str, Any]) -> None: ...


class Callbacks(NamedTuple):
    """The hooks of a run: functions that take keyword arguments, or None. The module says what each may change.

    Example:
        >>> def pole_angle(*, worker, env_index, episode):
        ...     episode.custom_metrics["long"] = float(episode.length > 100)
        >>> callbacks = Callbacks(on_episode_end=pole_angle)
    """

    on_episode_start: EpisodeHook | None = None
    on_episode_step: EpisodeHook | None = None
    on_episode_end: EpisodeHook | None = None
    on_postprocess_trajectory: PostprocessHook | None = None
    on_sample_end: SampleHook | None = None
    on_train_result: ResultHook | None = None


def named(callbacks: Callbacks | None) -> Callbacks | None:
    """The same hooks, for jaxrl to call: what one of them raises says which, and the line of the user's."""
    if callbacks is None:
        return None
    hooks: dict[str, Any] = {name: hook for name, hook in callbacks._asdict().items() if hook is not None}
    return Callbacks(**{name: _named(name, hook) for name, hook in hooks.items()})


def _named(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(**kwargs: Any) -> Any:
        try:
            return hook(**kwargs)
        except Exception as error:
            raise CallbackError(f"callbacks.{name} raised {raised(error)}") from error

    return call


_REPLACING = {"on_postprocess_trajectory": "batch", "on_sample_end": "samples"}


def combine(*callbacks: Callbacks) -> Callbacks:
    """Returns callbacks that call each of `callbacks` in order; each sees the batch that the one before it returned."""
    merged = {}
    for name in Callbacks._fields:
        hooks = [hook for hook in (getattr(each, name) for each in callbacks) if hook is not None]
        if len(hooks) == 1:
            merged[name] = hooks[0]
        elif hooks:
            merged[name] = _chain(hooks, _REPLACING[name]) if name in _REPLACING else _each(hooks)
    return Callbacks(**merged)


def _each(hooks: list[Callable[..., None]]) -> Callable[..., None]:
    def call_each(**kwargs: Any) -> None:
        for hook in hooks:
            hook(**kwargs)

    return call_each


def _chain(hooks: list[Callable[..., Any]], argument: str) -> Callable[..., Any]:
    def call_chain(**kwargs: Any) -> Any:
        replaced = None
        for hook in hooks:
            returned = hook(**kwargs)
            if returned is not None:
                replaced = kwargs[argument] = returned
        return replaced

    return call_chain
