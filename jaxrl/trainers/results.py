"""Results on disk, in Ray's layout: params.json, result.json, progress.csv and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import secrets
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl import config as config_lib
from jaxrl.trainers.appending import storing, when_there_is_room
from jaxrl.trainers.events import EventFile
from jaxrl.trainers.result_table import (
    RESULTS,
    Result,
    ResultTable,
    flatten,
    keep_results,
    last_iteration,
    replace_text,
)
from jaxrl.types import ConfigError, StorageError

# Making TensorBoard's summaries costs a millisecond or two, as much as a tenth of a short iteration.
EVENT_INTERVAL_S = 0.5

# What describes a run rather than its learning: kept out of curves and tables, as Ray does.
_NO_CURVES = ("config", "pid", "timestamp", "time_total_s", "training_iteration", "hostname", "node_ip", "date", "done")


def results_root(storage_path: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where experiments go: `storage_path`, else `JAXRL_RESULTS_DIR`, else `~/ray_results`."""
    return pathlib.Path(storage_path or os.environ.get("JAXRL_RESULTS_DIR") or "~/ray_results").expanduser().absolute()


def new_run_directory(experiment: pathlib.Path, name: str, env: Any) -> pathlib.Path:
    """A path for a run that no other run has, `<name>_<env>_<date>_<unique>`; nothing is created.

    Args:
        experiment: the directory that holds the experiment's runs.
        name: the algorithm's name.
        env: the environment: a name, the class or function that makes it, or a JaxEnv.
    """
    from jaxrl.envs.creation import env_name

    algorithm, label = (
        re.sub(r"[^A-Za-z0-9.+-]+", "-", part)[:80].strip("-.") or kind
        for part, kind in ((name, "run"), (env_name(env), "env"))
    )
    return experiment / f"{algorithm}_{label}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(4)}"


def check_writable(directory: pathlib.Path, where: str) -> None:
    """Checks that a directory can be made and written, without making it.

    Args:
        directory: an absolute path.
        where: what names it, for the message.

    Raises:
        ConfigError: it cannot.
    """
    there = next(path for path in (directory, *directory.parents) if _exists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{where}: {directory} cannot be written: {there}: {error.strerror or error}; give another directory"
        ) from error


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


class ResultWriter:
    """Writes the results of a run; a directory that has results already is continued where the run stands.

    Each result is complete on disk when `write` returns, so that a killed process leaves whole lines. Results that a
    full disk could not take are written with the next one that it takes.

    | file | holds |
    | --- | --- |
    | `params.json` | the config, functions and classes by name |
    | `result.json` | one line of JSON a result; a number that is not finite is null |
    | `progress.csv` | one row a result: numbers and texts, nested keys joined by `/` |
    | `events.out.tfevents.*` | for TensorBoard: numbers under the same keys, lists (`hist_stats`) as histograms |

    Of results that come faster than two a second, TensorBoard gets the latest.

    Args:
        directory: where; None: a new one under `<results root>/default`. It is made by the first `write`.
        name: the algorithm's name.
        options: the resolved config, for `params.json`; its `env` is part of a new directory's name, and its
            `on_full_disk` says whether to wait for room.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, name: str, options: Any) -> None:
        if directory is None:
            self.directory = new_run_directory(results_root() / "default", name, getattr(options, "env", None))
        else:
            self.directory = pathlib.Path(directory).expanduser().absolute()
        self._options = options
        self._wait = getattr(options, "on_full_disk", "end") == "wait"
        self._table: ResultTable | None = None
        self._events: EventFile | None = None
        self._config: tuple[Any, str] = (None, "")
        self._unwritten: list[Result] = []
        self._unseen: Mapping[str, Any] | None = None
        self._last_event = -math.inf
        self._iteration = 0

    def check(self, iteration: int) -> None:
        """Checks, before an iteration, that nobody else writes results there.

        Args:
            iteration: the last one that the trainer has behind it.

        Raises:
            ConfigError: the directory holds results of another trainer.
            StorageError: it cannot be read.
        """
        if self._table is None and (iteration > 0 or self._unwritten):
            return  # restored: it goes on from there
        with storing(self.directory):
            found = self.directory / RESULTS
            size = found.stat().st_size if found.exists() else 0
        if size and (self._table is None or not self._table.is_as_left(size)):
            raise ConfigError(
                f"results_dir: {self.directory} holds results of another trainer, up to iteration "
                f"{last_iteration(self.directory)}; give each trainer a directory of its own (None: a new one), or go "
                "on from a checkpoint with from_checkpoint or restore"
            )

    def write(self, result: Mapping[str, Any]) -> None:
        """Adds one result to every file.

        Raises:
            StorageError: it cannot be written now; the next `write` writes it too.
        """
        iteration = int(result.get("training_iteration", self._iteration + 1))
        if iteration <= self._iteration:  # the trainer was set back
            self._unwritten = [one for one in self._unwritten if one.iteration < iteration]
            if self._table is not None:
                self._flush()
                self._continue(iteration - 1)
        self._iteration = iteration
        numbers = to_plain({key: value for key, value in result.items() if key != "config"})
        line = json.dumps(numbers, allow_nan=False)
        if "config" in result:
            line = f'{line[:-1]}, "config": {self._config_text(result["config"])}}}'
        flat = dict(flatten(numbers))
        self._unwritten.append(Result(iteration, line + "\n", flat))
        self._unseen = flat
        when_there_is_room(self._flush, wait=self._wait)
        # A short iteration is over before TensorBoard's summaries of it would be made.
        if time.monotonic() - self._last_event >= EVENT_INTERVAL_S:
            self._last_event = time.monotonic()
            self._write_events()

    def close(self) -> None:
        """Writes results that are still unwritten, if possible, and closes the files; `write` may be called again."""
        with contextlib.suppress(StorageError):  # `write` has told of it
            self._flush()
            if self._unseen is not None and self.directory.exists():
                self._write_events()
        self._events = None

    def _config_text(self, config: Any) -> str:
        # The same object in every result of a run.
        if self._config[0] is not config:
            self._config = config, json.dumps(to_plain(config), allow_nan=False)
        return self._config[1]

    def _flush(self) -> None:
        if self._table is None and self._unwritten:
            first = self._unwritten[0].iteration
            self.check(first - 1)
            with storing(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps(config_lib.to_json(self._options), indent=1, allow_nan=False)
            replace_text(self.directory / "params.json", text + "\n")
            self._continue(first - 1)
        if self._table is not None:
            self._table.write(self._unwritten)

    def _continue(self, after: int) -> None:
        """Goes on after an iteration: what the directory holds of later ones is made again."""
        kept = keep_results(self.directory, after)
        self._table = ResultTable(self.directory, kept.columns)
        # Steps of the results that are made again, or of all where none is kept.
        start = None if not kept.existed else kept.timesteps + 1 if kept.columns else 0
        self._events = EventFile(self.directory, start)

    def _write_events(self) -> None:
        flat, self._unseen = self._unseen or {}, None
        if self._events is None:
            self._events = EventFile(self.directory)
        curves = {key: value for key, value in flat.items() if key.partition("/")[0] not in _NO_CURVES}
        self._events.add(curves, int(flat.get("timesteps_total") or flat.get("training_iteration") or 0))


def to_plain(value: Any) -> Any:
    """`value` as strict JSON data: NumPy and JAX numbers as numbers, what is not finite as None, keys as text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # Most lists are long and of plain numbers: a call for each would take longer than the rest of a result.
        return [item if type(item) is float and math.isfinite(item) else to_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)) or hasattr(value, "__array__"):
        return to_plain(np.asarray(value).tolist())
    return config_lib.to_json({"value": value})["value"]


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return _is_number(value) and math.isfinite(float(value))


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float, np.number)):
        return not isinstance(value, bool)
    # A JAX scalar, without importing JAX for it.
    return hasattr(value, "__array__") and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"
