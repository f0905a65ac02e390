"""Ape-X DQN: distributed prioritised replay (Horgan et al. 2018, https://arxiv.org/abs/1803.00933, section 3.1).

Many workers, each with an epsilon of its own, `0.4^(1 + 7 i / (N - 1))`, feed a replay memory in shards; they give
their experience its first priorities. One learner draws batches from the shards, learns by DQN's loss
(`jaxrl.algorithms.dqn`: double, duelling, here of three steps) and sends new priorities back:

    loss = E[w Huber(r_n + gamma^n Q'(s', argmax_a Q(s', a)) - Q(s, a))]

Departures: a worker's first priorities are the TD errors of its own networks, of which none is a target network; near a
fragment's end they, and often the replayed rows, are of as many steps as there are, for the fragments of an episode go
to any shard. Defaults are RLlib's, except where those are for 32 workers and a GPU: here 2 workers, no GPU, 2 shards of
250,000 rows (RLlib 4 of 500,000), learning from 10,000 rows on (50,000), iterations of no minimal time (30 s).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxrl.algorithms.dqn import DQNPolicy, DQNPolicyConfig
from jaxrl.config import option
from jaxrl.trainers import build_trainer
from jaxrl.trainers.apex import ApexConfig, execution_plan, target_update, validate_config
from jaxrl.trainers.support import Support


@dataclass(frozen=True, kw_only=True, eq=False)
class ApexDQNPolicyConfig(DQNPolicyConfig):
    """Options of Ape-X DQN's policy."""

    exploration_config: Mapping[str, Any] = option(
        {"type": "PerWorkerEpsilonGreedy"}, "Exploration: {'type': name, **options}."
    )
    target_network_update_freq: int = option(
        500_000, "Rows trained on between updates of the target network; 0: after every gradient step.", low=0
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ApexDQNConfig(ApexDQNPolicyConfig, ApexConfig):
    """Options of Ape-X DQN."""


ApexDQNPolicy = DQNPolicy.with_updates(
    name="ApexDQNPolicy", target_fn=target_update, default_config=ApexDQNPolicyConfig
)

ApexDQNTrainer = build_trainer(
    "ApexDQNTrainer",
    default_policy=ApexDQNPolicy,
    default_config=ApexDQNConfig,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={"mean q": "info/learner/*/mean_q", "buffer": "info/replay_buffer/*/size"},
)

SUPPORT = Support(
    "DQN with distributed prioritised replay",
    "https://arxiv.org/abs/1803.00933",
    discrete=True,
    continuous=False,
    multi_agent=True,
    recurrent=False,
)
