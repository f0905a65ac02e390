"""Losses that look along time: values of true successors, whole columns in minibatches, what terms share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import LearnOutput, build_policy, losses
from jaxrl.models import Model
from jaxrl.policies import lagged_target
from jaxrl.policies.learning import _orders, order_key
from jaxrl.types import LossError, ModelInputs

GAMMA = 0.9
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]], bool)
IMPALA = {
    "policy_loss": (1.0, losses.vtrace_policy_gradient()),
    "vf_loss": (0.5, losses.vtrace_value_error()),
    "entropy": (0.01, losses.entropy_bonus()),
}
READS = {
    "obs",
    "actions",
    "action_logp",
    "rewards",
    "terminateds",
    "dones",
    "last_obs",
    "final_obs",
    "final_index",
}


@pytest.fixture(scope="module")
def build(kit):
    def build(loss_fn=None, make_model=kit.model, target_fn=None, **config):
        factory = build_policy(
            "P", loss_fn=loss_fn or losses.weighted_sum(**IMPALA), make_model=make_model, target_fn=target_fn
        )
        return factory(kit.obs, kit.actions, {"gamma": GAMMA, "lr": 0.1, "optimizer": "sgd", **config})

    return build


def successors_by_hand(batch, value):
    """Of the rows that did not terminate: `value(observation)` of what came after them."""
    mask = np.asarray(batch["mask"]) if "mask" in batch else np.ones(batch.shape, bool)
    finals = {tuple(place): i for i, place in enumerate(np.asarray(batch["final_index"]).tolist())}
    out = np.full(batch.shape, np.nan)
    for b in range(batch.B):
        following = batch["last_obs"][b]
        for t in reversed(range(batch.T)):
            if not mask[t, b]:
                continue
            if batch["dones"][t, b]:
                following = batch["final_obs"][finals[(t, b)]]
            if not batch["terminateds"][t, b]:
                out[t, b] = value(following)
            following = batch["obs"][t, b]
    return out


class TestNextValues:
    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
    def test_feed_forward(self, build, kit, mask):
        policy, batch = build(), kit.train_batch(mask=mask, end=0.4)
        assert batch["terminateds"].any() and batch["truncateds"].any()
        state = policy.init(jax.random.key(0))
        got = np.asarray(policy.context(state).next_values(state.params, batch))
        expected = successors_by_hand(batch, lambda obs: obs @ np.asarray(state.params["value"]))
        known = ~np.isnan(expected)
        assert known.sum() > 6
        np.testing.assert_allclose(got[known], expected[known], rtol=1e-4, atol=1e-5)

    def test_no_gradient_and_no_need_of_final_observations(self, build, kit):
        policy, batch = build(), kit.train_batch(end=0.0)
        state = policy.init(jax.random.key(0))
        ctx = policy.context(state)
        grads = jax.grad(lambda params: ctx.next_values(params, batch).sum())(state.params)
        assert not any(x.any() for x in kit.leaves(grads))
        without = batch.drop(["final_obs", "final_index"])
        kit.equal(ctx.next_values(state.params, without), ctx.next_values(state.params, batch), 1e-6)

    @pytest.mark.parametrize("truncated", [True, False])
    @pytest.mark.parametrize("masked", [False, True])
    def test_recurrent(self, kit, masked, truncated):
        """A GRU that sees the previous action and reward too, against the same model run row by row."""
        model = {"fcnet_hiddens": [3], "use_gru": True, "lstm_cell_size": 3, "lstm_use_prev_action_reward": True}
        policy = build_policy("P", loss_fn=losses.weighted_sum(**IMPALA))(kit.obs, kit.actions, {"model": model})
        state = policy.init(jax.random.key(0))
        start = jax.tree.map(lambda x: x + 0.5, policy.initial_carry(3)[0])
        batch = kit.train_batch(end=0.3, state=start, mask=MASK if masked else None)
        if not truncated:
            ended = batch["dones"]
            batch = batch.with_columns(terminateds=ended, truncateds=np.zeros_like(ended))
        mask = np.asarray(batch.valid())
        # Absent rows start no episode; what starts one is the first row after an end.
        starts = np.ones(batch.shape, bool)
        for b in range(3):
            rows = np.flatnonzero(mask[:, b])
            starts[rows[1:], b] = batch["dones"][rows[:-1], b]
        batch = batch.with_columns(t=np.where(mask & starts, 0, 1).astype(np.int32))
        got = np.asarray(jax.jit(policy.context(state).next_values)(state.params, batch))
        apply = jax.jit(policy.spec.model.apply)
        finals = {tuple(place): i for i, place in enumerate(np.asarray(batch["final_index"]).tolist())}
        checked = 0
        for b in range(3):
            carry = jax.tree.map(lambda x, b=b: x[b : b + 1], start)

            def run(obs, prev_action, prev_reward, reset, carry):
                inputs = ModelInputs(*(jnp.asarray(x)[None, None] for x in (obs, prev_action, prev_reward, reset)))
                out = apply(state.params, inputs, carry)
                return float(out.value[0, 0]), out.state

            def own(t, b=b):
                return batch["obs"][t, b], batch["prev_actions"][t, b], batch["prev_rewards"][t, b]

            rows = np.flatnonzero(mask[:, b])
            for t, after in itertools.zip_longest(rows, rows[1:]):
                _, carry = run(*own(t), batch["t"][t, b] == 0, carry)
                if batch["terminateds"][t, b]:
                    continue
                did = batch["actions"][t, b], batch["rewards"][t, b], False
                if batch["truncateds"][t, b]:
                    expected = run(batch["final_obs"][finals[(t, b)]], *did, carry)[0]
                elif after is None:
                    expected = run(batch["last_obs"][b], *did, carry)[0]
                else:
                    expected = run(*own(after), batch["t"][after, b] == 0, carry)[0]
                assert got[t, b] == pytest.approx(expected, rel=1e-4, abs=1e-5)
                checked += 1
        assert checked > 6

    def test_flat_rows_are_refused_with_what_to_do(self, build):
        def looks(params, batch, ctx):
            return batch.mean(ctx.next_values(params, batch))

        with pytest.raises(LossError, match=r"time-major.*got flat rows.*losses\.sequence_term\(fn\)"):
            build(looks, sgd_minibatch_size=4)
        assert build(looks).spec.reads  # one minibatch is the whole batch
        assert build(losses.sequence_term(looks), sgd_minibatch_size=4).spec.reads


class TestColumns:
    def test_minibatches_are_whole_columns_of_feed_forward_policies_too(self, build, kit):
        def loss(params, batch, ctx):
            value, _ = impala(params, batch, ctx)
            shape = {"steps": jnp.float32(batch.shape[0]), "columns": jnp.float32(batch.shape[1])}
            return value, LearnOutput(shape, {"t": batch["t"]})

        impala = losses.weighted_sum(**IMPALA)
        policy = build(losses.sequence_term(loss, **impala.coeffs), sgd_minibatch_size=6, num_sgd_iter=2)
        batch = kit.train_batch(3, 5, end=0.3)
        state = policy.init(jax.random.key(0))
        after, out = policy.learn(state, batch)
        assert (float(out.metrics["steps"]), float(out.metrics["columns"])) == (3, 2)
        np.testing.assert_array_equal(out.rows["t"], batch["t"])
        expected = state
        for order in np.asarray(_orders(order_key(state), 5, None, 2, True)):
            for columns in np.split(order, [2, 4]):
                grads = policy.gradients(expected, batch.take(columns))[0]
                expected = policy.apply_gradients(expected, grads)
        kit.equal(after.params, expected.params, 1e-5)
        assert int(after.step) == 6

    def test_what_the_loss_reads_and_postprocessing_makes(self, build, kit):
        policy = build(sgd_minibatch_size=4)
        assert policy.spec.reads >= READS
        fragment = kit.fragment()
        filled = policy.postprocess(policy.init(jax.random.key(0)).weights, fragment)
        assert set(filled) - set(fragment) == {"action_logp"}

    def test_masked_rows_change_nothing(self, build, kit):
        policy = build(num_sgd_iter=2)
        state, batch = policy.init(jax.random.key(0)), kit.train_batch(mask=MASK, end=0.3)
        spoilt = batch.with_columns(
            {name: np.where(MASK, batch[name], 1e3).astype(np.float32) for name in ("rewards", "action_logp")}
        )
        kit.equal(policy.learn(state, spoilt), policy.learn(state, batch), 1e-6)


class TestShared:
    """Each row goes through the model once, and V-trace runs once, whatever the order of the terms."""

    @pytest.mark.parametrize("order", list(itertools.permutations(IMPALA)))
    def test_impalas_terms(self, build, kit, order):
        rows = []

        def counting(*args):
            model = kit.model(*args)

            def apply(params, inputs, state=()):
                rows.append(int(np.prod(inputs.obs.shape[:-1])))
                return model.apply(params, inputs, state)

            return Model(model.init, apply, model.initial_state, model.reads)

        policy = build(losses.weighted_sum(**{name: IMPALA[name] for name in order}), make_model=counting)
        state, batch = policy.init(jax.random.key(0)), kit.train_batch()
        rows.clear()
        program = str(jax.make_jaxpr(policy.gradients)(state, batch))
        assert sorted(rows) == sorted([18, 3 + batch["final_index"].shape[0]])  # rows; last and final observations
        assert program.count("= scan[") == 1

    def test_terms_of_the_target_network_share_its_pass_too(self, build, kit):
        loss = losses.weighted_sum(
            policy_loss=(1.0, losses.vtrace_surrogate()),
            vf_loss=(0.5, losses.vtrace_value_error(target_policy=True)),
            kl=(1.0, losses.target_kl_penalty()),
        )
        policy = build(loss, target_fn=lambda state, config: lagged_target(state, 3))
        state, batch = policy.init(jax.random.key(0)), kit.train_batch()
        program = str(jax.make_jaxpr(policy.gradients)(state, batch))
        assert program.count("= scan[") == 1
        # Logits and value of the rows under both networks and of the bootstraps, two gradients, and the norm of these.
        assert program.count("dot_general[") == 2 + 2 + 2 + 2 + 1

    def test_outside_a_trace_nothing_is_kept(self, build, kit):
        policy, batch = build(), kit.train_batch()
        state = policy.init(jax.random.key(0))
        ctx, calls = policy.context(state), []
        for _ in range(2):
            ctx.once(lambda params, batch, ctx: calls.append(1), state.params, batch)
        assert len(calls) == 2


class TestLaggedTarget:
    def test_follows_every_so_many_gradient_steps(self, build, kit):
        loss = losses.weighted_sum(
            policy_loss=(1.0, losses.vtrace_surrogate()), vf_loss=(0.5, losses.vtrace_value_error(target_policy=True))
        )
        policy = build(loss, target_fn=lambda state, config: lagged_target(state, 3))
        state, batch = policy.init(jax.random.key(0)), kit.train_batch()
        history = [state.params]
        for step in range(1, 8):
            state, _ = policy.learn(state, batch)
            history.append(state.params)
            kit.equal(state.target_params, history[step - step % 3])


class TestChoose:
    LOSS = losses.weighted_sum(
        policy_loss=(
            1.0,
            losses.choose(
                "use_gae", {True: losses.advantage_policy_gradient(), False: losses.vtrace_policy_gradient()}
            ),
        ),
        vf_loss=(0.5, losses.choose("use_gae", {True: losses.value_error(), False: losses.vtrace_value_error()})),
    )

    def test_the_option_says_which_term_and_which_layout(self, build, kit):
        rows, columns = (build(self.LOSS, use_gae=gae, sgd_minibatch_size=6) for gae in (True, False))
        assert {"advantages", "value_targets"} <= rows.spec.reads and "last_obs" not in rows.spec.reads
        assert columns.spec.reads >= READS and "advantages" not in columns.spec.reads
        state, batch = columns.init(jax.random.key(0)), kit.train_batch()
        expected = build(losses.weighted_sum(**{name: IMPALA[name] for name in ("policy_loss", "vf_loss")}))
        kit.equal(columns.gradients(state, batch)[0], expected.gradients(state, batch)[0], 1e-6)
        assert self.LOSS.coeffs == {
            "policy_loss_coeff": 1.0,
            "vtrace_clip_rho_threshold": 1.0,
            "vtrace_clip_pg_rho_threshold": 1.0,
            "vf_loss_coeff": 0.5,
        }

    def test_two_defaults_and_values_without_a_term_are_refused(self, build):
        with pytest.raises(LossError, match=r"choose\('a'\): coeff 'clip_param' has two defaults, 0.1 and, for 2, 0.2"):
            losses.choose("a", {1: losses.clipped_surrogate(0.1), 2: losses.clipped_surrogate(0.2)})
        with pytest.raises(LossError, match=r"choose\('gamma'\): no term for 0.9; there are \[0.5\]"):
            build(losses.choose("gamma", {0.5: losses.value_error()}))
