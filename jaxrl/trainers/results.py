"""Results on disk, in Ray's layout: params.json, result.json, progress.csv and TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxrl import config as config_lib
from jaxrl.types import ConfigError

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

    label = re.sub(r"[^A-Za-z0-9.+-]+", "-", env_name(env)).strip("-") or "env"
    return experiment / f"{name}_{label}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(4)}"


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


def last_iteration(directory: pathlib.Path) -> int:
    """The iteration of the last result in a results directory; 0 where there is none."""
    try:
        with open(directory / "result.json", "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError):  # cut off where the machine went down
            return int(json.loads(line).get("training_iteration", 0))
    return 0


def drop_results(directory: pathlib.Path, after: int) -> None:
    """Drops the results that come after an iteration: the run goes on from there, and makes them again."""
    results, progress = directory / "result.json", directory / "progress.csv"
    _drop_partial_line(results)
    _drop_partial_line(progress)
    if results.exists():
        kept = [line for line in results.read_text(encoding="utf-8").splitlines() if _iteration(line) <= after]
        replace_text(results, "".join(f"{line}\n" for line in kept))
    if progress.exists():
        with open(progress, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row.get("training_iteration") or 0) <= after]
            columns = list(reader.fieldnames or [])
        replace_text(progress, _csv_text(columns, rows, header=bool(columns)))


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["training_iteration"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class ResultWriter:
    """Writes the results of a run; a directory that has results already is continued where the run stands.

    Each result is complete on disk when `write` returns, so that a killed process leaves whole lines.

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
        options: the resolved config, for `params.json`; its `env` is part of a new directory's name.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, name: str, options: Any) -> None:
        if directory is None:
            self.directory = new_run_directory(results_root() / "default", name, getattr(options, "env", None))
        else:
            self.directory = pathlib.Path(directory).expanduser().absolute()
        self._options = options
        self._columns: list[str] | None = None
        self._events: Any = None
        self._config: tuple[Any, str] = (None, "")
        self._unseen: Mapping[str, Any] | None = None
        self._last_event = -math.inf
        self._size, self._iteration = 0, 0

    def check(self, iteration: int) -> None:
        """Checks, before an iteration, that nobody else writes results there.

        Args:
            iteration: the last one that the trainer has behind it.

        Raises:
            ConfigError: the directory holds results of another trainer.
        """
        if self._columns is None and iteration > 0:
            return  # restored: it goes on from there
        found = self.directory / "result.json"
        size = found.stat().st_size if found.exists() else 0
        if size and size != self._size:
            raise ConfigError(
                f"results_dir: {self.directory} holds results of another trainer, up to iteration "
                f"{last_iteration(self.directory)}; give each trainer a directory of its own (None: a new one), or go "
                "on from a checkpoint with from_checkpoint or restore"
            )

    def write(self, result: Mapping[str, Any]) -> None:
        """Appends one result to every file."""
        iteration = int(result.get("training_iteration", self._iteration + 1))
        if self._columns is None:
            self._open(iteration)
        elif iteration <= self._iteration:
            drop_results(self.directory, iteration - 1)
        self._iteration = iteration
        numbers = {key: value for key, value in result.items() if key != "config"}
        line = json.dumps(to_plain(numbers), allow_nan=False)
        if "config" in result:
            line = f'{line[:-1]}, "config": {self._config_text(result["config"])}}}'
        append_text(self.directory / "result.json", line + "\n")
        self._size = (self.directory / "result.json").stat().st_size
        flat = dict(flatten(numbers))
        self._write_row({key: value for key, value in flat.items() if _is_cell(value)})
        # A short iteration is over before TensorBoard's summaries of it would be made.
        now = time.monotonic()
        self._unseen = flat
        if now - self._last_event >= EVENT_INTERVAL_S:
            self._last_event = now
            self._write_events()

    def close(self) -> None:
        """Closes the event file; a later `write` opens a new one."""
        if self._unseen is not None:
            self._write_events()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _config_text(self, config: Any) -> str:
        # The same object in every result of a run.
        if self._config[0] is not config:
            self._config = config, json.dumps(to_plain(config), allow_nan=False)
        return self._config[1]

    def _open(self, iteration: int) -> None:
        self.check(iteration - 1)
        self.directory.mkdir(parents=True, exist_ok=True)
        if last_iteration(self.directory) >= iteration:
            drop_results(self.directory, iteration - 1)
        text = json.dumps(config_lib.to_json(self._options), indent=1, allow_nan=False)
        replace_text(self.directory / "params.json", text + "\n")
        for name in ("result.json", "progress.csv"):
            _drop_partial_line(self.directory / name)
        path = self.directory / "progress.csv"
        with open(path, newline="", encoding="utf-8") if path.exists() else io.StringIO() as file:
            self._columns = next(csv.reader(file), [])

    def _write_row(self, row: Mapping[str, Any]) -> None:
        assert self._columns is not None
        path = self.directory / "progress.csv"
        new = [key for key in row if key not in self._columns]
        if new:
            # A key that comes later (an evaluation, say) widens the table: older rows are empty there.
            rows: list[dict[str, str]] = []
            if self._columns:
                with open(path, newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
            self._columns = [*self._columns, *new]
            replace_text(path, _csv_text(self._columns, rows, header=True))
        append_text(path, _csv_text(self._columns, [row], header=False))

    def _write_events(self) -> None:
        flat, self._unseen = self._unseen or {}, None
        # Importing it takes a while, and a trainer that is never trained needs none of it.
        from tensorboardX import FileWriter
        from tensorboardX.summary import histogram, scalar

        if self._events is None:
            self._events = FileWriter(str(self.directory), flush_secs=5)
        summaries = []
        for key, value in flat.items():
            if key.partition("/")[0] in _NO_CURVES:
                continue
            if isinstance(value, (list, tuple, np.ndarray)):
                numbers = [float(item) for item in np.ravel(np.asarray(value, dtype=object)) if is_finite(item)]
                if numbers:
                    summaries.append(histogram(key, np.asarray(numbers), bins=30))
            elif is_finite(value):
                summaries.append(scalar(key, float(value)))
        if summaries:
            # One event for all of them: each one put into the writer's queue takes a while.
            event = summaries[0]
            for summary in summaries[1:]:
                event.MergeFrom(summary)
            step = int(flat.get("timesteps_total") or flat.get("training_iteration") or 0)
            self._events.add_summary(event, step)


def flatten(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a nested dict with their keys joined by `/`.

    Example:
        >>> dict(flatten({"info": {"kl": 0.1}, "done": False}))
        {'info/kl': 0.1, 'done': False}
    """
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


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


def append_text(path: pathlib.Path, text: str) -> None:
    """Appends in one system call, so that another process never reads half a line."""
    with open(path, "ab", buffering=0) as file:
        file.write(text.encode())


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its final name, then renames it: a reader finds the old text or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _is_cell(value: Any) -> bool:
    return isinstance(value, (bool, str)) or _is_number(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float, np.number)):
        return not isinstance(value, bool)
    # A JAX scalar, without importing JAX for it.
    return hasattr(value, "__array__") and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def _csv_text(columns: list[str], rows: list[Any], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({key: to_plain(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _drop_partial_line(path: pathlib.Path) -> None:
    """Cuts what follows the last line end: the machine may have gone down while a line was written."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            file.truncate(end)
