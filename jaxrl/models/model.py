"""The model interface: pure functions from parameters and inputs to distribution inputs and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxrl.types import ModelInputs, ModelOutput, Params, PyTree


class Model(NamedTuple):
    """A policy and value network as pure functions.

    A feed-forward model accepts inputs with any leading axes and has the state `()`. A recurrent model takes inputs
    `[T, B, ...]` and a state `[B, ...]`: where `inputs.reset` is true the state is set to its initial value before the
    row (also where the row is absent), and where `inputs.mask` is false the row leaves the state as it is. Both may be
    None, for no row. Outputs of absent rows are finite but mean nothing.

    Attributes:
        init: `init(key) -> params`, a dict whose top-level keys are the groups that losses and optimizers can name:
            "policy" and "value" for separate networks, "encoder", "policy" and "value" for shared ones.
        apply: `apply(params, inputs, state) -> ModelOutput(dist_inputs [..., D], value [...], state)`. The state may
            be left out for a feed-forward model.
        initial_state: `initial_state(batch_size) -> state`, a pytree of `[B, ...]`.
        reads: the fields of `ModelInputs` that `apply` reads; the others may be None.
        heads: further pure functions by name, the parameters first: critics `q(params, obs, actions) -> [C, ...]`.
        keep_outputs: a pass costs so much, and its value so little beside it, that samplers keep what acting computed:
            convolutions that policy and value function share.

    Example:
        >>> model = make_model(env.observation_space, env.action_space, 2, ModelConfig())
        >>> params = model.init(jax.random.key(0))
        >>> out = model.apply(params, ModelInputs(obs), model.initial_state(8))
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., ModelOutput]
    initial_state: Callable[[int], PyTree]
    reads: frozenset[str]
    heads: Mapping[str, Callable[..., Any]] = {}
    keep_outputs: bool = False

    @property
    def recurrent(self) -> bool:
        """Whether the model carries a state from row to row."""
        state: Any = jax.eval_shape(lambda: self.initial_state(1))
        return bool(jax.tree.leaves(state))


def no_state(batch_size: int) -> tuple[()]:
    """The state of a feed-forward model, whatever the batch size."""
    del batch_size
    return ()


FEED_FORWARD_READS = frozenset({"obs"})
RECURRENT_READS = frozenset({"obs", "reset", "mask"})
ALL_READS = frozenset(ModelInputs._fields)
