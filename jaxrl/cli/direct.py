"""One run, driven directly: no Tune, and no Ray unless it has rollout workers."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl.cli.experiments import Experiment, find_trainer
from jaxrl.cli.reporting import FAILURE, fail, quieten, say, show
from jaxrl.cli.runs import (
    DONE,
    FAILED,
    INTERRUPTED,
    RECORD,
    RUNNING,
    Run,
    RunLock,
    checkpoints_below,
    resume_command,
    rollout_command,
    write_record,
)
from jaxrl.cli.signals import asking_to_end
from jaxrl.trainers.checkpoint import BEST, read_metadata
from jaxrl.trainers.display import enduring, open_display
from jaxrl.trainers.fit import train_until
from jaxrl.trainers.history import History, value_at
from jaxrl.trainers.interruption import Interruption
from jaxrl.trainers.result_table import keep_results
from jaxrl.trainers.results import new_run_directory
from jaxrl.trainers.stopping import check_stop, criterion_met, env_label
from jaxrl.types import CheckpointError, ConfigError, JaxrlError, StorageError


class Settings(NamedTuple):
    """What all experiments of a command share."""

    verbosity: int
    trust_imports: bool


def start(experiment: Experiment, directory: pathlib.Path, settings: Settings) -> int:
    """Starts a run in a new directory of an experiment's.

    Args:
        experiment: what to run.
        directory: the experiment's, made with the first result.
        settings: of the command.

    Returns:
        The exit code.

    Raises:
        JaxrlError: what the user gave cannot work.
    """
    source = None if experiment.restore is None else pathlib.Path(experiment.restore).expanduser()
    run = experiment.run
    env = experiment.full_config().get("env")
    if source is not None:
        metadata = read_metadata(source)
        run, env = run or str(metadata["algorithm"]), env or metadata["env"]
    assert run is not None
    cls = find_trainer(run)
    quieten(settings.verbosity)
    target = new_run_directory(directory, cls.name_of(), env)
    return _Session(cls, experiment, target, settings).train(source)


def resume(run: Run, experiment: Experiment, settings: Settings) -> int:
    """Goes on with a run from its last checkpoint, in its directory.

    Args:
        run: the run.
        experiment: its experiment, with what the command line changes.
        settings: of the command.

    Returns:
        The exit code.
    """
    checkpoints = checkpoints_below(run.directory)  # the best one among them, where it is the newest
    source = checkpoints[-1] if checkpoints else experiment.restore and pathlib.Path(experiment.restore).expanduser()
    name = experiment.run or (read_metadata(source)["algorithm"] if source else None)
    if name is None:
        raise ConfigError(f"{run.directory}: its record names no algorithm; give --run")
    say(f"Resuming {run.directory} " + (f"from {source.name}" if source else "from the start: it has no checkpoint"))
    if source is None:
        keep_results(run.directory, 0)
    cls = find_trainer(name)
    quieten(settings.verbosity)
    return _Session(cls, experiment, run.directory, settings).train(source or None)


class _Session:
    """Drives one run to its end, an interruption or a failure."""

    def __init__(self, cls: Any, experiment: Experiment, directory: pathlib.Path, settings: Settings) -> None:
        self.cls, self.experiment, self.directory, self.settings = cls, experiment, directory, settings
        self.stop = check_stop(experiment.stop)
        self.lock = RunLock(directory)
        self.trainer: Any = None
        self.title, self.status, self.begun = "", "", 0
        self.interruption = Interruption(())
        self.results: list[Mapping[str, Any]] = []
        self.checkpoint: str | None = None
        self.saved_at = -1

    def train(self, source: pathlib.Path | None) -> int:
        if (self.directory / "run.json").exists():
            self.lock.acquire()
        try:
            self.trainer = self._make(source)
            if source is not None and source.parent == self.directory:
                self.checkpoint, self.saved_at = str(source), self.trainer.iteration
                if self._is_done():
                    return self._finish(DONE, History(), 0)
            return self._train()
        finally:
            if self.trainer is not None:
                self.trainer.stop()
            self.lock.release()

    def _train(self) -> int:
        if not self.stop:
            say("No --stop was given: it trains until Ctrl-C.")
        self.title = f"{self.cls.name_of()} on {env_label(self.trainer)}"
        self.begun = self.trainer.iteration
        try:
            return self._drive()
        except (StorageError, CheckpointError) as error:
            code = self._failed(error)
            return code if self.interruption.requested is None else 128 + self.interruption.requested

    def _drive(self) -> int:
        failures, note = 0, None
        with asking_to_end(lambda: self.trainer.iteration > self.begun, self._last_checkpoint) as self.interruption:
            while note is None:
                try:
                    note = self._until_it_ends()
                except (ConfigError, CheckpointError, StorageError):
                    raise
                except Exception as error:
                    if failures >= self.experiment.max_failures or self.checkpoint is None:
                        return self._failed(error)
                    failures += 1
                    self._record(FAILED)
                    fail(error, self.settings.verbosity)
                    say(f"Going on from {self.checkpoint} ({failures} of {self.experiment.max_failures} failures)")
                    self.trainer.stop()
                    self.trainer = self._make(pathlib.Path(self.checkpoint))
            if self.experiment.checkpoint_at_end and self.results:
                self._save()
        if self.interruption.requested is not None and self.results:
            self._save()
        whole = History(self.results, name=self.title, note=note)
        if self.interruption.requested is not None:
            return self._finish(INTERRUPTED, whole, 128 + self.interruption.requested)
        return self._finish(DONE, whole, 0)

    def _until_it_ends(self) -> str:
        """Trains until a criterion is met or a signal asks for the end; returns what is to be said of the end."""
        history = train_until(
            self.trainer,
            self.stop,
            display=enduring(open_display(title=self.title))._replace(note=lambda text: None),
            interrupted=lambda: self.interruption.requested,
            after=self._after,
        )
        return history.note

    def _make(self, source: pathlib.Path | None) -> Any:
        config = self.experiment.full_config()
        if source is None:
            return self.cls(config, results_dir=self.directory)
        # Tune's wrapper options aside, the checkpoint's config holds unless the command line says otherwise.
        return self.cls.from_checkpoint(
            source, config, trust_imports=self.settings.trust_imports, results_dir=self.directory
        )

    def _after(self, result: Mapping[str, Any]) -> None:
        self.results.append(result)
        self.lock.acquire()
        if self.status != RUNNING:
            self._record(RUNNING)
        frequency = self.experiment.checkpoint_freq
        if frequency and self.trainer.iteration % frequency == 0:
            self._save()

    def _save(self) -> None:
        if self.saved_at != self.trainer.iteration:
            self.checkpoint, self.saved_at = self.trainer.save(), self.trainer.iteration

    def _record(self, status: str) -> None:
        self.status = status
        write_record(Run(self.directory, self.experiment, status))

    def _is_done(self) -> bool:
        """Whether the checkpoint stands where the run was to end: one more iteration would be one too many."""
        try:
            results = History.load(self.directory)
        except JaxrlError:
            return False
        last = [r for r in results if r.get("training_iteration") == self.trainer.iteration]
        return bool(last) and criterion_met(self.stop, last[-1]) is not None

    def _failed(self, error: Exception) -> int:
        if isinstance(error, (StorageError, CheckpointError)):
            with contextlib.suppress(OSError):  # that it cannot be recorded either is no news
                if (self.directory / RECORD).exists():
                    self._record(FAILED)
            fail(error, self.settings.verbosity, more=f" {self._last_checkpoint()}")
            return FAILURE
        self._record(FAILED)
        if not isinstance(error, JaxrlError):
            raise error
        fail(error, self.settings.verbosity)
        if self.results:
            self._say_where()
        return FAILURE

    def _last_checkpoint(self) -> str:
        if self.checkpoint is None:
            return "There is no checkpoint yet"
        if not os.path.exists(os.path.join(self.checkpoint, "metadata.json")):
            return f"The last checkpoint, {self.checkpoint}, is out of reach too"
        return f"The last checkpoint is whole: {self.checkpoint} (iteration {self.saved_at})"

    def _finish(self, status: str, history: History, code: int) -> int:
        self._record(status)
        if history:
            show(summary(history))
        elif status == DONE:
            show("There is nothing left to do: the run has met its stop criterion.")
        self._say_where()
        if status == INTERRUPTED:
            show(f"Go on with: {resume_command(self.directory.parent)}")
        return code

    def _say_where(self) -> None:
        show(f"Results:    {self.directory}")
        if self.checkpoint is not None:
            stale = self.trainer.iteration != self.saved_at
            show(f"Checkpoint: {self.checkpoint}" + f" (of iteration {self.saved_at}, not of the last)" * stale)
        best = self.directory / BEST
        if best.exists():
            show(f"Best:       {best} (iteration {read_metadata(best)['training_iteration']})")
        played = best if best.exists() else self.checkpoint
        if played is not None:
            show(f"Play it:    {rollout_command(played)}")


def summary(history: History) -> str:
    """What a run did, in a few lines."""
    last = history[-1]
    steps, seconds = value_at(last, "timesteps_total"), value_at(last, "time_total_s")
    compiling = sum(value for value in history.column("compile_time_s") if value == value)
    lines = [
        f"{history.name}: iteration {int(value_at(last, 'training_iteration'))}, {steps:,.0f} env steps, "
        f"{seconds:,.1f} s of training ({compiling:.1f} s of it compiling)"
    ]
    rewards = [(value, result) for value, result in zip(history.column("episode_reward_mean"), history, strict=True)]
    finite = [(value, result) for value, result in rewards if value == value]
    if finite:
        best, where = max(finite, key=lambda pair: pair[0])
        lines.append(
            f"Mean episode reward: {finite[0][0]:.1f} at first, {finite[-1][0]:.1f} at last, best {best:.1f} "
            f"(iteration {int(value_at(where, 'training_iteration'))})"
        )
    found = [value for value in history.column("evaluation/episode_reward_mean") if value == value]
    if found:
        lines.append(f"Mean evaluation reward: {found[0]:.1f} at first, {found[-1]:.1f} at last, best {max(found):.1f}")
    return "\n".join([*lines, *([history.note] if history.note else [])])
