"""Experiments of several runs on Ray Tune: what `jaxrl train` needs beside `tune.run(PPOTrainer, ...)`."""

from __future__ import annotations

import os
import pathlib
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ray import tune

from jaxrl import registry

# Ray's own key: a result that has it is followed by a checkpoint.
_SHOULD_CHECKPOINT = "should_checkpoint"

# A trial that an interruption ended.
UNFINISHED = "INTERRUPTED"


class TrialView(NamedTuple):
    """A trial as it stands.

    Attributes:
        name: Tune's id of it.
        tag: what sets it apart from the others, `lr=0.001` say.
        status: Tune's: PENDING, RUNNING, PAUSED, TERMINATED, ERROR; or INTERRUPTED.
        result: its last result; empty before the first.
        directory: its results directory, or None.
        error: why it failed; empty where it did not.
    """

    name: str
    tag: str
    status: str
    result: Mapping[str, Any]
    directory: str | None
    error: str


class TrialPlan(NamedTuple):
    """What Tune is to do.

    Attributes:
        config: of the trainer; `{grid_search: [...]}` in place of a value.
        stop: flat criteria.
        num_samples: runs of each configuration.
        checkpoint_freq, checkpoint_at_end, keep_checkpoints_num: as `jaxrl train` has them.
        keep_best: number of results by which `keep_checkpoints_num` keeps the best; the trainer asks for them.
        max_failures: times that a failed trial goes on from its last checkpoint.
        restore: checkpoint to start from, or None.
    """

    config: Mapping[str, Any]
    stop: Mapping[str, float]
    num_samples: int = 1
    checkpoint_freq: int = 0
    checkpoint_at_end: bool = False
    keep_checkpoints_num: int | None = None
    keep_best: str | None = None
    max_failures: int = 0
    restore: str | None = None


def run_trials(
    trainer_cls: type,
    plan: TrialPlan,
    directory: pathlib.Path,
    *,
    resume: bool = False,
    on_change: Callable[[Sequence[TrialView]], None] = lambda trials: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[TrialView]:
    """Runs an experiment on Tune; Ray has to be initialised.

    Args:
        trainer_cls: a Trainer class.
        plan: what to do.
        directory: of the experiment; the trials' directories go below.
        resume: go on with the trials that are not done, from their last checkpoints.
        on_change: called with all trials when one has a result, ends or fails.
        interrupted: asked between events; once it is True, each running trial is checkpointed after its iteration and
            the experiment ends, to be resumed.

    Returns:
        The trials as they ended.
    """
    registry.publish_to_ray()
    watch = _Watch(on_change, interrupted)
    with _settings():
        analysis = tune.run(
            trainer_cls,
            name=directory.name,
            storage_path=str(directory.parent),
            config=_grids(dict(plan.config)),
            stop=dict(plan.stop) or None,
            num_samples=plan.num_samples,
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=plan.keep_checkpoints_num,
                checkpoint_frequency=plan.checkpoint_freq,
                checkpoint_at_end=plan.checkpoint_at_end,
                checkpoint_score_attribute=plan.keep_best,
            ),
            max_failures=plan.max_failures,
            restore=plan.restore,
            resume_config=_resume_all() if resume else None,
            raise_on_failed_trial=False,
            callbacks=[watch],
            verbose=0,
        )
    trials = [_view(trial) for trial in analysis.trials]
    # Tune calls them terminated as it ends; what it saved, and resumes from, says otherwise.
    return [t._replace(status=UNFINISHED) if t.name in watch.unfinished else t for t in trials]


class _Watch(tune.Callback):
    """Reports trials, and ends the experiment once an interruption has its checkpoints."""

    def __init__(self, on_change: Callable[[Sequence[TrialView]], None], interrupted: Callable[[], bool]) -> None:
        self._on_change = on_change
        self._interrupted = interrupted
        self._saved: set[str] = set()
        self._ended = False
        self.unfinished: set[str] = set()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._ended or not self._interrupted():
            return
        if all(trial.status != "RUNNING" or trial.trial_id in self._saved for trial in trials):
            self._ended = True
            self.unfinished = {str(trial) for trial in trials if trial.status not in ("TERMINATED", "ERROR")}
            # How Tune is asked to end with its trials unfinished, so that they can be resumed.
            signal.raise_signal(signal.SIGUSR1)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self._interrupted():
            result[_SHOULD_CHECKPOINT] = True
        self._on_change([_view(other) for other in trials])

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        if self._interrupted():
            self._saved.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_change([_view(other) for other in trials])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_change([_view(other) for other in trials])


def _view(trial: Any) -> TrialView:
    return TrialView(
        name=str(trial),
        tag=str(trial.experiment_tag or "").partition("_")[2],
        status=str(trial.status),
        result=trial.last_result or {},
        directory=trial.path,
        error=_error_line(trial.error_file) if trial.status == "ERROR" else "",
    )


def _error_line(file: str | None) -> str:
    """The message at the end of a traceback, which may have several lines."""
    try:
        text = pathlib.Path(file or "").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    starts = list(re.finditer(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b", text, re.MULTILINE))
    return text[starts[-1].start() :] if starts else "it left no message"


def _grids(config: Any) -> Any:
    """Marks grids for Tune, which knows them by a dict of its own form: the same one."""
    if not isinstance(config, Mapping):
        return config
    if set(config) == {"grid_search"}:
        return tune.grid_search(list(config["grid_search"]))
    return {key: _grids(value) for key, value in config.items()}


def _resume_all() -> tune.ResumeConfig:
    # Unfinished trials go on and finished ones stay as they are by default.
    kinds: dict[str, Any] = {"errored": tune.ResumeConfig.ResumeType.RESUME}
    return tune.ResumeConfig(**kinds)


@contextmanager
def _settings():
    """Tune's settings come through the environment: its SIGINT handler would end trials without a checkpoint."""
    wanted = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    handler = signal.getsignal(signal.SIGUSR1)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        signal.signal(signal.SIGUSR1, signal.SIG_DFL if handler is None else handler)
