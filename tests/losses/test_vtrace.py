"""V-trace against the paper's sum, hand-worked numbers, and the returns that it equals on-policy; its loss terms."""

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses
from jaxrl.data import SampleBatch
from jaxrl.losses import needs_sequences, split_output
from jaxrl.types import LossError

F = np.zeros(3, bool)


def make_rows(seed=0, shape=(12, 3)):
    """Rows of other episodes, and of true ones: `v_tp1` is the next row's value wherever the episode goes on."""
    rng = np.random.default_rng(seed)
    r, v, v_tp1, log_rho = rng.normal(size=(4, *shape)).astype(np.float32)
    terminated = rng.random(shape) < 0.15
    ended = terminated | (rng.random(shape) < 0.15)
    return {
        "r_t": r,
        "v_t": v,
        "v_tp1": v_tp1,
        "log_rho_t": log_rho,
        "terminated_t": terminated,
        "ended_t": ended,
    }


def with_true_successors(rows, mask=None):
    """`v_tp1` becomes the value of the next row that is there, wherever the episode goes on."""
    v_tp1 = rows["v_tp1"].copy()
    for b in np.ndindex(v_tp1.shape[1:]):
        present = [t for t in range(len(v_tp1)) if mask is None or mask[(t, *b)]]
        for t, after in itertools.pairwise(present):
            if not rows["ended_t"][(t, *b)]:
                v_tp1[(t, *b)] = rows["v_t"][(after, *b)]
    return {**rows, "v_tp1": v_tp1}


def vtrace_oracle(rows, discount, lambda_, clip_rho, clip_pg_rho, clip_c, mask=None):
    """Equation 1 as the paper writes it, a sum over products of traces, for each row by itself; then section 4.2."""
    r, v, v_tp1, rho = (np.asarray(rows[name], np.float64) for name in ("r_t", "v_t", "v_tp1", "log_rho_t"))
    rho, terminated, ended = np.exp(rho), rows["terminated_t"], rows["ended_t"]

    def capped(x, threshold):
        return x if threshold is None else min(x, threshold)

    def bootstrap(at):
        return 0.0 if terminated[at] else v_tp1[at]

    vs, advantages = np.zeros(r.shape), np.zeros(r.shape)
    for b in np.ndindex(r.shape[1:]):
        present = [(t, *b) for t in range(len(r)) if mask is None or mask[(t, *b)]]
        for i, s in enumerate(present):
            vs[s], product = v[s], 1.0
            for t in present[i:]:
                vs[s] += product * capped(rho[t], clip_rho) * (r[t] + discount * bootstrap(t) - v[t])
                product *= discount * lambda_ * capped(rho[t], clip_c)
                if ended[t]:
                    break
        for i, s in enumerate(present):
            goes_on = i + 1 < len(present) and not ended[s]
            following = lambda_ * vs[present[i + 1]] + (1 - lambda_) * v[present[i + 1]] if goes_on else bootstrap(s)
            advantages[s] = capped(rho[s], clip_pg_rho) * (r[s] + discount * following - v[s])
    return vs, advantages


CLIPS = [(1.0, 1.0, 1.0), (None, None, None), (2.0, 0.7, 1.0), (np.inf, 1.5, 0.5)]


@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("lambda_", [1.0, 0.8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(12,), (12, 3), (6, 2, 2)])
def test_against_the_papers_sum_with_and_without_jit(shape, masked, lambda_, clips):
    mask = np.random.default_rng(5).random(shape) < 0.7 if masked else None
    rows = with_true_successors(make_rows(shape=shape), mask)
    assert rows["terminated_t"].any() and (rows["ended_t"] & ~rows["terminated_t"]).any()
    here = np.ones(shape, bool) if mask is None else mask
    names = dict(zip(("clip_rho", "clip_pg_rho", "clip_c"), clips, strict=True))
    vs, advantages = vtrace_oracle(rows, 0.9, lambda_, **names, mask=mask)

    def vtrace(rows, discount, lambda_, mask):
        return losses.vtrace(**rows, discount=discount, lambda_=lambda_, **names, mask=mask)

    for fn in (vtrace, jax.jit(vtrace)):
        out = fn(rows, 0.9, lambda_, mask)
        np.testing.assert_allclose(out.vs, vs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.pg_advantages, advantages, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.errors, np.where(here, vs - rows["v_t"], 0.0), rtol=1e-4, atol=1e-5)
        assert {x.dtype for x in out} == {jnp.dtype(jnp.float32)}


def test_by_hand():
    # rho = [2, 1/2, 1]: weights [1, 1/2, 1], traces 1/2 [1, 1/2, 1]; TD errors 1 + 0.5 * v_tp1 - v = [1, 0.5, 0].
    r, v, v_tp1 = np.ones(3, np.float32), np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])
    rows = (r, v, v_tp1, np.log([2.0, 0.5, 1.0]), F, F, 0.5)
    out = losses.vtrace(*rows)
    np.testing.assert_allclose(out.errors, [1.125, 0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(out.vs, [2.125, 2.25, 3.0])
    # r + 0.5 vs_{t+1} - v, the last with its own bootstrap: [1.125, 0.5, 0], times [1, 1/2, 1].
    np.testing.assert_allclose(out.pg_advantages, [1.125, 0.25, 0.0], atol=1e-6)
    unclipped = losses.vtrace(*rows, clip_pg_rho=None)
    np.testing.assert_allclose(unclipped.pg_advantages, [2.25, 0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(unclipped.vs, out.vs)


def test_termination_takes_no_value_truncation_that_of_the_true_successor():
    end = np.array([False, True, False])
    r, v, v_tp1, log_rho = np.ones(3, np.float32), np.zeros(3), np.array([10.0, 20.0, 30.0]), np.zeros(3)
    terminated = losses.vtrace(r, v, v_tp1, log_rho, end, end, 0.5)
    np.testing.assert_allclose(terminated.vs, [6.0 + 0.5 * 1.0, 1.0, 16.0])
    np.testing.assert_allclose(terminated.pg_advantages, terminated.vs)
    truncated = losses.vtrace(r, v, v_tp1, log_rho, F, end, 0.5)
    np.testing.assert_allclose(truncated.vs, [6.0 + 0.5 * 11.0, 11.0, 16.0])
    after_the_end = losses.vtrace(r, v, np.array([10.0, np.nan, 30.0]), log_rho, end, end, 0.5)
    np.testing.assert_array_equal(after_the_end.vs, terminated.vs)


@pytest.mark.parametrize("lambda_", [1.0, 0.7, 0.0])
def test_on_policy_values_are_lambda_returns(lambda_):
    rows = with_true_successors(make_rows())
    out = losses.vtrace(**{**rows, "log_rho_t": np.zeros((12, 3), np.float32)}, discount=0.9, lambda_=lambda_)
    ends = (rows["terminated_t"], rows["ended_t"])
    returns = losses.lambda_returns(rows["r_t"], rows["v_tp1"], *ends, 0.9, lambda_)
    np.testing.assert_allclose(out.vs, returns, rtol=1e-4, atol=1e-5)
    # lambda vs_{t+1} + (1 - lambda) v_{t+1} bootstraps the next step's return: the advantage is GAE's.
    advantages = losses.gae(rows["r_t"], rows["v_t"], rows["v_tp1"], *ends, 0.9, lambda_).advantages
    np.testing.assert_allclose(out.pg_advantages, advantages, rtol=1e-4, atol=1e-5)


def test_on_policy_values_are_n_step_returns():
    rows = with_true_successors(make_rows())
    out = losses.vtrace(**{**rows, "log_rho_t": np.zeros((12, 3), np.float32)}, discount=0.9)
    returns = losses.n_step_returns(rows["r_t"], rows["v_tp1"], rows["terminated_t"], rows["ended_t"], 0.9, n=12)
    np.testing.assert_allclose(out.vs, returns, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [0, 4, 12])
def test_absent_rows_change_nothing(at):
    rows = make_rows()
    garbage = {name: True if x.dtype == bool else np.nan for name, x in rows.items()}
    longer = {name: np.insert(x, [at, at], garbage[name], axis=0) for name, x in rows.items()}
    mask = np.insert(np.ones((12, 3), bool), [at, at], False, axis=0)
    short = losses.vtrace(**rows, discount=0.9, lambda_=0.8)
    long = jax.jit(lambda rows, mask: losses.vtrace(**rows, discount=0.9, lambda_=0.8, mask=mask))(longer, mask)
    for expected, got in zip(short, long, strict=True):
        np.testing.assert_allclose(np.asarray(got)[mask[:, 0]], expected, rtol=1e-5, atol=1e-6)
        assert not np.asarray(got)[~mask[:, 0]].any()


def test_far_off_policies_stay_finite():
    rows = {**make_rows(), "log_rho_t": np.full((12, 3), 1e4, np.float32)}
    for clip in (1.0, None):
        out = losses.vtrace(**rows, discount=0.9, clip_rho=clip, clip_pg_rho=clip)
        assert all(np.isfinite(x).all() for x in out)
    never = losses.vtrace(**{**rows, "log_rho_t": np.full((12, 3), -1e4, np.float32)}, discount=0.9)
    assert not np.any(never.errors) and not np.any(never.pg_advantages)


def test_thresholds_and_lambda_may_be_traced():
    rows = make_rows()

    @jax.jit
    def vtrace(clip_rho, clip_pg_rho, lambda_):
        return losses.vtrace(**rows, discount=0.9, lambda_=lambda_, clip_rho=clip_rho, clip_pg_rho=clip_pg_rho)

    for clips in ((1.0, 1.0), (2.0, np.inf)):
        expected = losses.vtrace(**rows, discount=0.9, lambda_=0.8, clip_rho=clips[0], clip_pg_rho=clips[1])
        for x, y in zip(vtrace(*clips, 0.8), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_shapes_and_types_are_checked():
    rows = make_rows()
    with pytest.raises(AssertionError):
        losses.vtrace(**{**rows, "log_rho_t": rows["log_rho_t"][:-1]}, discount=0.9)
    with pytest.raises(AssertionError):
        losses.vtrace(**{**rows, "ended_t": rows["ended_t"].astype(np.float32)}, discount=0.9)


GAMMA, LAMBDA = 0.9, 0.8
CONFIG = SimpleNamespace(gamma=GAMMA, lambda_=LAMBDA)
THRESHOLDS: dict[str, Any] = {"vtrace_clip_rho_threshold": 1.2, "vtrace_clip_pg_rho_threshold": 0.9}
TERMS = {
    "gradient": losses.vtrace_policy_gradient(**THRESHOLDS),
    "value": losses.term(losses.vtrace_value_error(), **THRESHOLDS),
    "target_value": losses.term(losses.vtrace_value_error(target_policy=True), **THRESHOLDS),
    "surrogate": losses.vtrace_surrogate(clip_param=0.2, is_ratio_clip=1.5, **THRESHOLDS),
    "kl": losses.target_kl_penalty(),
}
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]], bool)


@pytest.fixture
def case(columns, params, make_ctx):
    """A fragment with ends of both kinds, a context with a target network, and what each row is in NumPy."""
    rng = np.random.default_rng(2)
    ended = rng.random((5, 3)) < 0.3
    terminated = ended & (rng.random((5, 3)) < 0.5)
    columns = {
        **{name: columns[name] for name in ("obs", "actions", "action_logp")},
        "new_obs": rng.normal(size=(5, 3, 4)).astype(np.float32),
        "rewards": rng.normal(size=(5, 3)).astype(np.float32),
        "terminateds": terminated,
        "truncateds": ended & ~terminated,
    }
    target = jax.tree.map(lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)

    def ctx(term):
        return make_ctx(**term.coeffs)._replace(config=CONFIG, target_params=target)

    return SimpleNamespace(columns=columns, target=target, ctx=ctx)


def log_probs(obs, policy):
    logits = np.asarray(obs @ np.asarray(policy["policy"]), np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def chosen(columns, policy):
    return np.take_along_axis(log_probs(columns["obs"], policy), columns["actions"][..., None], -1)[..., 0]


def corrected(columns, params, policy, mask=None):
    """V-trace's targets and advantages of `policy`, with the values of `params`, in float64."""
    value, next_value = (np.asarray(columns[name] @ params["value"])[..., 0] for name in ("obs", "new_obs"))
    log_rho = np.asarray(chosen(columns, policy) - columns["action_logp"], np.float32)
    ends = columns["terminateds"], columns["terminateds"] | columns["truncateds"]
    clips = {"clip_rho": 1.2, "clip_pg_rho": 0.9}
    out = losses.vtrace(columns["rewards"], value, next_value, log_rho, *ends, GAMMA, LAMBDA, **clips, mask=mask)
    return value, np.asarray(out.vs, np.float64), np.asarray(out.pg_advantages, np.float64)


def term_oracle(name, params, case, mask=None):
    """Each term in NumPy."""
    c, target = case.columns, case.target
    value, vs, advantages = corrected(c, params, params if name in ("gradient", "value") else target, mask)
    log_p, log_mu, log_target = chosen(c, params), c["action_logp"], chosen(c, target)
    ratio = np.minimum(np.exp(log_mu - log_target), 1.5) * np.exp(log_p - log_mu)
    all_p, all_target = log_probs(c["obs"], params), log_probs(c["obs"], target)
    rows = {
        "gradient": -log_p * advantages,
        "value": (value - vs) ** 2,
        "target_value": (value - vs) ** 2,
        "surrogate": -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages),
        "kl": (np.exp(all_target) * (all_target - all_p)).sum(-1),
    }[name]
    return rows.mean() if mask is None else rows[mask].mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", TERMS)
def test_terms_against_numpy_with_and_without_jit(name, masked, params, case):
    term, mask = TERMS[name], MASK if masked else None
    batch = SampleBatch({**case.columns, **({} if mask is None else {"mask": mask})})
    expected = term_oracle(name, params, case, mask)

    def loss(params):
        return split_output(term(params, batch, case.ctx(term)), name)[0]

    for fn in (loss, jax.jit(loss)):
        np.testing.assert_allclose(fn(params), expected, rtol=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_padding_never_changes_a_loss_or_its_gradient(name, params, case):
    term = TERMS[name]
    padded = {key: np.concatenate([x, np.zeros_like(x[:2])]) for key, x in case.columns.items()}
    padded["mask"] = np.arange(7)[:, None] < np.full(3, 5)

    @jax.jit
    def loss_and_gradient(batch):
        return jax.value_and_grad(lambda p: split_output(term(p, batch, case.ctx(term)), name)[0])(params)

    expected = loss_and_gradient(SampleBatch(case.columns))
    got = loss_and_gradient(SampleBatch(padded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), expected, got)


def test_gradients_flow_through_the_prediction_alone(params, case):
    """The policy's term moves no value, the value's term no policy, and targets nothing."""
    batch = SampleBatch(case.columns)

    def gradient(name):
        term = TERMS[name]
        return jax.grad(lambda p: split_output(term(p, batch, case.ctx(term)), name)[0])(params)

    assert not np.any(gradient("gradient")["value"]) and np.any(gradient("gradient")["policy"])
    assert not np.any(gradient("value")["policy"])
    value, vs, _ = corrected(case.columns, params, params)
    by_hand = 2 * np.einsum("tbi,tb->i", batch["obs"], value - vs) / 15
    np.testing.assert_allclose(gradient("value")["value"][:, 0], by_hand, rtol=1e-4, atol=1e-5)


def test_on_policy_the_gradient_is_that_of_the_advantage_actor_critic(params, case):
    """With a behaviour policy that is the policy itself, V-trace's advantages are GAE's."""
    c = case.columns
    ctx = case.ctx(TERMS["gradient"])
    batch = SampleBatch(
        {**c, "action_logp": np.asarray(ctx.forward(params, SampleBatch(c)).dist.log_prob(c["actions"]))}
    )
    unclipped = losses.vtrace_policy_gradient()
    value, new_value = ((batch[name] @ params["value"])[..., 0] for name in ("obs", "new_obs"))
    ended = c["terminateds"] | c["truncateds"]
    gae = losses.gae(c["rewards"], value, new_value, c["terminateds"], ended, GAMMA, LAMBDA)
    ours = jax.grad(lambda p: unclipped(p, batch, case.ctx(unclipped))[0])(params)
    a2c = jax.grad(losses.advantage_policy_gradient())(params, batch.with_columns(advantages=gae.advantages), ctx)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, a2c)


def test_surrogate_of_a_target_that_has_caught_up_has_impalas_gradient(params, case):
    term = losses.vtrace_surrogate(is_ratio_clip=float("inf"), **THRESHOLDS)
    batch = SampleBatch(case.columns)
    ctx = case.ctx(term)._replace(target_params=params)
    surrogate = jax.grad(lambda p: term(p, batch, ctx)[0])(params)
    gradient = jax.grad(lambda p: TERMS["gradient"](p, batch, case.ctx(TERMS["gradient"]))[0])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), surrogate, gradient)


@pytest.mark.parametrize("masked", [False, True])
def test_standardized_advantages(masked, params, case, columns):
    """The plain term, with the same advantages to mean 0 and deviation 1 over the rows that are there."""
    mask = MASK if masked else np.ones((5, 3), bool)
    batch = SampleBatch({**case.columns, "advantages": columns["advantages"], **({"mask": mask} if masked else {})})
    ctx = case.ctx(TERMS["surrogate"])
    log_p = chosen(case.columns, params)

    def scaled(x):
        return (x - x[mask].mean()) / x[mask].std()

    advantages = scaled(corrected(case.columns, params, params, mask)[2])
    gradient = losses.vtrace_policy_gradient(standardized=True)(params, batch, ctx)[0]
    np.testing.assert_allclose(gradient, -(log_p * advantages)[mask].mean(), rtol=1e-4, atol=1e-5)
    given = scaled(columns["advantages"])
    plain = losses.advantage_policy_gradient(standardized=True)(params, batch, ctx)
    np.testing.assert_allclose(plain, -(log_p * given)[mask].mean(), rtol=1e-4, atol=1e-5)

    def clipped(ratio, advantages):
        return -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)[mask].mean()

    surrogate = losses.clipped_surrogate(0.2, standardized=True)(params, batch, ctx)
    np.testing.assert_allclose(surrogate, clipped(np.exp(log_p - batch["action_logp"]), given), rtol=1e-4, atol=1e-5)
    log_target = chosen(case.columns, case.target)
    ratio = np.minimum(np.exp(batch["action_logp"] - log_target), 1.5) * np.exp(log_p - batch["action_logp"])
    advantages = scaled(corrected(case.columns, params, case.target, mask)[2])
    surrogate = losses.vtrace_surrogate(standardized=True)(params, batch, ctx)[0]
    np.testing.assert_allclose(surrogate, clipped(ratio, advantages), rtol=1e-4, atol=1e-5)


def test_metrics_of_the_terms(params, case):
    batch, ctx = SampleBatch(case.columns), case.ctx(TERMS["surrogate"])
    metrics = TERMS["surrogate"](params, batch, ctx)[1].metrics
    log_rho = chosen(case.columns, case.target) - batch["action_logp"]
    rho, weight = np.exp(log_rho), np.minimum(np.exp(-log_rho), 1.5)
    expected = {
        "mean_rho": rho.mean(),
        "mean_clipped_rho": np.minimum(rho, 1.2).mean(),
        "mean_IS": weight.mean(),
        "var_IS": weight.var(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    assert set(TERMS["value"](params, batch, ctx)[1].metrics) == {"vf_loss", "vf_explained_var"}


def test_a_sum_of_them_carries_each_threshold_once():
    impala = losses.weighted_sum(
        policy_loss=(1.0, losses.vtrace_policy_gradient()),
        vf_loss=(0.5, losses.vtrace_value_error()),
        entropy=(0.01, losses.entropy_bonus()),
    )
    assert impala.coeffs == {
        "policy_loss_coeff": 1.0,
        "vtrace_clip_rho_threshold": 1.0,
        "vtrace_clip_pg_rho_threshold": 1.0,
        "vf_loss_coeff": 0.5,
        "entropy_coeff": 0.01,
    }
    assert needs_sequences(impala, CONFIG)
    assert not needs_sequences(losses.weighted_sum(entropy=(0.01, losses.entropy_bonus())), CONFIG)


def test_terms_that_need_a_target_network_say_so(params, case):
    for name in ("surrogate", "kl"):
        ctx = case.ctx(TERMS[name])._replace(target_params=None)
        with pytest.raises(LossError, match="needs a target network"):
            TERMS[name](params, SampleBatch(case.columns), ctx)
