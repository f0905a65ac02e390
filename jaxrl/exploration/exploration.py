"""The exploration interface: how a policy turns an action distribution into actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrl.schedules import Schedule
from jaxrl.types import Array, Params, PyTree

SampleFn = Callable[..., tuple[PyTree, "Array | None", PyTree]]


def no_state(batch_size: int, worker_index: int = 0, num_workers: int = 0) -> PyTree:
    """The state of an exploration that has none."""
    del batch_size, worker_index, num_workers
    return ()


def same_params(params: Params, state: PyTree) -> Params:
    """Acts with the policy's own parameters."""
    del state
    return params


def same_state(state: PyTree, batch: Any) -> PyTree:
    """Keeps the state as it is."""
    del batch
    return state


class Exploration(NamedTuple):
    """Pure functions that choose actions, beside a state that the policy's carry holds.

    Attributes:
        sample: `sample(dist, state, key, t, coeffs, explore) -> (actions [B, ...], logp [B] or None, state)`. `dist` is
            the action distribution `[B]`, `key` a key for this vector step alone, `t` its number, `coeffs` the current
            values of `coeffs`, `explore` a static bool: False asks for the greedy action. `logp` is the log-probability
            of the actions under the exploration, or None where it is the policy's own (`samples_policy`).
        init: `init(batch_size, worker_index=0, num_workers=0) -> state`, a pytree; worker 0 is the in-process one.
        perturb: `perturb(params, state) -> params` to act with: parameter noise.
        update: `update(state, batch) -> state`, once per fragment.
        samples_policy: whether explored actions are samples of the policy's own distribution, so that their
            log-probability can be computed from the batch; otherwise `sample` returns it, or an algorithm that needs it
            refuses the exploration.
        coeffs: names and first values of the numbers that training may change (traced: no recompile).
        schedules: schedules over env steps of coeffs that change with them.
    """

    sample: SampleFn
    init: Callable[..., PyTree] = no_state
    perturb: Callable[[Params, PyTree], Params] = same_params
    update: Callable[[PyTree, Any], PyTree] = same_state
    samples_policy: bool = False
    coeffs: Mapping[str, float] = {}
    schedules: Mapping[str, Schedule] = {}
