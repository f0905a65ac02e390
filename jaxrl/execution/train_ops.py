"""Operators that learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent
from jaxrl.execution.compiled_form import CompiledForm, Trained, Turn, World
from jaxrl.execution.context import AGENT_STEPS_TRAINED, STEPS_TRAINED, PlanContext
from jaxrl.policies import GRAD_NORM, global_norm
from jaxrl.types import Array, Params, PolicyID

Info = dict[PolicyID, dict[str, Any]]


class TrainOneStep:
    """Learns from each train batch, for every policy to train, and broadcasts the new weights.

    Gives `(batch, {policy_id: metrics})`. Changes the counters num_steps_trained and num_agent_steps_trained, the timer
    learn, and the learner info of results.

    Args:
        ctx: the plan's context.

    Examples:
        >>> batch, info = next(batches.for_each(TrainOneStep(ctx)))
        >>> sorted(info["default_policy"])[:2]
        ['cur_clip_param', 'cur_entropy_coeff']
    """

    host_only = True

    def __init__(self, ctx: PlanContext):
        self.ctx = ctx
        self.compiled = CompiledForm(self._learn_compiled)

    def _learn_compiled(
        self, turn: Turn, world: World, state: Any, batch: SampleBatch, key: Any
    ) -> tuple[World, Any, Trained]:
        (policy_id,) = self.ctx.learners
        train, out = self.ctx.learners[policy_id].policy.learn(world.train, batch)
        return world._replace(train=train), state, Trained(batch, out.metrics, out.rows)

    def __call__(self, batch: SampleBatch | MultiAgentBatch) -> tuple[MultiAgentBatch, Info]:
        ctx, multi = self.ctx, as_multi_agent(batch)
        timer = ctx.timer("learn")
        with timer:
            info = {pid: ctx.learners[pid].learn(multi[pid]) for pid in ctx.policies_to_train if has_rows(multi, pid)}
        timer.push_units_processed(multi.env_steps)
        ctx.count_trained(multi)
        ctx.learner_info.update(info)
        ctx.sync_weights()
        return multi, info


def has_rows(batch: MultiAgentBatch, policy_id: PolicyID) -> bool:
    """Whether a batch holds anything for a policy to learn from."""
    return policy_id in batch and batch[policy_id].count > 0


class Gradients(NamedTuple):
    """Gradients by policy, the rows behind each, the metrics, and the batch's environment steps."""

    grads: dict[PolicyID, Params]
    rows: dict[PolicyID, int]
    info: Info
    env_steps: int


class ComputeGradients:
    """Gradients of each batch at the current weights, without applying them.

    Gives `Gradients`; changes the timer compute_grads.

    Args:
        ctx: the plan's context.
    """

    host_only = True

    def __init__(self, ctx: PlanContext):
        self.ctx = ctx

    def __call__(self, batch: SampleBatch | MultiAgentBatch) -> Gradients:
        ctx, multi = self.ctx, as_multi_agent(batch)
        grads: dict[PolicyID, Params] = {}
        info: Info = {}
        with ctx.timer("compute_grads"):
            for pid in ctx.policies_to_train:
                if has_rows(multi, pid):
                    grads[pid], info[pid] = ctx.learners[pid].gradients(multi[pid])
        return Gradients(grads, {pid: multi[pid].count for pid in grads}, info, multi.env_steps)


def AverageGradients(gradients: Sequence[Gradients]) -> Gradients:
    """The mean of gradients, weighted by the rows behind each: that of the joined batch.

    Metrics are weighted means too; `grad_gnorm` is the norm of the mean.

    Args:
        gradients: of the microbatches.

    Examples:
        >>> grads = ComputeGradients(ctx)
        >>> averaged = next(microbatches.for_each(grads).batch(4).for_each(AverageGradients))
    """
    grads: dict[PolicyID, Params] = {}
    rows: dict[PolicyID, int] = {}
    info: Info = {}
    for pid in dict.fromkeys(pid for each in gradients for pid in each.grads):
        parts = [each for each in gradients if pid in each.grads]
        rows[pid] = sum(each.rows[pid] for each in parts)
        shares = np.asarray([each.rows[pid] / rows[pid] for each in parts], np.float32)
        grads[pid], norm = _weighted_mean(shares, [each.grads[pid] for each in parts])
        means = {
            name: sum(float(share) * each.info[pid][name] for share, each in zip(shares, parts, strict=True))
            for name in parts[0].info[pid]
        }
        info[pid] = {**means, GRAD_NORM: float(norm)}
    return Gradients(grads, rows, info, sum(each.env_steps for each in gradients))


@jax.jit
def _weighted_mean(shares: Array, grads: Sequence[Params]) -> tuple[Params, Array]:
    mean = jax.tree.map(lambda *parts: jnp.tensordot(shares, jnp.stack(parts), axes=1), *grads)
    return mean, global_norm(mean)


class ApplyGradients:
    """Applies gradients and broadcasts the new weights.

    Gives `(env_steps, {policy_id: metrics})`. Changes the counters num_steps_trained and num_agent_steps_trained, the
    timer apply_grad, and the learner info of results.

    Args:
        ctx: the plan's context.
    """

    host_only = True

    def __init__(self, ctx: PlanContext):
        self.ctx = ctx

    def __call__(self, gradients: Gradients) -> tuple[int, Info]:
        ctx = self.ctx
        with ctx.timer("apply_grad"):
            for pid, grads in gradients.grads.items():
                ctx.learners[pid].apply_gradients(grads)
        ctx.counters[STEPS_TRAINED] += gradients.env_steps
        ctx.counters[AGENT_STEPS_TRAINED] += sum(gradients.rows.values())
        ctx.learner_info.update(gradients.info)
        ctx.sync_weights()
        return gradients.env_steps, gradients.info
