"""Learning in step with others: averaged gradients equal those of a single learner on all the rows together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import build_policy
from jaxrl.data import concat_batches

AXIS = "workers"


def mean_over_axis(tree, rows):
    total = jax.lax.psum(rows, AXIS)
    return jax.tree.map(lambda x: jax.lax.psum(x * rows, AXIS) / jnp.where(total > 0, total, 1.0).astype(x.dtype), tree)


@pytest.fixture(scope="module")
def build(kit):
    def build(**config):
        factory = build_policy("P", loss_fn=kit.pg_loss, make_model=kit.model)
        return factory(kit.obs, kit.actions, {"lr": 0.1, "optimizer": "sgd", **config})

    return build


def together(policy, state, batches):
    """The states and outputs of workers with a batch each, stacked."""
    # As many final observations as a fragment has depend on its ends; no loss here reads them.
    batches = [batch.select([name for name in batch if not name.startswith("final")]) for batch in batches]
    learn = jax.vmap(policy.learn_averaged(mean_over_axis), in_axes=(None, 0), axis_name=AXIS)
    return learn(state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))


def first(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree)


def assert_all_equal(tree):
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_one_minibatch_is_that_of_a_single_learner_on_the_joined_rows(build, kit):
    policy = build()
    state = policy.init(jax.random.key(0))
    batches = [kit.train_batch(seed=seed) for seed in (0, 1)]
    after, out = together(policy, state, batches)
    alone, alone_out = policy.learn(state, concat_batches(batches))
    assert_all_equal(after.params)
    kit.equal(first(after.params), alone.params, 1e-6)
    for name in ("total_loss", "grad_gnorm"):
        assert float(out.metrics[name][0]) == pytest.approx(float(alone_out.metrics[name]), rel=1e-5)


def test_rows_weigh_the_same_on_whichever_worker_they_are(build, kit):
    policy = build()
    state = policy.init(jax.random.key(0))
    masks = [np.ones((6, 3), bool), np.zeros((6, 3), bool)]
    masks[1][:2] = True
    batches = [kit.train_batch(seed=seed, mask=mask) for seed, mask in enumerate(masks)]
    after, _ = together(policy, state, batches)
    alone, _ = policy.learn(state, concat_batches(batches))
    kit.equal(first(after.params), alone.params, 1e-6)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_all_take_the_steps_that_the_one_with_the_most_rows_needs(build, kit, rows):
    policy = build(num_sgd_iter=2, sgd_minibatch_size=4)
    state = policy.init(jax.random.key(0))
    masks = [np.arange(18).reshape(6, 3) < 11, np.arange(18).reshape(6, 3) < rows]
    after, out = together(policy, state, [kit.train_batch(seed=seed, mask=mask) for seed, mask in enumerate(masks)])
    assert_all_equal((after.params, after.step, out.metrics))
    assert int(after.step[0]) == 2 * 3  # 11 rows in minibatches of 4, twice
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_nobody_has_rows(build, kit):
    policy = build(num_sgd_iter=2, sgd_minibatch_size=4)
    state = policy.init(jax.random.key(0))
    after, _ = together(policy, state, [kit.train_batch(seed=seed, mask=np.zeros((6, 3), bool)) for seed in (0, 1)])
    assert int(after.step[0]) == 0
    kit.equal(first(after.params), state.params, 0)
