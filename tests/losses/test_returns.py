"""Returns and advantages against hand-worked numbers, NumPy loops and their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import losses

F = np.zeros(3, bool)


def flags(*true, n=3):
    out = np.zeros(n, bool)
    out[list(true)] = True
    return out


def make_rows(seed=0, shape=(12, 3)):
    rng = np.random.default_rng(seed)
    r, v, v_tp1 = rng.normal(size=(3, *shape)).astype(np.float32)
    terminated = rng.random(shape) < 0.15
    ended = terminated | (rng.random(shape) < 0.15)
    return {"r_t": r, "v_t": v, "v_tp1": v_tp1, "terminated_t": terminated, "ended_t": ended}


def gae_oracle(r_t, v_t, v_tp1, terminated_t, ended_t, discount, lambda_, mask=None):
    """The sum of equation 16, row by row, over the rows that are there."""
    out = np.zeros(r_t.shape)
    for b in np.ndindex(r_t.shape[1:]):
        rows = [t for t in range(len(r_t)) if mask is None or mask[(t, *b)]]
        for i, t in enumerate(rows):
            weight = 1.0
            for s in rows[i:]:
                at = (s, *b)
                next_value = 0.0 if terminated_t[at] else v_tp1[at]
                out[(t, *b)] += weight * (r_t[at] + discount * next_value - v_t[at])
                if ended_t[at]:
                    break
                weight *= discount * lambda_
    return out


def n_step_oracle(r_t, v_tp1, terminated_t, ended_t, discount, n, mask=None):
    out = np.zeros(r_t.shape)
    for b in np.ndindex(r_t.shape[1:]):
        rows = [t for t in range(len(r_t)) if mask is None or mask[(t, *b)]]
        for i, t in enumerate(rows):
            weight, last = 1.0, t
            for s in rows[i : i + n]:
                out[(t, *b)] += weight * r_t[(s, *b)]
                weight, last = weight * discount, s
                if ended_t[(s, *b)]:
                    break
            out[(t, *b)] += 0.0 if terminated_t[(last, *b)] else weight * v_tp1[(last, *b)]
    return out


def without_v_t(rows):
    return {name: x for name, x in rows.items() if name != "v_t"}


def test_gae_by_hand():
    # delta = [1 + 0.5*2 - 1, 1 + 0.5*3 - 2, 1 + 0.5*4 - 3] = [1, 0.5, 0]; discount * lambda = 0.25.
    out = losses.gae(np.ones(3, np.float32), np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0]), F, F, 0.5, 0.5)
    np.testing.assert_allclose(out.advantages, [1.125, 0.5, 0.0])
    np.testing.assert_allclose(out.value_targets, [2.125, 2.5, 3.0])


def test_termination_takes_no_value_truncation_takes_it():
    r, v, v_tp1 = np.ones(3, np.float32), np.zeros(3), np.array([10.0, 20.0, 30.0])
    terminated = losses.gae(r, v, v_tp1, flags(1), flags(1), 0.5, 1.0).advantages
    np.testing.assert_allclose(terminated, [6.0 + 0.5 * 1.0, 1.0, 16.0])
    truncated = losses.gae(r, v, v_tp1, F, flags(1), 0.5, 1.0).advantages
    np.testing.assert_allclose(truncated, [6.0 + 0.5 * 11.0, 11.0, 16.0])


def test_value_after_termination_may_be_nan():
    out = losses.gae(np.ones(3), np.zeros(3), np.array([0.0, np.nan, 0.0]), flags(1), flags(1), 0.5, 1.0)
    assert np.isfinite(out.advantages).all()


def test_discounted_returns_by_hand():
    r = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(losses.discounted_returns(r, F, F, 0.5), [3.0, 4.0, 4.0])
    np.testing.assert_allclose(losses.discounted_returns(r, flags(0), flags(0), 0.5), [1.0, 4.0, 4.0])
    v_tp1 = np.array([100.0, 100.0, 8.0])
    np.testing.assert_allclose(losses.discounted_returns(r, F, F, 0.5, v_tp1), [4.0, 6.0, 8.0])
    np.testing.assert_allclose(losses.discounted_returns(r, F, flags(0), 0.5, v_tp1), [51.0, 6.0, 8.0])


def test_n_step_returns_by_hand():
    r, v_tp1 = np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 40.0])
    np.testing.assert_allclose(losses.n_step_returns(r, v_tp1, F, F, 0.5, 2), [7.0, 14.0, 24.0])
    np.testing.assert_allclose(losses.n_step_returns(r, v_tp1, flags(1), flags(1), 0.5, 3), [2.0, 2.0, 24.0])
    with pytest.raises(ValueError, match="n >= 1"):
        losses.n_step_returns(r, v_tp1, F, F, 0.5, 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(12,), (12, 3), (6, 2, 2)])
def test_against_numpy_with_and_without_jit(shape, masked):
    rows = make_rows(shape=shape)
    mask = np.random.default_rng(5).random(shape) < 0.7 if masked else None
    here = np.ones(shape, bool) if mask is None else mask
    expected = gae_oracle(**rows, discount=0.9, lambda_=0.8, mask=mask)
    n_step = n_step_oracle(**without_v_t(rows), discount=0.9, n=3, mask=mask)

    def everything(rows, discount, lambda_, mask):
        return (
            losses.gae(**rows, discount=discount, lambda_=lambda_, mask=mask),
            losses.lambda_returns(**without_v_t(rows), discount=discount, lambda_=lambda_, mask=mask),
            losses.n_step_returns(**without_v_t(rows), discount=discount, n=3, mask=mask),
        )

    for fn in (everything, jax.jit(everything)):
        out, returns, steps = fn(rows, 0.9, 0.8, mask)
        np.testing.assert_allclose(out.advantages, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.value_targets, np.where(here, expected + rows["v_t"], 0.0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(steps, n_step, rtol=1e-4, atol=1e-5)
        assert out.advantages.dtype == returns.dtype == steps.dtype == jnp.float32


def true_successor_rows(seed=0, n=10):
    """Rows where v_tp1 is the next row's value wherever the episode goes on."""
    rows = make_rows(seed, (n, 2))
    going_on = ~rows["ended_t"][:-1]
    rows["v_tp1"][:-1][going_on] = rows["v_t"][1:][going_on]
    return rows


def test_lambda_one_gae_is_return_minus_value():
    rows = true_successor_rows()
    out = losses.gae(**rows, discount=0.9, lambda_=1.0)
    returns = losses.discounted_returns(rows["r_t"], rows["terminated_t"], rows["ended_t"], 0.9, rows["v_tp1"])
    np.testing.assert_allclose(out.advantages, returns - rows["v_t"], rtol=1e-4, atol=1e-5)


def test_value_targets_are_lambda_returns():
    rows = true_successor_rows()
    out = losses.gae(**rows, discount=0.9, lambda_=0.7)
    returns = losses.lambda_returns(**without_v_t(rows), discount=0.9, lambda_=0.7)
    np.testing.assert_allclose(out.value_targets, returns, rtol=1e-4, atol=1e-5)


def test_lambda_zero_is_the_td_error_and_one_step():
    rows = make_rows()
    one_step = rows["r_t"] + 0.9 * np.where(rows["terminated_t"], 0.0, rows["v_tp1"])
    arguments = {**without_v_t(rows), "discount": 0.9}
    np.testing.assert_allclose(losses.lambda_returns(**arguments, lambda_=0.0), one_step, rtol=1e-6)
    np.testing.assert_allclose(losses.n_step_returns(**arguments, n=1), one_step, rtol=1e-6)
    advantages = losses.gae(**rows, discount=0.9, lambda_=0.0).advantages
    np.testing.assert_allclose(advantages, one_step - rows["v_t"], rtol=1e-5, atol=1e-6)


def test_many_steps_are_the_discounted_return():
    rows = without_v_t(make_rows())
    whole = losses.lambda_returns(**rows, discount=0.9, lambda_=1.0)
    np.testing.assert_allclose(losses.n_step_returns(**rows, discount=0.9, n=50), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [0, 4, 12])
def test_absent_rows_change_nothing(at):
    rows = make_rows()
    garbage = {"r_t": np.nan, "v_t": np.nan, "v_tp1": np.nan, "terminated_t": True, "ended_t": True}
    longer = {name: np.insert(x, [at, at], garbage[name], axis=0) for name, x in rows.items()}
    mask = np.insert(np.ones((12, 3), bool), [at, at], False, axis=0)

    def everything(rows, mask=None):
        arguments = {**without_v_t(rows), "discount": 0.9, "mask": mask}
        return (
            *losses.gae(**rows, discount=0.9, lambda_=0.8, mask=mask),
            losses.lambda_returns(**arguments, lambda_=0.8),
            losses.n_step_returns(**arguments, n=3),
        )

    for short, long in zip(everything(rows), jax.jit(everything)(longer, mask), strict=True):
        long = np.asarray(long)
        np.testing.assert_allclose(long[mask[:, 0]], short, rtol=1e-5, atol=1e-6)
        assert not long[~mask[:, 0]].any()


def test_discount_and_lambda_may_vary_by_row():
    rows = make_rows()
    out = losses.gae(**rows, discount=np.full((12, 3), 0.9, np.float32), lambda_=np.full((12, 3), 0.8, np.float32))
    np.testing.assert_allclose(out.advantages, losses.gae(**rows, discount=0.9, lambda_=0.8).advantages, rtol=1e-5)


def test_shapes_and_types_are_checked():
    rows = make_rows()
    with pytest.raises(AssertionError):
        losses.gae(**{**rows, "v_t": rows["v_t"][:-1]}, discount=0.9, lambda_=0.8)
    with pytest.raises(AssertionError):
        losses.gae(**{**rows, "ended_t": rows["ended_t"].astype(np.float32)}, discount=0.9, lambda_=0.8)
    with pytest.raises(AssertionError):
        losses.gae(**{**rows, "r_t": rows["r_t"].astype(np.int32)}, discount=0.9, lambda_=0.8)
