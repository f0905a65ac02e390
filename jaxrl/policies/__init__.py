"""Policies: pure functions built from a loss function."""

from jaxrl.policies.build import PolicyFactory, build_policy
from jaxrl.policies.coeffs import learning_rates
from jaxrl.policies.config import PolicyConfig
from jaxrl.policies.context import LossContext
from jaxrl.policies.gradients import GRAD_NORM, global_norm
from jaxrl.policies.learning import DATA_AXIS
from jaxrl.policies.loss_rows import LossRows, make_loss_rows
from jaxrl.policies.optimizers import default_optimizer, every
from jaxrl.policies.policy import Policy, PolicySpec, TrainState
from jaxrl.policies.targets import followed, lagged_target, target_update

__all__ = [
    "DATA_AXIS",
    "GRAD_NORM",
    "LossContext",
    "LossRows",
    "Policy",
    "PolicyConfig",
    "PolicyFactory",
    "PolicySpec",
    "TrainState",
    "build_policy",
    "default_optimizer",
    "every",
    "followed",
    "global_norm",
    "lagged_target",
    "learning_rates",
    "make_loss_rows",
    "target_update",
]
