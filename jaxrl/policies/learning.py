"""Gradients and the learn step: every epoch and minibatch of a train batch in one `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl.data import SampleBatch
from jaxrl.policies.context import LossContext, forward_memo
from jaxrl.policies.policy import TrainState
from jaxrl.policies.requirements import call_loss
from jaxrl.types import Array, LearnOutput, LossError, Params

MakeContext = Callable[[TrainState, Any], LossContext]


def group_names(group: str | tuple[str, ...]) -> tuple[str, ...]:
    """The top-level parameter groups that one key of a loss mapping names."""
    return (group,) if isinstance(group, str) else tuple(group)


def group_label(group: str | tuple[str, ...]) -> str:
    """How a group is called in metrics: its name, or the names joined by '+'."""
    return "+".join(group_names(group))


def make_gradients(loss_fn: Any, make_context: MakeContext) -> Callable[[TrainState, SampleBatch], tuple[Params, LearnOutput]]:
    """Builds `gradients(train_state, batch) -> (grads, LearnOutput)`.

    Args:
        loss_fn: a loss function, or a mapping of groups of top-level params to loss functions (None: frozen), each
            differentiated with respect to its own group alone, all at the same params.
        make_context: `(train_state, key) -> LossContext`.
    """

    def gradients(train_state: TrainState, batch: SampleBatch) -> tuple[Params, LearnOutput]:
        ctx = make_context(train_state, jax.random.fold_in(train_state.key, train_state.step))
        if isinstance(loss_fn, Mapping):
            grads, out = _group_gradients(loss_fn, train_state.params, batch, ctx)
        else:
            grads, out = _one_gradient(loss_fn, train_state.params, batch, ctx)
        return grads, LearnOutput({**out.metrics, "grad_gnorm": optax.tree.norm(grads)}, out.rows)

    return gradients


def _one_gradient(loss_fn: Any, params: Params, batch: SampleBatch, ctx: LossContext) -> tuple[Params, LearnOutput]:
    def objective(params: Params) -> tuple[Array, LearnOutput]:
        with forward_memo():
            loss, out = call_loss(loss_fn, params, batch, ctx)
        loss = jnp.asarray(loss, jnp.float32)
        return loss, LearnOutput({"total_loss": loss, **out.metrics}, dict(out.rows))

    grads, out = jax.grad(objective, has_aux=True)(params)
    return grads, out


def _group_gradients(
    losses: Mapping[Any, Any], params: Params, batch: SampleBatch, ctx: LossContext
) -> tuple[Params, LearnOutput]:
    grads = {name: jax.tree.map(jnp.zeros_like, value) for name, value in params.items()}
    metrics: dict[str, Array] = {}
    rows: dict[str, Array] = {}
    for group, loss_fn in losses.items():
        if loss_fn is None:
            continue
        own = {name: params[name] for name in group_names(group)}

        def objective(own: Params, loss_fn: Any = loss_fn) -> tuple[Array, LearnOutput]:
            with forward_memo():
                loss, out = call_loss(loss_fn, {**params, **own}, batch, ctx)
            loss = jnp.asarray(loss, jnp.float32)
            return loss, LearnOutput({"total_loss": loss, **out.metrics}, dict(out.rows))

        own_grads, out = jax.grad(objective, has_aux=True)(own)
        grads.update(own_grads)
        label = group_label(group)
        metrics.update({f"{label}/{name}": value for name, value in out.metrics.items()})
        twice = rows.keys() & out.rows.keys()
        if twice:
            raise LossError(f"losses of groups: rows {sorted(twice)} are returned by two groups; rename one.")
        rows.update(out.rows)
    return grads, LearnOutput(metrics, rows)


def make_learn(
    gradients: Callable[[TrainState, SampleBatch], tuple[Params, LearnOutput]],
    apply_gradients: Callable[[TrainState, Params], TrainState],
    prepare: Callable[[SampleBatch], SampleBatch],
    update_fn: Callable[..., Mapping[str, Array]] | None,
    config: Any,
    *,
    by_columns: bool,
) -> Callable[[TrainState, SampleBatch], tuple[TrainState, LearnOutput]]:
    """Builds `learn(train_state, batch) -> (train_state, LearnOutput)`.

    `config.num_sgd_iter` epochs over minibatches of `config.sgd_minibatch_size` rows (0: the whole batch), drawn without
    replacement; a short last minibatch is padded and masked. Metrics are means over the last epoch's minibatches; rows come
    back in the batch's order.

    Args:
        gradients, apply_gradients: one SGD step.
        prepare: keeps the columns that the loss reads, and materialises derived ones.
        update_fn: `(coeffs, metrics, config) -> coeffs` after the last epoch (adaptive KL), or None.
        config: the PolicyConfig.
        by_columns: minibatches are made of whole columns (recurrent policies), else of rows.
    """

    def sgd_step(state: TrainState, batch: SampleBatch) -> tuple[TrainState, LearnOutput]:
        grads, out = gradients(state, batch)
        return apply_gradients(state, grads), out

    def learn(train_state: TrainState, batch: SampleBatch) -> tuple[TrainState, LearnOutput]:
        batch = prepare(batch)
        if config.sgd_minibatch_size == 0:
            state, out = _full_batch_epochs(sgd_step, train_state, batch, config.num_sgd_iter)
        else:
            state, out = _minibatch_epochs(sgd_step, train_state, batch, config, by_columns)
        if update_fn is not None:
            coeffs = update_fn(state.coeffs, out.metrics, config)
            state = state.replace(coeffs={k: jnp.asarray(v, jnp.float32) for k, v in coeffs.items()})
        return state, out

    return learn


def _full_batch_epochs(step: Any, state: TrainState, batch: SampleBatch, epochs: int) -> tuple[TrainState, LearnOutput]:
    if epochs == 1:
        return step(state, batch)
    state, outs = jax.lax.scan(lambda s, _: step(s, batch), state, length=epochs)
    return state, jax.tree.map(lambda x: x[-1], outs)


def _minibatch_epochs(
    step: Any, state: TrainState, batch: SampleBatch, config: Any, by_columns: bool
) -> tuple[TrainState, LearnOutput]:
    if not by_columns and batch.time_major:
        batch = batch.flatten()
    axis = 1 if by_columns else 0
    # Minibatches are slices of one permuted axis: rows, or whole columns of T rows each.
    n = batch.B if by_columns else batch.num_rows
    size = min(n, max(1, config.sgd_minibatch_size // (batch.T if by_columns else 1)))
    count = -(-n // size)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)

    def permutation(key: Any) -> Array:
        order = jax.random.permutation(key, n) if config.shuffle_sequences else jnp.arange(n)
        return jnp.resize(order, (count * size,)).reshape(count, size)

    order = jax.vmap(permutation)(jax.random.split(key, config.num_sgd_iter)).reshape(-1, size)
    padded = count * size != n
    valid = jnp.tile(jnp.arange(count * size).reshape(count, size) < n, (config.num_sgd_iter, 1))

    def minibatch_step(state: TrainState, index: tuple[Array, Array]) -> tuple[TrainState, LearnOutput]:
        rows, valid = index
        minibatch = batch.take(rows, valid=valid if padded else None)
        return step(state, minibatch)

    state, outs = jax.lax.scan(minibatch_step, state, (order, valid))
    last = jax.tree.map(lambda x: x[-count:], outs)
    metrics = {name: jnp.mean(value) for name, value in last.metrics.items()}
    # Each row's value, back at the row's place; the padding of a short last minibatch is dropped.
    place = jnp.where(valid[-count:], order[-count:], n)
    rows = {name: _scatter(value, place, n, axis) for name, value in last.rows.items()}
    return state, LearnOutput(metrics, rows)


def _scatter(values: Array, place: Array, n: int, axis: int) -> Array:
    # values: [count, size, ...] for rows, [count, T, size, ...] for columns.
    values = jnp.moveaxis(values, axis + 1, 1)
    flat = values.reshape(-1, *values.shape[2:])
    out = jnp.zeros((n, *flat.shape[1:]), flat.dtype).at[place.reshape(-1)].set(flat, mode="drop")
    return jnp.moveaxis(out, 0, axis)
