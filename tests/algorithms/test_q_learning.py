"""Q-learning on discrete actions: losses against NumPy oracles, runs that go on after a restore, masks, bad input."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms import dqn, iqn, r2d2, simple_q
from jaxrl.data import SampleBatch
from jaxrl.replay import sequence_priorities
from jaxrl.types import ConfigError, ModelInputs, UnsupportedSpaceError

OBS = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTIONS = spaces.Discrete(4, start=2)
MODEL = {"fcnet_hiddens": [8]}
HEAD = {"hiddens": [8], "model": MODEL}


# ---------------------------------------------------------------- losses of rows


def rows_batch(n: int = 10) -> SampleBatch:
    rng = np.random.default_rng(0)
    columns = {
        "obs": rng.normal(size=(n, 3)),
        "new_obs": rng.normal(size=(n, 3)),
        "rewards": 3.0 * rng.normal(size=n),
        "discounts": np.where(rng.random(n) < 0.3, 0.0, 0.9),
        "weights": rng.random(n),
    }
    columns = {name: value.astype(np.float32) for name, value in columns.items()}
    columns["actions"] = rng.integers(2, 6, n).astype(np.int32)
    return SampleBatch(columns, time_major=False)


def setting(policy_factory: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A policy, its context and state, the target network's parameters unlike those that learn."""
    policy = policy_factory(OBS, ACTIONS, options)
    state = policy.init(jax.random.key(1))
    state = state.replace(target_params=jax.tree.map(lambda x: x + 0.1 * jnp.sin(7.0 * x + 1.0), state.params))
    return policy, policy.context(state), state


def huber(x: np.ndarray, delta: float = 1.0) -> np.ndarray:
    return np.where(np.abs(x) <= delta, 0.5 * x**2, delta * (np.abs(x) - 0.5 * delta))


def q_values(policy: Any, params: Any, obs: Any) -> np.ndarray:
    return np.asarray(policy.spec.model.apply(params, ModelInputs(jnp.asarray(obs))).dist_inputs)


def check_rows(policy: Any, ctx: Any, state: Any, batch: SampleBatch, expected: np.ndarray, td_error: Any) -> None:
    loss, out = jax.jit(policy.loss_fn)(state.params, batch, ctx)
    np.testing.assert_allclose(loss, np.mean(batch["weights"] * expected), rtol=1e-4)
    np.testing.assert_allclose(out.rows["td_error"], td_error, rtol=1e-3, atol=1e-5)
    assert set(out.metrics) == {"mean_q", "min_q", "max_q", "mean_td_error"}


@pytest.mark.parametrize("double_q", [None, False, True], ids=["SimpleQ", "DQN", "double DQN"])
def test_q_learning_loss_equals_its_oracle(double_q: bool | None) -> None:
    if double_q is None:
        policy, ctx, state = setting(simple_q.SimpleQPolicy, {"model": MODEL})
    else:
        policy, ctx, state = setting(dqn.DQNPolicy, {**HEAD, "double_q": double_q})
    batch, n = rows_batch(), np.arange(10)
    target = q_values(policy, state.target_params, batch["new_obs"])
    chooser = q_values(policy, state.params, batch["new_obs"]) if double_q else target
    following = target[n, chooser.argmax(axis=-1)]
    values = q_values(policy, state.params, batch["obs"])[n, batch["actions"] - 2]
    error = batch["rewards"] + batch["discounts"] * following - values
    check_rows(policy, ctx, state, batch, huber(error), error)


def test_c51_loss_equals_its_oracle() -> None:
    options = {**HEAD, "num_atoms": 5, "v_min": -2.0, "v_max": 2.0, "double_q": True}
    policy, ctx, state = setting(dqn.DQNPolicy, options)
    batch, z = rows_batch(), np.linspace(-2.0, 2.0, 5)

    def probs(params: Any, obs: Any) -> np.ndarray:
        return np.asarray(
            jax.nn.softmax(policy.spec.model.apply(params, ModelInputs(jnp.asarray(obs))).extras["q_logits"])
        )

    best = (probs(state.params, batch["new_obs"]) @ z).argmax(axis=-1)
    following = probs(state.target_params, batch["new_obs"])
    expected = []
    for i in range(10):
        m = np.zeros(5)
        for atom, p in zip(z, following[i, best[i]], strict=True):
            b = np.clip(batch["rewards"][i] + batch["discounts"][i] * atom, -2.0, 2.0) + 2.0
            low = int(np.floor(b))
            m[low] += p * (1 - (b - low))
            m[min(low + 1, 4)] += p * (b - low)
        expected.append(-np.sum(m * np.log(probs(state.params, batch["obs"])[i, batch["actions"][i] - 2])))
    check_rows(policy, ctx, state, batch, np.array(expected), expected)


@pytest.mark.parametrize("double_q", [False, True])
def test_iqn_loss_equals_its_oracle(double_q: bool) -> None:
    options = {**HEAD, "num_quantiles": 5, "num_target_quantiles": 3, "num_action_quantiles": 7, "double_q": double_q}
    policy, ctx, state = setting(iqn.IQNPolicy, {**options, "huber_threshold": 0.5})
    batch, heads = rows_batch(), policy.spec.model.heads
    keys = jax.random.split(ctx.key, 3)
    chooser = state.params if double_q else state.target_params
    inputs = ModelInputs(jnp.asarray(batch["new_obs"]), key=keys[0])
    chosen = policy.spec.model.apply(chooser, inputs)
    assert chosen.extras["quantiles"].shape == (10, 7, 4)
    now = heads["quantiles"](state.params, batch["obs"], keys[1])
    following = heads["target_quantiles"](state.target_params, batch["new_obs"], keys[2])
    assert now.extras["quantiles"].shape == (10, 5, 4)
    assert following.extras["quantiles"].shape == (10, 3, 4)
    best, expected = np.asarray(chosen.dist_inputs).argmax(axis=-1), []
    for i in range(10):
        total = 0.0
        for tau, theta in zip(
            now.extras["taus"][i], now.extras["quantiles"][i, :, batch["actions"][i] - 2], strict=True
        ):
            for other in following.extras["quantiles"][i, :, best[i]]:
                delta = float(batch["rewards"][i] + batch["discounts"][i] * other - theta)
                total += abs(float(tau) - (delta < 0)) * float(huber(np.asarray(delta), 0.5)) / 0.5 / 3
        expected.append(total)
    check_rows(policy, ctx, state, batch, np.array(expected), expected)


def test_iqn_acts_by_fixed_fractions_without_exploration() -> None:
    policy = iqn.IQNPolicy(OBS, ACTIONS, {**HEAD, "num_action_quantiles": 4})
    out = policy.spec.model.apply(policy.init(jax.random.key(0)).params, ModelInputs(jnp.ones((2, 3))))
    np.testing.assert_allclose(out.extras["taus"], [[0.125, 0.375, 0.625, 0.875]] * 2)


# ---------------------------------------------------------------- R2D2


def sequences() -> SampleBatch:
    """Three sequences of 6 rows: one episode that goes on; two ended ones; a short one, cut by a time limit."""
    rng = np.random.default_rng(2)
    shape = (6, 3)
    t = np.stack([np.arange(4, 10), [7, 8, 0, 1, 2, 3], [0, 1, 2, 3, -1, -1]], axis=1).astype(np.int32)
    mask = t >= 0
    terminateds, truncateds = np.zeros(shape, bool), np.zeros(shape, bool)
    terminateds[1, 1] = truncateds[2, 2] = True  # the latter is not the last row: an agent that was reset
    t[3, 2] = 0
    columns: dict[str, Any] = {
        "obs": rng.normal(size=(*shape, 3)).astype(np.float32),
        "last_obs": rng.normal(size=(3, 3)).astype(np.float32),
        "actions": rng.integers(2, 6, shape).astype(np.int32),
        "rewards": 3.0 * rng.normal(size=shape).astype(np.float32),
        "terminateds": terminateds,
        "truncateds": truncateds,
        "t": t,
        "mask": mask,
        "weights": np.broadcast_to(rng.random(3).astype(np.float32), shape).copy(),
        "state_in": {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("c", "h")},
    }
    return SampleBatch(columns)


def scale(x: float) -> float:
    return float(np.sign(x) * (np.sqrt(abs(x) + 1.0) - 1.0) + 1e-2 * x)


def unscale(x: float) -> float:
    eps = 1e-2
    root = (np.sqrt(1.0 + 4.0 * eps * (abs(x) + 1.0 + eps)) - 1.0) / (2.0 * eps)
    return float(np.sign(x) * (root**2 - 1.0))


def run_cell(policy: Any, params: Any, batch: SampleBatch, column: int, zero_init: bool) -> dict[int, np.ndarray]:
    """Values of each valid row, and under its number T of the observation after the sequence, one row at a time."""
    model, apply, out = policy.spec.model, jax.jit(policy.spec.model.apply), {}
    state = jax.tree.map(lambda x: jnp.asarray(x[column : column + 1]), batch["state_in"])
    state = model.initial_state(1) if zero_init else state
    for row in range(7):
        if row < 6 and not batch["mask"][row, column]:
            continue
        obs = batch["last_obs"][column] if row == 6 else batch["obs"][row, column]
        if row < 6 and batch["t"][row, column] == 0:
            state = model.initial_state(1)
        result = apply(params, ModelInputs(jnp.asarray(obs)[None, None]), state)
        out[row], state = np.asarray(result.dist_inputs[0, 0], np.float64), result.state
    return out


R2D2 = {**HEAD, "model": {**MODEL, "lstm_cell_size": 4}, "gamma": 0.9, "h_function_epsilon": 1e-2}


@pytest.mark.parametrize(
    ("n", "burn_in", "double_q", "zero_init", "h"),
    [(1, 0, True, False, True), (3, 2, False, True, False), (2, 1, True, False, True)],
)
def test_r2d2_loss_equals_its_oracle(n: int, burn_in: int, double_q: bool, zero_init: bool, h: bool) -> None:
    options = {
        "n_step": n,
        "burn_in": burn_in,
        "double_q": double_q,
        "zero_init_states": zero_init,
        "use_h_function": h,
    }
    policy, ctx, state = setting(r2d2.R2D2Policy, {**R2D2, **options})
    batch = sequences()
    errors = np.full((6, 3), np.nan)
    for b in range(3):
        q = run_cell(policy, state.params, batch, b, zero_init)
        target = run_cell(policy, state.target_params, batch, b, zero_init)
        for row in range(burn_in, 6):
            if row not in q:
                continue
            total, last = 0.0, row
            for k in range(n):
                last = row + k
                total += 0.9**k * float(batch["rewards"][last, b])
                if batch["terminateds"][last, b] or batch["truncateds"][last, b] or last + 1 not in q or last == 5:
                    break
            if batch["truncateds"][last, b]:
                continue
            following = last + 1 if last + 1 in q and last < 5 else 6
            value = target[following][(q if double_q else target)[following].argmax()]
            value = unscale(value) if h else value
            goal = total + (0.0 if batch["terminateds"][last, b] else 0.9 ** (last - row + 1) * value)
            errors[row, b] = (scale(goal) if h else goal) - q[row][batch["actions"][row, b] - 2]
    learned = ~np.isnan(errors)
    loss, out = jax.jit(policy.loss_fn)(state.params, batch, ctx)
    np.testing.assert_allclose(loss, (batch["weights"] * huber(errors))[learned].mean(), rtol=1e-4)
    np.testing.assert_allclose(out.rows["td_error"], np.nan_to_num(errors), rtol=1e-3, atol=1e-4)
    known = r2d2.n_step_returns(batch, n, 0.9).known
    np.testing.assert_array_equal(r2d2.learned_rows(known, burn_in), learned)


def test_burn_in_passes_no_gradient() -> None:
    batch = sequences()

    def gradient(**options: Any) -> Any:
        policy, ctx, state = setting(r2d2.R2D2Policy, {**R2D2, **options})

        def loss(state_in: Any) -> Any:
            return policy.loss_fn(state.params, batch.with_columns(state_in=state_in), ctx)[0]

        return jax.tree.map(lambda x: float(jnp.abs(x).sum()), jax.jit(jax.grad(loss))(batch["state_in"]))

    assert min(jax.tree.leaves(gradient())) > 0.0
    assert max(jax.tree.leaves(gradient(burn_in=1))) == 0.0


def test_n_step_returns_by_hand() -> None:
    columns = {
        "obs": np.zeros((5, 2, 1), np.float32),
        "last_obs": np.zeros((2, 1), np.float32),
        "rewards": np.array([[1, 1], [2, 2], [3, 4], [4, 8], [5, 0]], np.float32),
        "terminateds": np.array([[0, 0], [0, 0], [1, 0], [0, 0], [0, 0]], bool),
        "truncateds": np.array([[0, 0], [0, 0], [0, 0], [0, 1], [0, 0]], bool),
        "t": np.zeros((5, 2), np.int32),
        "mask": np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0]], bool),
    }
    for batch in (SampleBatch(columns), SampleBatch(jax.tree.map(jnp.asarray, columns))):
        returns = r2d2.n_step_returns(batch, 2, 0.5)
        np.testing.assert_allclose(returns.rewards[:, 0], [2.0, 3.5, 3.0, 6.5, 5.0])
        np.testing.assert_allclose(returns.discounts[:, 0], [0.25, 0.0, 0.0, 0.25, 0.5])
        np.testing.assert_array_equal(returns.successor[[0, 3, 4], 0], [2, 5, 5])
        np.testing.assert_array_equal(returns.known, [[1, 1], [1, 1], [1, 0], [1, 0], [1, 0]])
        np.testing.assert_allclose(returns.rewards[:4, 1], [2.0, 4.0, 8.0, 8.0])


# ---------------------------------------------------------------- runs

RUN: dict[str, Any] = {
    "env": "CartPole-v1",
    "seed": 3,
    "model": {"fcnet_hiddens": [8], "lstm_cell_size": 8, "max_seq_len": 8},
    "rollout_fragment_length": 8,
    "train_batch_size": 16,
    "learning_starts": 40,
    "buffer_size": 200,
    "timesteps_per_iteration": 60,
    "target_network_update_freq": 20,
    "compile_cache": False,
}
FEW = {"num_quantiles": 4, "num_target_quantiles": 4, "num_action_quantiles": 4}
RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SimpleQ": (simple_q.SimpleQTrainer, {}),
    "IQN": (iqn.IQNTrainer, {"hiddens": [8], "prioritized_replay": True, "n_step": 2, "noisy": True, **FEW}),
    "R2D2": (r2d2.R2D2Trainer, {"hiddens": [8], "burn_in": 2, "n_step": 2, "training_intensity": 4}),
}


def trained(name: str, **options: Any) -> Any:
    trainer_class, own = RUNS[name]
    return trainer_class({**RUN, **own, **options})


def params_of(trainer: Any) -> Any:
    return jax.tree.map(np.asarray, trainer.learners["default_policy"].state.params)


@pytest.mark.parametrize("name", list(RUNS))
def test_a_saved_run_goes_on_bit_for_bit(name: str, tmp_path: pathlib.Path) -> None:
    with trained(name, store_buffer_in_checkpoints=True) as first:
        first.train()
        info = first.train()["info"]["learner"]["default_policy"]
        assert np.isfinite([info[key] for key in ("mean_q", "min_q", "max_q", "mean_td_error", "total_loss")]).all()
        path = first.save(str(tmp_path / "there"))
        first.train()
        expected = params_of(first)
    with RUNS[name][0].from_checkpoint(path) as second:
        second.train()
        jax.tree.map(np.testing.assert_array_equal, params_of(second), expected)


def test_sequences_get_priorities_of_their_own() -> None:
    with trained("R2D2", prioritized_replay_alpha=1.0, prioritized_replay_eps=0.0) as trainer:
        trainer.train()
        learner, memory = trainer.learners["default_policy"], trainer.context.memory
        batch = memory.sample(np.random.default_rng(0), 6, 0.0)["default_policy"]
        assert batch.shape == (8, 6)
        learner.learn(batch)
        errors = np.asarray(learner.rows["td_error"])
        assert (errors[:2] == 0.0).all()
        assert (errors[2:] != 0.0).any(axis=0).all()
        learned = r2d2.learned_rows(r2d2.n_step_returns(batch, 2, 0.997).known, 2)
        wanted = sequence_priorities(errors, learned, 0.9)
        memory.update("default_policy", batch, wanted)
        state = memory.states["default_policy"]
        np.testing.assert_allclose(state.tree.sums[0][batch["batch_indexes"][0]], wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["SimpleQ", "DQN", "IQN", "R2D2"])
def test_no_masked_action_is_ever_taken(name: str) -> None:
    trainer_class, own = RUNS.get(name, (dqn.DQNTrainer, {"hiddens": [8], "num_atoms": 5}))
    exploration = {"type": "EpsilonGreedy", "initial_epsilon": 1.0, "final_epsilon": 0.0, "epsilon_timesteps": 60}
    options = {"env": "ParametricActionsCartPole", "exploration_config": exploration, "evaluation_interval": 2}
    with trainer_class({**RUN, **own, **options, "evaluation_config": {"explore": False}}) as trainer:
        for _ in range(2):
            trainer.train()  # the environment raises for a masked action
        batch = trainer.context.memory.sample(np.random.default_rng(0), 40, 0.0)["default_policy"].flatten()
        taken = np.take_along_axis(batch["obs"]["action_mask"], batch["actions"][:, None], axis=1)
        assert (taken[batch.valid()] == 1).all()


def test_two_policies_learn_from_buffers_of_their_own() -> None:
    policies = {
        "env": "MultiAgentCartPole",
        "env_config": {"num_agents": 2},
        "multiagent": {"policies": {"a": None, "b": None}, "policy_mapping_fn": {0: "a", 1: "b"}},
    }
    with trained("SimpleQ", **policies) as trainer:
        before = {pid: learner.state.params for pid, learner in trainer.learners.items()}
        result = trainer.train()
        for pid, learner in trainer.learners.items():
            assert int(learner.state.step) > 0
            assert not jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), before[pid], learner.state.params))
        assert set(result["info"]["replay_buffer"]) == {"a", "b"}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", list(RUNS))
def test_continuous_actions_are_refused(name: str) -> None:
    with pytest.raises((ConfigError, UnsupportedSpaceError), match="Discrete"):
        trained(name, env="Pendulum-v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"burn_in": 8}, "burn_in=8 leaves nothing to learn of sequences of 8 rows"),
        ({"n_step": 7}, "n_step=7 is more than the 6 rows"),
        ({"train_batch_size": 20}, "no whole sequences of 8 .* use 16 or 24"),
        ({"replay_frame_stack": 4}, "replay_frame_stack has no meaning"),
        ({"model": {"use_lstm": False}}, "model has no state; set model.use_lstm"),
        ({"buffer_size": 8}, "buffer_size=8 is smaller than train_batch_size=16"),
    ],
)
def test_options_that_r2d2_cannot_work_with_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained("R2D2", **options)
