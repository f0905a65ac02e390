"""Rows of a loss at given weights: those that learning returns, the networks standing in for their targets."""

import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import build_policy
from jaxrl.algorithms.ddpg import DDPGPolicy
from jaxrl.algorithms.dqn import DQNPolicy
from jaxrl.data import SampleBatch
from jaxrl.policies import make_loss_rows

OBS = spaces.Box(-1.0, 1.0, (3,), np.float32)
SMALL = {"model": {"fcnet_hiddens": [8]}}


def rows_batch(actions, n=12):
    rng = np.random.default_rng(0)
    columns = {
        "obs": rng.normal(size=(n, 3)),
        "new_obs": rng.normal(size=(n, 3)),
        "rewards": rng.normal(size=n),
        "discounts": np.full(n, 0.9),
        "weights": np.ones(n),
    }
    columns = {name: value.astype(np.float32) for name, value in columns.items()}
    return SampleBatch({**columns, "actions": actions, "eps_id": np.zeros(n, np.int32)}, time_major=False)


@pytest.mark.parametrize("kind", ["DQN", "DDPG"])
def test_rows_are_those_of_learning_where_targets_equal_the_networks(kind):
    rng = np.random.default_rng(1)
    if kind == "DQN":
        policy = DQNPolicy(OBS, spaces.Discrete(4), {**SMALL, "hiddens": [8]})
        batch = rows_batch(rng.integers(0, 4, 12).astype(np.int32))
    else:
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        policy = DDPGPolicy(OBS, box, {"actor_hiddens": [8], "critic_hiddens": [8]})
        batch = rows_batch(rng.uniform(-1, 1, (12, 2)).astype(np.float32))
    state = policy.init(jax.random.key(3))  # targets begin as copies
    rows = make_loss_rows(policy)
    found = rows(state.weights, batch, jax.random.key(0))
    np.testing.assert_allclose(found["td_error"], policy.learn(state, batch)[1].rows["td_error"], rtol=1e-5, atol=1e-6)
    # Weights that moved on bring their own targets.
    moved, _ = policy.learn(state, batch)
    again = rows(moved.weights, batch, jax.random.key(0))["td_error"]
    level = moved.replace(target_params=moved.params)
    np.testing.assert_allclose(again, policy.learn(level, batch)[1].rows["td_error"], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(again) - np.asarray(found["td_error"])).max() > 0


def test_a_loss_without_rows_has_none():
    def loss(params, batch, ctx):
        return batch.mean(ctx.forward(params, batch).dist_inputs)

    policy = build_policy("Plain", loss_fn=loss)(OBS, spaces.Discrete(2), SMALL)
    weights = policy.init(jax.random.key(0)).weights
    assert make_loss_rows(policy)(weights, rows_batch(np.zeros(12, np.int32)), jax.random.key(0)) == {}
