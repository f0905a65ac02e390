"""The five probe environments: value, observation, discount, action, observation and action."""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.a3c import A3CTrainer
from jaxrl.algorithms.appo import APPOTrainer
from jaxrl.algorithms.ddpg import DDPGTrainer
from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.impala import IMPALATrainer
from jaxrl.algorithms.iqn import IQNTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.algorithms.r2d2 import R2D2Trainer
from jaxrl.algorithms.sac import SACTrainer
from jaxrl.algorithms.simple_q import SimpleQTrainer
from jaxrl.algorithms.td3 import TD3Trainer
from jaxrl.distributions import Categorical
from jaxrl.envs.probes import TASKS, ProbeEnv
from jaxrl.losses import q_of_actions
from jaxrl.types import ModelInputs

GAMMA = 0.5

COMMON: dict[str, Any] = {
    "num_envs_per_worker": 8,
    "gamma": GAMMA,
    "lambda": 1.0,
    "grad_clip": None,
    "seed": 0,
    "model": {"fcnet_hiddens": [16], "vf_share_layers": False},
}
Q_LEARNING: dict[str, Any] = {
    "rollout_fragment_length": 8,
    "train_batch_size": 64,
    "training_intensity": 16,
    "timesteps_per_iteration": 64,
    "learning_starts": 64,
    "buffer_size": 1000,
    "target_network_update_freq": 128,
    "lr": 0.005,
    "exploration_config": {"type": "EpsilonGreedy", "epsilon_timesteps": 1000, "final_epsilon": 0.1},
}
HEADS: dict[str, Any] = {**Q_LEARNING, "hiddens": [16]}
ACTOR_CRITICS: dict[str, Any] = {
    **{key: value for key, value in Q_LEARNING.items() if key not in ("target_network_update_freq", "lr")},
    "actor_hiddens": [16],
    "critic_hiddens": [16],
    "critic_lr": 0.01,
    "actor_lr": 0.005,
    "tau": 0.1,
}
ASYNC: dict[str, Any] = {
    "num_workers": 0,
    "rollout_fragment_length": 8,
    "train_batch_size": 64,
    "timesteps_per_iteration": 64,
    "lr": 0.005,
    "entropy_coeff": 0.0,
}
NOISE: dict[str, Any] = {"random_timesteps": 200, "initial_scale": 3.0, "final_scale": 3.0}
RECIPES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "A2C": (A2CTrainer, {"rollout_fragment_length": 8, "train_batch_size": 64, "lr": 0.005, "entropy_coeff": 0.0}, 400),
    "PPO": (
        PPOTrainer,
        {
            "train_batch_size": 64,
            "sgd_minibatch_size": 64,
            "num_sgd_iter": 5,
            "lr": 0.003,
            "kl_coeff": 0.0,
            "vf_clip_param": float("inf"),
        },
        120,
    ),
    "A3C": (A3CTrainer, {**ASYNC, "train_batch_size": 0}, 400),
    "IMPALA": (IMPALATrainer, ASYNC, 400),
    "APPO": (APPOTrainer, {**ASYNC, "num_sgd_iter": 5, "lr": 0.003}, 120),
    "APPO-vtrace": (APPOTrainer, {**ASYNC, "num_sgd_iter": 5, "lr": 0.003, "vtrace": True}, 120),
    "SimpleQ": (SimpleQTrainer, Q_LEARNING, 30),
    "DQN": (DQNTrainer, HEADS, 30),
    "C51": (DQNTrainer, {**HEADS, "num_atoms": 21, "v_min": -2.0, "v_max": 2.0}, 90),
    "Rainbow": (
        DQNTrainer,
        {**HEADS, "num_atoms": 21, "v_min": -2.0, "v_max": 2.0, "n_step": 3, "noisy": True, "sigma0": 0.2},
        30,
    ),
    "IQN": (IQNTrainer, {**HEADS, "num_quantiles": 8, "num_target_quantiles": 8, "num_action_quantiles": 8}, 30),
    "R2D2": (
        R2D2Trainer,
        {
            **HEADS,
            "use_h_function": False,  # values as they are, not squashed
            "model": {"fcnet_hiddens": [16], "lstm_cell_size": 16, "max_seq_len": 8},
        },
        30,
    ),
    "DDPG": (DDPGTrainer, {**ACTOR_CRITICS, "exploration_config": {"type": "OrnsteinUhlenbeckNoise", **NOISE}}, 30),
    "TD3": (TD3Trainer, {**ACTOR_CRITICS, "exploration_config": {"type": "GaussianNoise", **NOISE}}, 30),
    "SAC": (
        SACTrainer,
        {
            **ACTOR_CRITICS,
            "initial_alpha": 0.01,  # values with next to no entropy in them
            "entropy_lr": 0.0,
            "exploration_config": {"type": "StochasticSampling", "random_timesteps": 200},
        },
        60,
    ),
}


# They share their losses and plans with others.
VARIANTS = ("A3C", "APPO", "APPO-vtrace", "C51", "DDPG", "IQN", "R2D2", "Rainbow")


def cases() -> list[Any]:
    """Each algorithm with each kind of action that it supports."""
    return [
        pytest.param(
            name,
            continuous,
            id=f"{name}-{'continuous' if continuous else 'discrete'}",
            marks=[pytest.mark.slow] * (name in VARIANTS),
        )
        for name, (trainer_class, _, _) in RECIPES.items()
        for continuous in (False, True)
        if getattr(sys.modules[trainer_class.__module__].SUPPORT, "continuous" if continuous else "discrete")
    ]


def values_of(policy: Any, weights: Any, obs: Any, *, one_episode: bool) -> np.ndarray:
    """Values of observations, each the first of its episode, or one after the other in the same one."""
    model = policy.spec.model
    if policy.spec.recurrent and one_episode:
        return np.asarray(model.apply(weights[0], ModelInputs(obs[:, None]), model.initial_state(1)).value[:, 0])
    if "q" in model.heads:  # critics of actions: the greedy action's value
        dist = policy.spec.dist_class(model.apply(weights[0], ModelInputs(obs)).dist_inputs)
        if isinstance(dist, Categorical):
            return np.asarray(q_of_actions(model.heads["q"](weights[0], obs).min(axis=0), dist.mode()))
        return np.asarray(model.heads["q"](weights[0], obs, dist.mode()).min(axis=0))
    return np.asarray(policy.value(weights, obs, model.initial_state(len(obs))))


def mistakes(trainer: Any, probe: str, continuous: bool) -> list[str]:
    """What the trainer's values and actions have wrong beside the right answers."""
    answers = ProbeEnv(probe, {"continuous": continuous}).answers(GAMMA)
    obs = jnp.asarray(np.stack([answer.obs for answer in answers]))
    weights = trainer.learners["default_policy"].weights
    values = values_of(trainer.get_policy(), weights, obs, one_episode=TASKS[probe].length > 1)
    wrong = []
    for answer, value in zip(answers, values, strict=True):
        # A policy that explores earns a little less than the best one where its actions matter.
        if abs(value - answer.value) > (0.1 if answer.action is None else 0.35):
            wrong.append(f"value of {answer.obs}: expected {answer.value}, got {value}")
        if answer.action is not None and not wrong:
            action = trainer.compute_action(answer.obs, explore=False)
            if abs(np.squeeze(action) - answer.action) > 0.15:
                wrong.append(f"action at {answer.obs}: expected {answer.action}, got {action}")
    return wrong


@pytest.mark.parametrize("probe", list(TASKS))
@pytest.mark.parametrize(("algorithm", "continuous"), cases())
def test_probe_is_solved(algorithm: str, probe: str, continuous: bool) -> None:
    trainer_class, options, iterations = RECIPES[algorithm]
    right, wrong = 0, ["not trained"]
    with trainer_class({**COMMON, **options, "env": probe, "env_config": {"continuous": continuous}}) as trainer:
        for i in range(iterations):
            trainer.train()
            if (i + 1) % (iterations // 15) == 0:
                wrong = mistakes(trainer, probe, continuous)
                right = 0 if wrong else right + 1
                if right == 2:  # once may be on the way to a wrong value
                    return
    assert not wrong
