"""What a loss needs, found by tracing it abstractly with a batch that records the columns it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data import SampleBatch
from jaxrl.policies.policy import TrainState
from jaxrl.policies.targets import followed
from jaxrl.tracebacks import is_tracing_error, raised
from jaxrl.types import LearnOutput, LossError, Params, PyTree

# Columns that replay buffers make, of rows that pass through one.
REPLAYED = ("discounts", "weights")

_NARROW = {np.dtype(np.float64): np.dtype(np.float32), np.dtype(np.int64): np.dtype(np.int32)}


def example(space: Any, leading: tuple[int, ...]) -> PyTree:
    """Abstract values of `space` with leading axes, in the dtypes that batches carry (64-bit narrowed to 32)."""

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        x = np.asarray(x)
        return jax.ShapeDtypeStruct((*leading, *x.shape), _NARROW.get(x.dtype, x.dtype))

    return jax.tree.map(struct, _plain(space.sample()))


def _plain(sample: Any) -> Any:
    # Gymnasium's Dict spaces sample dicts whose key order may differ from a pytree's sorted one: plain dicts sort
    # alike.
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
        for name in ("action_logp", "action_prob", "vf_preds", "advantages", "value_targets", *REPLAYED):
            filled[name] = column(np.float32)
    return SampleBatch._make(filled, time_major)


def call_loss(loss_fn: Any, params: Params, batch: SampleBatch, ctx: Any) -> tuple[Any, LearnOutput]:
    """Calls a loss function and gives its result one form: `(scalar, LearnOutput)`.

    Raises:
        LossError: the loss is no scalar, or a metric is none.
    """
    where = f"loss function {getattr(loss_fn, '__name__', None) or getattr(loss_fn, 'name', type(loss_fn).__name__)!r}"
    try:
        result = loss_fn(params, batch, ctx)
    except Exception as error:
        if not is_tracing_error(error):
            raise
        raise LossError(f"{where}: {raised(error)}") from error
    loss, out = result if isinstance(result, tuple) and len(result) == 2 else (result, LearnOutput())
    if isinstance(out, Mapping):
        out = LearnOutput(metrics=out)
    shape = getattr(loss, "shape", None)
    is_number = shape is not None or (isinstance(loss, (int, float)) and not isinstance(loss, bool))
    if not is_number or not isinstance(out, LearnOutput):
        got = type(result).__name__ if not isinstance(result, tuple) else _types_of(result)
        raise LossError(f"{where}: expected a scalar, or (scalar, LearnOutput(metrics, rows)), got {got}.")
    if shape not in ((), None):
        raise LossError(
            f"{where}: expected a scalar, got an array of shape {tuple(shape)}; reduce it with batch.mean(...), which "
            "leaves masked rows out."
        )
    for metric, value in out.metrics.items():
        if np.shape(value) != ():
            raise LossError(f"{where}: metric {metric!r} should be a scalar, got shape {np.shape(value)}; reduce it.")
    for row, value in out.rows.items():
        if tuple(np.shape(value)[: len(batch.shape)]) != batch.shape:
            raise LossError(
                f"{where}: row {row!r} should have one value for each row of the batch, {list(batch.shape)}, got shape "
                f"{list(np.shape(value))}; return scalars as metrics."
            )
    return loss, out


def _types_of(items: tuple[Any, ...]) -> str:
    return f"({', '.join(type(item).__name__ for item in items)})"


def columns_read(trace: Callable[[Params, SampleBatch], Any], batch: SampleBatch, params: Params) -> frozenset[str]:
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


def loss_columns(
    losses: Iterable[Any], state: TrainState, batch: SampleBatch, make_context: Callable[[TrainState, Any], Any]
) -> frozenset[str]:
    """Columns that loss functions read.

    Args:
        losses: loss functions; None among them is passed over.
        state: an abstract train state.
        batch: an abstract batch with every column there is.
        make_context: `(train_state, key) -> LossContext`.

    Raises:
        LossError: a loss reads a column or a coeff that does not exist, or returns no scalar.
    """
    reads: frozenset[str] = frozenset()
    for loss_fn in losses:
        if loss_fn is None:
            continue

        def trace(params: Params, batch: SampleBatch, loss_fn: Any = loss_fn) -> Any:
            traced = concrete(state, params)
            return call_loss(loss_fn, params, batch, make_context(traced, traced.key))

        try:
            reads |= columns_read(trace, batch, state.params)
        except KeyError as error:
            if isinstance(error, LossError):
                raise
            raise LossError(
                f"a loss function looked up {error}, which is not there. If that is a coeff, ctx.coeffs has "
                f"{sorted(state.coeffs)}: give it a default with losses.term(fn, name=...) or coeffs_fn."
            ) from error
    return reads


def concrete(state: TrainState, params: Params) -> TrainState:
    """An abstract train state with `params` and zeros in it, for a function to be traced on."""
    target = None if state.target_params is None else followed(params, state.target_params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=target,
        opt_state=(),
        coeffs={name: jnp.zeros(()) for name in state.coeffs},
        key=jax.random.key(0),
    )


def hook_columns(
    hook: Callable[[TrainState, SampleBatch], Any],
    state: TrainState,
    fragment: SampleBatch,
    *,
    time_major: bool,
    where: str,
) -> tuple[dict[str, Any], frozenset[str]]:
    """Columns that a postprocess hook returns, as abstract values, and the names of those that it reads.

    Args:
        hook: `(train_state, fragment) -> batch`.
        state: an abstract train state.
        fragment: an abstract time-major fragment, as samplers fill it.
        time_major: the layout that is wanted.
        where: for the message.

    Raises:
        LossError: the hook returns no SampleBatch.
    """
    reads: set[str] = set()

    def run(params: Params, fragment: SampleBatch) -> SampleBatch:
        filled = hook(concrete(state, params), fragment.recording(reads))
        if not isinstance(filled, SampleBatch):
            raise LossError(
                f"{where}: postprocess_fn should return a SampleBatch, got {type(filled).__name__}; return "
                "batch.with_columns(name=values)."
            )
        return filled if time_major else filled.flatten()

    filled = jax.eval_shape(run, state.params, fragment)
    structural = {"state_in", "last_obs", "final_obs", "final_index"}
    return {name: filled[name] for name in filled if name not in structural}, frozenset(reads)
