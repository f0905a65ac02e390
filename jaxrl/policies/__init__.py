"""Policies: pure functions built from a loss function."""

from jaxrl.policies.build import PolicyFactory, build_policy
from jaxrl.policies.config import PolicyConfig
from jaxrl.policies.context import LossContext
from jaxrl.policies.optimizers import every
from jaxrl.policies.policy import Policy, PolicySpec, TrainState

__all__ = ["LossContext", "Policy", "PolicyConfig", "PolicyFactory", "PolicySpec", "TrainState", "build_policy", "every"]
