"""Loss terms against NumPy, by hand, under jit, and on padded batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.data.sample_batch import SampleBatch
from jaxrl.losses import split_output

TERMS = {
    "reinforce": losses.reinforce(),
    "advantage": losses.advantage_policy_gradient(),
    "surrogate": losses.clipped_surrogate(),
    "kl": losses.kl_penalty(),
    "entropy": losses.entropy_bonus(),
    "value": losses.value_error(),
    "clipped_value": losses.clipped_value_error(vf_clip_param=0.5),
}
every_term = pytest.mark.parametrize("name", TERMS)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def oracle(name, params, c):
    """Each term in NumPy, float64."""
    log_p = log_softmax(np.asarray(c["obs"] @ params["policy"], np.float64))
    log_old = log_softmax(np.asarray(c["action_dist_inputs"], np.float64))
    chosen = np.take_along_axis(log_p, c["actions"][..., None], -1)[..., 0]
    value = (c["obs"] @ np.asarray(params["value"]))[..., 0]
    ratio, advantage, target = np.exp(chosen - c["action_logp"]), c["advantages"], c["value_targets"]
    moved = c["vf_preds"] + np.clip(value - c["vf_preds"], -0.5, 0.5)
    return {
        "reinforce": -(chosen * advantage),
        "advantage": -(chosen * advantage),
        "surrogate": -np.minimum(ratio * advantage, np.clip(ratio, 0.7, 1.3) * advantage),
        "kl": (np.exp(log_old) * (log_old - log_p)).sum(-1),
        "entropy": (np.exp(log_p) * log_p).sum(-1),
        "value": (value - target) ** 2,
        "clipped_value": np.maximum((value - target) ** 2, (moved - target) ** 2),
    }[name].mean()


@every_term
def test_against_numpy_with_and_without_jit(name, params, columns, batch, make_ctx):
    term = TERMS[name]
    ctx = make_ctx(**term.coeffs)
    expected = oracle(name, params, columns)
    value, _ = split_output(term(params, batch, ctx), name)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda p: split_output(term(p, batch, ctx), name)[0])(params), expected, rtol=1e-5
    )


@every_term
def test_flat_and_padded_batches_give_the_same_loss_and_gradient(name, params, columns, batch, make_ctx):
    term = TERMS[name]
    ctx = make_ctx(**term.coeffs)
    padded = {key: np.concatenate([x, np.full_like(x[:2], 0)]) for key, x in columns.items()}
    padded["mask"] = np.arange(7)[:, None] < np.full(3, 5)

    @jax.jit
    def loss_and_gradient(batch):
        return jax.value_and_grad(lambda p: split_output(term(p, batch, ctx), name)[0])(params)

    expected = loss_and_gradient(batch)
    flat = SampleBatch({key: x.reshape(15, *x.shape[2:]) for key, x in columns.items()}, time_major=False)
    for other in (flat, SampleBatch(padded)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, loss_and_gradient(other)
        )


def one_row(make_ctx, term, new_logp, old_logp, advantage):
    """Loss and d loss / d log-prob of one row whose policy gives the action this log-probability."""

    class Dist:
        def __init__(self, log_prob):
            self.value = log_prob

        def log_prob(self, actions):
            return self.value

    class Ctx:
        coeffs = term.coeffs

        def forward(self, params, batch):
            return type("Out", (), {"dist": Dist(params)})

    rows = {
        "actions": np.zeros(1, np.int32),
        "action_logp": np.array([old_logp], np.float32),
        "advantages": np.array([advantage], np.float32),
    }
    batch = SampleBatch(rows, time_major=False)
    return jax.value_and_grad(lambda log_prob: term(log_prob, batch, Ctx()))(jnp.array([new_logp], jnp.float32))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (2.0, 1.0, -1.2, 0.0),  # clipped: no incentive to go on
        (2.0, -1.0, 2.0, 2.0),  # worse than clipped: it counts
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(make_ctx, ratio, advantage, loss, gradient):
    term = losses.clipped_surrogate(clip_param=0.2)
    value, slope = one_row(make_ctx, term, np.log(ratio), 0.0, advantage)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(slope, [gradient], rtol=1e-5)


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_far_off_row_leaves_the_surrogate_finite(make_ctx, advantage):
    value, slope = one_row(make_ctx, losses.clipped_surrogate(), 0.0, -1e4, advantage)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_surrogate_gradient_at_the_old_policy_is_the_policy_gradient(params, columns, batch, make_ctx):
    ctx = make_ctx(clip_param=0.3)
    old = ctx.forward(params, batch).dist.log_prob(columns["actions"])
    batch = SampleBatch({**columns, "action_logp": np.asarray(old)})
    one, two = (jax.grad(term)(params, batch, ctx)["policy"] for term in (TERMS["surrogate"], TERMS["reinforce"]))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_advantages_carry_no_gradient(columns, make_ctx):
    def loss(advantages, term):
        batch = SampleBatch._make({**columns, "advantages": advantages})
        return term({"policy": jnp.ones((4, 3)), "value": jnp.ones((4, 1))}, batch, make_ctx())

    assert np.any(jax.grad(loss)(jnp.asarray(columns["advantages"]), TERMS["reinforce"]))
    assert not np.any(jax.grad(loss)(jnp.asarray(columns["advantages"]), TERMS["advantage"]))


def test_metrics(params, columns, batch, make_ctx):
    value = (columns["obs"] @ np.asarray(params["value"]))[..., 0]
    target = columns["value_targets"]
    _, out = TERMS["value"](params, batch, make_ctx())
    np.testing.assert_allclose(out.metrics["vf_loss"], np.mean((value - target) ** 2), rtol=1e-5)
    explained = max(-1.0, 1.0 - np.var(target - value) / np.var(target))
    np.testing.assert_allclose(out.metrics["vf_explained_var"], explained, rtol=1e-5)
    negative, out = TERMS["entropy"](params, batch, make_ctx())
    assert float(out.metrics["entropy"]) == -float(negative) > 0.0
    kl, out = TERMS["kl"](params, batch, make_ctx())
    assert float(out.metrics["kl"]) == float(kl) > 0.0


def test_kl_of_the_behaviour_policy_is_zero(params, columns, batch, make_ctx):
    inputs = np.asarray(columns["obs"] @ params["policy"])
    kl, _ = TERMS["kl"](params, SampleBatch({**columns, "action_dist_inputs": inputs}), make_ctx())
    np.testing.assert_allclose(kl, 0.0, atol=1e-6)


def test_mismatched_shapes_are_refused(params, columns, make_ctx):
    columns["advantages"] = columns["advantages"][..., None]
    with pytest.raises(AssertionError):
        TERMS["reinforce"](params, SampleBatch(columns), make_ctx())
