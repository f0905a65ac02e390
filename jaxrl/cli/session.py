"""What `jaxrl train` does with its flags: each experiment is driven directly or handed to Tune."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxrl.cli import direct
from jaxrl.cli.experiments import (
    Experiment,
    check_variants,
    find_trainer,
    needs_tune,
    read_experiments,
    with_seeds,
)
from jaxrl.cli.reporting import quieten, say
from jaxrl.cli.runs import find_checkpoint, find_interrupted
from jaxrl.config import deep_update
from jaxrl.trainers.checkpoint import read_metadata
from jaxrl.trainers.results import check_writable, results_root
from jaxrl.trainers.stopping import check_stop
from jaxrl.types import ConfigError


def run(
    flags: Mapping[str, Any],
    *,
    file: pathlib.Path | None,
    name: str,
    storage_path: pathlib.Path | None,
    address: str | None,
    resume: bool,
    trust_imports: bool,
    verbosity: int,
) -> int:
    """Runs the experiments one after the other.

    Args:
        flags: given on the command line, by Experiment's field.
        file: YAML file of experiments, or None.
        name: of the experiment that flags describe.
        storage_path: where experiments go; None: the default.
        address: of a Ray cluster, or None.
        resume: go on with each experiment's last interrupted run.
        trust_imports: import what checkpoints name.
        verbosity: 0, 1 or 2.

    Returns:
        The exit code: 0, 1 where a run failed, 128 + signal where it was interrupted.

    Raises:
        JaxrlError: what the user gave cannot work; nothing has started then.
    """
    _check_name(name, "--experiment-name")
    root = results_root(storage_path)
    check_writable(root, "--storage-path" if storage_path is not None else "results")
    if resume and "restore" in flags:
        raise ConfigError("--resume goes on with the run's own last checkpoint; leave out --restore")
    settings = direct.Settings(verbosity, trust_imports)
    experiments = read_experiments(file, name, flags, complete=not resume)
    for title in experiments:
        _check_name(title, str(file))
    if resume:
        return _first_bad([lambda t=title: _resume(root / t, flags, address, settings) for title in experiments])
    prepared = {title: _prepared(title, experiment, address) for title, experiment in experiments.items()}
    return _first_bad(
        [lambda t=title, e=experiment: _start(e, root / t, address, settings) for title, experiment in prepared.items()]
    )


def _check_name(name: str, where: str) -> None:
    if pathlib.Path(name).name != name or name == ".." or not name.isprintable() or len(os.fsencode(name)) > 255:
        told = repr(name if len(name) < 80 else f"{name[:80]}...")
        raise ConfigError(f"{where}: expected the name of one directory, got {told}; see --storage-path")


def _prepared(title: str, experiment: Experiment, address: str | None) -> Experiment:
    """The experiment with its checkpoint found and its configurations checked, before anything starts."""
    if experiment.restore is not None:
        found = find_checkpoint(pathlib.Path(experiment.restore))
        metadata = read_metadata(found)
        if str(found) != experiment.restore:
            say(f"Restoring {found}")
        name = str(metadata["algorithm"])
        if experiment.run is not None and find_trainer(experiment.run).name_of() != name:
            raise ConfigError(
                f"--restore: {found} is of {name}, not of {experiment.run}; give --run {name}, or leave it out"
            )
        return dataclasses.replace(experiment, restore=str(found), run=name)
    assert experiment.run is not None
    cls = find_trainer(experiment.run)
    quieten(0)
    if not needs_tune(experiment, address):
        check_variants(cls, experiment.full_config(), check_stop(experiment.stop))
        return experiment
    seeded = with_seeds(experiment)
    try:
        check_variants(cls, seeded.full_config(), check_stop(seeded.stop))
    except ConfigError as error:
        raise ConfigError(f"experiment {title!r}: {error}") from error
    return seeded


def _start(experiment: Experiment, directory: pathlib.Path, address: str | None, settings: direct.Settings) -> int:
    if not needs_tune(experiment, address):
        return direct.start(experiment, directory, settings)
    from jaxrl.cli import tuned

    return tuned.start(experiment, directory, address, settings)


def _resume(directory: pathlib.Path, flags: Mapping[str, Any], address: str | None, settings: direct.Settings) -> int:
    interrupted = find_interrupted(directory)
    given = dict(flags)
    config = deep_update(interrupted.experiment.config, given.pop("config", {}))
    experiment = dataclasses.replace(interrupted.experiment, **given, config=config)
    if not interrupted.tune:
        return direct.resume(interrupted, experiment, settings)
    from jaxrl.cli import tuned

    return tuned.resume(interrupted, experiment, address, settings)


def _first_bad(jobs: list[Any]) -> int:
    """Runs jobs in order; a failure lets the others run, an interruption does not."""
    worst = 0
    for job in jobs:
        code = job()
        if code > 128:
            return code
        worst = max(worst, code)
    return worst
