"""ParameterNoise: what is perturbed and by how much, and the adaptation of its standard deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.data.sample_batch import SampleBatch
from jaxrl.distributions import get_dist_class
from jaxrl.exploration import make_exploration
from jaxrl.types import ConfigError, UnsupportedSpaceError

DISCRETE = spaces.Discrete(4)
BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
PARAMS = {
    "policy": {
        "Dense_0": {"kernel": jnp.ones((100, 50)), "bias": jnp.zeros(50)},
        "LayerNorm_0": {"scale": jnp.ones(50), "bias": jnp.zeros(50)},
        "layer_norm": jnp.ones(3),
    },
    "half": jnp.ones(2000, jnp.bfloat16),
    "count": jnp.int32(3),
}


def make(space: spaces.Space = DISCRETE, **options):
    return make_exploration({"type": "ParameterNoise", **options}, space)


def test_perturbs_all_but_layer_normalisation():
    exploration = make(initial_stddev=0.3)
    assert exploration.perturbs and not make_exploration({"type": "EpsilonGreedy"}, DISCRETE).perturbs
    noisy = jax.jit(exploration.perturb)(PARAMS, exploration.init(8), jax.random.key(0))
    noise = jax.tree.map(lambda a, b: np.asarray(a - b, np.float32), noisy, PARAMS)
    assert jax.tree.map(lambda x: x.dtype, noisy) == jax.tree.map(lambda x: x.dtype, PARAMS)
    kernel = noise["policy"]["Dense_0"]["kernel"]
    assert kernel.std() == pytest.approx(0.3, rel=0.05) and abs(kernel.mean()) < 0.02
    assert noise["policy"]["Dense_0"]["bias"].std() == pytest.approx(0.3, rel=0.4)
    assert noise["half"].std() == pytest.approx(0.3, rel=0.1)
    for untouched in (*noise["policy"]["LayerNorm_0"].values(), noise["policy"]["layer_norm"], noise["count"]):
        np.testing.assert_array_equal(untouched, np.zeros_like(untouched))


def test_the_key_decides_the_noise_and_every_leaf_has_its_own():
    exploration = make()
    state = exploration.init(8)
    params = {"a": jnp.zeros(5), "b": jnp.zeros(5)}
    one, again, two = (exploration.perturb(params, state, jax.random.key(i)) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.isclose(one["a"], two["a"]).any()
    assert not np.isclose(one["a"], one["b"]).any()


def adapt(exploration, clean, noisy, coeffs, space: spaces.Space = DISCRETE, mask=None, worker=(0, 0)):
    """stddev after an update, by the one before."""
    dist_class = get_dist_class(space, dist_type=None if space is DISCRETE else "deterministic")
    shape = np.shape(clean)[:2]
    columns = {"rewards": np.zeros(shape, np.float32)}
    batch = SampleBatch(columns if mask is None else {**columns, "mask": mask})
    state = exploration.init(8, *worker)
    coeffs = {name: jnp.float32(value) for name, value in {**exploration.coeffs, **coeffs}.items()}
    after = jax.jit(exploration.update)(
        state, batch, dist_class(jnp.asarray(noisy)), dist_class(jnp.asarray(clean)), coeffs
    )
    jax.tree.map(np.testing.assert_array_equal, after.sub, state.sub)
    return float(after.stddev / state.stddev)


def q_values(shift):
    """Clean and perturbed Q-values [5, 3, 4] whose KL is the same in all rows, and that KL."""
    clean = np.tile(np.array([1.0, 0.0, -1.0, 0.5], np.float32), (5, 3, 1))
    noisy = clean + shift * np.array([1.0, -1.0, 0.0, 0.0], np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (clean, noisy))
    return clean, noisy, float((p * np.log(p / q)).sum(-1).mean())


def test_discrete_noise_adapts_both_ways():
    clean, noisy, kl = q_values(0.5)
    # delta = -log(1 - eps + eps / 4): the epsilon at which it equals the distance.
    epsilon = (1 - np.exp(-kl)) / 0.75
    assert adapt(make(), clean, noisy, {"epsilon": 1.01 * epsilon}) == pytest.approx(1.01)
    assert adapt(make(), clean, noisy, {"epsilon": 0.99 * epsilon}) == pytest.approx(1 / 1.01)
    assert adapt(make(), clean, clean, {"epsilon": 0.0}) == pytest.approx(1.01)


def test_absent_rows_do_not_count():
    clean, noisy, _ = q_values(0.5)
    mask = np.zeros((5, 3), bool)
    mask[:2] = True
    noisy[:2] = clean[:2]
    assert adapt(make(), clean, noisy, {"epsilon": 0.01}) < 1.0
    assert adapt(make(), clean, noisy, {"epsilon": 0.01}, mask=mask) > 1.0


def test_continuous_noise_adapts_both_ways():
    clean = np.zeros((5, 3, 2), np.float32) + np.array([0.0, 2.0], np.float32)
    noisy = clean + np.array([0.1, 0.4], np.float32)  # 0.1 and 0.2 half-ranges
    distance = np.sqrt((0.1**2 + 0.2**2) / 2)
    for scale, factor in ((distance / 0.2 * 1.01, 1.01), (distance / 0.2 * 0.99, 1 / 1.01)):
        assert adapt(make(BOX), clean, noisy, {"exploration_scale": scale}, BOX) == pytest.approx(factor)
    sub = {"type": "OrnsteinUhlenbeckNoise", "ou_sigma": 0.4}
    for scale, factor in ((distance / 0.4 * 1.01, 1.01), (distance / 0.4 * 0.99, 1 / 1.01)):
        exploration = make(BOX, sub_exploration=sub)
        assert adapt(exploration, clean, noisy, {"exploration_scale": scale}, BOX) == pytest.approx(factor)


def test_a_workers_own_epsilon_counts():
    clean, noisy, kl = q_values(0.5)
    assert -np.log(1 - 0.75 * 0.4) > kl > -np.log(1 - 0.75 * 0.4**8)
    exploration = make(sub_exploration={"type": "PerWorkerEpsilonGreedy"})
    assert adapt(exploration, clean, noisy, {"epsilon": 0.0}, worker=(1, 2)) == pytest.approx(1.01)
    assert adapt(exploration, clean, noisy, {"epsilon": 1.0}, worker=(2, 2)) == pytest.approx(1 / 1.01)


def test_the_sub_exploration_acts():
    exploration = make(random_timesteps=100)
    assert exploration.coeffs == {"epsilon": 1.0} and not exploration.samples_policy
    assert [exploration.schedules["epsilon"](t) for t in (0, 99, 100, 10**6)] == [1.0, 1.0, 0.01, 0.01]
    dist = get_dist_class(DISCRETE)(jnp.tile(jnp.array([0.0, 1.0, 0.0, 0.0]), (2000, 1)))
    state = exploration.init(2000)
    sample = jax.jit(exploration.sample, static_argnums=5)
    actions, logp, after = sample(dist, state, jax.random.key(0), 0, {"epsilon": jnp.float32(1.0)}, True)
    assert np.abs(np.bincount(actions) / 2000 - 0.25).max() < 0.04
    np.testing.assert_allclose(logp, np.full(2000, np.log(0.25)), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    actions, _, _ = sample(dist, state, jax.random.key(0), 0, {"epsilon": jnp.float32(1.0)}, False)
    np.testing.assert_array_equal(actions, np.ones(2000))

    exploration = make(BOX)
    assert (
        exploration.schedules["random_actions"](9_999) == 1.0 and exploration.schedules["random_actions"](10_000) == 0
    )
    assert exploration.init(5).sub.shape == (5, 2)


def test_what_it_refuses():
    with pytest.raises(ConfigError, match=r"sub_exploration: expected one with the coeff 'epsilon'.*'SoftQ'"):
        make(sub_exploration={"type": "SoftQ"})
    with pytest.raises(ConfigError, match="'exploration_scale'"):
        make(BOX, sub_exploration={"type": "StochasticSampling"})
    with pytest.raises(UnsupportedSpaceError, match="expected a"):
        make(spaces.MultiBinary(3))
    with pytest.raises(UnsupportedSpaceError, match="expected a Discrete or Box"):
        make(spaces.MultiDiscrete([2, 2]), sub_exploration={"type": "EpsilonGreedy"})
    with pytest.raises(ConfigError, match="initial_stddev"):
        make(initial_stddev=-1.0)
