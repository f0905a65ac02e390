"""Gradients of a loss, or of one loss per group of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.policies.context import LossContext, loss_memo
from jaxrl.policies.policy import TrainState
from jaxrl.policies.requirements import call_loss
from jaxrl.types import Array, LearnOutput, LossError, Params

MakeContext = Callable[[TrainState, Any], LossContext]
Gradients = Callable[[TrainState, SampleBatch], tuple[Params, LearnOutput]]

GRAD_NORM = "grad_gnorm"


def group_names(group: str | tuple[str, ...]) -> tuple[str, ...]:
    """The top-level parameter groups that one key of a loss mapping names."""
    return (group,) if isinstance(group, str) else tuple(group)


def group_label(group: str | tuple[str, ...]) -> str:
    """How a group is called in metrics: its name, or the names joined by '+'."""
    return "+".join(group_names(group))


def trained_groups(losses: Mapping[Any, Any]) -> list[str]:
    """Top-level parameter groups of a loss mapping that have a loss."""
    return [name for group, loss_fn in losses.items() if loss_fn is not None for name in group_names(group)]


def check_groups(losses: Mapping[Any, Any], params: Params, where: str) -> None:
    """Checks that each group of `params` has exactly one loss, or None.

    Args:
        losses: loss functions by group, or by tuple of groups.
        params: the parameters, abstract or not.
        where: for the message.

    Raises:
        LossError: naming the groups that are unknown, have two losses, or have none.
    """
    if not isinstance(params, Mapping):
        raise LossError(
            f"{where}: loss_fn is a mapping of groups, but the model's parameters are no dict of groups "
            f"({type(params).__name__}); give one loss function, or a model whose init returns a dict."
        )
    named = [name for group in losses for name in group_names(group)]
    unknown = [name for name in named if name not in params]
    if unknown:
        raise LossError(
            f"{where}: loss_fn names the group {unknown[0]!r}, but the model's groups are {sorted(params)}."
        )
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise LossError(f"{where}: the groups {twice} have two losses each; give each group one.")
    without = sorted(set(params) - set(named))
    if without:
        raise LossError(f"{where}: the groups {without} have no loss; add one, or map them to None to freeze them.")


def global_norm(grads: Params) -> Array:
    """Euclidean norm of all gradients together, float32.

    One product of the joined vector with itself, where a square and a sum of each array are two dozen small kernels for
    two small networks: 5% of a gradient step on 256 rows.
    """
    joined = jnp.concatenate([jnp.ravel(g).astype(jnp.float32) for g in jax.tree.leaves(grads)])
    return jnp.sqrt(jnp.vdot(joined, joined))


def make_gradients(loss_fn: Any, make_context: MakeContext) -> Gradients:
    """Builds `gradients(train_state, batch) -> (grads, LearnOutput)`.

    Args:
        loss_fn: a loss function, or a mapping of groups of top-level params to loss functions (None: frozen), each
            differentiated with respect to its own group alone, all at the same params.
        make_context: `(train_state, key) -> LossContext`.

    Returns:
        The function. Its metrics are the loss's own, `total_loss` (of each group, behind `group/`) and the gradients'
        norm `grad_gnorm`.
    """

    def gradients(train_state: TrainState, batch: SampleBatch) -> tuple[Params, LearnOutput]:
        ctx = make_context(train_state, jax.random.fold_in(train_state.key, train_state.step))
        if isinstance(loss_fn, Mapping):
            grads, out = _group_gradients(loss_fn, train_state.params, batch, ctx)
        else:
            grads, out = _one_gradient(loss_fn, train_state.params, batch, ctx)
        return grads, LearnOutput({**out.metrics, GRAD_NORM: global_norm(grads)}, out.rows)

    return gradients


def _one_gradient(loss_fn: Any, params: Params, batch: SampleBatch, ctx: LossContext) -> tuple[Params, LearnOutput]:
    def objective(params: Params) -> tuple[Array, LearnOutput]:
        return _evaluate(loss_fn, params, batch, ctx)

    return jax.grad(objective, has_aux=True)(params)


def _evaluate(loss_fn: Any, params: Params, batch: SampleBatch, ctx: LossContext) -> tuple[Array, LearnOutput]:
    with loss_memo():
        loss, out = call_loss(loss_fn, params, batch, ctx)
    loss = jnp.asarray(loss, jnp.float32)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in out.metrics.items()}
    return loss, LearnOutput({"total_loss": loss, **metrics}, dict(out.rows))


def _group_gradients(
    losses: Mapping[Any, Any], params: Params, batch: SampleBatch, ctx: LossContext
) -> tuple[Params, LearnOutput]:
    grads = {name: jax.tree.map(jnp.zeros_like, value) for name, value in params.items()}
    metrics: dict[str, Array] = {}
    rows: dict[str, Array] = {}
    for group, loss_fn in losses.items():
        if loss_fn is None:
            continue

        def objective(own: Params, loss_fn: Any = loss_fn) -> tuple[Array, LearnOutput]:
            return _evaluate(loss_fn, {**params, **own}, batch, ctx)

        own_grads, out = jax.grad(objective, has_aux=True)({name: params[name] for name in group_names(group)})
        grads.update(own_grads)
        label = group_label(group)
        metrics.update({f"{label}/{name}": value for name, value in out.metrics.items()})
        twice = sorted(rows.keys() & out.rows.keys())
        if twice:
            raise LossError(f"losses of groups: rows {twice} are returned by two groups; rename one.")
        rows.update(out.rows)
    return grads, LearnOutput(metrics, rows)
