"""Trainer: what a user writes works as printed; runs repeat; nothing happens that was not asked for."""

from __future__ import annotations

import copy
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

from jaxrl import Callbacks, ConfigError, build_policy, build_trainer, losses
from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.ppo import PPOTrainer

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 20,
    "train_batch_size": 40,
    "sgd_minibatch_size": 20,
    "num_sgd_iter": 2,
    "lr": 1e-3,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
}
CLOCKS = {
    "timers",
    "sampler_perf",
    "date",
    "timestamp",
    "pid",
    "hostname",
    "node_ip",
    "trial_id",
    "experiment_id",
    "done",
}


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    """What of a result must repeat."""
    return {
        key: value
        for key, value in result.items()
        if key not in CLOCKS and "time_" not in key and "_time" not in key and not key.endswith("_per_s")
    } | {"time": None}


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module", autouse=True)
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("results")
        patch.setenv("JAXRL_RESULTS_DIR", str(root))
        yield root


@pytest.fixture(scope="module")
def ppo() -> Iterator[Any]:
    trainer = PPOTrainer(config=TINY)
    trainer.train()
    yield trainer
    trainer.stop()


def policy_gradient_loss(params, batch, ctx):
    out = ctx.forward(params, batch)
    return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])


def test_first_snippet() -> None:
    MyPolicy = build_policy("MyPolicy", loss_fn=policy_gradient_loss)
    MyTrainer = build_trainer("MyTrainer", default_policy=MyPolicy)
    trainer = MyTrainer(config={"env": "CartPole-v1"})
    assert np.isfinite(trainer.train()["episode_reward_mean"])
    trainer.stop()


def test_second_snippet() -> None:
    MyPPO = build_policy(
        "MyPPO",
        loss_fn=losses.weighted_sum(
            surrogate=(1.0, losses.clipped_surrogate(clip_param=0.2)),
            vf_loss=(0.5, losses.value_error()),
            entropy=(0.01, losses.entropy_bonus()),
        ),
    )
    MyTrainer = build_trainer("MyTrainer", default_policy=MyPPO)
    small = {key: TINY[key] for key in ("env", "num_envs_per_worker", "rollout_fragment_length", "train_batch_size")}
    trainer = MyTrainer(config={**small, "clip_param": 0.1, "vf_loss_coeff": 0.25})
    info = trainer.train()["info"]["learner"]["default_policy"]
    assert {"surrogate", "vf_loss", "entropy", "total_loss"} <= set(info)
    coeffs = {name: round(info[f"cur_{name}"], 6) for name in ("clip_param", "vf_loss_coeff", "entropy_coeff")}
    assert coeffs == {"clip_param": 0.1, "vf_loss_coeff": 0.25, "entropy_coeff": 0.01}
    trainer.stop()


def test_one_seed_gives_one_run() -> None:
    runs = []
    for _ in range(2):
        with PPOTrainer(config=TINY) as trainer:
            results = [untimed(trainer.train()) for _ in range(2)]
            runs.append((results, trainer.get_weights()))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        same({k: v for k, v in a.items() if k != "config"}, {k: v for k, v in b.items() if k != "config"})
    same(runs[0][1], runs[1][1])


def test_nothing_compiles_after_the_second_iteration(ppo: Any) -> None:
    ppo.train()
    for value in (1e-2, 1e-3):
        ppo.set_coeffs(lr=value, clip_param=value, entropy_coeff=value)
        result = ppo.train()
        assert result["compile_time_s"] == 0
        assert result["info"]["learner"]["default_policy"]["cur_lr"] == pytest.approx(value)
    with pytest.raises(ConfigError, match="no coeffs"):
        ppo.set_coeffs(learning_rate=1.0)


def test_result_keys(ppo: Any) -> None:
    result = ppo.train()
    want = {"episode_reward_mean", "episode_len_mean", "episodes_this_iter", "timesteps_total", "training_iteration"}
    want |= {"info", "timers", "sampler_perf", "hist_stats", "compile_time_s", "env_steps_per_s", "time_this_iter_s"}
    assert want <= set(result)
    assert result["timesteps_this_iter"] == 40
    assert result["timesteps_total"] == 40 * result["training_iteration"]
    assert result["info"]["num_steps_sampled"] == result["info"]["num_steps_trained"] == result["timesteps_total"]
    assert set(result["sampler_perf"]) == {"mean_env_wait_ms", "mean_inference_ms", "mean_processing_ms"}
    assert all(value > 0 for value in result["sampler_perf"].values())


def test_actions(ppo: Any) -> None:
    obs = np.array([0.01, 0.0, -0.02, 0.0])
    action = ppo.compute_action(obs, explore=False)
    assert isinstance(action, int) and action in (0, 1)
    assert ppo.compute_actions({"a": obs, "b": obs}, explore=False) == {"a": action, "b": action}
    assert {ppo.compute_action(obs, explore=True) for _ in range(40)} == {0, 1}
    assert ppo.compute_actions({}) == {}
    assert ppo.get_initial_state() == ()
    with pytest.raises(ConfigError, match="no policy 'other'"):
        ppo.get_policy("other")


def test_continuous_actions_are_what_the_environment_takes() -> None:
    config = {**TINY, "env": "Pendulum-v1", "normalize_actions": True, "observation_filter": "MeanStdFilter"}
    with A2CTrainer(
        config={k: v for k, v in config.items() if k not in ("sgd_minibatch_size", "num_sgd_iter")}
    ) as trainer:
        trainer.train()
        obs = np.array([1.0, 0.0, 3.0], np.float32)
        actions = np.stack([trainer.compute_action(obs) for _ in range(20)])
        assert actions.shape == (20, 1) and (np.abs(actions) <= 2).all() and (np.abs(actions) > 1).any()
        # The mode, worked out by hand: filtered observation in, [-1, 1] mapped to the bounds.
        policy, weights = trainer.get_policy(), trainer.learners["default_policy"].weights
        state = trainer.workers.get_filters()["default_policy"]
        filtered = (obs - state.mean) / (np.sqrt(state.m2 / (state.rows - 1)) + 1e-8)
        batch = {"obs": filtered[None, None].astype(np.float32)}
        from jaxrl.types import ActInputs

        out = policy.act(weights, ActInputs(batch["obs"][0]), policy.initial_carry(1), jax.random.key(0), False)
        want = np.clip(np.asarray(out.actions)[0], -1, 1) * 2
        np.testing.assert_allclose(trainer.compute_action(obs, explore=False), want, rtol=1e-3)


def test_recurrent_actions_carry_a_state() -> None:
    config = {**TINY, "env": "StatelessCartPole", "model": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 10}}
    with PPOTrainer(config=config) as trainer:
        obs = np.ones(2, np.float32)
        start = trainer.get_initial_state()
        action, state = trainer.compute_action(obs, start)
        assert action in (0, 1)
        assert jax.tree.structure(state) == jax.tree.structure(start)
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True))


def test_weights_can_be_set(ppo: Any) -> None:
    weights = ppo.get_weights()
    doubled = jax.tree.map(lambda x: 2 * x, weights)
    ppo.set_weights(doubled)
    same(ppo.get_weights(), doubled)
    same(ppo.workers.local.get_weights()["default_policy"].params, doubled["default_policy"])
    with pytest.raises(Exception, match="default_policy"):
        ppo.set_weights({"default_policy": jax.tree.map(lambda x: x[..., None], doubled["default_policy"])})
    ppo.set_weights(weights)


def test_callbacks_are_called_at_every_hook() -> None:
    calls: dict[str, int] = {}

    def count(name: str, **_: Any) -> None:
        calls[name] = calls.get(name, 0) + 1

    def end(*, worker: Any, env_index: int, episode: Any) -> None:
        count("end")
        episode.custom_metrics["length_seen"] = float(episode.length)
        assert worker.worker_index == 0 and episode.env_index == env_index and episode.length == episode.total_reward

    def postprocess(*, worker: Any, policy_id: str, batch: Any, original_batch: Any) -> Any:
        count("postprocess")
        assert policy_id == "default_policy" and "advantages" in batch and "advantages" not in original_batch
        return batch.with_columns(advantages=0 * batch["advantages"])

    def sample_end(*, worker: Any, samples: Any) -> None:
        count("sample_end")
        assert (samples["advantages"] == 0).all()

    callbacks = Callbacks(
        on_episode_start=lambda **_: count("start"),
        on_episode_step=lambda **_: count("step"),
        on_episode_end=end,
        on_postprocess_trajectory=postprocess,
        on_sample_end=sample_end,
        on_train_result=lambda *, trainer, result: result.update(mine=trainer.iteration),
    )
    with PPOTrainer(config={**TINY, "callbacks": callbacks}) as trainer:
        results = [trainer.train() for _ in range(2)]
    ended = sum(result["episodes_this_iter"] for result in results)
    assert calls["step"] == 80 and calls["sample_end"] == calls["postprocess"] == 2
    assert calls["end"] == ended > 0
    assert calls["start"] == ended + 2
    last = results[-1]
    assert last["custom_metrics"]["length_seen_mean"] == pytest.approx(last["episode_len_mean"])
    assert "mine" in last


def test_the_config_given_is_never_changed(tmp_path: pathlib.Path) -> None:
    given = {**copy.deepcopy(TINY), "env_config": {"max_episode_steps": 30}}
    kept = copy.deepcopy(given)
    with PPOTrainer(config=given, results_dir=tmp_path / "run") as trainer:
        trainer.train()
    assert given == kept


def test_no_directory_before_the_first_result(tmp_path: pathlib.Path) -> None:
    with PPOTrainer(config=TINY, results_dir=tmp_path / "run") as trainer:
        assert not list(tmp_path.iterdir())
        trainer.compute_action(np.zeros(4))
        assert not list(tmp_path.iterdir())
        trainer.train()
        assert (tmp_path / "run" / "result.json").is_file()


def test_in_process_runs_start_no_ray() -> None:
    code = (
        "import ray, sys\n"
        "from jaxrl.algorithms.ppo import PPOTrainer\n"
        f"trainer = PPOTrainer(config={ {**TINY, 'model': {'fcnet_hiddens': [8]}}!r})\n"
        "trainer.compute_action(trainer.workers.local.env.observation_space.sample())\n"
        "trainer.stop()\n"
        "print('ray', ray.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ray False"]
    assert "Trainable.setup" not in done.stderr


def test_stop_closes_environments_once() -> None:
    closed = []

    class Closing(gym.Wrapper):
        def close(self) -> None:
            closed.append(1)
            super().close()

    def make(context: Any) -> gym.Env:
        return Closing(gym.make("CartPole-v1"))

    trainer = PPOTrainer(config={**TINY, "env": make})
    trainer.stop()
    trainer.stop()
    assert len(closed) == 2


def test_a_failed_start_closes_what_it_opened() -> None:
    closed = []

    class Closing(gym.Wrapper):
        def close(self) -> None:
            closed.append(1)
            super().close()

    def plan(ctx: Any) -> Any:
        raise ValueError("no such plan")

    Broken = PPOTrainer.with_updates(name="BrokenTrainer", execution_plan=plan)
    with pytest.raises(ValueError, match="no such plan"):
        Broken(config={**TINY, "env": lambda context: Closing(gym.make("CartPole-v1"))})
    assert len(closed) == 2


def test_iterations_are_cut_by_steps() -> None:
    with PPOTrainer(config={**TINY, "timesteps_per_iteration": 100}) as trainer:
        assert [trainer.train()["timesteps_this_iter"] for _ in range(2)] == [120, 120]
