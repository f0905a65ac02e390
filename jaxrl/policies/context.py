"""LossContext: what a loss function sees beside params and batch; one forward pass per (params, batch) and trace."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.extend

from jaxrl.types import Array, ForwardOutput, Params

_forward_memo: contextvars.ContextVar[list | None] = contextvars.ContextVar("jaxrl_forward_memo", default=None)


@contextlib.contextmanager
def forward_memo() -> Iterator[None]:
    """Within this scope `ctx.forward(params, batch, key)` runs once per (params, batch, key) objects and trace.

    The memo belongs to the function being traced, never to a context object: opened and dropped inside one trace, it
    cannot leak a tracer.
    """
    token = _forward_memo.set([])
    try:
        yield
    finally:
        _forward_memo.reset(token)


@flax.struct.dataclass
class LossContext:
    """Context of a loss function: `loss_fn(params, batch, ctx)`.

    Attributes:
        model: the policy's `Model` (static).
        dist_class: the action distribution's class: `dist_class(dist_inputs)` (static).
        config: the policy's configuration (static).
        forward_fn: the policy's forward pass (static); call `ctx.forward`.
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
        memo = _forward_memo.get()
        if memo is None:
            return self.forward_fn(params, batch, key)
        # The trace is part of the key: a result computed inside an inner scan or jit must not escape from it.
        trace = jax.extend.core.get_opaque_trace_state()
        for *known, known_trace, output in memo:
            if all(a is b for a, b in zip(known, (params, batch, key), strict=True)) and known_trace == trace:
                return output
        output = self.forward_fn(params, batch, key)
        memo.append((params, batch, key, trace, output))
        return output
