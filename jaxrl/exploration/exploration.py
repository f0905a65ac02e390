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


def same_params(params: Params, state: PyTree, key: Any = None) -> Params:
    """Acts with the policy's own parameters."""
    del state, key
    return params


def same_state(state: PyTree, batch: Any, dist: Any = None, dist_clean: Any = None, coeffs: Any = None) -> PyTree:
    """Keeps the state as it is."""
    del batch, dist, dist_clean, coeffs
    return state


class Exploration(NamedTuple):
    """Pure functions that choose actions, beside a state that the policy's carry holds.

    Attributes:
        sample: `sample(dist, state, key, t, coeffs, explore) -> (actions [B, ...], logp [B] or None, state)`. `dist` is
            the action distribution `[B]`, `key` a key for this vector step alone, `t` its number, `coeffs` the current
            values of `coeffs`, `explore` a static bool: False asks for the greedy action. `logp` is the log-probability
            of the actions under the exploration, or None where it is the policy's own (`samples_policy`) or not known.
        init: `init(batch_size, worker_index=0, num_workers=0) -> state`, a pytree; worker 0 is the in-process one.
        perturb: `perturb(params, state, key) -> params` to act with: parameter noise. Called once at the start of each
            fragment that explores, with a key of its own; not called where it does nothing (`perturbs` is False).
        update: `update(state, batch, dist, dist_clean, coeffs) -> state`, once at the end of each fragment that was
            acted in with perturbed parameters. `batch` is the fragment `[T, B]`, `dist` and `dist_clean` are the action
            distributions `[T, B]` on its observations under the perturbed and the policy's own parameters.
        samples_policy: whether explored actions are samples of the policy's own distribution, so that their
            log-probability can be computed from the batch; otherwise `sample` returns it, or an algorithm that needs it
            refuses the exploration.
        coeffs: names and first values of the numbers that training may change (traced: no recompile).
        schedules: schedules over env steps of coeffs that change with them.
        worker_coeff: the coeff in whose place each rollout worker has a constant of its own (`per_worker`), or None.
    """

    sample: SampleFn
    init: Callable[..., PyTree] = no_state
    perturb: Callable[..., Params] = same_params
    update: Callable[..., PyTree] = same_state
    samples_policy: bool = False
    coeffs: Mapping[str, float] = {}
    schedules: Mapping[str, Schedule] = {}
    worker_coeff: str | None = None

    @property
    def perturbs(self) -> bool:
        """Whether it acts with parameters other than the policy's own."""
        return self.perturb is not same_params
