"""Runs on disk: their records, which let an interrupted one be resumed, and their checkpoints."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl import config as config_lib
from jaxrl.cli.experiments import Experiment
from jaxrl.trainers.appending import storing
from jaxrl.trainers.history import History
from jaxrl.trainers.result_table import replace_text
from jaxrl.trainers.results import results_root
from jaxrl.types import CheckpointError, ConfigError, JaxrlError, StorageError

RECORD, FORMAT_VERSION = "run.json", 1
RUNNING, INTERRUPTED, FAILED, DONE = "running", "interrupted", "failed", "done"


class Run(NamedTuple):
    """An experiment's run as its record tells it.

    Attributes:
        directory: of the run; under Tune, of the experiment.
        experiment: what runs.
        status: running (also where the process was killed), interrupted, failed or done.
        tune: whether Tune runs it.
    """

    directory: pathlib.Path
    experiment: Experiment
    status: str
    tune: bool = False


def write_record(run: Run) -> None:
    """Writes a run's record into its directory.

    Raises:
        StorageError: it cannot be written.
    """
    with storing(run.directory):
        run.directory.mkdir(parents=True, exist_ok=True)
    record = {
        "format_version": FORMAT_VERSION,
        "status": run.status,
        "tune": run.tune,
        "experiment": dataclasses.asdict(run.experiment),
    }
    replace_text(run.directory / RECORD, json.dumps(record, indent=1) + "\n")


def read_record(file: pathlib.Path) -> Run:
    """Reads a run's record.

    Raises:
        ConfigError: damaged, or of a newer format.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        raise ConfigError(f"{file}: is no record of a run that this version of jaxrl can read")
    experiment = config_lib.parse(Experiment, record.get("experiment", {}), where=f"{file}: experiment")
    return Run(file.parent, experiment, str(record.get("status")), record.get("tune") is True)


def find_interrupted(directory: pathlib.Path) -> Run:
    """The run of an experiment that ended last without being done.

    Args:
        directory: the experiment's.

    Raises:
        ConfigError: there is none, or it is still running.
        StorageError: there may be one, in a directory that cannot be read.
    """
    records = [directory / RECORD, *directory.glob(f"*/{RECORD}")]
    runs = [read_record(file) for file in sorted((r for r in records if r.is_file()), key=_modified)]
    unfinished = [run for run in runs if run.status != DONE]
    closed = [path for path in directory.glob("*/") if not os.access(path, os.R_OK | os.X_OK)]
    if not unfinished and closed:
        raise StorageError(f"--resume: {closed[0]}: Permission denied; change its permissions")
    if not unfinished:
        why = f"its {len(runs)} runs are done" if runs else "it has no run with a record"
        raise ConfigError(
            f"--resume: nothing to go on with under {directory}: {why}. Give --experiment-name and --storage-path of "
            "the interrupted run, or --restore CHECKPOINT"
        )
    return unfinished[-1]


def resume_command(experiment: pathlib.Path) -> str:
    """The command that goes on with the interrupted run of an experiment.

    Args:
        experiment: its directory.
    """
    words = ["jaxrl", "train", "--resume"]
    if experiment.name != "default":
        words += ["--experiment-name", experiment.name]
    if experiment.parent != results_root():
        words += ["--storage-path", str(experiment.parent)]
    return shlex.join(words)


class RunLock:
    """Held by the process of a run, and let go by its end however that comes.

    Args:
        directory: the run's.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._path = directory / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            ConfigError: another process holds it.
            StorageError: it cannot be made.
        """
        if self._descriptor is not None:
            return
        with storing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"{self._path.parent}: another process is running it") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Lets the lock go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def checkpoints_below(directory: pathlib.Path) -> list[pathlib.Path]:
    """Every checkpoint in a directory and below it, oldest first."""
    found = [file.parent for file in directory.rglob("checkpoint_*/metadata.json") if "sha256" in _peek(file)]
    return sorted(found, key=lambda path: (_modified(path / "metadata.json"), path.name))


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a path means: itself, or the newest one of the best run below a directory.

    Raises:
        CheckpointError: there is none.
    """
    given = path.expanduser()
    if (given / "metadata.json").exists() or not given.is_dir():
        return given  # reading it says what is wrong, if anything is
    found = checkpoints_below(given)
    if not found and any((given / name).exists() for name in ("state.json", "arrays.safetensors")):
        return given
    if not found and not any(given.glob("result.json")) and not any(given.rglob("run.json")):
        return given
    if not found:
        raise CheckpointError(f"{given}: there is no checkpoint in it or below; train without --no-checkpoint-at-end")
    return _best_runs(found)[-1]


def _best_runs(checkpoints: list[pathlib.Path]) -> list[pathlib.Path]:
    """Of the checkpoints of several runs, those of the run with the highest last mean reward."""
    rewards = {path.parent: last_reward(path.parent) for path in checkpoints}
    best = max(rewards, key=lambda run: rewards[run] if rewards[run] == rewards[run] else -math.inf)
    if all(reward != reward for reward in rewards.values()):
        best = checkpoints[-1].parent
    return [path for path in checkpoints if path.parent == best]


def last_reward(directory: pathlib.Path) -> float:
    """The mean episode reward of a run's last result; NaN where there is none."""
    try:
        return History.load(directory).column("episode_reward_mean")[-1]
    except JaxrlError:
        return math.nan


def rollout_command(checkpoint: str | pathlib.Path) -> str:
    """The command that plays a checkpoint."""
    return shlex.join(["jaxrl", "rollout", str(checkpoint), "--episodes", "5"])


def _modified(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _peek(file: pathlib.Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
