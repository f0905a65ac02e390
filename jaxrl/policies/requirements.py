"""What a loss needs, found by tracing it abstractly with a batch that records the columns it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.types import LearnOutput, LossError, Params, PyTree

_NARROW = {np.dtype(np.float64): np.dtype(np.float32), np.dtype(np.int64): np.dtype(np.int32)}


def example(space: Any, leading: tuple[int, ...]) -> PyTree:
    """Abstract values of `space` with leading axes, in the dtypes that batches carry (64-bit narrowed to 32)."""

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        x = np.asarray(x)
        return jax.ShapeDtypeStruct((*leading, *x.shape), _NARROW.get(x.dtype, x.dtype))

    return jax.tree.map(struct, _plain(space.sample()))


def _plain(sample: Any) -> Any:
    # Gymnasium's Dict spaces sample dicts whose key order may differ from a pytree's sorted one: plain dicts sort alike.
    if isinstance(sample, Mapping):
        return {k: _plain(v) for k, v in sample.items()}
    if isinstance(sample, tuple):
        return tuple(_plain(v) for v in sample)
    return sample


def example_batch(
    obs_space: Any, action_space: Any, state: PyTree, dist_size: int, *, time_major: bool, produced: bool
) -> SampleBatch:
    """An abstract batch (3 rows, 2 columns) with every column that samplers and postprocessing fill.

    Args:
        obs_space, action_space: Gymnasium spaces.
        state: abstract model state `[2, ...]`, `()` for feed-forward models.
        dist_size: width of the distribution's inputs.
        time_major: `[3, 2, ...]`, else flat `[6, ...]`.
        produced: with the columns of postprocessing, else the sampler's alone.
    """
    rows, columns = 3, 2
    lead = (rows, columns) if time_major else (rows * columns,)

    def column(dtype: Any, *trailing: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, *trailing), np.dtype(dtype))

    filled: dict[str, Any] = {
        "obs": example(obs_space, lead),
        "actions": example(action_space, lead),
        "prev_actions": example(action_space, lead),
        "rewards": column(np.float32),
        "prev_rewards": column(np.float32),
        "terminateds": column(bool),
        "truncateds": column(bool),
        "eps_id": column(np.int32),
        "t": column(np.int32),
        "agent_index": column(np.int32),
        "unroll_id": column(np.int32),
    }
    if time_major:
        filled["last_obs"] = example(obs_space, (columns,))
        filled["final_obs"] = example(obs_space, (1,))
        filled["final_index"] = jax.ShapeDtypeStruct((1, 2), np.dtype(np.int32))
        if jax.tree.leaves(state):
            filled["state_in"] = state
    else:
        filled["new_obs"] = example(obs_space, lead)
    if produced:
        filled["action_dist_inputs"] = column(np.float32, dist_size)
        for name in ("action_logp", "action_prob", "vf_preds", "advantages", "value_targets"):
            filled[name] = column(np.float32)
    return SampleBatch._make(filled, time_major)


def call_loss(loss_fn: Any, params: Params, batch: SampleBatch, ctx: Any) -> tuple[Any, LearnOutput]:
    """Calls a loss function and gives its result one form: `(scalar, LearnOutput)`.

    Raises:
        LossError: the loss is no scalar, or a metric is none.
    """
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    result = loss_fn(params, batch, ctx)
    loss, out = result if isinstance(result, tuple) and len(result) == 2 else (result, LearnOutput())
    if not isinstance(out, LearnOutput):
        out = LearnOutput(metrics=out)
    shape = getattr(loss, "shape", None)
    if shape is None and not isinstance(loss, (int, float)):
        raise LossError(
            f"loss function {name!r}: expected a scalar, or (scalar, LearnOutput), got {type(result).__name__}."
        )
    if shape not in ((), None):
        raise LossError(
            f"loss function {name!r}: expected a scalar, got an array of shape {tuple(shape)}; "
            "reduce it with batch.mean(...), which leaves masked rows out."
        )
    for metric, value in out.metrics.items():
        if np.shape(value) != ():
            raise LossError(f"loss function {name!r}: metric {metric!r} should be a scalar, got shape {np.shape(value)}.")
    return loss, out


def columns_read(trace: Any, batch: SampleBatch, params: Params) -> frozenset[str]:
    """Names of the columns that `trace(params, batch)` reads, found without computing anything.

    Args:
        trace: function of (params, recording batch), e.g. a loss with its context bound.
        batch: abstract batch with every column there is.
        params: abstract parameters.

    Raises:
        LossError: it reads a column that nothing produces; the message lists those that exist.
    """
    reads: set[str] = set()
    jax.eval_shape(lambda p, b: trace(p, b.recording(reads)), params, batch)
    return frozenset(reads)
