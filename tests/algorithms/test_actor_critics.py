"""DDPG, TD3 and SAC: losses against NumPy, which parameters move when, saved runs, spaces that cannot work."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ddpg import DDPGPolicy, DDPGTrainer
from jaxrl.algorithms.sac import SACPolicy, SACTrainer
from jaxrl.algorithms.td3 import TD3Policy, TD3Trainer
from jaxrl.data import SampleBatch
from jaxrl.types import ConfigError, UnsupportedSpaceError

OBS = spaces.Box(-1.0, 1.0, (4,), np.float32)
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
WIDE = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 8.0], np.float32))
THREE = spaces.Discrete(3)
MASKED = spaces.Dict({"obs": OBS, "action_mask": spaces.Box(0, 1, (3,), np.int8)})
N = 12
SMALL = {"actor_hiddens": [5], "critic_hiddens": [6]}
TRAINERS = {"DDPG": DDPGTrainer, "TD3": TD3Trainer, "SAC": SACTrainer}


def build(factory: Any, action_space: Any = BOX, obs_space: Any = OBS, **options: Any) -> tuple[Any, Any]:
    """A small policy, and a train state whose targets have parted from the parameters."""
    policy = factory(obs_space, action_space, {**SMALL, **options})
    state = policy.init(jax.random.key(0))
    other = policy.init(jax.random.key(1)).target_params
    return policy, state.replace(target_params=other)


def replayed(action_space: Any = BOX, obs: Any = None) -> SampleBatch:
    """Rows as a replay buffer gives them: sums of one to three steps, a third of them at a terminal state."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 4, N)
    continues = rng.random(N) > 0.3
    if isinstance(action_space, spaces.Box):
        low, high = np.maximum(action_space.low, -9.0), np.minimum(action_space.high, 9.0)
        actions = rng.uniform(low, high, (N, 2)).astype(np.float32)
    else:
        actions = rng.integers(0, 3, N).astype(np.int32)
    columns = {
        "obs": rng.normal(size=(N, 4)).astype(np.float32) if obs is None else obs,
        "new_obs": rng.normal(size=(N, 4)).astype(np.float32) if obs is None else obs,
        "actions": actions,
        "rewards": rng.normal(size=N).astype(np.float32),
        "discounts": (0.9**steps * continues).astype(np.float32),
        "weights": rng.uniform(0.2, 1.0, N).astype(np.float32),
    }
    return SampleBatch(columns, time_major=False)


def losses_of(policy: Any, state: Any, batch: SampleBatch, group: str) -> tuple[float, dict[str, Any], dict[str, Any]]:
    result = policy.loss_fn[group](state.params, batch, policy.context(state))
    loss, out = result if isinstance(result, tuple) else (result, None)
    return float(loss), dict(out.metrics) if out else {}, dict(out.rows) if out else {}


def mlp(net: Any, x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(x @ np.asarray(net["layer_0"]["kernel"]) + np.asarray(net["layer_0"]["bias"]), 0.0)
    return hidden @ np.asarray(net["out"]["kernel"]) + np.asarray(net["out"]["bias"])


def q_values(params: Any, obs: Any, actions: Any = None, space: Any = None) -> np.ndarray:
    """`[C, N]` for Box actions, which critics see in [-1, 1]; `[C, N, A]` for discrete ones."""
    x = np.asarray(obs)
    if actions is not None:
        low, high = space.low, space.high
        x = np.concatenate([x, (np.asarray(actions) - (low + high) / 2) / ((high - low) / 2)], axis=-1)
    values = np.stack([mlp(critic["net"], x) for critic in params["q"].values()])
    return values if actions is None else values[..., 0]


def equal_trees(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


class TestDeterministicLosses:
    @pytest.mark.parametrize("space", [BOX, WIDE], ids=["unit", "wide"])
    @pytest.mark.parametrize("twin", [False, True])
    @pytest.mark.parametrize("use_huber", [False, True])
    def test_critics_learn_their_own_errors_against_one_target(self, space, twin, use_huber):
        options = {"twin_q": twin, "use_huber": use_huber, "huber_threshold": 0.5, "l2_reg": 0.0}
        policy, state = build(DDPGPolicy, space, **options)
        batch = replayed(space)
        low, high = space.low, space.high
        mu = np.tanh(mlp(state.target_params["policy"]["net"], batch["new_obs"])) * (high - low) / 2 + (high + low) / 2
        next_q = q_values(state.target_params, batch["new_obs"], mu, space).min(axis=0)
        error = (
            batch["rewards"]
            + batch["discounts"] * next_q
            - q_values(state.params, batch["obs"], batch["actions"], space)
        )
        each = 0.5 * error**2
        if use_huber:
            each = np.where(np.abs(error) <= 0.5, each, 0.5 * (np.abs(error) - 0.25))
        loss, metrics, rows = losses_of(policy, state, batch, "q")
        assert loss == pytest.approx(np.mean(batch["weights"] * each.sum(axis=0)), rel=1e-5)
        np.testing.assert_allclose(rows["td_error"], np.abs(error).mean(axis=0), rtol=1e-4, atol=1e-5)
        assert metrics["mean_td_error"] == pytest.approx(error.mean(), rel=1e-4, abs=1e-5)

    def test_the_actor_climbs_the_first_critic(self):
        policy, state = build(TD3Policy)
        batch = replayed()
        mu = np.tanh(mlp(state.params["policy"]["net"], batch["obs"]))
        wanted = -q_values(state.params, batch["obs"], mu, BOX)[0].mean()
        assert losses_of(policy, state, batch, "policy")[0] == pytest.approx(wanted, rel=1e-5)

    def test_weight_matrices_are_penalised_and_biases_are_not(self):
        batch = replayed()
        plain, state = build(DDPGPolicy, l2_reg=0.0)
        penalised, _ = build(DDPGPolicy, l2_reg=0.3)
        for group in ("policy", "q"):
            kernels = [x for x in jax.tree.leaves(state.params[group]) if x.ndim == 2]
            wanted = 0.15 * sum(float(jnp.square(x).sum()) for x in kernels)
            more = losses_of(penalised, state, batch, group)[0] - losses_of(plain, state, batch, group)[0]
            assert more == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("space", [BOX, WIDE], ids=["unit", "wide"])
    def test_target_actions_are_smoothed_by_clipped_noise_within_the_bounds(self, space):
        policy, _ = build(TD3Policy, space)
        half = (space.high - space.low) / 2
        middle = np.broadcast_to((space.high + space.low) / 2, (4000, 2)).astype(np.float32)
        smoothed = policy.spec.model.heads["smoothed"]
        noise = (np.asarray(smoothed(middle, jax.random.key(0))) - middle) / half
        assert np.abs(noise).max() == pytest.approx(0.5, rel=1e-5)
        assert noise.std() == pytest.approx(0.2, rel=0.05)
        edge = np.asarray(smoothed(np.broadcast_to(space.high, (4000, 2)), jax.random.key(1)))
        assert (edge <= space.high).all()
        assert (edge < space.high).mean() == pytest.approx(0.5, abs=0.05)

    def test_targets_read_smoothed_actions_when_asked(self):
        batch = replayed()
        _, state = build(TD3Policy)
        both = []
        for smooth in (False, True):
            policy, _ = build(TD3Policy, smooth_target_policy=smooth)
            both.append(losses_of(policy, state, batch, "q")[0])
        assert both[0] != both[1]


class TestSoftLosses:
    @pytest.mark.parametrize("twin", [False, True])
    def test_continuous_critics(self, twin):
        policy, state = build(SACPolicy, twin_q=twin, initial_alpha=0.3)
        batch, ctx = replayed(), policy.context(state)
        dist = ctx.forward(state.params, batch.with_columns(obs=batch["new_obs"])).dist
        actions, logp = dist.sample_and_log_prob(jax.random.fold_in(ctx.key, 1))
        value = q_values(state.target_params, batch["new_obs"], actions, BOX).min(axis=0) - 0.3 * np.asarray(logp)
        error = (
            batch["rewards"] + batch["discounts"] * value - q_values(state.params, batch["obs"], batch["actions"], BOX)
        )
        loss, _, rows = losses_of(policy, state, batch, "q")
        assert loss == pytest.approx(np.mean(batch["weights"] * 0.5 * (error**2).sum(axis=0)), rel=1e-5)
        np.testing.assert_allclose(rows["td_error"], np.abs(error).mean(axis=0), rtol=1e-4, atol=1e-5)

    def test_continuous_actor_and_temperature(self):
        policy, state = build(SACPolicy, initial_alpha=0.3, target_entropy=-1.5)
        batch, ctx = replayed(), policy.context(state)
        actions, logp = ctx.forward(state.params, batch).dist.sample_and_log_prob(jax.random.fold_in(ctx.key, 0))
        logp = np.asarray(logp)
        q = q_values(state.params, batch["obs"], actions, BOX).min(axis=0)
        assert losses_of(policy, state, batch, "policy")[0] == pytest.approx(np.mean(0.3 * logp - q), rel=1e-5)
        loss, metrics, _ = losses_of(policy, state, batch, "log_alpha")
        assert loss == pytest.approx(np.log(0.3) * np.mean(-logp + 1.5), rel=1e-5)
        assert metrics["alpha"] == pytest.approx(0.3)
        assert metrics["entropy"] == pytest.approx(-logp.mean(), rel=1e-5)

    def test_discrete_actions_take_exact_expectations(self):
        policy, state = build(SACPolicy, THREE, initial_alpha=0.3)
        batch = replayed(THREE)

        def soft(critics: Any, obs: Any) -> tuple[np.ndarray, np.ndarray]:
            logits = mlp(state.params["policy"]["net"], obs)
            log_pi = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            entropy = -(np.exp(log_pi) * log_pi).sum(axis=-1)
            return (np.exp(log_pi) * q_values(critics, obs).min(axis=0)).sum(axis=-1) + 0.3 * entropy, entropy

        target = batch["rewards"] + batch["discounts"] * soft(state.target_params, batch["new_obs"])[0]
        error = target - q_values(state.params, batch["obs"])[:, np.arange(N), batch["actions"]]
        loss, _, rows = losses_of(policy, state, batch, "q")
        assert loss == pytest.approx(np.mean(batch["weights"] * 0.5 * (error**2).sum(axis=0)), rel=1e-5)
        np.testing.assert_allclose(rows["td_error"], np.abs(error).mean(axis=0), rtol=1e-4, atol=1e-5)
        value, entropy = soft(state.params, batch["obs"])
        assert losses_of(policy, state, batch, "policy")[0] == pytest.approx(-value.mean(), rel=1e-5)
        wanted = np.log(0.3) * (entropy - 0.98 * np.log(3)).mean()
        assert losses_of(policy, state, batch, "log_alpha")[0] == pytest.approx(wanted, rel=1e-4)

    def test_masked_actions_count_for_nothing(self):
        mask = np.ones((N, 3), np.int8)
        mask[:6, 1] = 0
        mask[0, 2] = 0
        obs = {"obs": np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32), "action_mask": mask}
        policy, state = build(SACPolicy, THREE, MASKED)
        batch = replayed(THREE, obs)
        _, metrics, _ = losses_of(policy, state, batch, "log_alpha")
        assert metrics["target_entropy"] == pytest.approx(0.98 * np.log(mask.sum(axis=-1)).mean(), rel=1e-5)
        state, out = policy.learn(state, batch)
        assert all(np.isfinite(value) for value in out.metrics.values())
        dist = policy.context(state).forward(state.params, batch).dist
        assert np.asarray(dist.probs)[mask == 0].max() == 0.0
        assert float(dist.entropy()[0]) == pytest.approx(0.0, abs=1e-5)

    @pytest.mark.parametrize("space", [BOX, THREE], ids=["continuous", "discrete"])
    @pytest.mark.parametrize(("wanted", "sign"), [(-50.0, -1), (50.0, 1)])
    def test_temperature_rises_below_the_target_entropy_and_falls_above(self, space, wanted, sign):
        policy, state = build(SACPolicy, space, target_entropy=wanted, entropy_lr=0.01)
        after, _ = policy.learn(state, replayed(space))
        assert np.sign(float(after.params["log_alpha"] - state.params["log_alpha"])) == sign

    def test_only_critics_have_targets_and_they_follow_slowly(self):
        policy, state = build(SACPolicy, tau=0.25)
        assert set(state.target_params) == {"q"}
        after, _ = policy.learn(state, replayed())
        moved = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, after.params["q"], state.target_params["q"])
        for x, y in zip(jax.tree.leaves(after.target_params["q"]), jax.tree.leaves(moved), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)

    def test_target_entropy_is_of_the_space(self):
        for space, wanted in ((BOX, -2.0), (THREE, 0.98 * np.log(3)), (WIDE, -2.0 + np.log(8.0))):
            policy, state = build(SACPolicy, space)
            assert losses_of(policy, state, replayed(space), "log_alpha")[1]["target_entropy"] == pytest.approx(wanted)


@pytest.mark.parametrize("factory", [DDPGPolicy, TD3Policy, SACPolicy], ids=lambda factory: factory.name)
def test_each_group_follows_its_own_loss(factory):
    policy, state = build(factory)
    batch = replayed()
    grads, _ = policy.gradients(state, batch)
    ctx = policy.context(state)
    for group, loss_fn in policy.loss_fn.items():

        def loss(own: Any, group: str = group, loss_fn: Any = loss_fn) -> Any:
            result = loss_fn({**state.params, group: own}, batch, ctx)
            return result[0] if isinstance(result, tuple) else result

        for x, y in zip(
            jax.tree.leaves(grads[group]), jax.tree.leaves(jax.grad(loss)(state.params[group])), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_td3_moves_actor_and_targets_every_second_step():
    policy, state = build(TD3Policy)
    batch, changed = replayed(), []
    for _ in range(4):
        after, _ = policy.learn(state, batch)
        pairs = [(after.params["policy"], state.params["policy"]), (after.params["q"], state.params["q"])]
        pairs.append((after.target_params, state.target_params))
        changed.append(tuple(not equal_trees(a, b) for a, b in pairs))
        state = after
    assert changed == [(False, True, False), (True, True, True)] * 2


@pytest.mark.parametrize("factory", [DDPGPolicy, TD3Policy, SACPolicy], ids=lambda factory: factory.name)
def test_learning_rates_are_the_groups_own(factory):
    batch = replayed()
    policy, state = build(factory, critic_lr=0.0, lr=0.1)
    after = state
    for _ in range(2):
        after, _ = policy.learn(after, batch)
    assert equal_trees(after.params["q"], state.params["q"])
    assert not equal_trees(after.params["policy"], state.params["policy"])
    assert state.coeffs["actor_lr"] == pytest.approx(0.1)
    scheduled, _ = build(factory, lr_schedule=[[0, 0.5], [10, 0.0]], actor_lr=0.25)
    assert scheduled.spec.coeffs["critic_lr"] == 0.5
    assert "critic_lr" in scheduled.spec.schedules
    assert scheduled.spec.coeffs["actor_lr"] == 0.25


def trainer_config(name: str, **options: Any) -> dict[str, Any]:
    exploration = {"DDPG": "OrnsteinUhlenbeckNoise", "TD3": "GaussianNoise", "SAC": "StochasticSampling"}[name]
    return {
        "env": "Pendulum-v1",
        **SMALL,
        "exploration_config": {"type": exploration, "random_timesteps": 20},
        "buffer_size": 400,
        "learning_starts": 24,
        "train_batch_size": 16,
        "timesteps_per_iteration": 40,
        "seed": 0,
        **options,
    }


def params_of(trainer: Any) -> Any:
    state = trainer.learners["default_policy"].state
    return jax.device_get((state.params, state.target_params, state.opt_state, state.step))


@pytest.mark.parametrize("name", list(TRAINERS))
def test_a_run_saved_with_its_replay_memory_goes_on_bit_for_bit(tmp_path, name):
    options = {"store_buffer_in_checkpoints": True, "n_step": 2, "prioritized_replay": name != "TD3"}
    with TRAINERS[name](trainer_config(name, **options)) as first:
        first.train()
        path = first.save(str(tmp_path / "there"))
        first.train()
        expected = params_of(first)
    with TRAINERS[name].from_checkpoint(path) as second:
        result = second.train()
        assert equal_trees(params_of(second), expected)
        # One gradient step for each env step from the moment the memory holds enough.
        assert expected[-1] == result["timesteps_total"] - 24 + 8


@pytest.mark.parametrize("name", list(TRAINERS))
def test_gradient_steps_keep_pace_with_env_steps_of_several_environments(name):
    options = {"num_envs_per_worker": 3, "rollout_fragment_length": 4, "timesteps_per_iteration": 24}
    with TRAINERS[name](trainer_config(name, **options)) as trainer:
        trainer.train()
        steps = int(trainer.learners["default_policy"].state.step)
        result = trainer.train()
        assert int(trainer.learners["default_policy"].state.step) - steps == result["timesteps_total"] - 24


def test_dict_observations_and_discrete_actions_train():
    config = {**trainer_config("SAC"), "env": "FrozenLake-v1", "env_config": {"is_slippery": False}}
    with SACTrainer(config) as trainer:
        result = trainer.train()
        assert "log_alpha/alpha" in result["info"]["learner"]["default_policy"]
        assert trainer.compute_action(0) in range(4)


@pytest.mark.parametrize("name", list(TRAINERS))
def test_policies_of_several_agents_learn_from_rows_of_their_own(name):
    config = {
        **trainer_config(name),
        "env": "MultiAgentPendulum",
        "env_config": {"num_agents": 2},
        "multiagent": {"policies": {"first": None, "second": None}, "policy_mapping_fn": {0: "first", 1: "second"}},
    }
    with TRAINERS[name](config) as trainer:
        result = trainer.train()
        assert set(result["info"]["learner"]) == {"first", "second"}
        assert {stats["size"] for stats in result["info"]["replay_buffer"].values()} == {result["timesteps_total"]}
        steps = {int(learner.state.step) for learner in trainer.learners.values()}
        assert len(steps) == 1
        assert steps.pop() > 0


@pytest.mark.parametrize("name", ["DDPG", "TD3"])
def test_discrete_actions_are_refused_before_training(name):
    with pytest.raises(UnsupportedSpaceError, match=r"deterministic actor needs a Box of floats, got Discrete\(2\)"):
        TRAINERS[name]({"env": "CartPole-v1"})


@pytest.mark.parametrize(
    ("factory", "space", "message"),
    [
        (DDPGPolicy, spaces.Box(-np.inf, np.inf, (2,)), "needs finite bounds"),
        (SACPolicy, spaces.MultiDiscrete([2, 2]), "Box of floats or a Discrete space"),
        (SACPolicy, spaces.Box(-np.inf, np.inf, (2,)), "random_timesteps"),
        (SACPolicy, spaces.Box(0, 3, (2,), np.int32), "Box of floats"),
    ],
)
def test_spaces_that_cannot_work_are_refused(factory, space, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        factory(OBS, space, SMALL)


def test_unbounded_actions_are_gaussian_without_random_steps():
    policy, state = build(SACPolicy, spaces.Box(-np.inf, np.inf, (2,)), exploration_config={"random_timesteps": 0})
    assert policy.spec.dist_class.name == "DiagGaussian"
    after, out = policy.learn(state, replayed())
    assert all(np.isfinite(value) for value in out.metrics.values())
    assert int(after.step) == 1


@pytest.mark.parametrize("option", ["twin_qq", "Q_model", "optimization"])
def test_unknown_options_are_refused(option):
    with pytest.raises(ConfigError, match=option):
        SACTrainer({"env": "Pendulum-v1", option: {}})
