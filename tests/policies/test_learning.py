"""The learn step against loops written by hand, with padding, masks and recurrence; and what recompiles it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import LearnOutput, build_policy, losses
from jaxrl.policies.learning import _orders, order_key

LR = 0.1


@pytest.fixture(scope="module")
def build(kit):
    def build(loss_fn=kit.pg_loss, make_model=kit.model, **config):
        factory = build_policy("P", loss_fn=loss_fn, make_model=make_model)
        return factory(kit.obs, kit.actions, {"lr": LR, "optimizer": "sgd", **config})

    return build


@pytest.fixture(scope="module")
def minibatch_policy(build):
    return build(num_sgd_iter=2, sgd_minibatch_size=4)


def np_gradients(params, obs, actions, advantages, targets):
    """Of `kit.pg_loss` for the linear policy, by hand."""
    logits = obs @ params["policy"]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    error = obs @ params["value"] - targets
    policy = obs.T @ (-(np.eye(2)[actions] - probs) * advantages[:, None]) / len(obs)
    return {"policy": policy, "value": 0.2 * obs.T @ error / len(obs)}


def np_step(params, batch, rows):
    names = ("obs", "actions", "advantages", "value_targets")
    flat = {name: np.asarray(batch[name]).reshape(-1, *np.shape(batch[name])[2:])[rows] for name in names}
    grads = np_gradients(params, *(flat[name] for name in names))
    return {name: value - LR * grads[name] for name, value in params.items()}


def host(params):
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def orders_of(state, n, epochs, present=None, shuffle=True):
    return np.asarray(draw_orders(state, n, present, epochs, shuffle))


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def draw_orders(state, n, present, epochs, shuffle):
    return _orders(order_key(state), n, present, epochs, shuffle)


class TestOracles:
    def test_full_batch_step(self, build, kit):
        policy, batch = build(), kit.train_batch()
        state = policy.init(jax.random.key(0))
        after, out = policy.learn(state, batch)
        kit.equal(after.params, np_step(host(state.params), batch, slice(None)), 1e-5)
        assert int(after.step) == 1
        assert set(out.metrics) == {"total_loss", "grad_gnorm"}
        grads = policy.gradients(state, batch)[0]
        assert float(out.metrics["grad_gnorm"]) == pytest.approx(
            np.sqrt(sum(np.square(g).sum() for g in kit.leaves(grads))), rel=1e-6
        )
        kit.equal(policy.apply_gradients(state, grads), after, 1e-7)

    def test_full_batch_epochs(self, build, kit):
        policy, batch = build(num_sgd_iter=3), kit.train_batch()
        state = policy.init(jax.random.key(0))
        after, out = policy.learn(state, batch)
        params = host(state.params)
        for _ in range(2):
            params = np_step(params, batch, slice(None))
        last = state.replace(params=jax.tree.map(jnp.float32, params))
        loss = float(policy.gradients(last, batch)[1].metrics["total_loss"])
        assert float(out.metrics["total_loss"]) == pytest.approx(loss, rel=1e-4)
        kit.equal(after.params, np_step(params, batch, slice(None)), 1e-5)

    def test_epochs_of_minibatches(self, minibatch_policy, kit):
        policy, batch = minibatch_policy, kit.train_batch(6, 4)
        state = policy.init(jax.random.key(0))
        after, _ = policy.learn(state, batch)
        params = host(state.params)
        orders = orders_of(state, 24, 2)
        assert (np.sort(orders, axis=1) == np.arange(24)).all()
        assert (orders[0] != orders[1]).any()
        for rows in orders.reshape(-1, 4):
            params = np_step(params, batch, rows)
        kit.equal(after.params, params, 1e-5)
        assert int(after.step) == 12

    def test_short_last_minibatch(self, minibatch_policy, kit):
        policy, batch = minibatch_policy, kit.train_batch(3, 3)  # 4 + 4 + 1 rows
        state = policy.init(jax.random.key(0))
        after, _ = policy.learn(state, batch)
        params = host(state.params)
        for order in orders_of(state, 9, 2):
            for rows in np.split(order, [4, 8]):
                params = np_step(params, batch, rows)
        kit.equal(after.params, params, 1e-5)
        assert int(after.step) == 6

    def test_minibatch_larger_than_the_batch(self, build, kit):
        batch = kit.train_batch(2, 2)
        policies = build(sgd_minibatch_size=64), build()
        states = [policy.learn(policy.init(jax.random.key(0)), batch)[0].params for policy in policies]
        kit.equal(*states, 1e-6)

    def test_without_shuffling(self, build, kit):
        policy, batch = build(sgd_minibatch_size=4, shuffle_sequences=False), kit.train_batch(4, 2)
        state = policy.init(jax.random.key(0))
        params = host(state.params)
        for rows in (slice(0, 4), slice(4, 8)):
            params = np_step(params, batch, rows)
        kit.equal(policy.learn(state, batch)[0].params, params, 1e-5)

    def test_the_next_call_draws_another_order(self, minibatch_policy, kit):
        state = minibatch_policy.init(jax.random.key(0))
        after, _ = minibatch_policy.learn(state, kit.train_batch())
        assert (orders_of(state, 18, 1) != orders_of(after, 18, 1)).any()
        assert (jax.random.key_data(after.key) == jax.random.key_data(state.key)).all()


class TestMasks:
    def test_masked_rows_do_not_count(self, build, kit):
        policy = build()
        state = policy.init(jax.random.key(0))
        mask = np.random.default_rng(3).random((6, 3)) < 0.6
        batch = kit.train_batch(mask=mask)
        rows = np.flatnonzero(mask.reshape(-1))
        kit.equal(policy.learn(state, batch)[0].params, np_step(host(state.params), batch, rows), 1e-5)
        spoilt = batch.with_columns(
            {name: np.where(mask, batch[name], 1e6).astype(np.float32) for name in ("advantages", "value_targets")}
        )
        kit.equal(policy.learn(state, spoilt), policy.learn(state, batch), 1e-6)

    def test_minibatches_of_masked_rows_are_skipped(self, minibatch_policy, kit):
        policy = minibatch_policy
        state = policy.init(jax.random.key(0))
        mask = np.zeros((6, 3), bool)
        mask[:3, :2] = True  # 6 of 18 rows: 4 + 2, and three minibatches of nothing
        batch = kit.train_batch(mask=mask)
        after, out = policy.learn(state, batch)
        assert int(after.step) == 4
        params = host(state.params)
        present = jnp.asarray(mask.reshape(-1))
        losses_seen = []
        for order in orders_of(state, 18, 2, present):
            assert mask.reshape(-1)[order[:6]].all()
            for rows in np.split(order[:6], [4]):
                at = state.replace(params=jax.tree.map(jnp.float32, params))
                part = batch.flatten().take(rows)
                losses_seen.append(float(policy.gradients(at, part)[1].metrics["total_loss"]))
                params = np_step(params, batch, rows)
        kit.equal(after.params, params, 1e-5)
        assert float(out.metrics["total_loss"]) == pytest.approx(np.mean(losses_seen[2:]), rel=1e-4)

    def test_a_mask_of_ones_changes_nothing(self, minibatch_policy, kit):
        batch = kit.train_batch(6, 4)
        state = minibatch_policy.init(jax.random.key(0))
        masked = batch.with_columns(mask=np.ones((6, 4), bool))
        kit.equal(minibatch_policy.learn(state, masked)[0], minibatch_policy.learn(state, batch)[0], 1e-6)

    def test_rows_come_back_in_the_batchs_order(self, build, kit):
        def loss(params, batch, ctx):
            value = ctx.forward(params, batch).value
            return batch.mean(value), LearnOutput({}, {"reward": batch["rewards"], "obs": batch["obs"]})

        batch = kit.train_batch(3, 3)
        for config in ({}, {"num_sgd_iter": 2}, {"sgd_minibatch_size": 4, "num_sgd_iter": 2}):
            policy = build(loss, **config)
            rows = policy.learn(policy.init(jax.random.key(0)), batch)[1].rows
            for name in ("reward", "obs"):
                expected = batch["rewards" if name == "reward" else name]
                np.testing.assert_array_equal(np.reshape(rows[name], np.shape(expected)), expected)


class TestRecurrent:
    @pytest.fixture(scope="class")
    @staticmethod
    def policy(kit):
        def loss(params, batch, ctx):
            out = ctx.forward(params, batch)
            rows = {"t": batch["t"], "value": out.value}
            return kit.pg_loss(params, batch, ctx), LearnOutput({"columns": jnp.float32(batch.B)}, rows)

        model = {"fcnet_hiddens": [4], "use_gru": True, "lstm_cell_size": 4, "max_seq_len": 3}
        config = {"lr": LR, "optimizer": "sgd", "model": model, "sgd_minibatch_size": 6, "num_sgd_iter": 1}
        return build_policy("P", loss_fn=loss)(kit.obs, kit.actions, config)

    def test_minibatches_are_columns_with_their_state(self, policy, kit):
        state = policy.init(jax.random.key(0))
        carried = jax.tree.map(
            lambda x: np.random.default_rng(0).normal(size=x.shape).astype(np.float32), policy.initial_carry(5)[0]
        )
        batch = kit.train_batch(3, 5, state=carried)
        after, out = policy.learn(state, batch)
        assert float(out.metrics["columns"]) == 2  # 6 rows of columns of 3
        expected = state
        for columns in np.split(np.append(orders_of(state, 5, 1)[0], -1), 3):
            valid = columns >= 0
            part = batch.take(columns[valid])
            assert part["state_in"]["h"].shape == (valid.sum(), 4)
            expected = policy.apply_gradients(expected, policy.gradients(expected, part)[0])
        kit.equal(after.params, expected.params, 1e-5)
        np.testing.assert_array_equal(out.rows["t"], batch["t"])
        assert out.rows["value"].shape == (3, 5)

    def test_state_and_resets_matter(self, policy, kit):
        state = policy.init(jax.random.key(0))
        carried = jax.tree.map(lambda x: x + 1.0, policy.initial_carry(2)[0])
        batch = kit.train_batch(3, 2, state=carried, end=0.0)
        started = batch.with_columns(t=batch["t"] + 1)  # no row starts an episode: the state is used
        zeros = started.with_columns(state_in=jax.tree.map(np.zeros_like, started["state_in"]))
        losses_of = [float(policy.gradients(state, b)[1].metrics["total_loss"]) for b in (batch, started, zeros)]
        assert losses_of[0] == pytest.approx(losses_of[2], rel=1e-6)
        assert losses_of[0] != losses_of[1]


class TestNonFinite:
    def test_metrics_of_the_first_bad_step(self, build, kit):
        def loss(params, batch, ctx):
            value = ctx.forward(params, batch).value
            bad = jnp.log(-1.0 - 0.0 * batch.mean(batch["rewards"]))
            spoilt = jnp.where((batch["rewards"] > 50).any(), bad, 0.0)
            return batch.mean(value) + spoilt, LearnOutput({"cause": spoilt, "fine": batch.mean(batch["rewards"])})

        policy, batch = (
            build(loss, sgd_minibatch_size=3, num_sgd_iter=2, shuffle_sequences=False),
            kit.train_batch(3, 3),
        )
        rewards = np.array(batch["rewards"])
        rewards[1, 0] = 99.0  # in the second minibatch; every later step has NaN parameters
        state = policy.init(jax.random.key(0))
        _, out = policy.learn(state, batch.with_columns(rewards=rewards))
        assert np.isnan(float(out.metrics["cause"]))
        assert float(out.metrics["fine"]) == pytest.approx(rewards[1].mean(), rel=1e-5)


class TestUpdateFn:
    @pytest.mark.parametrize(("kl", "factor"), [(0.021, 1.5), (0.019, 1.0), (0.006, 1.0), (0.004, 0.5)])
    def test_adaptive_kl(self, kl, factor):
        from jaxrl.algorithms.ppo import PPOConfig, update_kl

        coeffs = update_kl(
            {"kl_coeff": jnp.float32(0.2), "lr": jnp.float32(1.0)}, {"kl": kl}, PPOConfig(kl_target=0.01)
        )
        assert float(coeffs["kl_coeff"]) == pytest.approx(0.2 * factor)
        assert float(coeffs["lr"]) == 1.0

    def test_runs_once_per_batch_on_the_metrics(self, kit):
        factory = build_policy(
            "P",
            loss_fn=losses.term(kit.pg_loss, beta=1.0),
            make_model=kit.model,
            update_fn=lambda coeffs, metrics, config: {
                **coeffs,
                "beta": coeffs["beta"] * 2 + 0 * metrics["total_loss"],
            },
        )
        policy = factory(kit.obs, kit.actions, {"num_sgd_iter": 3, "sgd_minibatch_size": 4})
        state, _ = policy.learn(policy.init(jax.random.key(0)), kit.train_batch())
        assert float(state.coeffs["beta"]) == 2.0
        assert state.coeffs["beta"].dtype == jnp.float32


class TestTraces:
    def test_what_changes_never_recompiles(self, kit):
        traces = []

        def counted(params, batch, ctx):
            traces.append(1)
            return terms(params, batch, ctx)

        terms = losses.weighted_sum(pg=(1.0, losses.clipped_surrogate()), entropy=(0.01, losses.entropy_bonus()))
        factory = build_policy("P", loss_fn=losses.term(counted, **terms.coeffs), make_model=kit.model)
        policy = factory(kit.obs, kit.actions, {"sgd_minibatch_size": 4, "num_sgd_iter": 2})
        state, batch = policy.init(jax.random.key(0)), kit.train_batch(3, 3)
        state, _ = policy.learn(state, batch)
        state, _ = policy.learn(state, batch)
        seen = len(traces)
        for name, value in (("lr", 0.5), ("clip_param", 0.01), ("entropy_coeff", 0.0), ("lr", 3e-4)):
            state = state.replace(coeffs={**state.coeffs, name: jnp.asarray(value, jnp.float32)})
            state, _ = policy.learn(state, batch)
        assert len(traces) == seen
        learn: Any = policy.learn
        assert learn._cache_size() == 1

    def test_learning_rate_is_obeyed(self, build, kit):
        policy, batch = build(), kit.train_batch()
        state = policy.init(jax.random.key(0))
        still, _ = policy.learn(state.replace(coeffs={"lr": jnp.float32(0.0)}), batch)
        kit.equal(still.params, state.params)


class TestTransformations:
    def test_vmap_over_seeds(self, minibatch_policy, kit):
        policy, batch = minibatch_policy, kit.train_batch(6, 4)
        keys = jax.random.split(jax.random.key(5), 3)
        states = jax.vmap(policy.init)(keys)
        together, out = jax.vmap(policy.learn, in_axes=(0, None))(states, batch)
        for i, key in enumerate(keys):
            alone, alone_out = policy.learn(policy.init(key), batch)
            kit.equal(jax.tree.map(lambda x, i=i: x[i], together.params), alone.params, 1e-6)
            assert float(out.metrics["total_loss"][i]) == pytest.approx(
                float(alone_out.metrics["total_loss"]), rel=1e-5
            )

    def test_vmap_skips_by_itself(self, minibatch_policy, kit):
        mask = np.zeros((6, 3), bool)
        mask[0] = True
        batch, policy = kit.train_batch(mask=mask), minibatch_policy
        keys = jax.random.split(jax.random.key(5), 2)
        together, _ = jax.vmap(policy.learn, in_axes=(0, None))(jax.vmap(policy.init)(keys), batch)
        assert together.step.tolist() == [2, 2]
        kit.equal(together.params["value"][1], policy.learn(policy.init(keys[1]), batch)[0].params["value"], 1e-6)

    def test_scan_over_learn(self, minibatch_policy, kit):
        policy, batch = minibatch_policy, kit.train_batch(6, 4)
        state = policy.init(jax.random.key(0))

        @jax.jit
        def twice(state):
            return jax.lax.scan(lambda s, _: policy.learn(s, batch), state, length=2)

        after, out = twice(state)
        second, second_out = policy.learn(policy.learn(state, batch)[0], batch)
        kit.equal(after.params, second.params, 1e-6)
        assert float(out.metrics["total_loss"][1]) == pytest.approx(float(second_out.metrics["total_loss"]), rel=1e-5)

    def test_nothing_is_donated(self, minibatch_policy, kit):
        state = minibatch_policy.init(jax.random.key(0))
        before = kit.leaves(state.params)
        minibatch_policy.learn(state, kit.train_batch(6, 4))
        for kept, now in zip(before, kit.leaves(state.params), strict=True):
            np.testing.assert_array_equal(kept, now)
