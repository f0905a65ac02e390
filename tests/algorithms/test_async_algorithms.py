"""IMPALA, APPO and A3C: which loss the options make, plans in-process and on Ray workers, saved runs, bad sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import losses
from jaxrl.algorithms.a3c import A3CTrainer
from jaxrl.algorithms.appo import APPOPolicy, APPOTrainer
from jaxrl.algorithms.impala import IMPALAPolicy, IMPALATrainer
from jaxrl.data import SampleBatch
from jaxrl.types import ConfigError, NonFiniteError

OBS = spaces.Box(-1.0, 1.0, (4,), np.float32)
TWO = spaces.Discrete(2)
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
SMALL: dict[str, Any] = {"model": {"fcnet_hiddens": [5], "vf_share_layers": False}}
LSTM: dict[str, Any] = {"model": {"fcnet_hiddens": [4], "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 5}}
TRAINERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "A3C": (A3CTrainer, {}),
    "IMPALA": (IMPALATrainer, {"train_batch_size": 80, "timesteps_per_iteration": 160}),
    "IMPALA-A3C": (IMPALATrainer, {"train_batch_size": 80, "timesteps_per_iteration": 160, "vtrace": False}),
    "APPO": (APPOTrainer, {"train_batch_size": 80, "timesteps_per_iteration": 160, "num_sgd_iter": 2}),
    "APPO-vtrace": (
        APPOTrainer,
        {
            "train_batch_size": 80,
            "timesteps_per_iteration": 160,
            "num_sgd_iter": 2,
            "vtrace": True,
            "use_kl_loss": True,
            "sgd_minibatch_size": 40,
        },
    ),
}


def config_of(name: str, **options: Any) -> dict[str, Any]:
    return {
        "env": "CartPole-v1",
        "num_workers": 0,
        "num_envs_per_worker": 4,
        "rollout_fragment_length": 10,
        "seed": 0,
        **SMALL,
        **TRAINERS[name][1],
        **options,
    }


def make(name: str, **options: Any) -> Any:
    return TRAINERS[name][0](config_of(name, **options))


def state_of(trainer: Any) -> Any:
    state = trainer.learners["default_policy"].state
    return jax.device_get((state.params, state.target_params, state.opt_state, state.step, dict(state.coeffs)))


def equal_trees(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def fragment(policy: Any, action_space: Any = TWO, *, steps: int = 6, columns: int = 3) -> SampleBatch:
    """Rows by a behaviour policy near the policy's first one, with ends of both kinds."""
    rng = np.random.default_rng(0)
    shape = (steps, columns)
    ended = rng.random(shape) < 0.3
    terminated = ended & (rng.random(shape) < 0.5)
    places = np.argwhere(ended).astype(np.int32)
    obs = rng.normal(size=(*shape, 4)).astype(np.float32)
    state = policy.init(jax.random.key(1))
    dist = policy.context(state).forward(state.params, SampleBatch({"obs": obs})).dist
    actions = np.asarray(dist.sample(jax.random.key(2)))
    return SampleBatch(
        {
            "obs": obs,
            "actions": actions,
            "action_logp": np.asarray(dist.log_prob(actions)),
            "rewards": rng.normal(size=shape).astype(np.float32),
            "terminateds": terminated,
            "truncateds": ended & ~terminated,
            "advantages": rng.normal(size=shape).astype(np.float32),
            "value_targets": rng.normal(size=shape).astype(np.float32),
            "last_obs": rng.normal(size=(columns, 4)).astype(np.float32),
            "final_obs": rng.normal(size=(len(places), 4)).astype(np.float32),
            "final_index": places,
        }
    )


def vtrace_of(ctx: Any, params: Any, policy_params: Any, batch: SampleBatch) -> tuple[Any, Any]:
    """V-trace with values of `params` and the policy of `policy_params`."""
    value = ctx.forward(params, batch).value
    next_value = ctx.forward(params, batch.with_columns(obs=batch["new_obs"])).value
    log_rho = ctx.forward(policy_params, batch).dist.log_prob(batch["actions"]) - batch["action_logp"]
    ends = batch["terminateds"], batch["dones"]
    out = losses.vtrace(batch["rewards"], value, next_value, log_rho, *ends, 0.9, 0.8)
    return out.vs, out.pg_advantages


class TestLosses:
    @pytest.mark.parametrize("standardized", [False, True])
    @pytest.mark.parametrize("space", [TWO, BOX], ids=["discrete", "continuous"])
    def test_impala(self, space, standardized):
        options = {**SMALL, "gamma": 0.9, "lambda": 0.8, "standardize_advantages": standardized}
        policy = IMPALAPolicy(OBS, space, options)
        state, batch = policy.init(jax.random.key(0)), fragment(policy, space)
        ctx = policy.context(state)
        out = ctx.forward(state.params, batch)
        vs, advantages = vtrace_of(ctx, state.params, state.params, batch)
        if standardized:
            advantages = (advantages - advantages.mean()) / advantages.std()
        expected = (
            -jnp.mean(out.dist.log_prob(batch["actions"]) * advantages)
            + 0.5 * jnp.mean((out.value - vs) ** 2)
            - 0.01 * jnp.mean(out.dist.entropy())
        )
        metrics = policy.gradients(state, batch)[1].metrics
        assert float(metrics["total_loss"]) == pytest.approx(float(expected), rel=1e-4)
        assert {"mean_rho", "mean_clipped_rho", "vf_explained_var", "entropy", "policy_loss", "vf_loss"} <= set(metrics)

    @pytest.mark.parametrize("space", [TWO, BOX], ids=["discrete", "continuous"])
    def test_appo_with_vtrace_and_kl(self, space):
        options = {**SMALL, "gamma": 0.9, "lambda": 0.8, "vtrace": True, "use_kl_loss": True, "clip_param": 0.2}
        policy = APPOPolicy(OBS, space, options)
        state, batch = policy.init(jax.random.key(0)), fragment(policy, space)
        state = state.replace(target_params=policy.init(jax.random.key(3)).params)
        ctx = policy.context(state)
        out, target = ctx.forward(state.params, batch), ctx.forward(state.target_params, batch)
        vs, advantages = vtrace_of(ctx, state.params, state.target_params, batch)
        log_mu, log_target = batch["action_logp"], target.dist.log_prob(batch["actions"])
        log_pi = out.dist.log_prob(batch["actions"])
        ratio = jnp.clip(jnp.exp(log_mu - log_target), 0.0, 2.0) * jnp.exp(log_pi - log_mu)
        kl = jnp.mean(target.dist.kl(out.dist))
        expected = (
            -jnp.mean(jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages))
            + 0.5 * jnp.mean((out.value - vs) ** 2)
            - 0.01 * jnp.mean(out.dist.entropy())
            + kl
        )
        metrics = policy.gradients(state, batch)[1].metrics
        assert float(metrics["total_loss"]) == pytest.approx(float(expected), rel=1e-4)
        assert float(metrics["kl"]) == pytest.approx(float(kl), rel=1e-4)
        assert {"mean_IS", "var_IS", "mean_rho"} <= set(metrics)

    def test_what_each_variant_reads(self):
        reads = {
            name: factory(OBS, TWO, {**SMALL, "vtrace": vtrace}).spec.reads
            for name, factory, vtrace in (
                ("impala", IMPALAPolicy, True),
                ("a3c", IMPALAPolicy, False),
                ("appo", APPOPolicy, False),
                ("appo-vtrace", APPOPolicy, True),
            )
        }
        assert reads["a3c"] == {"obs", "actions", "advantages", "value_targets"}
        assert reads["appo"] == reads["a3c"] | {"action_logp"}
        assert reads["impala"] == reads["appo-vtrace"] >= {"action_logp", "rewards", "last_obs", "final_obs"}
        assert not reads["impala"] & {"advantages", "value_targets"}

    def test_thresholds_are_coeffs_and_may_be_off(self):
        options = {"vtrace_clip_rho_threshold": float("inf"), "vtrace_clip_pg_rho_threshold": float("inf")}
        policy = IMPALAPolicy(OBS, TWO, {**SMALL, **options})
        state, batch = policy.init(jax.random.key(0)), fragment(policy)
        assert np.isinf(float(state.coeffs["vtrace_clip_rho_threshold"]))
        _, out = policy.learn(state, batch.with_columns(action_logp=batch["action_logp"] - 1.0))
        assert float(out.metrics["mean_clipped_rho"]) == float(out.metrics["mean_rho"]) > 1.5
        assert all(np.isfinite(value) for value in out.metrics.values())

    def test_kl_coefficient_adapts_where_there_is_a_kl_loss(self):
        for use_kl_loss, changed in ((True, True), (False, False)):
            policy = APPOPolicy(OBS, TWO, {**SMALL, "use_kl_loss": use_kl_loss, "target_update_frequency": 10})
            state = policy.init(jax.random.key(0))
            state = state.replace(target_params=policy.init(jax.random.key(5)).params)
            after, out = policy.learn(state, fragment(policy))
            assert ("kl" in out.metrics) is use_kl_loss
            assert (float(after.coeffs["kl_coeff"]) != 1.0) is changed


class TestTargetPolicy:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({}, 1),
            ({"num_sgd_iter": 3}, 3),
            ({"num_sgd_iter": 3, "sgd_minibatch_size": 200}, 9),
            ({"num_sgd_iter": 3, "minibatch_buffer_size": 4}, 12),
            ({"target_update_frequency": 7, "num_sgd_iter": 3}, 7),
        ],
    )
    def test_is_updated_when_its_train_batches_are_learned(self, options, steps):
        resolved = APPOTrainer.resolve_config({"env": "CartPole-v1", **options})
        assert resolved.target_update_frequency == steps

    def test_lags_behind(self):
        with make("APPO-vtrace", num_sgd_iter=3, sgd_minibatch_size=0, timesteps_per_iteration=0) as trainer:
            learner = trainer.learners["default_policy"]
            before = jax.device_get(learner.state.params)
            assert equal_trees(learner.state.target_params, before)
            trainer.train()
            assert int(learner.state.step) == 3
            assert equal_trees(learner.state.target_params, learner.state.params)
            assert not equal_trees(learner.state.params, before)


class TestBadSizes:
    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("IMPALA", {"train_batch_size": 90}, "train_batch_size=90 is no multiple of the 40 steps.*use 80 or 120"),
            ("IMPALA", {"train_batch_size": 30}, "train_batch_size=30 is no multiple of the 40 steps.*use 40"),
            ("APPO", {"train_batch_size": 90}, "V-trace looks along|no multiple of the 40 steps"),
            ("IMPALA", {"sgd_minibatch_size": 100}, "sgd_minibatch_size=100 is larger than train_batch_size=80"),
            ("IMPALA", {"replay_proportion": 0.5}, "replay_buffer_num_slots=0.*keeps none"),
            ("APPO", {"use_kl_loss": True, "num_sgd_iter": 1}, "always 0; set num_sgd_iter or target_update_frequency"),
            ("A3C", {"train_batch_size": 100}, "train_batch_size=100 has no meaning for A3C"),
            ("A3C", {"num_sgd_iter": 2}, "num_sgd_iter=2 has no meaning for A3C"),
            ("A3C", {"sgd_minibatch_size": 2}, "sgd_minibatch_size=2 has no meaning for A3C"),
            ("IMPALA", {"opt_type": "rmsprop"}, "opt_type.*optimizer="),
            ("IMPALA", {"vtrase": True}, "vtrase.*did you mean 'vtrace'"),
        ],
    )
    def test_are_refused_before_anything_starts(self, name, options, message):
        with pytest.raises(ConfigError, match=message):
            make(name, **options)

    def test_whole_episodes_need_no_size(self):
        IMPALATrainer.resolve_config({"env": "CartPole-v1", "train_batch_size": 90, "batch_mode": "complete_episodes"})


@pytest.mark.parametrize("name", list(TRAINERS))
class TestInProcess:
    def test_twice_gives_equal_bits_and_a_saved_run_goes_on(self, name, tmp_path):
        with make(name) as first:
            first.train()
            path = first.save(str(tmp_path / "there"))
            result = first.train()
            expected = state_of(first)
        with make(name) as again:
            again.train()
            again.train()
            assert equal_trees(state_of(again), expected)
        with TRAINERS[name][0].from_checkpoint(path) as second:
            continued = second.train()
            assert equal_trees(state_of(second), expected)
            for key in ("timesteps_total", "episode_reward_mean", "episode_len_mean"):
                assert continued[key] == result[key]

    def test_counters(self, name):
        with make(name) as trainer:
            info = trainer.train()["info"]
            assert info["num_steps_sampled"] == info["num_steps_trained"] >= trainer.options.timesteps_per_iteration
            assert info["num_agent_steps_sampled"] == info["num_agent_steps_trained"] == info["num_steps_sampled"]

    def test_recurrent_policies_of_several_agents_in_whole_episodes(self, name):
        options = {
            **LSTM,
            "env": "MultiAgentCartPole",
            "env_config": {"num_agents": 2},
            "multiagent": {"policies": {"first": None, "second": None}, "policy_mapping_fn": {0: "first", 1: "second"}},
            "batch_mode": "complete_episodes",
            "timesteps_per_iteration": 0,
            "rollout_fragment_length": 10,
        }
        with make(name, **options) as trainer:
            before = {pid: jax.device_get(learner.state.params) for pid, learner in trainer.learners.items()}
            learned = trainer.train()["info"]["learner"]
            assert set(learned) == {"first", "second"}
            for pid, learner in trainer.learners.items():
                assert not equal_trees(learner.state.params, before[pid])
                assert all(np.isfinite(value) for value in learned[pid].values())

    def test_policies_that_do_not_learn_stay(self, name):
        options = {
            "env": "MultiAgentCartPole",
            "env_config": {"num_agents": 2},
            "multiagent": {
                "policies": {"first": None, "second": None},
                "policy_mapping_fn": {0: "first", 1: "second"},
                "policies_to_train": ["second"],
            },
            "timesteps_per_iteration": 0,
        }
        with make(name, **options) as trainer:
            assert set(trainer.train()["info"]["learner"]) == {"second"}
            assert [int(trainer.learners[pid].state.step) > 0 for pid in ("first", "second")] == [False, True]

    def test_continuous_actions(self, name):
        with make(name, env="Pendulum-v1", timesteps_per_iteration=0, observation_filter="MeanStdFilter") as trainer:
            assert np.isfinite(trainer.train()["info"]["learner"]["default_policy"]["total_loss"])


def test_replayed_fragments_are_learned_from_again():
    with make("IMPALA", replay_proportion=1.0, replay_buffer_num_slots=4) as trainer:
        info: dict[str, Any] = {}
        ratios = []
        for _ in range(4):
            info = trainer.train()["info"]
            ratios.append(info["learner"]["default_policy"]["mean_rho"])
        assert info["num_steps_trained"] == 2 * info["num_steps_sampled"]
        assert any(ratio != 1.0 for ratio in ratios)


class TestWorkerGradients:
    def test_are_those_of_the_learner_at_the_same_weights(self):
        from jaxrl.execution.worker_gradients import COMPUTE_GRADIENTS

        with make("A3C") as trainer:
            worker, learner = trainer.workers.local, trainer.learners["default_policy"]
            batch = worker.sample()
            _, computed = COMPUTE_GRADIENTS.apply(worker, COMPUTE_GRADIENTS.init(worker), batch)
            grads, metrics = learner.gradients(batch)
            for x, y in zip(
                jax.tree.leaves(computed.gradients.grads["default_policy"]), jax.tree.leaves(grads), strict=True
            ):
                assert isinstance(x, np.ndarray)
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
            for metric, value in computed.gradients.info["default_policy"].items():
                assert value == pytest.approx(metrics[metric], rel=1e-5)
            assert computed.gradients.rows == {"default_policy": 40}
            assert computed.version == trainer.workers.version

    def test_of_a_worker_that_went_astray_are_not_applied(self):
        from jaxrl.execution.worker_gradients import COMPUTE_GRADIENTS, ApplyWorkerGradients

        with make("A3C") as trainer:
            worker, learner = trainer.workers.local, trainer.learners["default_policy"]
            batch = worker.sample()
            batch = batch.with_columns(advantages=np.full(batch.shape, np.nan, np.float32))
            _, computed = COMPUTE_GRADIENTS.apply(worker, COMPUTE_GRADIENTS.init(worker), batch)
            before = jax.device_get(learner.state.params)
            with pytest.raises(NonFiniteError, match="policy_loss=nan"):
                ApplyWorkerGradients(trainer.context).apply((), (worker, computed))
            assert equal_trees(learner.state.params, before)


@pytest.mark.ray
class TestOnRayWorkers:
    @pytest.mark.slow
    def test_impala_and_appo_learn_in_a_thread(self):
        for name in ("IMPALA", "APPO-vtrace"):
            with make(name, num_workers=2, num_cpus_per_worker=0.5, minibatch_buffer_size=2) as trainer:
                results = [trainer.train() for _ in range(3)]
                info = results[-1]["info"]
                assert results[-1]["timesteps_total"] >= 480
                assert info["num_weight_broadcasts"] > 0
                assert info["learner_queue"]["staleness_mean"] >= 0
                assert info["num_steps_trained"] % 80 == 0
                assert np.isfinite(info["learner"]["default_policy"]["mean_rho"])
                assert trainer.policies["default_policy"].learn_one_pass._cache_size() <= 2

    @pytest.mark.slow
    def test_a3c_sends_weights_to_the_worker_whose_gradients_they_are(self):
        import ray

        with make("A3C", num_workers=2, num_cpus_per_worker=0.5, timesteps_per_iteration=0) as trainer:
            seen = {trainer.train()["info"]["learner"]["default_policy"]["staleness"] for _ in range(30)}
            before = trainer.workers.version
            versions = ray.get([actor.call.remote("apply", version_of) for actor in trainer.workers.actors])
            assert int(trainer.learners["default_policy"].state.step) == 30 == before - 1
            # The other worker stands at weights of its own last gradient.
            assert max(versions) == before
            assert min(versions) < before
            assert seen <= set(map(float, range(30)))


def version_of(worker: Any) -> int:
    return worker.weights_version
