"""TD3: twin delayed deterministic policy gradient (Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477).

DDPG (`jaxrl.algorithms.ddpg`, which has the losses) with three changes against overestimated values: targets take the
smaller of two critics' values, the actor and the targets move on every second gradient step only, and the target
actor's actions carry clipped noise, so that similar actions have similar values.

Departures: those of DDPG; 10 000 random steps at the start for every environment, where the authors take 1000 for those
in which episodes seldom end early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrl.algorithms.ddpg import DDPGConfig, DDPGPolicy, DDPGPolicyConfig
from jaxrl.config import option
from jaxrl.trainers import build_trainer
from jaxrl.trainers.off_policy import execution_plan, validate_actor_critic
from jaxrl.trainers.support import Support


@dataclass(frozen=True, kw_only=True, eq=False)
class TD3PolicyConfig(DDPGPolicyConfig):
    """Options of TD3's policy."""

    exploration_config: Mapping[str, Any] = option(
        {
            "type": "GaussianNoise",
            "random_timesteps": 10_000,
            "stddev": 0.1,
            "initial_scale": 1.0,
            "final_scale": 1.0,
            "scale_timesteps": 10_000,
        },
        "Exploration: {'type': name, **options}.",
    )
    twin_q: bool = option(True, "Two critics, of whose target values the smaller counts.")
    policy_delay: int = option(2, "The actor and the targets move on every so many-th gradient step.", low=1)
    smooth_target_policy: bool = option(True, "Add clipped noise to the target actor's actions.")
    l2_reg: float = option(0.0, "Weight of half the squares of all weight matrices.", low=0)
    tau: float = option(5e-3, "An update of the target networks: tau * params + (1 - tau) * target.", low=0, high=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TD3Config(TD3PolicyConfig, DDPGConfig):
    """Options of TD3."""

    train_batch_size: int = option(100, "Rows of a batch drawn from the replay memory: one gradient step.", low=1)
    buffer_size: int = option(1_000_000, "Rows that the replay memory of each policy holds.", low=1)
    learning_starts: int = option(10_000, "Rows of each policy before learning begins.", low=0)
    prioritized_replay: bool = option(False, "Draw rows by priority, the size of their TD error, instead of evenly.")


TD3Policy = DDPGPolicy.with_updates(name="TD3Policy", default_config=TD3PolicyConfig)

TD3Trainer = build_trainer(
    "TD3Trainer",
    default_policy=TD3Policy,
    default_config=TD3Config,
    execution_plan=execution_plan,
    validate_config=validate_actor_critic,
    progress={"mean q": "info/learner/*/q/mean_q", "buffer": "info/replay_buffer/*/size"},
)

SUPPORT = Support(
    "twin delayed deterministic policy gradient",
    "https://arxiv.org/abs/1802.09477",
    discrete=False,
    continuous=True,
    multi_agent=True,
    recurrent=False,
)
