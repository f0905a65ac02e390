"""Experiments of several runs, or on a cluster, through Ray Tune."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jaxrl.cli.direct import Settings
from jaxrl.cli.experiments import Experiment, find_trainer
from jaxrl.cli.reporting import FAILURE, quieten, say, show
from jaxrl.cli.runs import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    Run,
    RunLock,
    checkpoints_below,
    resume_command,
    rollout_command,
    write_record,
)
from jaxrl.cli.signals import asking_to_end
from jaxrl.terminal import printable_name
from jaxrl.trainers import checkpoint, resources
from jaxrl.trainers.display import format_line
from jaxrl.trainers.history import value_at
from jaxrl.trainers.stopping import check_stop
from jaxrl.types import ConfigError


def start(experiment: Experiment, directory: pathlib.Path, address: str | None, settings: Settings) -> int:
    """Starts an experiment; returns the exit code.

    Args:
        experiment: what to run.
        directory: the experiment's.
        address: of a Ray cluster; None: a local one is started.
        settings: of the command.
    """
    return _run(experiment, directory, address, settings, resume=False)


def resume(run: Run, experiment: Experiment, address: str | None, settings: Settings) -> int:
    """Goes on with the trials of an experiment that are not done; returns the exit code."""
    if not experiment.stop == run.experiment.stop or experiment.config != run.experiment.config:
        raise ConfigError(
            "--resume: trials of Tune go on as they began; leave out --stop and --config, or use --restore"
        )
    say(f"Resuming {run.directory}")
    return _run(experiment, run.directory, address, settings, resume=True)


def _run(
    experiment: Experiment, directory: pathlib.Path, address: str | None, settings: Settings, *, resume: bool
) -> int:
    from jaxrl.tune import UNFINISHED, TrialPlan, run_trials

    assert experiment.run is not None
    cls = find_trainer(experiment.run)
    quieten(settings.verbosity)
    plan = TrialPlan(
        config=_config(experiment, settings),
        stop=check_stop(experiment.stop),
        num_samples=experiment.num_samples,
        checkpoint_freq=experiment.checkpoint_freq,
        checkpoint_at_end=experiment.checkpoint_at_end,
        keep_checkpoints_num=experiment.keep_checkpoints_num,
        keep_best=experiment.keep_best,
        max_failures=experiment.max_failures,
        restore=experiment.restore,
    )
    lock = RunLock(directory)
    lock.acquire()
    started = resources.ensure_ray(address)
    progress = _Progress(cls.progress_keys)
    status = FAILED
    try:
        quieten(settings.verbosity)
        write_record(Run(directory, experiment, RUNNING, tune=True))
        with asking_to_end(lambda: progress.has_results) as interruption, progress:
            trials = run_trials(
                cls,
                plan,
                directory,
                resume=resume,
                on_change=progress.update,
                interrupted=lambda: interruption.requested is not None,
            )
            progress.show(trials)
        number = interruption.requested
        failed = [trial for trial in trials if trial.status == "ERROR"]
        unfinished = any(trial.status == UNFINISHED for trial in trials)
        status = INTERRUPTED if unfinished else FAILED if failed else DONE
    finally:
        try:
            write_record(Run(directory, experiment, status, tune=True))
        finally:
            lock.release()
            if started:
                resources.shutdown_ray()
    return _report(directory, trials, number if unfinished else None)


def _config(experiment: Experiment, settings: Settings) -> dict[str, Any]:
    config = experiment.full_config()
    if experiment.restore is None:
        return config
    source = pathlib.Path(experiment.restore)
    return checkpoint.read_config(source, experiment.run, config, settings.trust_imports)


def _report(directory: pathlib.Path, trials: Sequence[Any], number: int | None) -> int:
    failed = [trial for trial in trials if trial.status == "ERROR"]
    for trial in failed:
        say(f"Error: {trial.name}: {trial.error}")
    rewards = [(value_at(trial.result, "episode_reward_mean"), trial) for trial in trials]
    finite = [pair for pair in rewards if pair[0] == pair[0]]
    found = {trial.name: checkpoints_below(pathlib.Path(trial.directory)) for trial in trials if trial.directory}
    for trial in trials:
        if found.get(trial.name):
            show(f"{trial.name} {trial.tag}: {found[trial.name][-1]}")
    show(f"Results:    {directory}")
    if finite:
        best, trial = max(finite, key=lambda pair: pair[0])
        show(f"Best mean episode reward at last: {best:.1f}, {trial.name} {trial.tag}".rstrip())
        if found.get(trial.name):
            show(f"Checkpoint: {found[trial.name][-1]}")
            show(f"Play it:    {rollout_command(found[trial.name][-1])}")
    if number is not None:
        show(f"Go on with: {resume_command(directory)}")
        return 128 + number
    return FAILURE if failed else 0


class _Progress:
    """All trials in a table that is redrawn in place; where there is no terminal, lines."""

    def __init__(self, progress: Mapping[str, str]) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.has_results = False
        self._ready = 0.0
        self._shown: dict[str, Any] = {}
        self._progress = progress

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, trials: Sequence[Any]) -> None:
        """Shows the trials, at most every second."""
        self.has_results = self.has_results or any(trial.result for trial in trials)
        if time.monotonic() >= self._ready:
            self.show(trials)

    def show(self, trials: Sequence[Any]) -> None:
        """Shows the trials."""
        self._ready = time.monotonic() + 1.0
        if self._live is not None:
            self._live.update(_table(trials), refresh=True)
            return
        for trial in trials:
            # Not the status: a trial that ends was shown with its last result already.
            now = trial.result.get("training_iteration")
            if now is not None and self._shown.get(trial.name) != now:
                self._shown[trial.name] = now
                line = format_line(trial.result, self._progress)
                show(f"{trial.name} {trial.tag} {trial.status}: {line}")


def _table(trials: Sequence[Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    columns: Mapping[str, str] = {
        "iteration": "training_iteration",
        "env steps": "timesteps_total",
        "reward mean": "episode_reward_mean",
        "length": "episode_len_mean",
        "seconds": "time_total_s",
    }
    for name in ("run", "differs in", "status"):
        table.add_column(name, no_wrap=name != "differs in")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for trial in trials:
        values = [value_at(trial.result, key) for key in columns.values()]
        cells = [f"{value:,.1f}".removesuffix(".0") if value == value else "-" for value in values]
        names = [Text(printable_name(name)) for name in (trial.name, trial.tag, trial.status.lower())]
        table.add_row(*names, *cells)
    return table
