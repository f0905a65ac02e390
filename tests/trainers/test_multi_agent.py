"""Training several agents: shared and separate policies, feed-forward and recurrent; what a wrong mapping says."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

from jaxrl import ConfigError
from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.pg import PGTrainer
from jaxrl.algorithms.ppo import PPOTrainer

AGENTS: dict[str, Any] = {
    "env": "MultiAgentCartPole",
    "env_config": {"num_agents": 3},
    "rollout_fragment_length": 24,
    "train_batch_size": 24,
    "model": {"fcnet_hiddens": [8]},
    "lr": 1e-2,
    "seed": 2,
    "compile_cache": False,
}
LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 6, "fcnet_hiddens": [8]}


def two(agent: Any) -> str:
    return "a" if agent == 0 else "b"


@pytest.fixture(scope="module", autouse=True)
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXRL_RESULTS_DIR", str(tmp_path_factory.mktemp("results")))
        yield tmp_path_factory.getbasetemp()


@pytest.mark.parametrize("model", [{"fcnet_hiddens": [8]}, LSTM], ids=["feedforward", "lstm"])
@pytest.mark.parametrize("cls", [PGTrainer, A2CTrainer, PPOTrainer])
def test_one_iteration_of_each(cls: Any, model: dict[str, Any]) -> None:
    names = ["shared"] if "use_lstm" in model else ["a", "b"]
    mapping = (lambda _: "shared") if "use_lstm" in model else two
    config = {**AGENTS, "model": model, "multiagent": {"policies": dict.fromkeys(names), "policy_mapping_fn": mapping}}
    if cls is PPOTrainer:
        config |= {"sgd_minibatch_size": 12, "num_sgd_iter": 2}
    with cls(config=config) as trainer:
        before = trainer.get_weights()
        result = trainer.train()
        after = trainer.get_weights()
    assert set(result["info"]["learner"]) == set(names)
    assert result["timesteps_this_iter"] >= 24
    assert result["info"]["num_agent_steps_sampled"] > result["info"]["num_steps_sampled"]
    for pid in names:
        assert np.isfinite(result["info"]["learner"][pid]["total_loss"])
        leaves = zip(jax.tree.leaves(before[pid]), jax.tree.leaves(after[pid]), strict=True)
        assert any((x != y).any() for x, y in leaves)


def test_only_some_policies_learn_and_each_has_metrics() -> None:
    config = {
        **AGENTS,
        "sgd_minibatch_size": 0,
        "num_sgd_iter": 1,
        "multiagent": {
            "policies": {"a": None, "b": {"lr": 1e-3}},
            "policy_mapping_fn": two,
            "policies_to_train": ["b"],
        },
    }
    with PPOTrainer(config=config) as trainer:
        before = trainer.get_weights()
        result: dict[str, Any] = {}
        for _ in range(4):
            result = trainer.train()
        after = trainer.get_weights()
        assert trainer.compute_action(np.zeros(4), policy_id="a") in (0, 1)
    jax.tree.map(np.testing.assert_array_equal, before["a"], after["a"])
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(before["b"]), jax.tree.leaves(after["b"]), strict=True))
    assert set(result["info"]["learner"]) == {"b"}
    assert result["info"]["learner"]["b"]["cur_lr"] == pytest.approx(1e-3)
    assert set(result["policy_reward_mean"]) == {"a", "b"}
    # Rewards of a policy are per agent, those of an episode the sum of all.
    agents = {"a": 1, "b": 2}
    total = sum(result["policy_reward_mean"][pid] * n for pid, n in agents.items())
    assert total == pytest.approx(result["episode_reward_mean"])


def test_a_shared_policy_is_the_default() -> None:
    with PGTrainer(config=AGENTS) as trainer:
        assert set(trainer.policies) == {"default_policy"}
        assert np.isfinite(trainer.train()["episode_reward_mean"])


def refused(match: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=match):
        PGTrainer(config={**AGENTS, **options})


def test_wrong_mappings_are_named() -> None:
    a, box = {"a": None}, gym.spaces.Box(-1, 1, (2,))
    refused("maps to 'b', but the policies are", multiagent={"policies": a, "policy_mapping_fn": two})
    refused("no agent maps to it", multiagent={"policies": {"a": None, "c": None}, "policy_mapping_fn": lambda _: "a"})
    refused(
        "policies_to_train: no policies",
        multiagent={"policies": a, "policies_to_train": ["x"], "policy_mapping_fn": lambda _: "a"},
    )
    refused("expected None, a dict of options", multiagent={"policies": {"a": (None, box)}})
    refused("should be a Gymnasium space", multiagent={"policies": {"a": (None, 3, None, {})}})
    refused("did you mean 'gamma'", multiagent={"policies": {"a": {"gama": 0.5}}})
    refused("no MultiAgentEnv", env="CartPole-v1", env_config={}, multiagent={"policies": a})
