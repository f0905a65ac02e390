"""Rollouts within a compiled program: columns, true successors, statistics of episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import build_policy
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.envs.jax_native import cart_pole
from jaxrl.losses import gae
from jaxrl.rollout.compiled_rollouts import check_rollout_options, compiled_rollouts
from jaxrl.rollout.compiled_workers import EpisodeReturns
from jaxrl.trainers import setup
from jaxrl.types import FINAL_PAD, ConfigError

CONFIG = {
    "env": "jax/CartPole-v1",
    "num_envs_per_worker": 3,
    "train_batch_size": 60,
    "sgd_minibatch_size": 0,
    "num_sgd_iter": 1,
    "seed": 0,
    "model": {"fcnet_hiddens": [8], "vf_share_layers": False},
}


def make(config=None, *, factory=PPOTrainer.policy_factory, max_episode_steps=7, trainer=PPOTrainer):
    options = trainer.resolve_config({**CONFIG, **(config or {})})
    env = cart_pole({"max_episode_steps": max_episode_steps})
    policy = setup.make_recipes(options, factory, env)["default_policy"].build()
    return compiled_rollouts(env, policy, options), policy, options, env


def sample(rollouts, policy, number=0, state=None):
    weights = policy.init(jax.random.key(3)).weights
    state = rollouts.init(jax.random.key(1)) if state is None else state
    key = jax.random.fold_in(jax.random.key(2), number)
    return weights, *jax.jit(rollouts.sample)(weights, state, key, jnp.int32(number * rollouts.length))


def test_a_fragment_holds_what_its_policy_reads_and_true_successors():
    rollouts, policy, _, env = make()
    _, _, fragment, played = sample(rollouts, policy)
    assert (rollouts.length, rollouts.width) == (20, 3) == fragment.shape
    cut = np.asarray(fragment["truncateds"])
    assert cut.any() and (np.asarray(played.ended) == cut | np.asarray(fragment["terminateds"])).all()
    assert (np.asarray(played.rewards) == 1.0).all()
    # Stepping the environment again from each observation gives the column's successor, but for the ends by time.
    new_obs = np.asarray(fragment["new_obs"])
    obs, actions = np.asarray(fragment["obs"]), np.asarray(fragment["actions"])
    step = jax.jit(jax.vmap(env.step, in_axes=(None, 0, 0)))
    state, _ = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 60))
    inner = jax.tree.map(lambda x: x, state.inner)
    inner = jnp.asarray(obs.reshape(-1, 4)) if hasattr(inner, "shape") else type(inner)(*obs.reshape(-1, 4).T)
    again = step(jax.random.key(0), state._replace(inner=inner), actions.reshape(-1))
    known = (cut | ~np.asarray(played.ended)).reshape(-1)
    np.testing.assert_allclose(np.asarray(again.obs)[known], new_obs.reshape(-1, 4)[known], atol=1e-6)
    # A slot for every truncation, and nothing else in them.
    index = np.asarray(fragment["final_index"])
    stored = {(int(t), int(b)) for t, b in index if t != FINAL_PAD}
    assert stored == {(int(t), int(b)) for t, b in np.argwhere(cut)}
    assert len(index) == 3 * 3  # no more than ceil(20 / 7) for each environment


def test_advantages_are_those_of_the_batch_alone():
    rollouts, policy, options, _ = make()
    weights, _, fragment, _ = sample(rollouts, policy)
    bare = fragment.select([name for name in fragment if name not in ("advantages", "value_targets", "vf_preds")])
    bare = bare.with_columns(**{name: fragment[name] for name in ("last_obs", "final_obs", "final_index")})
    filled = policy.postprocess(weights, bare, None, jax.random.key(0))
    for name in ("advantages", "value_targets", "vf_preds", "action_logp"):
        np.testing.assert_allclose(np.asarray(filled[name]), np.asarray(fragment[name]), atol=1e-5, err_msg=name)
    out = policy.context(policy.init(jax.random.key(3))).forward(weights.params, fragment)
    np.testing.assert_allclose(np.asarray(out.dist_inputs), np.asarray(fragment["action_dist_inputs"]), atol=1e-5)
    values = policy.value(weights, fragment["new_obs"].reshape(-1, 4), ()).reshape(20, 3)
    oracle, _ = gae(
        *(fragment["rewards"], fragment["vf_preds"], values, fragment["terminateds"], fragment["dones"]),
        options.gamma,
        options.lambda_,
    )
    np.testing.assert_allclose(np.asarray(oracle), np.asarray(fragment["advantages"]), atol=1e-4)


def test_fragments_follow_one_another():
    rollouts, policy, _, _ = make()
    _, state, first, _ = sample(rollouts, policy)
    _, _, second, _ = sample(rollouts, policy, 1, state)
    ended = np.asarray(first["dones"])[-1]
    np.testing.assert_array_equal(np.asarray(second["obs"])[0][~ended], np.asarray(first["last_obs"])[~ended])
    assert not np.array_equal(np.asarray(first["actions"]), np.asarray(second["actions"]))


def test_columns_that_a_loss_asks_for():
    def loss(params, batch, ctx):
        asked = sum(batch.mean(batch[name]) for name in ("t", "eps_id", "unroll_id", "agent_index", "prev_rewards"))
        return batch.mean(ctx.forward(params, batch).value * batch["rewards"]) + asked

    factory = build_policy("Asking", loss_fn=loss)
    rollouts, policy, _, _ = make(factory=factory)
    _, state, first, _ = sample(rollouts, policy)
    _, _, second, _ = sample(rollouts, policy, 1, state)
    t = np.concatenate([first["t"], second["t"]])
    ended = np.concatenate([first["dones"], second["dones"]])
    assert t.max() == 6 and (t[0] == 0).all()
    assert (t[1:] == np.where(ended[:-1], 0, t[:-1] + 1)).all()
    number = np.concatenate([first["eps_id"], second["eps_id"]])
    assert (number[1:] == number[:-1] + 3 * ended[:-1]).all() and len(set(number[0])) == 3
    assert (np.asarray(second["unroll_id"]) == 1).all() and (np.asarray(first["agent_index"]) == 0).all()
    rewards = np.concatenate([first["prev_rewards"], second["prev_rewards"]])
    assert (rewards == np.where(t == 0, 0.0, 1.0)).all()


def test_resets_that_do_not_fit_are_drawn_in_each_step(monkeypatch):
    import jaxrl.rollout.compiled_rollouts as module

    monkeypatch.setattr(module, "MAX_DRAWN_BYTES", 0)
    rollouts, policy, _, _ = make(max_episode_steps=2)
    _, _, fragment, _ = sample(rollouts, policy)
    starts = np.asarray(fragment["obs"])[2::2]
    assert (np.abs(starts) <= 0.05).all() and len(np.unique(starts[..., 0])) == starts[..., 0].size


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("num_workers", 2, "samples on Ray actors"),
        ("batch_mode", "complete_episodes", "Set 'truncate_episodes'"),
        ("soft_horizon", True, "soft_horizon=True has no meaning"),
        ("observation_filter", "MeanStdFilter", "Set 'NoFilter'"),
        ("callbacks", Callbacks(on_sample_end=lambda *, worker, samples: None), "on_sample_end run on the host"),
    ],
)
def test_options_that_no_program_can_honour_are_refused_by_name(option, value, said):
    _, policy, options, _ = make()
    with pytest.raises(ConfigError, match=said) as raised:
        check_rollout_options(policy, dataclasses.replace(options, **{option: value}))
    assert str(raised.value).startswith(f"engine='compiled': {option}")


def test_episode_returns_match_a_walk_through_the_steps():
    rng = np.random.default_rng(0)
    returns, told = EpisodeReturns(4), []
    expected, reward, length = [], np.zeros(4), np.zeros(4, int)
    for _ in range(5):
        rewards, ended = rng.normal(size=(13, 4)), rng.random((13, 4)) < 0.2
        found = returns.add(rewards, ended)
        told += zip(found.column.tolist(), found.length.tolist(), found.reward.tolist(), strict=True)
        for t in range(13):
            reward += rewards[t]
            length += 1
            for b in np.flatnonzero(ended[t]):
                expected.append((int(b), int(length[b]), float(reward[b])))
                reward[b], length[b] = 0.0, 0
    assert [each[:2] for each in told] == [each[:2] for each in expected]
    np.testing.assert_allclose([each[2] for each in told], [each[2] for each in expected], atol=1e-12)
    assert returns.add(np.ones((2, 4)), np.zeros((2, 4), bool)).column.size == 0
