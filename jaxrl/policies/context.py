"""LossContext: what a loss function sees beside params and batch; what terms share is computed once in a trace."""

from __future__ import annotations

import contextlib
import contextvars
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.extend

from jaxrl.types import Array, ForwardOutput, LossError, Params

_memo: contextvars.ContextVar[list | None] = contextvars.ContextVar("jaxrl_loss_memo", default=None)


@contextlib.contextmanager
def loss_memo() -> Iterator[None]:
    """Within this scope what a context computes runs once per (function, params, batch, key) objects and trace.

    The memo belongs to the function being traced, never to a context object: opened and dropped inside one trace, it
    cannot leak a tracer.
    """
    token = _memo.set([])
    try:
        yield
    finally:
        _memo.reset(token)


def _once(asked: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
    memo = _memo.get()
    if memo is None:
        return compute()
    # The trace is part of the key: a result computed inside an inner scan or jit must not escape from it.
    trace = jax.extend.core.get_opaque_trace_state()
    for known, known_trace, output in memo:
        if len(known) == len(asked) and all(map(operator.is_, known, asked)) and known_trace == trace:
            return output
    output = compute()
    memo.append((asked, trace, output))
    return output


@flax.struct.dataclass
class LossContext:
    """Context of a loss function: `loss_fn(params, batch, ctx)`.

    Attributes:
        model: the policy's `Model` (static).
        dist_class: the action distribution's class: `dist_class(dist_inputs)` (static).
        config: the policy's configuration (static).
        forward_fn: the policy's forward pass (static); call `ctx.forward`.
        next_values_fn: the values of successors (static); call `ctx.next_values`.
        target_params: parameters of the target network, None if the policy has none.
        coeffs: numbers that training, schedules or Tune change, as float32 scalars by name.
        key: a PRNG key for this gradient step.
    """

    target_params: Params
    coeffs: Mapping[str, Array]
    key: Any
    model: Any = flax.struct.field(pytree_node=False)
    dist_class: Any = flax.struct.field(pytree_node=False)
    config: Any = flax.struct.field(pytree_node=False)
    forward_fn: Callable[[Params, Any, Any], ForwardOutput] = flax.struct.field(pytree_node=False)
    next_values_fn: Callable[[Params, Any, ForwardOutput, Any], Array] = flax.struct.field(pytree_node=False)

    def forward(self, params: Params, batch: Any, key: Any = None) -> ForwardOutput:
        """Action distribution, values and model state for every row of `batch`, under `params`.

        However many terms of one loss call it with the same params, batch and key, the model runs once per trace.

        Args:
            params: the model's parameters.
            batch: SampleBatch `[T, B]` or `[N]`.
            key: for a stochastic model (noisy layers, quantile fractions); None: its mean.

        Returns:
            ForwardOutput(dist, value, dist_inputs, state, extras), rows as in the batch.
        """
        fn = self.forward_fn
        return _once((fn, params, batch, key), lambda: fn(params, batch, key))

    def next_values(self, params: Params, batch: Any, key: Any = None) -> Array:
        """Values of every row's true successor under `params`, without gradient: what a loss bootstraps from.

        At a truncation that is the value of the final observation, never of the next episode's first one. The rows'
        values come from `forward(params, batch, key)`, which is shared. A loss that calls this is marked:
        `losses.sequence_term(fn)`.

        Args:
            params: the model's parameters.
            batch: time-major `[T, B]`, with `last_obs`.
            key: as of `forward`.

        Returns:
            `[T, B]`. Where an episode terminated there is nothing to bootstrap from: the value there means nothing.

        Raises:
            LossError: the batch holds flat rows, whose successors' values are nowhere.
        """
        if not batch.time_major or "last_obs" not in batch:
            raise LossError(
                "ctx.next_values: expected a time-major batch [T, B] with last_obs, got "
                f"{'one without last_obs' if batch.time_major else 'flat rows'}; mark the loss with "
                "losses.sequence_term(fn), so that minibatches are whole columns, and learn from rollouts."
            )
        fn = self.next_values_fn
        return _once((fn, params, batch, key), lambda: fn(params, batch, self.forward(params, batch, key), key))

    def once(self, fn: Callable[[Params, Any, Any], Any], params: Params, batch: Any) -> Any:
        """`fn(params, batch, ctx)`, computed once per trace however many terms of one loss ask for it.

        Args:
            fn: a function of a module, the same object for every term that asks.
            params, batch: as the loss function got them.
        """
        return _once((fn, params, batch), lambda: fn(params, batch, self))
