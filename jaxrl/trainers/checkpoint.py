"""Checkpoints: a directory of JSON and safetensors, written atomically, read without running anything.

| file | holds |
| --- | --- |
| `metadata.json` | format version, algorithm, environment, spaces, versions, iteration |
| `config.json` | the config; functions and classes by name |
| `state.json` | the structure of the state, with names of arrays for leaves |
| `arrays.safetensors` | the arrays |
| `replay/` | contents of the replay memory, where `store_buffer_in_checkpoints` asks for them |

The state holds learners (parameters, optimiser, coeffs, keys, and the options that these are made of), counters, the
plan's operator states, and where every worker stands.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxrl import config as config_lib
from jaxrl import storage, trees
from jaxrl.envs import env_name
from jaxrl.storage.files import refusing
from jaxrl.tracebacks import is_users
from jaxrl.trainers import restoring, saved_sizes
from jaxrl.types import CheckpointError, JaxrlError, Params

# 1: as 2, each array file with checksums of its own, replay arrays under names of their own.
FORMAT_VERSION = 2
# What `keep_best` writes; `keep_checkpoints_num` does not count it.
BEST = "checkpoint_best"
_FILES = ("metadata.json", "config.json", "state.json", "arrays.safetensors")


def save(trainer: Any, directory: str | os.PathLike[str]) -> str:
    """Writes a checkpoint beside its final name, then renames it: a reader finds a whole checkpoint, or none.

    Args:
        trainer: the trainer.
        directory: the checkpoint's final path; an older checkpoint of that name is replaced.

    Returns:
        The path.
    """
    target = pathlib.Path(directory).expanduser().absolute()
    path = storage.write(target, _fill(trainer))
    keep = trainer.options.keep_checkpoints_num
    if keep is not None and target.name != BEST:
        _drop_old(target, keep)
    return path


def _drop_old(newest: pathlib.Path, keep: int) -> None:
    siblings = sorted(p for p in newest.parent.glob("checkpoint_*") if (p / "metadata.json").is_file() and p != newest)
    siblings = [p for p in siblings if p.name != BEST]
    for old in siblings[: max(0, len(siblings) - (keep - 1))]:
        storage.drop(old)


def write(trainer: Any, directory: pathlib.Path) -> None:
    """Writes a checkpoint's files into an existing directory (Tune's), each synced to disk, `metadata.json` last."""
    storage.write_into(directory, _fill(trainer))


def _fill(trainer: Any) -> Callable[[storage.Writer], dict[str, Any]]:
    def fill(writer: storage.Writer) -> dict[str, Any]:
        with trainer.context.paused():
            structure, arrays = trees.encode(_state(trainer))
        writer.arrays("arrays.safetensors", arrays)
        writer.json("state.json", structure)
        writer.json("config.json", config_lib.to_json(trainer.asked))
        for memory in (trainer.context.memory, trainer.context.shards):
            if memory is not None:
                memory.save(writer, "replay/")
        return _metadata(trainer)

    return fill


def _metadata(trainer: Any) -> dict[str, Any]:
    env = trainer.options.env
    return {
        "format_version": FORMAT_VERSION,
        "algorithm": trainer.name,
        "env": env_name(env),
        "policies": {
            pid: {"obs_space": str(r.obs_space), "action_space": str(r.action_space), "policy": r.factory.name}
            for pid, r in trainer.recipes.items()
        },
        "training_iteration": trainer.iteration,
        "timesteps_total": trainer.context.counters["num_steps_sampled"],
        "jaxrl_version": importlib.metadata.version("jaxrl"),
        "jax_version": jax.__version__,
    }


def _state(trainer: Any) -> dict[str, Any]:
    return {
        "learners": {pid: trees.flatten_with_paths(learner.state) for pid, learner in trainer.learners.items()},
        "options": {
            "seed": trainer.options.seed,
            "learners": {pid: restoring.learner_options(learner) for pid, learner in trainer.learners.items()},
        },
        "learner_info": trainer.context.learner_info,
        "counters": trainer.context.counters.save(),
        "engine": _engine(trainer),
        "plan": trainer.plan.get_state(),
        "workers": trainer.workers.get_state(),
        "progress": trainer.progress(),
    }


class Saved(NamedTuple):
    """What a checkpoint holds but for the replay memory, read once and checked.

    Attributes:
        files: its files.
        metadata, config: their JSON data.
        state: as `_state` gave it.
    """

    files: storage.Files
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    state: Mapping[str, Any]


def read(directory: str | os.PathLike[str], algorithm: str | None) -> Saved:
    """Reads a checkpoint of an algorithm; see `read_metadata`."""
    files = _opened(directory, algorithm)
    config = files.json("config.json")
    state = trees.decode(files.json("state.json"), files.arrays("arrays.safetensors"))
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{files}: config.json or state.json is damaged: it holds no object.")
    return Saved(files, files.about, config, state)


def build(cls: Any, saved: Saved, given: Mapping[str, Any], trust_imports: bool, options: Mapping[str, Any]) -> Any:
    """A trainer with the config of a checkpoint; nothing of its state is in it yet.

    Args:
        cls: the trainer's class.
        saved: the checkpoint.
        given: options that differ.
        trust_imports: import what its config names.
        options: further arguments of the constructor.

    Raises:
        ConfigError: see `config.fill_holes`; options that do not fit together.
        CheckpointError: its config is out of proportion to its state, or not one that a trainer can be built with.
    """
    where = f"{saved.files}: config.json"
    kept = saved_sizes.without_paths(saved.config, cls.config_class)
    config = config_lib.fill_holes(kept, given, trust_imports, where=where)
    saved_sizes.check_options(config, saved.state, given, where)
    try:
        return cls(
            config, check_policies=lambda made: saved_sizes.check_parameters(made, saved.state, where), **options
        )
    except Exception as error:
        if isinstance(error, JaxrlError | OSError) or is_users(error):
            raise
        raise CheckpointError(
            f"{where}: no trainer can be built with it ({type(error).__name__}: {error}); is it damaged?"
        ) from error


def restore(trainer: Any, directory: str | os.PathLike[str]) -> None:
    """Puts the state of the checkpoint in a directory into a trainer; see `load`."""
    load(trainer, read(directory, trainer.name))


def load(trainer: Any, saved: Saved) -> None:
    """Puts a checkpoint's state into a trainer; a checkpoint that is refused changes nothing.

    Raises:
        CheckpointError: damaged, or of other policies, spaces or shapes.
    """
    where = f"{saved.files}"
    for pid, about in saved.metadata["policies"].items():
        recipe = trainer.recipes.get(pid)
        if recipe is None:
            raise CheckpointError(f"{where}: has policy {pid!r}, this trainer has {sorted(trainer.recipes)}.")
        for space in ("obs_space", "action_space"):
            if str(getattr(recipe, space)) != about[space]:
                raise CheckpointError(
                    f"{where}: policy {pid!r} was trained in env {saved.metadata['env']!r} with {space} "
                    f"{about[space]}; this trainer's env {trainer.options.env!r} has {getattr(recipe, space)}. Use the "
                    "environment that it was trained in."
                )
    replay = saved.files.below("replay")
    memory, shards = trainer.context.memory, trainer.context.shards
    replayed = {} if memory is None else memory.load(replay)
    if shards is not None:
        shards.load(replay)
    elif memory is None:
        replay.verify()  # of an engine that keeps none
    with trainer.context.paused():
        _replace(trainer, saved)
    if memory is not None:
        memory.restore(replayed)
    if shards is not None:
        shards.restore()


def _replace(trainer: Any, saved: Saved) -> None:
    before = _state(trainer)
    try:
        # Where options have changed, a plan may have other nodes: what they make anew begins anew.
        changed = saved.config != config_lib.to_json(trainer.asked)
        _apply(trainer, saved.state, f"{saved.files}", changed=changed)
    except Exception as error:  # whatever goes wrong here, the trainer stays what it was
        _apply(trainer, before, "the trainer's own state")
        if isinstance(error, JaxrlError):
            raise
        raise CheckpointError(
            f"{saved.files}: its state does not fit this trainer ({type(error).__name__}: {error}); was it written by "
            "other code, or with another config? Nothing was changed."
        ) from error
    if trainer.context.learner_thread is not None:
        trainer.context.learner_thread.forget()  # batches that wait were sampled by other weights


def _apply(trainer: Any, state: Mapping[str, Any], where: str, *, changed: bool = False) -> None:
    options = state.get("options", {"seed": trainer.options.seed, "learners": {}})
    other_seed = options["seed"] != trainer.options.seed
    learners = {}
    for pid, learner in trainer.learners.items():
        known = options["learners"].get(pid)
        learners[pid] = restoring.learner_state(learner, state["learners"][pid], known, f"{where}: policy {pid!r}")
        if other_seed:
            learners[pid] = learners[pid].replace(key=learner.state.key)
    plan = state["plan"]
    if state.get("engine", "workers") != _engine(trainer):
        plan = restoring.results_alone(trainer.plan, plan)
    else:
        plan = restoring.plan_state(trainer.plan, plan) if changed else plan
        if not trainer.workers.fits(state["workers"]):
            plan = restoring.without_items_of_shards(plan)
        if trainer.compiled is not None:
            plan = restoring.with_world_that_fits(plan, trainer.compiled, anew=other_seed)
    trainer.plan.set_state(plan)
    for pid, learner in trainer.learners.items():
        learner.state = learners[pid]
    trainer.context.counters.restore(state["counters"])
    trainer.context.learner_info = state["learner_info"]
    trainer.context.sync_weights()
    trainer.workers.set_state(state["workers"])
    trainer.set_progress(state["progress"])


def _engine(trainer: Any) -> str:
    return "workers" if trainer.compiled is None else "compiled"


def read_metadata(directory: str | os.PathLike[str], algorithm: str | None = None) -> dict[str, Any]:
    """A checkpoint's metadata, after checking that all of its files are whole.

    Args:
        directory: the checkpoint.
        algorithm: the algorithm that wants to read it; None: any.

    Raises:
        CheckpointError: it is none, is damaged, has a newer format or belongs to another algorithm.
    """
    files = _opened(directory, algorithm)
    files.verify()
    return dict(files.about)


def _opened(directory: str | os.PathLike[str], algorithm: str | None) -> storage.Files:
    path = pathlib.Path(directory).expanduser()
    with refusing(f"{path}", "is no jaxrl checkpoint"):
        if not path.is_dir():
            what = "is a file" if os.path.lexists(path) else "does not exist"
            raise CheckpointError(f"{path}: {what}; a jaxrl checkpoint is a directory with {', '.join(_FILES)}.")
        there = os.listdir(path)
    missing = [name for name in _FILES if name not in there]
    if missing:
        pickles = sorted(name for name in there if name.endswith((".pkl", ".pickle")) or name.startswith("checkpoint-"))
        hint = f" It holds {pickles}, which look like another library's pickles: jaxrl never reads those."
        raise CheckpointError(
            f"{path}: lacks {', '.join(missing)}, so it is no jaxrl checkpoint.{hint if pickles else ''}"
        )
    files = storage.opened(path)
    metadata, version = files.about, files.about.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: metadata.json has no format_version; it is damaged.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format {version}, written by jaxrl {metadata.get('jaxrl_version')}; this jaxrl "
            f"{importlib.metadata.version('jaxrl')} reads up to {FORMAT_VERSION}. Upgrade jaxrl."
        )
    for name, kind in _METADATA.items():
        if type(metadata.get(name)) is not kind:
            raise CheckpointError(f"{path}: metadata.json is damaged: {name} is missing, or no {kind.__name__}.")
    for pid, about in metadata["policies"].items():
        if not isinstance(about, dict) or not all(isinstance(about.get(name), str) for name in _POLICY):
            raise CheckpointError(f"{path}: metadata.json is damaged: of policy {pid!r} it lacks {', '.join(_POLICY)}.")
    strangers = [name for name in files.names if name not in _FILES and not name.startswith("replay/")]
    if strangers:
        raise CheckpointError(f"{path}: metadata.json lists {strangers[:5]}, which no checkpoint has.")
    if algorithm is not None and metadata["algorithm"] != algorithm:
        raise CheckpointError(
            f"{path}: is a checkpoint of {metadata['algorithm']}, not of {algorithm}; use "
            f"{metadata['algorithm']}Trainer (--run {metadata['algorithm']})."
        )
    return files


_METADATA = {
    "algorithm": str, "env": str, "policies": dict, "training_iteration": int, "timesteps_total": int,
    "jaxrl_version": str, "jax_version": str,
}  # fmt: skip
_POLICY = ("obs_space", "action_space", "policy")


def read_config(
    directory: str | os.PathLike[str], algorithm: str | None, overrides: Mapping[str, Any], trust_imports: bool
) -> dict[str, Any]:
    """The config saved in a checkpoint, merged with `overrides`.

    Raises:
        CheckpointError: as `read_metadata`.
        ConfigError: a function or class that the checkpoint does not hold and `overrides` does not give.
    """
    files = _opened(directory, algorithm)
    return config_lib.fill_holes(files.json("config.json"), overrides, trust_imports, where=f"{files}: config.json")


def like(template: Params, params: Params, where: str) -> Params:
    """`params`, checked to have the structure, shapes and dtypes of `template`."""
    return trees.restore_like(template, trees.flatten_with_paths(params), where)
