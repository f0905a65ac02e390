"""What postprocessing fills, against the same thing done row by row in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import build_policy, losses
from jaxrl.types import ActInputs, ModelInputs

GAMMA, LAMBDA = 0.9, 0.7
TERMS = losses.weighted_sum(
    pg=(1.0, losses.clipped_surrogate()), vf=(0.5, losses.clipped_value_error()), kl=(0.1, losses.kl_penalty())
)
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]], bool)


@pytest.fixture(scope="module")
def build(kit):
    def build(loss_fn=TERMS, config=None, **parts):
        factory = build_policy("P", loss_fn=loss_fn, **{"make_model": kit.model, **parts})
        return factory(kit.obs, kit.actions, {"gamma": GAMMA, "lambda": LAMBDA, **(config or {})})

    return build


@pytest.fixture(scope="module")
def policy(build):
    return build()


def advantages_by_hand(batch, value, lambda_):
    """GAE column by column, going back over the rows that are there."""
    mask = np.asarray(batch["mask"]) if "mask" in batch else np.ones(batch.shape, bool)
    finals = {tuple(place): i for i, place in enumerate(np.asarray(batch["final_index"]).tolist())}
    advantages = np.zeros(batch.shape)
    for b in range(batch.B):
        following, advantage = batch["last_obs"][b], 0.0
        for t in reversed(range(batch.T)):
            if not mask[t, b]:
                continue
            if batch["dones"][t, b]:
                following, advantage = batch["final_obs"][finals[(t, b)]], 0.0
            bootstrap = 0.0 if batch["terminateds"][t, b] else value(following)
            delta = batch["rewards"][t, b] + GAMMA * bootstrap - value(batch["obs"][t, b])
            advantage = delta + GAMMA * lambda_ * advantage
            advantages[t, b] = advantage
            following = batch["obs"][t, b]
    return advantages


def returns_by_hand(batch):
    """Discounted rewards to the end of the episode or fragment."""
    mask = np.asarray(batch["mask"]) if "mask" in batch else np.ones(batch.shape, bool)
    returns = np.zeros(batch.shape)
    for b in range(batch.B):
        total = 0.0
        for t in reversed(range(batch.T)):
            if mask[t, b]:
                total = batch["rewards"][t, b] + GAMMA * total * (1 - batch["dones"][t, b])
                returns[t, b] = total
    return returns


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
class TestFeedForward:
    def test_columns_equal_the_rows_by_hand(self, policy, kit, mask):
        state = policy.init(jax.random.key(0))
        batch = kit.fragment(mask=mask, end=0.4)
        assert batch["terminateds"].any() and batch["truncateds"].any()
        filled = policy.postprocess(state.weights, batch, {}, None)
        weights = {name: np.asarray(w, np.float64) for name, w in state.params.items()}
        logits = batch["obs"] @ weights["policy"]
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        valid = np.ones(batch.shape, bool) if mask is None else mask

        def check(name, expected):
            np.testing.assert_allclose(np.asarray(filled[name])[valid], expected[valid], rtol=1e-4, atol=1e-5)

        check("action_dist_inputs", logits)
        check("action_logp", np.take_along_axis(logp, batch["actions"][..., None], -1)[..., 0])
        check("vf_preds", batch["obs"] @ weights["value"])
        advantages = advantages_by_hand(batch, lambda obs: obs @ weights["value"], LAMBDA)
        check("advantages", advantages)
        check("value_targets", advantages + batch["obs"] @ weights["value"])
        assert set(filled) == {*batch, "action_dist_inputs", "action_logp", "vf_preds", "advantages", "value_targets"}

    def test_options(self, build, kit, mask):
        batch = kit.fragment(mask=mask)
        state = build().init(jax.random.key(0))
        value = np.asarray(state.params["value"], np.float64)

        def advantages(config):
            return np.asarray(build(config=config).postprocess(state.weights, batch)["advantages"])

        by_hand = advantages_by_hand(batch, lambda obs: obs @ value, 1.0)
        np.testing.assert_allclose(advantages({"use_gae": False}), by_hand, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(advantages({"use_critic": False}), returns_by_hand(batch), rtol=1e-4, atol=1e-5)

    def test_returns_where_nothing_reads_value_targets(self, build, kit, mask):
        policy, batch = build(losses.reinforce()), kit.fragment(mask=mask)
        filled = policy.postprocess(policy.init(jax.random.key(0)).weights, batch)
        np.testing.assert_allclose(filled["advantages"], returns_by_hand(batch), rtol=1e-4, atol=1e-5)
        assert set(filled) == {*batch, "advantages"}  # and no forward pass


class TestHook:
    def test_adds_and_overwrites(self, build, kit):
        def hook(params, batch, ctx, others):
            value = ctx.forward(params, batch).value + sum(other["rewards"] for other in others.values())
            return batch.with_columns(rewards=batch["rewards"] + 1.0, bonus=value)

        def loss(params, batch, ctx):
            return TERMS(params, batch, ctx)[0] + batch.mean(batch["bonus"])

        policy, batch = build(loss_fn=losses.term(loss, **TERMS.coeffs), postprocess_fn=hook), kit.fragment()
        state = policy.init(jax.random.key(0))
        filled = policy.postprocess(state.weights, batch, {"other": kit.fragment(seed=5)}, state.key)
        np.testing.assert_allclose(filled["rewards"], batch["rewards"] + 1.0)
        value = batch["obs"] @ np.asarray(state.params["value"])
        np.testing.assert_allclose(filled["bonus"], value + kit.fragment(seed=5)["rewards"], rtol=1e-5, atol=1e-5)
        raised = batch.with_columns(rewards=batch["rewards"] + 1.0)
        by_hand = advantages_by_hand(raised, lambda obs: obs @ np.asarray(state.params["value"]), LAMBDA)
        np.testing.assert_allclose(filled["advantages"], by_hand, rtol=1e-4, atol=1e-5)

    def test_columns_that_it_fills_stay(self, build, kit):
        def hook(params, batch, ctx, others):
            return batch.with_columns(value_targets=jnp.full(batch.shape, 7.0))

        policy, batch = build(postprocess_fn=hook), kit.fragment()
        state = policy.init(jax.random.key(0))
        filled = policy.postprocess(state.weights, batch)
        assert (np.asarray(filled["value_targets"]) == 7.0).all()
        # The loss reads value_targets, whoever fills it: the advantages are GAE's.
        by_hand = advantages_by_hand(batch, lambda obs: obs @ np.asarray(state.params["value"]), LAMBDA)
        np.testing.assert_allclose(filled["advantages"], by_hand, rtol=1e-4, atol=1e-5)

    def test_nothing_to_fill(self, build, kit):
        policy = build(lambda params, batch, ctx: batch.mean(ctx.forward(params, batch).value * batch["rewards"]))
        batch = kit.fragment()
        assert policy.postprocess(policy.init(jax.random.key(0)).weights, batch) is batch


class TestExplorationsLogp:
    def test_what_act_returned_is_kept(self, build, kit):
        def loss(params, batch, ctx):
            return batch.mean(ctx.forward(params, batch).value * batch["action_logp"] * batch["action_prob"])

        policy = build(loss, {"exploration_config": {"type": "Random"}})
        state, batch = policy.init(jax.random.key(0)), kit.fragment()
        out = policy.act(state.weights, ActInputs(batch["obs"][0]), policy.initial_carry(3), state.key, True)
        np.testing.assert_allclose(out.logp, np.log(0.5), rtol=1e-6)
        filled = policy.postprocess(
            state.weights, batch.with_columns(action_logp=np.full(batch.shape, -2.0, np.float32))
        )
        np.testing.assert_array_equal(filled["action_logp"], -2.0)
        np.testing.assert_allclose(filled["action_prob"], np.exp(-2.0), rtol=1e-6)


class TestRecurrent:
    """A GRU that also sees the previous action and reward."""

    MODEL = {
        "fcnet_hiddens": [3],
        "use_gru": True,
        "lstm_cell_size": 3,
        "max_seq_len": 4,
        "lstm_use_prev_action_reward": True,
    }

    @pytest.fixture(scope="class")
    @staticmethod
    def policy(kit):
        return build_policy("P", loss_fn=TERMS)(
            kit.obs, kit.actions, {"gamma": GAMMA, "lambda": LAMBDA, "model": TestRecurrent.MODEL}
        )

    @pytest.fixture(scope="class")
    @staticmethod
    def case(policy, kit):
        """A fragment, its postprocessed sequences, and the same policy run row by row."""
        state = policy.init(jax.random.key(0))
        start = jax.tree.map(lambda x: x + 0.5, policy.initial_carry(3)[0])
        batch = kit.fragment(end=0.3, state=start)
        batch = batch.with_columns(
            t=batch["t"] + np.array([4, 0, 2], np.int32) * (batch["eps_id"] == batch["eps_id"][:1])
        )
        apply = jax.jit(policy.spec.model.apply)
        carry, values, states, finals = start, [], [], {}

        def one(obs, prev_actions, prev_rewards, reset, carry):
            inputs = ModelInputs(*(jnp.asarray(x)[None] for x in (obs, prev_actions, prev_rewards, reset)))
            out = apply(state.params, inputs, carry)
            return np.asarray(out.value[0]), out.state

        def before(t):
            return batch["obs"][t], batch["prev_actions"][t], batch["prev_rewards"][t]

        never = np.zeros(3, bool)
        for t in range(batch.T):
            states.append(jax.tree.map(np.asarray, carry))
            value, carry = one(*before(t), batch["t"][t] == 0, carry)
            values.append(value)
            for slot, (final_t, b) in enumerate(np.asarray(batch["final_index"])):
                if final_t == t:
                    obs = np.tile(batch["final_obs"][slot], (3, 1))
                    value, _ = one(obs, batch["actions"][t], batch["rewards"][t], never, carry)
                    finals[(t, int(b))] = value[b]
        last, _ = one(batch["last_obs"], batch["actions"][-1], batch["rewards"][-1], never, carry)
        filled = policy.postprocess(state.weights, batch, {}, state.key)
        return batch, filled, np.stack(values), states, finals, last

    def test_cuts_carry_the_states_of_acting(self, case):
        batch, filled, _, states, _, _ = case
        assert filled.shape == (4, 6)  # 6 rows of 3 columns: sequences of 4 and of 2
        assert filled.count == 18
        for cut, row in enumerate((0, 4)):
            np.testing.assert_allclose(
                filled["state_in"]["h"][cut * 3 : cut * 3 + 3], states[row]["h"], rtol=1e-5, atol=1e-6
            )
        np.testing.assert_array_equal(filled["obs"][:, :3], batch["obs"][:4])
        np.testing.assert_array_equal(filled["obs"][:2, 3:], batch["obs"][4:])
        assert not np.asarray(filled["mask"])[2:, 3:].any()

    def test_advantages_are_of_the_whole_fragment(self, case):
        batch, filled, values, _, finals, last = case
        advantages = np.zeros(batch.shape)
        for b in range(3):
            following, advantage = last[b], 0.0
            for t in reversed(range(batch.T)):
                if batch["dones"][t, b]:
                    following, advantage = finals[(t, b)], 0.0
                bootstrap = 0.0 if batch["terminateds"][t, b] else following
                advantage = batch["rewards"][t, b] + GAMMA * bootstrap - values[t, b] + GAMMA * LAMBDA * advantage
                advantages[t, b], following = advantage, values[t, b]
        np.testing.assert_allclose(filled["vf_preds"][:, :3], values[:4], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(filled["advantages"][:, :3], advantages[:4], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(filled["advantages"][:2, 3:], advantages[4:], rtol=1e-4, atol=1e-5)

    def test_learning_starts_at_ratio_one(self, policy, case):
        _, filled, *_ = case
        state = policy.init(jax.random.key(0))
        metrics = policy.gradients(state, filled)[1].metrics
        assert float(metrics["kl"]) == pytest.approx(0.0, abs=1e-6)
        flat = filled.mean(filled["advantages"])
        assert float(metrics["pg"]) == pytest.approx(-float(flat), rel=1e-4)
