"""What a checkpoint says of sizes, held against what it contains before memory, processes or time are spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl import trees
from jaxrl.coercion import specs_of
from jaxrl.types import CheckpointError

# Options of a file, not of the user, that are taken at most so large.
_LIMITS = {
    "evaluation_num_workers": 64,
    "num_replay_buffer_shards": 64,
    "num_learner_devices": 1024,
    "rollout_fragment_length": 10**6,
    "train_batch_size": 10**7,
    "timesteps_per_iteration": 10**9,
    "buffer_size": 10**8,
    "n_step": 10**4,
    "replay_frame_stack": 64,
    "num_sgd_iter": 10**4,
    "evaluation_num_episodes": 10**5,
    "metrics_smoothing_episodes": 10**7,
}
_ENVS, _PROCESSES = 1024, 64
_ROWS = 2**24
_SPARE = 64 * 2**20


def without_paths(config: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """A saved config without the paths in it: those of the user's machine mean nothing here, those of others harm."""
    specs = specs_of(config_class)
    return {
        name: value
        for name, value in config.items()
        if not (name in specs and specs[name].path and isinstance(value, str))
    }


def check_options(config: Mapping[str, Any], state: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Refuses options of a checkpoint that are out of proportion to its state.

    Args:
        config: its options, with the user's in them.
        state: its state.
        given: the user's options, which are believed.
        where: names it.

    Raises:
        CheckpointError: names the option.
    """
    workers = state.get("workers")
    listed = workers.get("workers") if isinstance(workers, dict) else None
    count = max(1, len(listed)) if isinstance(listed, list) else 1
    longest = max(_lengths(workers), default=0)
    processes = config.get("env_stepping") == "async" and "env_stepping" not in given
    limits = {
        **_LIMITS,
        "num_workers": count,
        "num_envs_per_worker": max(longest, _PROCESSES if processes else _ENVS),
    }
    for name, limit in limits.items():
        value = config.get(name)
        if name not in given and isinstance(value, int | float) and value > limit:
            raise CheckpointError(
                f"{where}: its option {name}={value} is out of proportion to what it holds (at most {limit}); pass it "
                f"if you mean it: config={{{name!r}: {value}}}."
            )
    envs, length = config.get("num_envs_per_worker"), config.get("rollout_fragment_length")
    if type(envs) is int and type(length) is int and envs * length > _ROWS and "rollout_fragment_length" not in given:
        raise CheckpointError(
            f"{where}: its fragments of {length} steps of {envs} environments are larger than {_ROWS} rows; pass "
            "rollout_fragment_length if you mean it."
        )


def _lengths(value: Any) -> Iterator[int]:
    """Lengths of the lists and arrays in a state."""
    if isinstance(value, np.ndarray):
        yield len(value) if value.ndim else 0
    elif isinstance(value, list | tuple):
        yield len(value)
        for item in value:
            yield from _lengths(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _lengths(item)


def check_parameters(policies: Mapping[str, Any], state: Mapping[str, Any], where: str) -> None:
    """Refuses policies that need far more memory than a checkpoint has parameters for, before they take it.

    Raises:
        CheckpointError: its model options are not those of its parameters.
    """
    learners = state.get("learners")
    for pid, policy in policies.items():
        saved = learners.get(pid) if isinstance(learners, dict) else None
        if not isinstance(saved, dict):
            raise CheckpointError(f"{where}: has no parameters of policy {pid!r}.")
        needed = trees.size_bytes(jax.eval_shape(policy.init, jax.random.key(0)))
        there = trees.size_bytes(saved)
        if needed > 4 * there + _SPARE:
            raise CheckpointError(
                f"{where}: its options make policy {pid!r} of {needed} bytes, and it holds {there} of it; its model "
                "options are not those of its parameters."
            )
