"""Sampling: rollout workers, in-process and on Ray actors."""

from jaxrl.rollout.config import AutoFragment, MultiAgentConfig, RolloutConfig
from jaxrl.rollout.multi_agent_sampler import MultiAgentSampler, policy_for
from jaxrl.rollout.sampler import VectorSampler
from jaxrl.rollout.worker import PolicyRecipe, RolloutWorker, is_multi_agent, make_worker_env
from jaxrl.rollout.worker_set import WorkerSet

__all__ = [
    "AutoFragment",
    "MultiAgentConfig",
    "MultiAgentSampler",
    "PolicyRecipe",
    "RolloutConfig",
    "RolloutWorker",
    "VectorSampler",
    "WorkerSet",
    "is_multi_agent",
    "make_worker_env",
    "policy_for",
]
