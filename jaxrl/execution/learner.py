"""Learner: owns a policy's TrainState, learns from batches, publishes immutable weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl import trees
from jaxrl.data import SampleBatch
from jaxrl.policies import DATA_AXIS, GRAD_NORM, Policy, TrainState, followed
from jaxrl.types import ConfigError, NonFiniteError, Params, Weights


class Learner:
    """The only holder of a policy's TrainState.

    Args:
        policy: the policy.
        key: PRNG key of the run, or a function that gives it; the state is made of it when it is first asked for.
        policy_id: for messages.
        num_devices: devices that share each batch; 1: the default device.
        average: averages each minibatch's gradients with those of learners elsewhere (see `Policy.learn_averaged`).

    Raises:
        ConfigError: more devices are asked for than there are.
    """

    def __init__(
        self,
        policy: Policy,
        key: Any,
        *,
        policy_id: str = "default_policy",
        num_devices: int = 1,
        average: Callable[[Any, Any], Any] | None = None,
    ):
        self.policy, self.policy_id = policy, policy_id
        self._learn = policy.learn if average is None else policy.learn_averaged(average)
        self._mesh = _mesh(num_devices)
        self._key = key
        self._made: TrainState | None = None
        self._rows: Mapping[str, Any] = {}
        self._scheduled: dict[str, float] = {}
        self._on_cpu = jax.default_backend() == "cpu"

    @property
    def _state(self) -> TrainState:
        state = self._made
        if state is None:
            key = self._key() if callable(self._key) else self._key
            self._made = state = self._replicated(self.policy.init(key))
        return state

    @_state.setter
    def _state(self, state: TrainState) -> None:
        self._made = state

    # ---- learning

    def learn(self, batch: SampleBatch, *, one_pass: bool = False) -> dict[str, Any]:
        """Every epoch and minibatch of one train batch; returns the metrics as floats.

        Args:
            batch: the train batch.
            one_pass: one epoch alone, whatever `num_sgd_iter` says.

        Raises:
            NonFiniteError: a metric is NaN or infinite, named; the state stays what it was.
        """
        learn = self.policy.learn_one_pass if one_pass else self._learn
        with self._on_devices():
            state, out = learn(self._state, self._place_batch(batch))
        metrics = self._checked(out.metrics, batch)
        self._state, self._rows = state, out.rows
        return metrics

    def gradients(self, batch: SampleBatch) -> tuple[Params, dict[str, Any]]:
        """Gradients of one batch at the current parameters, and the metrics as floats."""
        grads, out = self.policy.gradients(self._state, self._place_batch(batch))
        return grads, self._checked(out.metrics, batch)

    def apply_gradients(self, grads: Params) -> None:
        """One optimiser step."""
        self._state = self.policy.apply_gradients(self._state, grads)

    def checked(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of gradients that were computed elsewhere, as floats, beside the current coeffs.

        Raises:
            NonFiniteError: one is NaN or infinite, named.
        """
        return self._checked(metrics, None)

    def _checked(self, metrics: Mapping[str, Any], batch: SampleBatch | None) -> dict[str, float]:
        values, coeffs = self._floats(metrics), self._floats(self._state.coeffs)
        # A term's own metric is the cause of a total or a norm that is not finite: those come last.
        order = sorted(
            values, key=lambda name: (name.rpartition("/")[2] in ("total_loss", GRAD_NORM), name == GRAD_NORM)
        )
        bad = next((name for name in order if not np.isfinite(values[name])), None)
        if bad is not None:
            column = None if batch is None else trees.first_nonfinite({name: batch[name] for name in batch})
            where = f"; the batch's column {column} is not finite either" if column is not None else ""
            shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
            raise NonFiniteError(
                f"policy {self.policy_id!r}, learning after gradient step {int(self._state.step)}: expected finite "
                f"metrics, got {bad}={values[bad]}{where}. All metrics of that step: {shown}. The parameters stay as "
                "they were; lower lr, set grad_clip, or check the loss."
            )
        return {**values, **{f"cur_{name}": value for name, value in coeffs.items()}}

    def _floats(self, scalars: Mapping[str, Any]) -> dict[str, float]:
        # Where nothing has to be transferred, looking at each costs a tenth of what device_get does.
        fetched = scalars if self._on_cpu else jax.device_get(dict(scalars))
        return {name: float(np.asarray(value)) for name, value in fetched.items()}

    # ---- coeffs and weights

    @property
    def rows(self) -> Mapping[str, Any]:
        """What the last `learn` returned for each row of its batch (`td_error`), by name."""
        return self._rows

    @property
    def has_state(self) -> bool:
        """Whether there is a state, or it is still to be made of the key."""
        return self._made is not None

    @property
    def state(self) -> TrainState:
        """The current state."""
        return self._state

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state, self._scheduled = self._replicated(state), {}

    @property
    def weights(self) -> Weights:
        """The current weights, as an immutable snapshot."""
        return self._state.weights

    def set_coeffs(self, coeffs: Mapping[str, float]) -> None:
        """Changes coeffs by name; nothing recompiles.

        Raises:
            ConfigError: the policy has no such coeff.
        """
        unknown = sorted(set(coeffs) - set(self._state.coeffs))
        if unknown:
            raise ConfigError(
                f"policy {self.policy_id!r} has no coeffs {unknown}; it has {sorted(self._state.coeffs)}."
            )
        new = {name: jnp.asarray(value, jnp.float32) for name, value in coeffs.items()}
        self._state = self._state.replace(coeffs={**self._state.coeffs, **self._replicated(new)})
        self._scheduled = {}  # a schedule has the last word again at the next evaluation

    def update_target(self, tau: float = 1.0) -> None:
        """Moves the target network: `target = tau * params + (1 - tau) * target`.

        Raises:
            ConfigError: the policy has no target network.
        """
        state = self._state
        if state.target_params is None:
            raise ConfigError(
                f"policy {self.policy_id!r} has no target network; give build_policy a target_fn, or leave "
                "UpdateTargetNetwork out of the plan."
            )
        params = followed(state.params, state.target_params)
        target = params if tau == 1.0 else _moved(state.target_params, params, np.float32(tau))
        self._state = state.replace(target_params=target)

    def update_schedules(self, timestep: int) -> None:
        """Evaluates the schedules of coeffs at `timestep` (env steps sampled)."""
        due = {name: schedule(timestep) for name, schedule in self.policy.spec.schedules.items()}
        if due != self._scheduled:
            self.set_coeffs(due)
            self._scheduled = due

    # ---- devices

    @property
    def mesh(self) -> Mesh | None:
        """The devices that share each batch; None: the default device alone."""
        return self._mesh

    def _on_devices(self) -> AbstractContextManager[Any]:
        # Within it `learn` sees the devices, and spreads each minibatch over them.
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _replicated(self, tree: Any) -> Any:
        return tree if self._mesh is None else jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _place_batch(self, batch: SampleBatch) -> SampleBatch:
        if self._mesh is None:
            return batch
        devices = self._mesh.size
        width = batch.B if batch.time_major else batch.num_rows
        if width % devices:
            unit = "columns" if batch.time_major else "rows"
            raise ConfigError(
                f"num_learner_devices={devices}: a train batch of {width} {unit} does not divide among "
                "the devices; choose num_workers x num_envs_per_worker (or the fragments in a batch) divisible by it."
            )
        rows = PartitionSpec(None, DATA_AXIS) if batch.time_major else PartitionSpec(DATA_AXIS)
        columns = {}
        for name in batch:
            spec = PartitionSpec() if name in ("final_obs", "final_index") else rows
            spec = PartitionSpec(DATA_AXIS) if name in ("state_in", "last_obs") else spec
            columns[name] = jax.device_put(batch[name], NamedSharding(self._mesh, spec))
        return SampleBatch._make(columns, batch.time_major)


@jax.jit
def _moved(target: Params, params: Params, tau: Any) -> Params:
    return optax.incremental_update(params, target, tau)


def _mesh(num_devices: int) -> Mesh | None:
    if num_devices == 1:
        return None
    devices = jax.devices()
    if num_devices > len(devices):
        available = f"{len(devices)} available ({devices[0].platform})"
        raise ConfigError(
            f"num_learner_devices: {num_devices} asked for, {available}; lower it, or on the CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}."
        )
    return Mesh(np.array(devices[:num_devices]), (DATA_AXIS,))
