"""PolicyConfig: the options that a policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxrl.config import option
from jaxrl.models import ModelConfig
from jaxrl.schedules import Coeff


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyConfig:
    """Options of a policy. Numbers marked traced are coeffs: changing one never recompiles."""

    gamma: float = option(0.99, "Discount factor.", low=0, high=1)
    lambda_: float = option(1.0, "GAE's lambda: 1 is return minus value, 0 the one-step TD error.", low=0, high=1)
    use_gae: bool = option(True, "Advantages by GAE; False: discounted return minus value.")
    use_critic: bool = option(True, "Use the value function as a baseline and to bootstrap.")
    lr: Coeff = option(1e-4, "Learning rate, or a schedule [[t, value], ...].", traced=True)
    lr_schedule: list | None = option(None, "Schedule of the learning rate over env steps: [[t, value], ...].")
    optimizer: str | Mapping[str, Any] = option(
        "adam", "Name of an optax optimiser, or {'type': name, **arguments}; the learning rate comes from lr."
    )
    grad_clip: float | None = option(None, "Clip the gradients' global norm to this; None: no clipping.", low=0)
    num_sgd_iter: int = option(1, "Epochs over each train batch.", low=1)
    sgd_minibatch_size: int = option(0, "Rows of a minibatch; 0: the whole train batch.", low=0)
    shuffle_sequences: bool = option(True, "Shuffle rows (recurrent policies: sequences) in each epoch.")
    explore: bool = option(True, "Sample actions; False: take the distribution's mode.")
    exploration_config: Mapping[str, Any] = option(
        {"type": "StochasticSampling"}, "Exploration: {'type': name, **options}."
    )
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"help": "Options of the model."})
