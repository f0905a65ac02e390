"""Gradients computed on the workers, each on its own fragment at the weights that it acted by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data import MultiAgentBatch, SampleBatch, as_multi_agent
from jaxrl.execution.context import (
    AGENT_STEPS_SAMPLED,
    AGENT_STEPS_TRAINED,
    STEPS_SAMPLED,
    STEPS_TRAINED,
    PlanContext,
)
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator
from jaxrl.execution.on_worker import OnWorker
from jaxrl.execution.rollout_ops import ParallelRollouts
from jaxrl.execution.train_ops import Gradients, Info, has_rows
from jaxrl.policies import TrainState


class WorkerGradients(NamedTuple):
    """What a worker gives for a fragment: gradients by policy as host arrays, and what is counted.

    Attributes:
        gradients: see there.
        agent_steps: valid rows of all policies, those that do not learn too.
        version: number of the weights that the worker acted by.
    """

    gradients: Gradients
    agent_steps: int
    version: int


def _start(worker: Any) -> dict[str, Any]:
    seed = 0 if worker.config.seed is None else worker.config.seed
    return {"key": jax.random.fold_in(jax.random.key(seed), 2**30 + worker.worker_index), "count": 0}


def _compute(
    worker: Any, state: Mapping[str, Any], batch: SampleBatch | MultiAgentBatch
) -> tuple[dict[str, Any], WorkerGradients]:
    multi, chosen = as_multi_agent(batch), worker.config.multiagent.policies_to_train
    grads, info, rows = {}, {}, {}
    for pid, policy in worker.policies.items():
        if (chosen is not None and pid not in chosen) or not has_rows(multi, pid):
            continue
        params, coeffs = worker.weights[pid]
        train_state = TrainState(jnp.int32(state["count"]), params, None, (), coeffs, state["key"])
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            gradients, out = policy.gradients(train_state, multi[pid])
        grads[pid] = jax.tree.map(np.asarray, gradients)
        info[pid] = {name: float(value) for name, value in out.metrics.items()}
        rows[pid] = multi[pid].count
    found = Gradients(grads, rows, info, multi.env_steps)
    return {**state, "count": state["count"] + 1}, WorkerGradients(found, multi.agent_steps, worker.weights_version)


COMPUTE_GRADIENTS = OnWorker("ComputeGradients", _compute, _start)
"""Makes of each fragment its gradients, at the worker's weights, for every policy that learns."""


def AsyncGradients(ctx: PlanContext) -> LocalIterator:
    """Gradients of all workers as they are ready; items are `(worker, WorkerGradients)`.

    Changes the counters num_steps_sampled and num_agent_steps_sampled.

    Args:
        ctx: the plan's context.

    Examples:
        >>> worker, computed = next(AsyncGradients(ctx))
        >>> computed.gradients.env_steps                       # one fragment of one worker
        10
    """

    def count(state: Any, item: tuple[Any, WorkerGradients]) -> tuple[Any, tuple[Any, WorkerGradients]]:
        ctx.counters[STEPS_SAMPLED] += item[1].gradients.env_steps
        ctx.counters[AGENT_STEPS_SAMPLED] += item[1].agent_steps
        return state, item

    rollouts = ParallelRollouts(ctx, mode="raw").for_each(COMPUTE_GRADIENTS)
    # One at a time, and each on its own: a worker that had gradients in store would compute them at older weights.
    gathered = rollouts.gather_async(batch_ms=0, num_async=1, **ctx.fault_tolerance())
    counters = ("num_steps_sampled", "num_agent_steps_sampled")
    return gathered.zip_with_source_actor().for_each(Operator("CountSampled", count, host_only=True, counters=counters))


def ApplyWorkerGradients(ctx: PlanContext) -> Operator:
    """Applies the gradients of one worker, and sends the new weights to that worker alone.

    Takes `(worker, WorkerGradients)`, gives `(env_steps, {policy_id: metrics})`. Changes the counters num_steps_trained
    and num_agent_steps_trained, the timer apply_grad, and the learner info of results, where `staleness` is the number
    of updates between acting and applying.

    Args:
        ctx: the plan's context.

    Raises:
        NonFiniteError: (while iterating) a metric of the worker's is NaN or infinite; the parameters stay.
    """

    def apply(state: Any, item: tuple[Any, WorkerGradients]) -> tuple[Any, tuple[int, Info]]:
        worker, (gradients, _, version) = item
        # Weights are numbered by how often any were sent, which is once for each update.
        staleness = float(ctx.workers.version - version)
        info: Info = {}
        with ctx.timer("apply_grad"):
            for pid, grads in gradients.grads.items():
                learner = ctx.learners[pid]
                info[pid] = {**learner.checked(gradients.info[pid]), "staleness": staleness}
                learner.apply_gradients(grads)
        ctx.counters[STEPS_TRAINED] += gradients.env_steps
        ctx.counters[AGENT_STEPS_TRAINED] += sum(gradients.rows.values())
        ctx.learner_info.update(info)
        timestep = ctx.counters[STEPS_SAMPLED]
        for learner in ctx.learners.values():
            learner.update_schedules(timestep)
        ctx.workers.send_weights(worker, {pid: learner.weights for pid, learner in ctx.learners.items()})
        return state, (gradients.env_steps, info)

    counters = ("num_steps_trained", "num_agent_steps_trained")
    return Operator("ApplyWorkerGradients", apply, host_only=True, counters=counters)
