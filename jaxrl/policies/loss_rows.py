"""What a policy's loss returns for each row of a batch, without learning from it: worker-side priorities, say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.policies.context import loss_memo
from jaxrl.policies.policy import Policy, TrainState
from jaxrl.policies.requirements import call_loss
from jaxrl.policies.targets import followed
from jaxrl.types import Array, Weights

LossRows = Callable[[Weights, SampleBatch, Array], dict[str, Array]]


def make_loss_rows(policy: Policy) -> LossRows:
    """Builds `rows(weights, batch, key)`: what the policy's loss returns for each row of `batch` at `weights`.

    There is no target network at hand where only weights are: the networks themselves stand in for it. Columns that the
    loss does not read are left out, so that one program serves however many there are.

    Args:
        policy: the policy.

    Returns:
        The function. Its batch is what the loss learns from (rows of a replay buffer, where the loss reads its
        columns); its values are arrays by name, `td_error [N]` for a loss that learns values.

    Example:
        >>> rows = make_loss_rows(policy)(learner.weights, replayed, jax.random.key(0))
        >>> rows["td_error"].shape
        (32,)
    """
    losses = policy.loss_fn.values() if isinstance(policy.loss_fn, Mapping) else [policy.loss_fn]
    targets = jax.eval_shape(policy.init, jax.random.key(0)).target_params

    @jax.jit
    def rows(weights: Weights, batch: SampleBatch, key: Any) -> dict[str, Array]:
        params, coeffs = weights
        target = None if targets is None else followed(params, targets)
        ctx = policy.context(TrainState(jnp.zeros((), jnp.int32), params, target, (), coeffs, key))
        found: dict[str, Array] = {}
        for loss_fn in losses:
            if loss_fn is not None:
                with loss_memo():
                    found.update(call_loss(loss_fn, params, batch, ctx)[1].rows)
        return found

    def of_what_is_read(weights: Weights, batch: SampleBatch, key: Array) -> dict[str, Array]:
        return rows(weights, batch.select([name for name in batch if name in policy.spec.reads]), key)

    return of_what_is_read
