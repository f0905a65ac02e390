"""GaussianNoise, OrnsteinUhlenbeckNoise, their twins per worker, and random starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.distributions import get_dist_class
from jaxrl.exploration import make_exploration
from jaxrl.types import ConfigError, UnsupportedSpaceError

BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
MODE = jnp.array([0.2, 1.5])
N = 4000
GAUSSIAN = ["GaussianNoise", "PerWorkerGaussianNoise"]
OU = ["OrnsteinUhlenbeckNoise", "PerWorkerOrnsteinUhlenbeckNoise"]


def dist_of(mode=MODE, space: spaces.Space = BOX, rows=N):
    return get_dist_class(space, dist_type="deterministic")(jnp.broadcast_to(mode, (rows, mode.shape[-1])))


def make(config, space: spaces.Space = BOX):
    exploration = make_exploration(config, space)
    return exploration, jax.jit(exploration.sample, static_argnums=5)


def coeffs_at(exploration, t):
    return {name: jnp.float32(exploration.schedules[name](t)) for name in exploration.coeffs}


def draw(config, coeffs, dist=None, *, space: spaces.Space = BOX, worker=(0, 0)):
    exploration, sample = make(config, space)
    dist = dist_of(space=space) if dist is None else dist
    coeffs = {name: jnp.float32(value) for name, value in coeffs.items()}
    return sample(dist, exploration.init(N, *worker), jax.random.key(1), 0, coeffs, True)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_gaussian_noise_is_in_units_of_the_action(scale):
    options = {"type": "GaussianNoise", "stddev": 0.2}
    actions, logp, state = draw(options, {"exploration_scale": scale, "random_actions": 0.0})
    assert logp is None and state == () and actions.dtype == jnp.float32
    np.testing.assert_allclose(actions.mean(0), MODE, atol=0.015)
    np.testing.assert_allclose(actions.std(0), [0.2 * scale] * 2, rtol=0.05, atol=1e-6)
    assert scale == 0.0 or abs(np.corrcoef(np.asarray(actions), rowvar=False)[0, 1]) < 0.05


@pytest.mark.parametrize("kind", GAUSSIAN + OU)
def test_actions_are_clipped_to_the_box(kind):
    options = {"type": kind, "random_timesteps": 0}
    options.update({"stddev": 50.0} if kind in GAUSSIAN else {"ou_base_scale": 50.0})
    actions, _, _ = draw(options, {"exploration_scale": 1.0})
    assert (np.asarray(actions) >= BOX.low).all() and (np.asarray(actions) <= BOX.high).all()
    for bound in (BOX.low, BOX.high):
        assert (np.asarray(actions) == bound).any(0).all()


@pytest.mark.parametrize("kind", GAUSSIAN + OU)
def test_random_start_is_uniform_and_then_over(kind):
    exploration, sample = make({"type": kind, "random_timesteps": 500, "scale_timesteps": 1000})
    assert set(exploration.coeffs) == {"exploration_scale", "random_actions"}
    for t, random, scale in ((0, 1, 1.0), (499, 1, 1.0), (500, 0, 1.0), (1000, 0, 0.51), (1500, 0, 0.02)):
        at = coeffs_at(exploration, t)
        assert float(at["random_actions"]) == random
        assert float(at["exploration_scale"]) == pytest.approx(scale)
    state = exploration.init(N)
    actions, logp, state = sample(dist_of(), state, jax.random.key(0), 0, coeffs_at(exploration, 0), True)
    assert logp is None
    share = (np.asarray(actions) - BOX.low) / (BOX.high - BOX.low)
    for dimension in share.T:
        assert np.abs(np.histogram(dimension, 10, (0, 1))[0] / N - 0.1).max() < 0.025
    actions, _, _ = sample(dist_of(), state, jax.random.key(0), 0, coeffs_at(exploration, 1500), True)
    np.testing.assert_allclose(actions, np.broadcast_to(MODE, (N, 2)), atol=0.05)


@pytest.mark.parametrize("kind", GAUSSIAN + OU)
def test_without_exploration_the_mode_is_taken_and_the_state_kept(kind):
    exploration, sample = make({"type": kind})
    state = exploration.init(N, 1, 2)
    actions, _, after = sample(dist_of(), state, jax.random.key(0), 0, coeffs_at(exploration, 0), False)
    np.testing.assert_array_equal(actions, np.broadcast_to(MODE, (N, 2)))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def run_ou(steps, rows=400, space=BOX, **options):
    exploration, _ = make({"type": "OrnsteinUhlenbeckNoise", "random_timesteps": 0, **options}, space)
    dist = dist_of(jnp.zeros(space.shape), space, rows)

    def step(state, t):
        coeffs = {"exploration_scale": jnp.float32(1.0)}
        actions, _, state = exploration.sample(dist, state, jax.random.key(t), t, coeffs, True)
        return state, (actions, state)

    state = exploration.init(rows)
    assert state.shape == (rows, *space.shape)
    return jax.lax.scan(step, state, jnp.arange(steps))[1]


def test_ou_statistics():
    actions, x = run_ou(400, space=spaces.Box(-100.0, 100.0, (2,)), ou_theta=0.15, ou_sigma=0.2, ou_base_scale=0.1)
    np.testing.assert_allclose(actions, 0.1 * 200.0 * np.asarray(x), rtol=1e-5)  # high - low, not half of it
    x = np.asarray(x[100:])  # past the start at 0
    stationary = 0.2 / np.sqrt(1 - 0.85**2)
    assert x.std() == pytest.approx(stationary, rel=0.03)
    assert abs(x.mean()) < 0.02
    correlations = [(x[lag:] * x[:-lag]).mean() / x.var() for lag in (1, 2, 4)]
    assert correlations == pytest.approx([0.85, 0.85**2, 0.85**4], abs=0.02)


def test_each_environment_has_its_process():
    _, x = run_ou(300, rows=2)
    assert abs(np.corrcoef(x[:, 0, 0], x[:, 1, 0])[0, 1]) < 0.4


def test_ou_theta_zero_is_a_random_walk_and_one_is_white():
    _, walk = run_ou(50, ou_theta=0.0, ou_sigma=1.0)
    np.testing.assert_allclose(np.asarray(walk)[-1].var(), 50, rtol=0.2)
    _, white = run_ou(50, ou_theta=1.0, ou_sigma=1.0)
    assert np.asarray(white).std() == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("worker", [(0, 0), (0, 3), (1, 3), (3, 3)])
def test_each_worker_has_its_scale(worker):
    scale = {(0, 0): 0.5, (0, 3): 0.0, (1, 3): 0.4, (3, 3): 0.4**8}[worker]
    options = {"type": "PerWorkerGaussianNoise", "random_timesteps": 0, "stddev": 0.2}
    actions, _, _ = draw(options, {"exploration_scale": 0.5}, worker=worker)
    np.testing.assert_allclose(actions.std(0), [0.2 * scale] * 2, rtol=0.05, atol=1e-6)
    options = {"type": "PerWorkerOrnsteinUhlenbeckNoise", "random_timesteps": 0}
    actions, _, state = draw(options, {"exploration_scale": 0.5}, worker=worker)
    np.testing.assert_allclose(actions.std(0), 0.1 * 0.2 * scale * (BOX.high - BOX.low), rtol=0.05, atol=1e-6)
    np.testing.assert_allclose(state.inner.std(0), [0.2, 0.2], rtol=0.05)


def test_an_unbounded_box_has_noise_but_no_random_start():
    unbounded = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(UnsupportedSpaceError, match="GaussianNoise: random_timesteps=1000: .*set it to 0"):
        make_exploration({"type": "GaussianNoise"}, unbounded)
    options = {"type": "GaussianNoise", "random_timesteps": 0, "stddev": 3.0}
    actions, _, _ = draw(options, {"exploration_scale": 1.0}, space=unbounded)
    np.testing.assert_allclose(actions.std(0), [3.0, 3.0], rtol=0.05)
    actions, _ = run_ou(2, space=unbounded)
    assert 0.005 < np.asarray(actions[0]).std() < 0.05  # the factor of the range is 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "GaussianNoise", "stddev": -0.1}, "GaussianNoise: stddev: expected a number >= 0, got -0.1"),
        ({"type": "GaussianNoise", "random_timesteps": None}, "random_timesteps"),
        ({"type": "OrnsteinUhlenbeckNoise", "ou_theta": 3.0}, r"ou_theta: expected a number in \[0, 2\]"),
        ({"type": "OrnsteinUhlenbeckNoise", "stddev": 1.0}, "no option 'stddev'"),
        ({"type": "PerWorkerGaussianNoise", "scale_schedule": {"type": "Nothing"}}, "GaussianNoise: scale_schedule"),
    ],
)
def test_wrong_options_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_exploration(config, BOX)


@pytest.mark.parametrize("kind", GAUSSIAN + OU)
@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Box(0, 5, (1,), np.int32)])
def test_discrete_actions_are_refused(kind, space):
    with pytest.raises(UnsupportedSpaceError, match=r"expected a Box of floats.*EpsilonGreedy"):
        make_exploration({"type": kind}, space)


def test_stochastic_sampling_with_a_random_start():
    exploration, sample = make({"type": "StochasticSampling", "random_timesteps": 100})
    assert not exploration.samples_policy
    assert exploration.coeffs == {"random_actions": 1.0}
    dist = get_dist_class(BOX, dist_type="squashed_gaussian")(jnp.tile(jnp.array([0.5, -0.5, -1.0, -1.0]), (N, 1)))
    actions, logp, _ = sample(dist, (), jax.random.key(0), 0, coeffs_at(exploration, 0), True)
    np.testing.assert_allclose(logp, np.full(N, -np.log(8.0)), rtol=1e-6)
    np.testing.assert_allclose(actions.mean(0), [0.0, 2.0], atol=0.1)
    actions, logp, _ = sample(dist, (), jax.random.key(0), 0, coeffs_at(exploration, 100), True)
    np.testing.assert_allclose(logp, dist.log_prob(actions), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(actions.mean(0), dist.sample(jax.random.key(5)).mean(0), atol=0.05)
    actions, logp, _ = sample(dist, (), jax.random.key(0), 0, coeffs_at(exploration, 0), False)
    np.testing.assert_array_equal(actions, dist.mode())
    np.testing.assert_array_equal(np.asarray(logp), np.zeros(N))
    for plain in ({"type": "StochasticSampling"}, {"type": "StochasticSampling", "random_timesteps": 0}):
        assert make(plain)[0].samples_policy


def test_a_random_start_of_nested_actions():
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple([spaces.Box(0.0, 1.0, (2,))])})
    exploration, sample = make({"type": "StochasticSampling", "random_timesteps": 100}, space)
    dist_class = get_dist_class(space)
    dist = dist_class(jnp.zeros((N, dist_class.input_size)))
    actions, logp, _ = sample(dist, (), jax.random.key(0), 0, coeffs_at(exploration, 0), True)
    assert set(np.unique(actions["a"])) == {0, 1, 2}
    assert float(actions["b"][0].min()) >= 0.0 and float(actions["b"][0].max()) <= 1.0
    np.testing.assert_allclose(logp, np.full(N, -np.log(3.0)), rtol=1e-6)
    actions, _, _ = sample(dist, (), jax.random.key(0), 0, coeffs_at(exploration, 100), True)
    assert float(actions["b"][0].min()) < -1.0  # the Gaussian's own
