"""What trainers have from Tune's class works, or refuses by name; what a trainer is when it is stopped; defaults."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from jaxrl import build_policy, build_trainer, losses
from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.impala import IMPALATrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.types import CheckpointError, ConfigError

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "train_batch_size": 10,
    "sgd_minibatch_size": 0,
    "num_sgd_iter": 1,
    "seed": 1,
    "model": {"fcnet_hiddens": [4]},
    "compile_cache": False,
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with PPOTrainer(config=TINY, results_dir=tmp_path_factory.mktemp("run")) as made:
        yield made


def test_an_export_is_refused_by_name(trainer: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="exports no 'onnx'.*save.. writes"):
        trainer.export_model("onnx", str(tmp_path / "exp"))
    assert not (tmp_path / "exp").exists()


def test_methods_of_tunes_class(trainer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("JAXRL_RESULTS_DIR", str(tmp_path))
    assert trainer.logdir == str(trainer.results_dir)
    results = trainer.train_buffered(buffer_time_s=0.0, max_buffer_length=1)
    assert [result["training_iteration"] for result in results] == [trainer.iteration]
    assert trainer.get_config()["lr"] == 5e-5 and trainer.get_state()["iteration"] == trainer.iteration
    # Tune's reuse_actors: other options in the same actor.
    assert trainer.reset({**TINY, "lr": 0.25}) is True
    result = trainer.train()
    assert (result["training_iteration"], result["config"]["lr"]) == (1, 0.25)
    assert result["info"]["learner"]["default_policy"]["cur_lr"] == 0.25
    path = trainer.save()
    with pytest.raises(CheckpointError, match=r"of PPO, not of DQN; use PPOTrainer \(--run PPO\)"):
        DQNTrainer.from_checkpoint(path)
    trainer.stop()
    for call in (trainer.train, trainer.evaluate, trainer.save, lambda: trainer.restore(path)):
        with pytest.raises(ConfigError, match="was stopped.*from_checkpoint"):
            call()


def test_a_config_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"config: expected a dict of options, got 'MlpPolicy' \(str\)"):
        PPOTrainer("MlpPolicy", "CartPole-v1")  # pyright: ignore


def test_a_loss_brings_its_own_numbers() -> None:
    """Another loss's numbers are the defaults of the options that are called like them."""
    terms = {"policy_loss": (1.0, losses.clipped_surrogate(clip_param=0.1)), "vf_loss": (0.25, losses.value_error())}
    policy = build_policy("Mine", loss_fn=losses.weighted_sum(**terms))
    mine = PPOTrainer.with_updates(default_policy=policy).with_updates(name="Mine")
    options = mine.resolve_config({"env": "CartPole-v1"})
    assert (options.clip_param, options.vf_loss_coeff, options.num_sgd_iter) == (0.1, 0.25, 30)
    assert mine.resolve_config({"env": "CartPole-v1", "clip_param": 0.4}).clip_param == 0.4
    own = PPOTrainer.policy_options(PPOTrainer.parse_config({"env": "CartPole-v1"}), "a", {}, policy)
    assert (own.clip_param, own.vf_loss_coeff) == (0.1, 0.25)
    assert PPOTrainer.resolve_config({"env": "CartPole-v1"}).clip_param == 0.3


def test_fragments_are_as_long_as_batches_need() -> None:
    mine = build_trainer("Plain", default_policy=build_policy("Plain", loss_fn=losses.advantage_policy_gradient()))

    def length(cls: Any, **options: Any) -> int:
        return cls.resolve_config({"env": "CartPole-v1", **options}).rollout_fragment_length

    assert length(mine) == 200  # as before
    assert length(mine, train_batch_size=512, num_envs_per_worker=8) == 64
    assert length(mine, train_batch_size=4000) == 200  # the divisor nearest to 200
    assert length(A2CTrainer) == 20 and length(A2CTrainer, train_batch_size=512, num_envs_per_worker=8) == 16
    assert length(A2CTrainer, train_batch_size=120, microbatch_size=30) == 15
    assert length(IMPALATrainer, train_batch_size=512, num_envs_per_worker=8) == 64
    assert length(PPOTrainer, train_batch_size=512, num_envs_per_worker=8) == 64
    assert length(DQNTrainer) == 4
    with pytest.raises(ConfigError, match="train_batch_size=200 does not divide among 3 environments"):
        length(mine, num_envs_per_worker=3)
