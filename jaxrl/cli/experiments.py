"""Experiments: what to run, read from flags and YAML files."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxrl import config as config_lib
from jaxrl.config import option
from jaxrl.registry import did_you_mean
from jaxrl.trainers.stopping import check_keys_early, check_stop
from jaxrl.types import ConfigError

GRID = "grid_search"
_MAX_CHECKED = 1000


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, with the keys that a YAML file has under the experiment's name."""

    run: str | None = option(None, "Algorithm: a registered name.")
    env: Any = option(None, "Environment; short for config.env.")
    config: Mapping[str, Any] = option({}, "Options of the algorithm; {grid_search: [...]} in place of a value.")
    stop: Mapping[str, Any] = option({}, "Stops once a result's number is at least the one given.")
    checkpoint_freq: int = option(0, "Checkpoint every so many iterations; 0: never.", low=0)
    checkpoint_at_end: bool = option(True, "Checkpoint after the last iteration.")
    keep_best: str | None = option(None, "Keep the best checkpoint by this number of results.")
    keep_checkpoints_num: int | None = option(None, "Checkpoints kept, the newest; None: all.", low=1)
    num_samples: int = option(1, "Runs of each configuration.", low=1)
    max_failures: int = option(0, "Times that a failed run goes on from its last checkpoint.", low=0)
    restore: str | None = option(None, "Checkpoint to start from.")

    def full_config(self) -> dict[str, Any]:
        """The config with `env` and what else belongs there."""
        config = dict(self.config)
        if self.env is not None:
            config["env"] = self.env
        if self.keep_checkpoints_num is not None:
            config["keep_checkpoints_num"] = self.keep_checkpoints_num
        if self.keep_best is not None:
            config["keep_best"] = self.keep_best
        return config


def read_experiments(
    file: pathlib.Path | None, name: str, flags: Mapping[str, Any], *, complete: bool
) -> dict[str, Experiment]:
    """The experiments of a YAML file, or the one that the flags describe; flags override the file.

    Args:
        file: in RLlib's layout, `{name: {run, env, stop, config, ...}}`; None: flags alone.
        name: of the experiment that flags describe.
        flags: what was given on the command line, by Experiment's field.
        complete: an algorithm and an environment have to be named.

    Raises:
        ConfigError: not such a file, an unknown key, a wrong type, no algorithm or environment.
    """
    if file is None:
        found = {name: _merge(Experiment(), flags, "command line")}
    else:
        found = {title: _merge(experiment, flags, str(file)) for title, experiment in _read_file(file).items()}
    for title, experiment in found.items():
        check_stop(experiment.stop, where=f"experiment {title!r}: stop")
        if not complete or experiment.restore is not None:
            continue
        if experiment.run is None:
            raise ConfigError(f"experiment {title!r}: no algorithm; give --run, e.g. --run PPO (see jaxrl list)")
        if experiment.env is None and "env" not in experiment.config:
            raise ConfigError(f"experiment {title!r}: no environment; give --env, e.g. --env CartPole-v1")
    return found


def _read_file(file: pathlib.Path) -> dict[str, Experiment]:
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    data = config_lib.load_yaml(text, where=str(file))
    if not isinstance(data, dict) or not data or not all(isinstance(body, dict) for body in data.values()):
        raise ConfigError(
            f"{file}: expected experiments by name, {{name: {{run: PPO, env: CartPole-v1, config: ...}}}}"
        )
    experiments = {}
    for title, body in data.items():
        if "local_dir" in body:
            raise ConfigError(f"{file}: {title}: local_dir is retired; give --storage-path")
        experiments[str(title)] = config_lib.parse(Experiment, body, where=f"{file}: {title}")
    return experiments


def _merge(experiment: Experiment, flags: Mapping[str, Any], where: str) -> Experiment:
    given = dict(flags)
    config = config_lib.deep_update(dict(experiment.config), given.pop("config", {}))
    # Other criteria than the file's: the file's would end the run first.
    stop = given.pop("stop", None) or experiment.stop
    base = dataclasses.replace(experiment, config={}, stop={})
    return config_lib.parse(Experiment, {**given, "config": config, "stop": stop}, base=base, where=where)


def needs_tune(experiment: Experiment, address: str | None) -> bool:
    """Whether an experiment is more than one run, or asks for a cluster; one run is driven directly."""
    return address is not None or experiment.num_samples > 1 or bool(grids(experiment.full_config()))


def grids(config: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list[Any]]]:
    """Every `{grid_search: [...]}` of a configuration, with the path to it.

    Raises:
        ConfigError: a grid that is no list of values.
    """
    if not isinstance(config, Mapping):
        return []
    if GRID in config:
        values = config[GRID]
        if not isinstance(values, list) or not values or len(config) > 1:
            raise ConfigError(f"{'.'.join(path)}: expected {{grid_search: [value, ...]}}, got {dict(config)!r}")
        return [(path, values)]
    return [grid for key, value in config.items() for grid in grids(value, (*path, str(key)))]


def variants(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every configuration that a grid stands for."""
    found = grids(config)
    for values in itertools.product(*(options for _, options in found)):
        variant: Any = _copy(config)
        for (path, _), value in zip(found, values, strict=True):
            node = variant
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
        yield variant


def check_variants(cls: Any, config: Mapping[str, Any], stop: Mapping[str, float]) -> None:
    """Resolves the configurations that a grid stands for, so that none fails after others have run for hours.

    Args:
        cls: the Trainer class.
        config: with its grids; without any it stands for itself.
        stop: criteria, checked with each.
    """
    for variant in itertools.islice(variants(config), _MAX_CHECKED):
        check_keys_early(stop, cls, cls.resolve_config(variant))


def with_seeds(experiment: Experiment) -> Experiment:
    """Samples with a seed get seeds that follow one another: with the same one they would all be the same run."""
    seed = experiment.config.get("seed")
    if experiment.num_samples == 1 or not isinstance(seed, int):
        return experiment
    seeds = {GRID: [seed + i for i in range(experiment.num_samples)]}
    return dataclasses.replace(experiment, num_samples=1, config={**experiment.config, "seed": seeds})


def find_trainer(name: str) -> Any:
    """The trainer class of a registered name, in whatever case; `PPOTrainer` is taken for `PPO`.

    Raises:
        ConfigError: no such algorithm, with the nearest one.
    """
    from jaxrl import registry

    known = registry.names("algorithm")
    folded = {one.casefold(): one for one in known}
    short = name.casefold().removesuffix("trainer")
    found = registry.lookup("algorithm", name) or registry.lookup("algorithm", folded.get(short, short))
    if found is None:
        raise ConfigError(f"unknown algorithm {name!r}{did_you_mean(name, known) or '.'} There are: {', '.join(known)}")
    return found


def _copy(config: Any) -> Any:
    return {key: _copy(value) for key, value in config.items()} if isinstance(config, Mapping) else config
