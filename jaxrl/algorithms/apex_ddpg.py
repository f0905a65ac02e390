"""Ape-X DDPG: distributed prioritised replay (Horgan et al. 2018, https://arxiv.org/abs/1803.00933, section 3.2).

The losses are DDPG's (`jaxrl.algorithms.ddpg`), here of three steps; workers, shards and learner are those of Ape-X DQN
(`jaxrl.algorithms.apex_dqn`). Each worker's noise has a scale of its own, `0.4^(1 + 7 i / (N - 1))`.

Departures: those of DDPG and of Ape-X DQN; targets are copies of the networks (tau = 1), as in the paper, where RLlib
keeps DDPG's tau of 0.002 for an update each 500,000 rows. Here they are updated each 50,000 rows, about as often as in
the paper (100 batches).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrl.algorithms.ddpg import DDPGPolicy, DDPGPolicyConfig, target_fn
from jaxrl.config import option
from jaxrl.policies import TrainState
from jaxrl.trainers import build_trainer
from jaxrl.trainers.apex import ApexConfig, execution_plan, target_update, validate_config
from jaxrl.trainers.off_policy import ActorCriticConfig
from jaxrl.trainers.support import Support
from jaxrl.types import Params


@dataclass(frozen=True, kw_only=True, eq=False)
class ApexDDPGPolicyConfig(DDPGPolicyConfig):
    """Options of Ape-X DDPG's policy."""

    exploration_config: Mapping[str, Any] = option(
        {
            "type": "PerWorkerOrnsteinUhlenbeckNoise",
            "random_timesteps": 1000,
            "ou_base_scale": 0.1,
            "ou_theta": 0.15,
            "ou_sigma": 0.2,
        },
        "Exploration: {'type': name, **options}.",
    )
    target_network_update_freq: int = option(
        50_000,
        "Rows trained on between updates of the target networks; 0: after every gradient step that moves the actor.",
        low=0,
    )
    tau: float = option(1.0, "An update of the target networks: tau * params + (1 - tau) * target.", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ApexDDPGConfig(ApexDDPGPolicyConfig, ApexConfig, ActorCriticConfig):
    """Options of Ape-X DDPG."""


def follow(state: TrainState, config: Any) -> Params:
    """Targets move each so many rows, or else with the actor."""
    return target_update(state, config) if config.target_network_update_freq else target_fn(state, config)


ApexDDPGPolicy = DDPGPolicy.with_updates(name="ApexDDPGPolicy", target_fn=follow, default_config=ApexDDPGPolicyConfig)

ApexDDPGTrainer = build_trainer(
    "ApexDDPGTrainer",
    default_policy=ApexDDPGPolicy,
    default_config=ApexDDPGConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"mean q": "info/learner/*/q/mean_q", "buffer": "info/replay_buffer/*/size"},
)

SUPPORT = Support(
    "DDPG with distributed prioritised replay",
    "https://arxiv.org/abs/1803.00933",
    discrete=False,
    continuous=True,
    multi_agent=True,
    recurrent=False,
)
