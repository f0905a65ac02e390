"""The learn step: every epoch and minibatch of a train batch in one `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxrl.data import SampleBatch
from jaxrl.policies.gradients import GRAD_NORM, Gradients, global_norm
from jaxrl.policies.permutations import random_permutations
from jaxrl.policies.policy import TrainState
from jaxrl.policies.scalars import Scalars
from jaxrl.types import Array, LearnOutput, Params

# The mesh axis that the rows of a batch are spread over where several devices learn.
DATA_AXIS = "data"

Step = Callable[[TrainState, SampleBatch], tuple[TrainState, LearnOutput]]

Average = Callable[[Any, Array], Any]
"""`(tree, rows) -> tree`: the mean over those that learn together, each weighted by its `rows` (float32)."""


def make_learn(
    gradients: Gradients,
    apply_gradients: Callable[[TrainState, Params], TrainState],
    prepare: Callable[[SampleBatch], SampleBatch],
    update_fn: Callable[..., Mapping[str, Array]] | None,
    config: Any,
    *,
    by_columns: bool,
    average: Average | None = None,
) -> Step:
    """Builds `learn(train_state, batch) -> (train_state, LearnOutput)`.

    `config.num_sgd_iter` epochs over minibatches of `config.sgd_minibatch_size` rows (0: the whole batch), drawn
    without replacement; a short last minibatch is padded and masked. Rows that the batch itself masks are drawn last,
    and minibatches that would hold nothing else are skipped, so that the number of gradient steps is that of the valid
    rows.

    Metrics are means over the last epoch's minibatches, or, where a metric of any step was not finite, those of the
    first such step: what went wrong there is the cause. Rows come back in the batch's order.

    Args:
        gradients, apply_gradients: one SGD step.
        prepare: keeps the columns that the loss reads, and materialises derived ones.
        update_fn: `(coeffs, metrics, config) -> coeffs` after the last epoch (adaptive KL), or None.
        config: the PolicyConfig.
        by_columns: minibatches are made of whole columns (recurrent policies, losses that look along time), else of
            rows.
        average: averages the gradients and metrics of each minibatch with those of others that learn from data of
            their own at the same time: `jax.lax.pmean` over a named axis, an all-reduce over processes. All then take
            the same steps, as many as the one with the most rows needs. None: it learns alone.
    """

    def sgd_step(state: TrainState, batch: SampleBatch) -> tuple[TrainState, LearnOutput]:
        grads, out = gradients(state, batch)
        if average is not None:
            grads, out = _averaged(average, grads, out, batch)
        return apply_gradients(state, grads), out

    def learn(train_state: TrainState, batch: SampleBatch) -> tuple[TrainState, LearnOutput]:
        batch = prepare(batch)
        if config.sgd_minibatch_size == 0:
            state, out = _full_batch_epochs(sgd_step, train_state, batch, config.num_sgd_iter)
        else:
            state, out = _minibatch_epochs(sgd_step, train_state, batch, config, by_columns, average)
        if update_fn is not None:
            coeffs = update_fn(state.coeffs, out.metrics, config)
            state = state.replace(coeffs={k: jnp.asarray(v, jnp.float32) for k, v in coeffs.items()})
        return state, out

    return learn


def _averaged(average: Average, grads: Params, out: LearnOutput, batch: SampleBatch) -> tuple[Params, LearnOutput]:
    """Gradients and metrics as of all the rows together; the norm is that of the mean."""
    rows = batch["mask"].sum(dtype=jnp.float32) if "mask" in batch else jnp.float32(batch.num_rows)
    # Metrics of no rows at all may be NaN, which no weight of zero would cancel.
    own = jax.tree.map(lambda x: jnp.where(rows > 0, x, jnp.zeros_like(x)), (grads, dict(out.metrics)))
    grads, metrics = average(own, rows)
    return grads, LearnOutput({**metrics, GRAD_NORM: global_norm(grads)}, out.rows)


def _full_batch_epochs(
    step: Step, state: TrainState, batch: SampleBatch, epochs: int
) -> tuple[TrainState, LearnOutput]:
    if epochs == 1:
        return step(state, batch)

    def epoch(state: TrainState, _: None) -> tuple[TrainState, tuple[Scalars, Mapping[str, Array]]]:
        state, out = step(state, batch)
        return state, (Scalars.pack(out.metrics), out.rows)

    state, (packed, rows) = jax.lax.scan(epoch, state, length=epochs)
    return state, LearnOutput(_summary(packed, 1, None), {name: value[-1] for name, value in rows.items()})


def _minibatch_epochs(
    step: Step, state: TrainState, batch: SampleBatch, config: Any, by_columns: bool, average: Average | None
) -> tuple[TrainState, LearnOutput]:
    if not by_columns and batch.time_major:
        batch = batch.flatten()
    axis = 1 if by_columns else 0
    # Minibatches are slices of one permuted axis: rows, or whole columns of T rows each.
    n = batch.B if by_columns else batch.num_rows
    size = min(n, max(1, config.sgd_minibatch_size // (batch.T if by_columns else 1)))
    count = -(-n // size)
    mask = batch.get("mask")
    present = mask.any(axis=0) if by_columns and mask is not None else mask
    order = _orders(order_key(state), n, present, config.num_sgd_iter, config.shuffle_sequences)
    padded = count * size != n
    index = jnp.pad(order, ((0, 0), (0, count * size - n)), mode="edge").reshape(-1, size)
    valid = jnp.tile((jnp.arange(count * size) < n).reshape(count, size), (config.num_sgd_iter, 1))

    def minibatch(index: Array, valid: Array) -> SampleBatch:
        return _spread(batch.take(index, valid=valid if padded else None), axis)

    def minibatch_step(
        state: TrainState, slots: tuple[Array, Array]
    ) -> tuple[TrainState, tuple[Scalars, Mapping[str, Array]]]:
        state, out = step(state, minibatch(*slots))
        return state, (Scalars.pack(out.metrics), out.rows)

    def step_if_any(state: TrainState, slots: tuple[Array, Array, Array]) -> Any:
        index, valid, any_present = slots
        out = jax.eval_shape(minibatch_step, state, (index, valid))[1]
        skipped = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out)
        return jax.lax.cond(any_present, minibatch_step, lambda state, _: (state, skipped), state, (index, valid))

    if present is None:
        taken = None
        state, (packed, rows) = jax.lax.scan(minibatch_step, state, (index, valid))
    else:
        taken = (present[index] & valid).any(axis=1)
        if average is not None:  # a step is taken by all, or by none
            taken = average(taken.astype(jnp.float32), jnp.float32(1)) > 0
        state, (packed, rows) = jax.lax.scan(step_if_any, state, (index, valid, taken))
    # Each row's value, back at the row's place; the padding of a short last minibatch is dropped.
    place = jnp.where(valid[-count:], index[-count:], n)
    rows = {name: _scatter(value[-count:], place, n, axis) for name, value in rows.items()}
    return state, LearnOutput(_summary(packed, count, taken), rows)


def order_key(state: TrainState) -> Array:
    """The key that the next epochs' orders are drawn with; losses get those of the numbers below 2**31."""
    return jax.random.fold_in(state.key, state.step.astype(jnp.uint32) + jnp.uint32(2**31))


def _spread(batch: SampleBatch, axis: int) -> SampleBatch:
    """Spreads a minibatch over the devices of the mesh in use, if there is one and the rows or columns divide.

    Drawn from a batch that is spread itself, a minibatch would else be gathered on every device, and each would compute
    all of it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = batch.shape[axis]
    if DATA_AXIS not in mesh.axis_names or size % mesh.shape[DATA_AXIS]:
        return batch

    def spread(x: Array, axis: int) -> Array:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, DATA_AXIS))

    def column(name: str, value: Any) -> Any:
        if name in ("final_obs", "final_index"):
            return value
        return jax.tree.map(lambda x: spread(x, 0 if name in ("state_in", "last_obs") else axis), value)

    return batch.with_columns({name: column(name, batch[name]) for name in batch})


def _orders(key: Array, n: int, present: Array | None, epochs: int, shuffle: bool) -> Array:
    """The order of rows or columns in each epoch, int32 `[epochs, n]`; those that hold nothing come last."""
    if present is None and shuffle:
        return random_permutations(key, epochs, n)
    # One draw and one sort for all epochs: they compile faster than jax.random.permutation's, one for each.
    keys = [jax.random.bits(key, (epochs, n))] if shuffle else []
    if present is not None:
        keys = [jnp.broadcast_to(~present, (epochs, n)), *keys]
    position = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (epochs, n))
    return jax.lax.sort((*keys, position), dimension=1, num_keys=len(keys))[-1] if keys else position


def _summary(packed: Scalars, count: int, taken: Array | None) -> dict[str, Array]:
    """Metrics from those of every step: the mean of the last `count` steps, or the first step that is not finite.

    Args:
        packed: values `[steps, M]`.
        count: steps of an epoch.
        taken: bool `[steps]`, False for steps that were skipped; None if none was.
    """
    values = packed.values
    weight = jnp.ones(count) if taken is None else taken[-count:].astype(jnp.float32)
    mean = (values[-count:] * weight[:, None]).sum(axis=0) / jnp.maximum(weight.sum(), 1.0)
    bad = ~jnp.isfinite(values).all(axis=1)
    return packed._replace(values=jnp.where(bad.any(), values[jnp.argmax(bad)], mean)).unpack()


def _scatter(values: Array, place: Array, n: int, axis: int) -> Array:
    # values: [count, size, ...] for rows, [count, T, size, ...] for columns.
    values = jnp.moveaxis(values, axis + 1, 1)
    flat = values.reshape(-1, *values.shape[2:])
    out = jnp.zeros((n, *flat.shape[1:]), flat.dtype).at[place.reshape(-1)].set(flat, mode="drop")
    return jnp.moveaxis(out, 0, axis)
