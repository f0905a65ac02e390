"""Groups of runs: those found in directories, by what they differ in."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl.trainers.history import History
from jaxrl.trainers.result_table import flatten
from jaxrl.types import JaxrlError

# What changes where a run happens, but not what is learned.
_SAME_CURVE = ("seed", "keep_checkpoints_num", "keep_best", "compile_cache")


class _Run(NamedTuple):
    history: History
    algorithm: str
    env: str
    config: dict[str, Any]


def find_groups(directories: Sequence[pathlib.Path]) -> tuple[dict[str, dict[str, History]], list[str]]:
    """The runs in some directories and below, by environment and a label of what sets them apart; seeds are joined.

    Args:
        directories: results or experiment directories.

    Returns:
        Histories by environment and label, runs that differ only in their seed joined to one; and notes on runs that
        cannot be read.

    Raises:
        JaxrlError: a directory does not exist, or there is no run at all.
    """
    runs: list[_Run] = []
    notes: list[str] = []
    for directory in directories:
        given = directory.expanduser()
        if not given.exists():
            raise JaxrlError(f"{given}: does not exist; expected a results or experiment directory")
        for file in sorted([given] if given.is_file() else given.rglob("result.json")):
            try:
                runs.append(_read(file))
            except JaxrlError as error:
                notes.append(str(error))
    if not runs:
        where = ", ".join(str(directory) for directory in directories)
        raise JaxrlError("\n".join([f"{where}: no results there or below (a run's result.json)", *notes]))
    groups: dict[str, dict[str, list[History]]] = {}
    for run, label in zip(runs, _labels(runs), strict=True):
        groups.setdefault(run.env, {}).setdefault(label, []).append(run.history)
    joined = {
        env: {label: History.join(*group, name=label) for label, group in found.items()}
        for env, found in groups.items()
    }
    return joined, notes


def _read(file: pathlib.Path) -> _Run:
    history = History.load(file)
    try:
        config = json.loads((file.parent / "params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = history[-1].get("config")
    config = dict(flatten(config)) if isinstance(config, Mapping) else {}
    # Ours and Tune's directories both begin with the algorithm's name.
    algorithm = file.parent.name.partition("_")[0].removesuffix("Trainer")
    env = config.pop("env", None)
    name = env if isinstance(env, str) else str(env).partition(":")[2].strip("'}") if env else ""
    return _Run(history, algorithm, name, {k: v for k, v in config.items() if k not in _SAME_CURVE})


def _labels(runs: Sequence[_Run]) -> list[str]:
    labels = []
    for run in runs:
        alike = [other for other in runs if (other.algorithm, other.env) == (run.algorithm, run.env)]
        keys = dict.fromkeys(key for other in alike for key in other.config)
        # Tune's params.json has the options that were given, ours all of them: what is absent does not differ.
        differing = [
            key
            for key in keys
            if len({json.dumps(other.config[key], sort_keys=True) for other in alike if key in other.config}) > 1
        ]
        details = [f"{key.replace('/', '.')}={_short(run.config[key])}" for key in differing if key in run.config]
        labels.append(" ".join([f"{run.algorithm}, {run.env}".strip(", "), *details]))
    return labels


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
