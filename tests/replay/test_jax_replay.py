"""The buffers of JAX arrays give what those of NumPy give, from the same fragments and uniform numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl.data import SampleBatch
from jaxrl.replay import jax_prioritized_replay, jax_uniform_replay, prioritized_replay, uniform_replay
from jaxrl.types import FINAL_PAD, ConfigError

QUICK = settings(max_examples=15, deadline=None)


@functools.cache
def twins(prioritized, capacity, n):
    """Both buffers; gamma and alpha keep all arithmetic exact."""
    options = {"n_step": n, "gamma": 0.5}
    if prioritized:
        plain, compiled = (
            prioritized_replay(capacity, alpha=1.0, **options),
            jax_prioritized_replay(capacity, alpha=1.0, **options),
        )
    else:
        plain, compiled = uniform_replay(capacity, **options), jax_uniform_replay(capacity, **options)
    return plain, compiled._replace(
        add=jax.jit(compiled.add), sample=jax.jit(compiled.sample), update=jax.jit(compiled.update)
    )


def padded(fragment):
    """With room for one final observation per row: one shape."""
    room = fragment.T * fragment.B + 2 - len(fragment["final_index"])
    index = np.full((room, 2), FINAL_PAD, np.int32)
    extra = np.zeros((room, 2), np.int32)
    return fragment.with_columns(
        final_index=np.concatenate([fragment["final_index"], index]),
        final_obs=np.concatenate([fragment["final_obs"], extra]),
    )


@QUICK
@given(
    st.booleans(), st.sampled_from([(4, 2), (1, 3)]), st.integers(1, 3), st.sampled_from([24, 31]),
    st.integers(0, 2**16),
)  # fmt: skip
def test_both_engines_agree(stream, prioritized, shape, n, capacity, seed):
    steps, width = shape
    experience = stream(width, seed)
    plain, compiled = twins(prioritized, capacity, n)
    rng = np.random.default_rng(seed)
    a = b = None
    for _ in range(12):
        fragment = padded(experience.fragment(steps))
        if a is None:
            a, b = plain.init(fragment), compiled.init(fragment)
        a, b = plain.add(a, fragment), compiled.add(b, fragment)
        uniforms = rng.integers(0, 2**16, 10).astype(np.float32) / 2**16
        ours, theirs = compiled.sample(b, uniforms), plain.sample(a, uniforms)
        assert set(ours) == set(theirs)
        for name in ours:
            assert np.asarray(ours[name]).dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        priorities = rng.integers(0, 9, 10).astype(np.float32)
        priorities[0] = 1.0
        indexes, added = theirs["batch_indexes"], max(0, a.added - int(rng.integers(0, 2)) * 5)
        a = plain.update(a, indexes, priorities, added)
        b = compiled.update(b, indexes, priorities, np.uint32(added))
        assert int(b.size) == a.size and int(b.added) == a.added
        if prioritized:
            np.testing.assert_array_equal(b.weights.leaves[:capacity], a.tree.sums[0][:capacity])
            assert float(b.max_priority) == a.max_priority
            beta = compiled.sample(b, uniforms, 0.5)["weights"]
            np.testing.assert_allclose(beta, plain.sample(a, uniforms, 0.5)["weights"], rtol=1e-6)


def test_everything_runs_within_one_scan(stream):
    fragment = padded(stream(2, 0).fragment(4))
    buffer = jax_prioritized_replay(64, n_step=2)
    device = jax.tree.map(jnp.asarray, fragment)

    @jax.jit
    def run(state, key):
        def step(state, key):
            state = buffer.add(state, device)
            batch = buffer.sample(state, jax.random.uniform(key, (8,)), 0.4)
            return buffer.update(state, batch["batch_indexes"], jnp.abs(batch["rewards"]) + 1e-3), batch["rewards"]

        return jax.lax.scan(step, state, jax.random.split(key, 20))

    state, rewards = run(buffer.init(fragment), jax.random.key(0))
    assert int(buffer.size(state)) == 64 and int(state.added) == 160 and rewards.shape == (20, 8)
    assert isinstance(buffer.take(state, jnp.arange(3)), SampleBatch) and buffer.nbytes(state) > 64 * 8
    several = jax.vmap(run, in_axes=(None, 0))(buffer.init(fragment), jax.random.split(jax.random.key(0), 3))
    assert several[1].shape == (3, 20, 8)


def test_slots_are_exact_in_single_precision(stream):
    fragment = padded(stream(1, 0).fragment(1))
    buffer = jax_uniform_replay(2**23 + 7)
    state = jax.eval_shape(buffer.init, fragment)
    sample = jax.jit(lambda size, u: buffer.sample(small._replace(size=size), u)["batch_indexes"])
    small = jax_uniform_replay(4).init(fragment)
    rng = np.random.default_rng(0)
    uniforms = np.concatenate([rng.integers(0, 2**24, 1000), [0, 2**24 - 1]]).astype(np.float32) / 2**24
    for size in (1, 3, 1000, 99_999, 10**6, 2**23 + 7):
        expected = np.floor(uniforms.astype(np.float64) * size)
        np.testing.assert_array_equal(sample(jnp.int32(size), uniforms), expected)
    assert state.columns["obs"].shape == (2**23 + 7, 2)


def test_a_bad_priority_changes_nothing(stream):
    fragment = padded(stream(1, 3).fragment(6))
    buffer = jax_prioritized_replay(6)
    state = buffer.add(buffer.init(fragment), fragment)
    after = buffer.update(state, jnp.arange(3), jnp.asarray([jnp.nan, -1.0, jnp.inf]))
    np.testing.assert_array_equal(after.weights.leaves, state.weights.leaves)
    assert float(after.max_priority) == 1.0


def test_what_cannot_work_is_said(stream):
    fragment = stream(2, 3).fragment(6)
    with pytest.raises(ConfigError, match="at least 16"):
        jax_uniform_replay(15, n_step=3).init(fragment)
    with pytest.raises(ConfigError, match="without a mask"):
        jax_uniform_replay(50).init(stream(2, 3, masked=True).fragment(6))
    with pytest.raises(ConfigError, match="2\\^24"):
        jax_uniform_replay(2**24)
    with pytest.raises(ConfigError, match="alpha"):
        jax_prioritized_replay(8, alpha=-1.0)
    with pytest.raises(ConfigError, match="last_obs"):
        jax_uniform_replay(50).init(fragment.drop("last_obs"))
