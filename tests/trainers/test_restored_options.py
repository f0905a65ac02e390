"""Options given at a restore count from the next update on; what adapts by itself goes on."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from jaxrl import registry
from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.impala import IMPALATrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.algorithms.sac import SACTrainer
from jaxrl.envs.multi_agent import make_multi_agent
from jaxrl.trainers import resources

COMMON: dict[str, Any] = {"env": "CartPole-v1", "seed": 5, "compile_cache": False, "model": {"fcnet_hiddens": [4]}}
BATCHES = {"num_envs_per_worker": 2, "rollout_fragment_length": 5, "train_batch_size": 10, "sgd_minibatch_size": 0}
REPLAY = {
    "learning_starts": 4,
    "buffer_size": 64,
    "train_batch_size": 4,
    "timesteps_per_iteration": 4,
    "store_buffer_in_checkpoints": True,
}
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PPO": (PPOTrainer, {**COMMON, **BATCHES, "num_sgd_iter": 1, "timesteps_per_iteration": 10}),
    "compiled": (PPOTrainer, {**COMMON, **BATCHES, "num_sgd_iter": 1, "env": "jax/StatelessCartPole"}),
    "IMPALA": (IMPALATrainer, {**COMMON, **BATCHES, "num_workers": 0, "timesteps_per_iteration": 10}),
    "DQN": (DQNTrainer, {**COMMON, **REPLAY, "hiddens": []}),
    "SAC": (SACTrainer, {**COMMON, **REPLAY, "env": "Pendulum-v1", "actor_hiddens": [4], "critic_hiddens": [4]}),
}
Saved = Callable[[str], tuple[pathlib.Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A checkpoint after one iteration by name, with the learner's metrics of the iteration after it."""
    made: dict[str, tuple[pathlib.Path, dict[str, Any]]] = {}

    def get(name: str) -> tuple[pathlib.Path, dict[str, Any]]:
        if name not in made:
            cls, config = SETTINGS[name]
            with cls(config=config, results_dir=tmp_path_factory.mktemp(name)) as trainer:
                trainer.train()
                path = pathlib.Path(trainer.save())
                made[name] = path, info(trainer)
        return made[name]

    return get


def info(trainer: Any) -> dict[str, Any]:
    return trainer.train()["info"]["learner"]["default_policy"]


def after_restore(saved: Saved, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    with SETTINGS[name][0].from_checkpoint(saved(name)[0], options) as trainer:
        return info(trainer)


@pytest.mark.parametrize("name", ["compiled", "DQN", "SAC"])
def test_the_same_options_go_on_bit_for_bit(saved: Saved, name: str) -> None:
    assert after_restore(saved, name, {}) == saved(name)[1]


def test_a_new_trainer_with_the_same_options_goes_on_bit_for_bit(saved: Saved) -> None:
    path, following = saved("PPO")
    with PPOTrainer(config=SETTINGS["PPO"][1]) as trainer:
        trainer.restore(path)
        assert info(trainer) == following


@pytest.mark.parametrize(
    ("name", "options", "coeffs"),
    [
        ("PPO", {"lr": 0.0, "clip_param": 0.05}, {"lr": 0.0, "clip_param": 0.05, "kl_coeff": 0.1}),
        # A schedule in place of a constant: 10 steps are behind.
        ("PPO", {"lr": [[0, 1.0], [40, 0.0]], "kl_coeff": 0.75}, {"lr": 0.75, "kl_coeff": 0.75}),
        ("compiled", {"lr": [[0, 1.0], [40, 0.0]], "vf_loss_coeff": 2.0}, {"lr": 0.75, "vf_loss_coeff": 2.0}),
        ("IMPALA", {"vtrace_clip_rho_threshold": 0.5}, {"vtrace_clip_rho_threshold": 0.5}),
        ("DQN", {"exploration_config": {"initial_epsilon": 0.5, "final_epsilon": 0.5}}, {"epsilon": 0.5}),
        ("DQN", {"exploration_config": {"type": "SoftQ", "temperature": 2.0}}, {"softq_temperature": 2.0}),
        ("SAC", {"actor_lr": 0.0, "lr": 0.5}, {"actor_lr": 0.0, "critic_lr": 0.5, "entropy_lr": 0.5}),
    ],
)
def test_options_given_now_count(saved: Saved, name: str, options: dict[str, Any], coeffs: dict[str, float]) -> None:
    result = after_restore(saved, name, options)
    assert {key: result[f"cur_{key}"] for key in coeffs} == pytest.approx(coeffs, rel=1e-3)


def test_a_constant_takes_the_place_of_a_schedule(saved: Saved, tmp_path: pathlib.Path) -> None:
    cls, config = SETTINGS["PPO"]
    with cls(config={**config, "lr": [[0, 0.5], [100, 0.0]]}, results_dir=tmp_path) as trainer:
        assert info(trainer)["cur_lr"] == 0.5
        path = trainer.save()
    with cls.from_checkpoint(path, {"lr": 0.125}) as trainer:
        assert info(trainer)["cur_lr"] == 0.125


def test_a_new_trainer_with_other_options_keeps_them(saved: Saved) -> None:
    cls, config = SETTINGS["PPO"]
    with cls(config={**config, "lr": 0.0}) as trainer:
        trainer.restore(saved("PPO")[0])
        before = trainer.get_weights()
        assert info(trainer)["cur_lr"] == 0.0
        jax.tree.map(np.testing.assert_array_equal, before, trainer.get_weights())


def test_weights_stay_and_a_first_temperature_counts(saved: Saved) -> None:
    with SACTrainer.from_checkpoint(saved("SAC")[0]) as trainer:
        kept = trainer.get_weights()["default_policy"]
    with SACTrainer.from_checkpoint(saved("SAC")[0], {"initial_alpha": 0.5}) as trainer:
        weights = trainer.get_weights()["default_policy"]
    assert float(weights["log_alpha"]) == pytest.approx(np.log(0.5)) and float(kept["log_alpha"]) != 0.0
    jax.tree.map(np.testing.assert_array_equal, kept["q"], weights["q"])


def test_coeffs_set_by_hand_survive_a_plain_restore(saved: Saved, tmp_path: pathlib.Path) -> None:
    with PPOTrainer.from_checkpoint(saved("PPO")[0], results_dir=tmp_path) as trainer:
        trainer.set_coeffs(lr=0.5, entropy_coeff=0.25)
        path = trainer.save()
    with PPOTrainer.from_checkpoint(path, {"entropy_coeff": 0.125}) as trainer:
        result = info(trainer)
    assert (result["cur_lr"], result["cur_entropy_coeff"]) == (0.5, 0.125)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PPO", {"optimizer": "sgd"}),
        ("PPO", {"grad_clip": 0.5, "min_iter_time_s": 0.01, "train_batch_size": 20, "timesteps_per_iteration": 0}),
        ("PPO", {"observation_filter": "MeanStdFilter", "seed": 6}),
        ("DQN", {"train_batch_size": 8, "target_network_update_freq": 8}),
        ("compiled", {"num_envs_per_worker": 4, "train_batch_size": 20, "seed": 6}),
    ],
)
def test_runs_of_another_shape_go_on_too(saved: Saved, name: str, options: dict[str, Any]) -> None:
    with SETTINGS[name][0].from_checkpoint(saved(name)[0], options) as trainer:
        assert trainer.train()["training_iteration"] == 2


def test_options_that_follow_others_follow_them_after_a_restore(saved: Saved) -> None:
    """Without training_intensity SAC takes one gradient step for each env step, whatever its batch."""
    with SACTrainer.from_checkpoint(saved("SAC")[0], {"train_batch_size": 8}) as trainer:
        assert (trainer.options.training_intensity, trainer.options.sgd_minibatch_size) == (8, 8)


def test_options_of_single_policies_count(tmp_path: pathlib.Path) -> None:
    registry.register_env("several-cartpoles", make_multi_agent("CartPole-v1"))
    policies = {"a": {"lr": 0.25}, "b": None}
    config = {
        **SETTINGS["PPO"][1],
        "env": "several-cartpoles",
        "env_config": {"num_agents": 2},
        "multiagent": {"policies": policies, "policy_mapping_fn": {0: "a", 1: "b"}},
    }
    with PPOTrainer(config=config, results_dir=tmp_path) as trainer:
        trainer.train()
        path = trainer.save()
    changed = {**config["multiagent"], "policies": {"a": {"lr": 0.5}, "b": None}}
    with PPOTrainer.from_checkpoint(path, {"multiagent": changed}) as trainer:
        learned = trainer.train()["info"]["learner"]
    assert (learned["a"]["cur_lr"], learned["b"]["cur_lr"]) == (0.5, pytest.approx(5e-5))


@pytest.fixture
def cluster() -> Iterator[None]:
    started = resources.ensure_ray()
    yield
    if started:
        resources.shutdown_ray()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Tune's own
@pytest.mark.parametrize("reuse", [False, True])
def test_tunes_population_based_training_trains_with_what_it_says(
    cluster: None, tmp_path: pathlib.Path, reuse: bool
) -> None:
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="info/learner/default_policy/cur_lr",  # the trial of the lower rate goes on from the other's checkpoint
        mode="max",
        perturbation_interval=1,
        quantile_fraction=0.5,
        resample_probability=0.0,
        hyperparam_mutations={"lr": tune.loguniform(1e-4, 1e-1)},
        synch=True,
    )
    analysis = tune.run(
        PPOTrainer,
        config={**SETTINGS["PPO"][1], "lr": tune.grid_search([1e-3, 1e-2]), "num_cpus_for_driver": 0.5},
        stop={"training_iteration": 3},
        scheduler=scheduler,
        storage_path=str(tmp_path),
        reuse_actors=reuse,
        verbose=0,
    )
    rates = set()
    for frame in analysis.trial_dataframes.values():
        learned = frame["info/learner/default_policy/cur_lr"].to_numpy()
        np.testing.assert_allclose(learned, frame["config/lr"].to_numpy(), rtol=1e-6)
        rates |= set(learned)
    # There was something to follow: a rate that Tune perturbed. Tune may pause the trial that gets it before it has
    # written the trial's first result, so that the rate before may be missing.
    assert any(not np.isclose(rate, [1e-3, 1e-2]).any() for rate in rates)
