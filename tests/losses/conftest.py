"""A linear policy in the place of a model: loss terms see the context that policies give them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.data.sample_batch import SampleBatch
from jaxrl.distributions import get_dist_class
from jaxrl.types import ForwardOutput

DIST_CLASS = get_dist_class(spaces.Discrete(3))


class Context(NamedTuple):
    """What the terms read of a LossContext; logits and values are linear in the observation."""

    coeffs: Mapping[str, Any] = {}
    dist_class: Any = DIST_CLASS
    model: Any = None
    config: Any = None
    target_params: Any = None
    key: Any = None

    def forward(self, params: Any, batch: Any) -> ForwardOutput:
        logits = batch["obs"] @ params["policy"]
        return ForwardOutput(DIST_CLASS(logits), (batch["obs"] @ params["value"])[..., 0], logits)

    def next_values(self, params: Any, batch: Any) -> Any:
        return jax.lax.stop_gradient((batch["new_obs"] @ params["value"])[..., 0])

    def once(self, fn: Any, params: Any, batch: Any) -> Any:
        return fn(params, batch, self)


@pytest.fixture
def make_ctx() -> Callable[..., Context]:
    return lambda **coeffs: Context(coeffs)


@pytest.fixture
def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "policy": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "value": jnp.asarray(rng.normal(size=(4, 1)), jnp.float32),
    }


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    """Columns `[T, B] = [5, 3]`."""
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(5, 3, *shape)).astype(np.float32)

    return {
        "obs": normal(4),
        "actions": rng.integers(0, 3, (5, 3)).astype(np.int32),
        "action_dist_inputs": normal(3),
        "action_logp": -1.0 + 0.3 * normal(),
        "advantages": normal(),
        "vf_preds": normal(),
        "value_targets": normal(),
    }


@pytest.fixture
def batch(columns: dict[str, np.ndarray]) -> SampleBatch:
    return SampleBatch(columns)
