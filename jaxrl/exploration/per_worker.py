"""Ape-X's spread of exploration over workers: each has a constant rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrl.exploration.exploration import Exploration
from jaxrl.types import Array, PyTree

# Value of `WorkerState.own` where the coeff counts.
_NO_OWN = -1.0


class WorkerState(NamedTuple):
    """State of an exploration with a rate per worker: `own`, a scalar (negative: none), and the exploration's state."""

    own: Array
    inner: PyTree


def worker_value(worker_index: int, num_workers: int) -> float | None:
    """Rate of one worker's exploration.

    Horgan et al. 2018, Ape-X, https://arxiv.org/abs/1803.00933, section 4:
    `eps_i = eps^(1 + alpha i / (N - 1))`, `eps = 0.4`, `alpha = 7`, `i = 0, ..., N - 1`.

    Args:
        worker_index: 1 for the first rollout worker; 0 for the one in the driver's process.
        num_workers: their number `N`, without the one in the driver's process.

    Returns:
        The rate; 0.4 for a single worker. For the driver's own worker None where it is the only one, and explores by
        schedule, and 0 where others explore, since it then only evaluates (as in RLlib).
    """
    if worker_index == 0:
        return None if num_workers == 0 else 0.0
    return 0.4 ** (1.0 + 7.0 * (worker_index - 1) / max(num_workers - 1, 1))


def worker_coeffs(state: WorkerState, coeffs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The coeffs, the worker's own rate in the place of coeff `name` if it has one."""
    return {**coeffs, name: jnp.where(state.own < 0.0, coeffs[name], state.own)}


def per_worker(exploration: Exploration, name: str) -> Exploration:
    """Gives each worker a constant value of its own (`worker_value`) for the coeff `name` of an exploration.

    Args:
        exploration: the exploration.
        name: one of its coeffs, which still counts where there is but the driver's own worker.

    Returns:
        The exploration, whose state is a `WorkerState`.
    """

    def init(batch_size: int, worker_index: int = 0, num_workers: int = 0) -> WorkerState:
        value = worker_value(worker_index, num_workers)
        own = jnp.asarray(_NO_OWN if value is None else value, jnp.float32)
        return WorkerState(own, exploration.init(batch_size, worker_index, num_workers))

    def sample(
        dist: Any, state: WorkerState, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array | None, PyTree]:
        own = worker_coeffs(state, coeffs, name)
        actions, logp, inner = exploration.sample(dist, state.inner, key, t, own, explore)
        return actions, logp, state._replace(inner=inner)

    return exploration._replace(init=init, sample=sample, worker_coeff=name)


def worker_info(
    exploration: Exploration, coeffs: Mapping[str, Any], worker_index: int, num_workers: int
) -> dict[str, float]:
    """The coeffs by which one worker explores, by name: what results show of its exploration.

    Args:
        exploration: the exploration.
        coeffs: the coeffs of its policy.
        worker_index, num_workers: as of `worker_value`.
    """
    info = {name: float(coeffs[name]) for name in exploration.coeffs}
    name, value = exploration.worker_coeff, worker_value(worker_index, num_workers)
    return info if name is None or value is None else {**info, name: value}
