"""weighted_sum: values, coeffs, metrics, rows, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.types import LearnOutput, LossError


def constant(value, metrics=None, rows=None, **coeffs):
    return losses.term(
        lambda params, batch, ctx: (jnp.float32(value), LearnOutput(metrics or {}, rows or {})), **coeffs
    )


def ppo():
    return losses.weighted_sum(
        surrogate=(1.0, losses.clipped_surrogate(clip_param=0.2)),
        vf_loss=(0.5, losses.value_error()),
        entropy=(0.01, losses.entropy_bonus()),
    )


def test_coeffs_are_the_union():
    expected = {"surrogate_coeff": 1.0, "clip_param": 0.2, "vf_loss_coeff": 0.5, "entropy_coeff": 0.01}
    assert ppo().coeffs == expected
    assert losses.coeffs_of(ppo()) == expected
    assert losses.coeffs_of(lambda params, batch, ctx: 0.0) == {}
    assert repr(ppo()) == "weighted_sum(surrogate_coeff=1.0, clip_param=0.2, vf_loss_coeff=0.5, entropy_coeff=0.01)"


def test_value_is_the_weighted_sum_and_metrics_are_named(params, batch, make_ctx):
    loss_fn = ppo()
    ctx = make_ctx(**loss_fn.coeffs)
    total, out = loss_fn(params, batch, ctx)
    surrogate = losses.clipped_surrogate()(params, batch, ctx)
    vf_loss, _ = losses.value_error()(params, batch, ctx)
    entropy = losses.entropy_bonus()(params, batch, ctx)[1].metrics["entropy"]
    np.testing.assert_allclose(total, surrogate + 0.5 * vf_loss - 0.01 * entropy, rtol=1e-6)
    assert set(out.metrics) == {"surrogate", "vf_loss", "vf_explained_var", "entropy", "total_loss"}
    for name, value in (("total_loss", total), ("surrogate", surrogate), ("vf_loss", vf_loss), ("entropy", entropy)):
        np.testing.assert_array_equal(out.metrics[name], value)


def test_coeffs_are_read_when_called_and_never_recompile(params, batch, make_ctx):
    loss_fn, traces = ppo(), []

    @jax.jit
    def total(params, coeffs):
        traces.append(1)
        return loss_fn(params, batch, make_ctx(**coeffs))[0]

    coeffs = {name: jnp.float32(value) for name, value in loss_fn.coeffs.items()}
    values = [total(params, {**coeffs, name: jnp.float32(3.0)}) for name in coeffs]
    assert len(traces) == 1
    assert len({float(value) for value in [*values, total(params, coeffs)]}) == len(coeffs) + 1


def test_is_a_plain_function_to_jax(params, batch, make_ctx):
    loss_fn = ppo()
    ctx = make_ctx(**loss_fn.coeffs)
    gradients, out = jax.jit(lambda params: jax.grad(loss_fn, has_aux=True)(params, batch, ctx))(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradients))
    assert "total_loss" in out.metrics


def test_weight_zero_and_integer_weights(make_ctx):
    loss_fn = losses.weighted_sum(a=(2, constant(3.0)), b=(0, constant(5.0)))
    total, out = loss_fn(None, None, make_ctx(**loss_fn.coeffs))
    assert float(total) == 6.0
    assert float(out.metrics["b"]) == 5.0


def test_nested_sums(make_ctx):
    inner = losses.weighted_sum(a=(2.0, constant(3.0, {"detail": jnp.float32(7.0)})), b=(1.0, constant(1.0)))
    outer = losses.weighted_sum(inner=(10.0, inner), c=(1.0, lambda params, batch, ctx: jnp.float32(0.5)))
    assert outer.coeffs == {"inner_coeff": 10.0, "a_coeff": 2.0, "b_coeff": 1.0, "c_coeff": 1.0}
    total, out = outer(None, None, make_ctx(**outer.coeffs))
    assert float(total) == 70.5
    assert {k: float(v) for k, v in out.metrics.items()} == {
        "inner": 7.0, "a": 3.0, "b": 1.0, "c": 0.5, "detail": 7.0, "total_loss": 70.5,
    }  # fmt: skip


def test_rows_are_merged(make_ctx):
    loss_fn = losses.weighted_sum(
        a=(1.0, constant(0, rows={"td_error": np.ones(2)})), b=(1.0, constant(0, rows={"x": 1}))
    )
    _, out = loss_fn(None, None, make_ctx(**loss_fn.coeffs))
    assert set(out.rows) == {"td_error", "x"}


def test_own_terms_read_their_coeffs(make_ctx):
    def scaled(params, batch, ctx):
        return losses.coeff(ctx, "scale") * 2.0

    own = losses.term(scaled, scale=4.0)
    assert own.coeffs == {"scale": 4.0}
    assert own.name == "scaled"
    assert own(None, None, make_ctx(scale=4.0)) == 8.0
    assert losses.term(own, offset=1.0).coeffs == {"scale": 4.0, "offset": 1.0}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"a": (1.0, constant(0, clip_param=0.2)), "b": (1.0, constant(0, clip_param=0.3))},
            "coeff 'clip_param' comes from term 'a' and from term 'b'",
        ),
        (
            {"a": (1.0, constant(0)), "b": (1.0, constant(0, a_coeff=0.3))},
            "coeff 'a_coeff' comes from the weight of 'a' and from term 'b'",
        ),
        ({}, "at least one"),
        ({"a": constant(0)}, r"expected \(weight, loss_fn\)"),
        ({"a": (constant(0), 1.0)}, r"expected \(weight, loss_fn\)"),
        ({"total_loss": (1.0, constant(0))}, "'total_loss' is taken"),
        ({"a": ("1.0", constant(0))}, "expected a number as weight, got '1.0'"),
    ],
)
def test_refused_when_made(terms, message):
    with pytest.raises(LossError, match=message):
        losses.weighted_sum(**terms)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"a": (1.0, constant(0, {"kl": 1})), "b": (1.0, constant(0, {"kl": 1}))},
            "metric 'kl' comes from term 'a' and from term 'b'",
        ),
        (
            {"a": (1.0, constant(0, {"b": 1})), "b": (1.0, constant(0))},
            "metric 'b' comes from term 'a' and from term 'b'",
        ),
        (
            {"a": (1.0, constant(0, rows={"td": 1})), "b": (1.0, constant(0, rows={"td": 1}))},
            "row 'td' comes from term 'a' and from term 'b'",
        ),
        ({"a": (1.0, lambda p, b, c: jnp.zeros(3))}, r"term 'a': expected a scalar, got shape \(3,\)"),
        ({"a": (1.0, lambda p, b, c: (jnp.zeros(()), {"x": 1}))}, r"term 'a': .*got \(\.\.\., dict\)"),
        ({"a": (1.0, lambda p, b, c: "nothing")}, "term 'a': .*got str"),
    ],
)
def test_refused_when_called(terms, message, make_ctx):
    loss_fn = losses.weighted_sum(**terms)
    with pytest.raises(LossError, match=message):
        loss_fn(None, None, make_ctx(**loss_fn.coeffs))


def test_missing_coeff_lists_those_there_are(params, batch, make_ctx):
    with pytest.raises(LossError, match=r"no 'clip_param'; it has \['entropy_coeff'\]"):
        losses.clipped_surrogate()(params, batch, make_ctx(entropy_coeff=0.0))
