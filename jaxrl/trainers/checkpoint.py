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

import ctypes
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from jaxrl import config as config_lib
from jaxrl import trees
from jaxrl.envs import env_name
from jaxrl.trainers import restoring
from jaxrl.types import CheckpointError, JaxrlError, Params

FORMAT_VERSION = 1
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
    if target.exists() and not (target / "metadata.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is no checkpoint; choose another path.")
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}-*"):  # of a process that was killed while it saved
        shutil.rmtree(left, ignore_errors=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(trainer, scratch)
        scratch.chmod(0o755)
        if target.exists():
            _exchange(scratch, target)
        else:
            os.rename(scratch, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    keep = trainer.options.keep_checkpoints_num
    if keep is not None and target.name != BEST:
        _drop_old(target, keep)
    return str(target)


def _exchange(scratch: pathlib.Path, target: pathlib.Path) -> None:
    """Swaps two directories: in one step where the system can (Linux), else in two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    if renameat2 is not None and renameat2(here, os.fsencode(scratch), here, os.fsencode(target), exchange) == 0:
        return
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    os.rename(target, aside)
    os.rename(scratch, target)
    shutil.rmtree(aside)


def _drop_old(newest: pathlib.Path, keep: int) -> None:
    siblings = sorted(p for p in newest.parent.glob("checkpoint_*") if (p / "metadata.json").is_file() and p != newest)
    siblings = [p for p in siblings if p.name != BEST]
    for old in siblings[: max(0, len(siblings) - (keep - 1))]:
        # Under another name first: half a checkpoint is never found under a checkpoint's name.
        aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{old.name}-", dir=old.parent))
        os.rename(old, aside)
        shutil.rmtree(aside)


def write(trainer: Any, directory: pathlib.Path) -> None:
    """Writes a checkpoint's files into an existing directory, each synced to disk, `metadata.json` last."""
    with trainer.context.paused():
        structure, arrays = trees.encode(_state(trainer))
    trees.write_arrays(directory / "arrays.safetensors", arrays)
    _write_json(directory / "state.json", structure)
    _write_json(directory / "config.json", config_lib.to_json(trainer.asked))
    for memory in (trainer.context.memory, trainer.context.shards):
        if memory is not None:
            memory.save(directory / "replay")
    written = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "metadata.json")
    digests = {path.relative_to(directory).as_posix(): _digest(path) for path in written}
    metadata = {**_metadata(trainer), "sha256": digests}
    _write_json(directory / "metadata.json", {**metadata, "checksum": _checksum(metadata)})
    _sync(directory)


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


def _checksum(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def load(trainer: Any, directory: pathlib.Path) -> None:
    """Puts a checkpoint's state into a trainer; a checkpoint that is refused changes nothing.

    Raises:
        CheckpointError: damaged, of another algorithm, newer format or other shapes.
    """
    metadata = read_metadata(directory, trainer.name)
    for pid, saved in metadata["policies"].items():
        recipe = trainer.recipes.get(pid)
        if recipe is None:
            raise CheckpointError(f"{directory}: has policy {pid!r}, this trainer has {sorted(trainer.recipes)}.")
        for space in ("obs_space", "action_space"):
            if str(getattr(recipe, space)) != saved[space]:
                raise CheckpointError(
                    f"{directory}: policy {pid!r} was trained in env {metadata['env']!r} with {space} {saved[space]}; "
                    "this trainer's "
                    f"env {trainer.options.env!r} has {getattr(recipe, space)}. Use the environment that it was "
                    "trained in."
                )
    state = trees.decode(_read_json(directory / "state.json"), trees.read_arrays(directory / "arrays.safetensors"))
    memory = trainer.context.memory
    replayed = {} if memory is None else memory.load(directory / "replay")
    shards = trainer.context.shards
    if shards is not None:
        shards.load(directory / "replay")
    with trainer.context.paused():
        _replace(trainer, state, directory)
    if memory is not None:
        memory.restore(replayed)
    if shards is not None:
        shards.restore()


def _replace(trainer: Any, state: Mapping[str, Any], directory: pathlib.Path) -> None:
    before = _state(trainer)
    try:
        # Where options have changed, a plan may have other nodes: what they make anew begins anew.
        changed = _read_json(directory / "config.json") != config_lib.to_json(trainer.asked)
        _apply(trainer, state, f"{directory}", changed=changed)
    except Exception as error:  # whatever goes wrong here, the trainer stays what it was
        _apply(trainer, before, "the trainer's own state")
        if isinstance(error, JaxrlError):
            raise
        raise CheckpointError(
            f"{directory}: its state does not fit this trainer ({type(error).__name__}: {error}); was it written by "
            "other code, or "
            "with another config? Nothing was changed."
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


def read_metadata(directory: pathlib.Path, algorithm: str | None = None) -> dict[str, Any]:
    """A checkpoint's metadata, after checking that its files are whole.

    Args:
        directory: the checkpoint.
        algorithm: the algorithm that wants to read it; None: any.

    Raises:
        CheckpointError: it is none, is damaged, has a newer format or belongs to another algorithm.
    """
    directory = pathlib.Path(directory).expanduser()
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory}: {what}; a jaxrl checkpoint is a directory with {', '.join(_FILES)}.")
    missing = [name for name in _FILES if not (directory / name).is_file() or (directory / name).is_symlink()]
    if missing:
        pickles = sorted(
            p.name for p in directory.iterdir() if p.suffix in (".pkl", ".pickle") or p.name.startswith("checkpoint-")
        )
        hint = (
            f" It holds {pickles}, which look like another library's pickles: jaxrl never reads those."
            if pickles
            else ""
        )
        raise CheckpointError(f"{directory}: lacks {', '.join(missing)}, so it is no jaxrl checkpoint.{hint}")
    metadata = _read_json(directory / "metadata.json")
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{directory}: metadata.json has no format_version; it is damaged.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{directory}: has format {version}, written by jaxrl {metadata.get('jaxrl_version')}; this jaxrl "
            f"{importlib.metadata.version('jaxrl')} reads up to {FORMAT_VERSION}. Upgrade jaxrl."
        )
    own = {name: value for name, value in metadata.items() if name != "checksum"}
    if metadata.get("checksum") != _checksum(own):
        raise CheckpointError(f"{directory}: metadata.json is damaged (its checksum differs); use another checkpoint.")
    for name, digest in metadata["sha256"].items():
        if not (directory / name).is_file() or _digest(directory / name) != digest:
            raise CheckpointError(f"{directory}: {name} is damaged (its checksum differs); use another checkpoint.")
    if algorithm is not None and metadata.get("algorithm") != algorithm:
        raise CheckpointError(
            f"{directory}: is a checkpoint of {metadata.get('algorithm')}, not of {algorithm}; use "
            f"{metadata.get('algorithm')}Trainer (--run {metadata.get('algorithm')})."
        )
    return metadata


def read_config(
    directory: pathlib.Path, algorithm: str | None, overrides: Mapping[str, Any], trust_imports: bool
) -> dict[str, Any]:
    """The config saved in a checkpoint, merged with `overrides`.

    Raises:
        CheckpointError: as `read_metadata`.
        ConfigError: a function or class that the checkpoint does not hold and `overrides` does not give.
    """
    read_metadata(directory, algorithm)
    data = _read_json(pathlib.Path(directory).expanduser() / "config.json")
    return config_lib.fill_holes(data, overrides, trust_imports, where=f"{directory}: config.json")


def like(template: Params, params: Params, where: str) -> Params:
    """`params`, checked to have the structure, shapes and dtypes of `template`."""
    return trees.restore_like(template, trees.flatten_with_paths(params), where)


def _write_json(path: pathlib.Path, data: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.") from error


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
