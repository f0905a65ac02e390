"""Target networks: when and how far they follow the parameters that learn."""

from __future__ import annotations

from typing import Any

import optax

from jaxrl.policies.policy import TrainState
from jaxrl.types import Params


def target_update(state: TrainState, config: Any) -> Params:
    """A `target_fn` for `build_policy`: `tau * params + (1 - tau) * target` after every gradient step.

    With `target_network_update_freq` above 0 the target waits for the plan's `UpdateTargetNetwork` instead.

    Args:
        state: after the gradient step.
        config: options `tau` and `target_network_update_freq`.

    Returns:
        The target network's parameters.
    """
    if config.target_network_update_freq:
        return state.target_params
    if config.tau == 1.0:
        return state.params
    return optax.incremental_update(state.params, state.target_params, config.tau)
