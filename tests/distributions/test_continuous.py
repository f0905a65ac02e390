"""Continuous families against SciPy, quadrature and Monte Carlo."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxrl.distributions import Simplex, get_dist_class

DRAWS = 20_000


def box(low=-2.0, high=3.0, shape=(1,)):
    return spaces.Box(low, high, shape, np.float32)


def softplus(x):
    return np.log1p(np.exp(x))


def test_diag_gaussian_against_scipy():
    mean, log_std = np.array([0.5, -1.0, 2.0]), np.array([0.0, -0.7, 0.4])
    dist_class = get_dist_class(box(shape=(3,)))
    dist = dist_class(jnp.concatenate([mean, log_std]))
    action = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(dist.log_prob(action), stats.norm.logpdf(action, mean, np.exp(log_std)).sum(), rtol=1e-5)
    np.testing.assert_allclose(dist.entropy(), stats.norm(mean, np.exp(log_std)).entropy().sum(), rtol=1e-6)
    np.testing.assert_allclose(dist.mode(), mean)
    np.testing.assert_allclose(dist.std, np.exp(log_std), rtol=1e-6)


def test_diag_gaussian_kl_by_hand():
    # KL(N(0, 1) || N(1, 2)) = log 2 + (1 + 1) / 8 - 1/2.
    dist_class = get_dist_class(box())
    kl = dist_class(jnp.array([0.0, 0.0])).kl(dist_class(jnp.array([1.0, np.log(2.0)])))
    np.testing.assert_allclose(kl, np.log(2.0) + 0.25 - 0.5, rtol=1e-6)


def test_diag_gaussian_draws():
    dist = get_dist_class(box())(jnp.broadcast_to(jnp.array([1.0, np.log(0.5)]), (DRAWS, 2)))
    drawn = np.asarray(dist.sample(jax.random.key(0)))[:, 0]
    assert stats.kstest(drawn, stats.norm(1.0, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dist_type", ["diag_gaussian", "squashed_gaussian", "beta", "deterministic"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_box_shapes(dist_type, shape):
    space = box(shape=shape)
    dist_class = get_dist_class(space, dist_type=dist_type)
    size = int(np.prod(shape, dtype=int)) * (1 if dist_type == "deterministic" else 2)
    assert dist_class.input_size == size

    def shapes(inputs, actions, key):
        dist = dist_class(inputs)
        assert dist.batch_shape == (4, 5)
        assert dist.log_prob(actions).shape == (7, 4, 5)
        assert dist.sample(key).shape == dist.mode().shape == (4, 5, *shape)
        assert dist.log_prob(dist.mode()).shape == dist.entropy().shape == dist.kl(dist).shape == (4, 5)

    jax.eval_shape(shapes, jnp.zeros((4, 5, size)), jnp.zeros((7, 4, 5, *shape)), jax.random.key(0))


@pytest.mark.parametrize("dist_type", ["squashed_gaussian", "beta"])
@pytest.mark.parametrize("inputs", [[0.0, 0.0], [1.5, -1.0], [-0.3, 0.5]])
def test_bounded_density_integrates_to_one_and_has_the_stated_entropy(dist_type, inputs):
    dist = get_dist_class(box(), dist_type=dist_type)(jnp.array(inputs))
    log_prob = jax.jit(dist.log_prob)
    # Midpoints of y in [-1, 1] = tanh(u): the density is smooth in u.
    u = np.linspace(-9.0, 9.0, 20_001)
    action = 0.5 + 2.5 * np.tanh(u)
    density = np.exp(np.asarray(jax.vmap(log_prob)(action[:, None].astype(np.float32)), np.float64))
    np.testing.assert_allclose(integrate.trapezoid(density, action), 1.0, atol=2e-3)
    entropy = -integrate.trapezoid(density * np.log(density), action)
    np.testing.assert_allclose(dist.entropy(), entropy, atol=5e-3)


def test_squashed_gaussian_against_numpy_change_of_variables():
    mean, std, action = 0.4, 0.6, 1.2
    dist = get_dist_class(box(), dist_type="squashed_gaussian")(jnp.array([mean, np.log(std)]))
    y = (action - 0.5) / 2.5
    expected = stats.norm.logpdf(np.arctanh(y), mean, std) - np.log(1 - y**2) - np.log(2.5)
    np.testing.assert_allclose(dist.log_prob(jnp.array([action])), expected, rtol=1e-5)
    np.testing.assert_allclose(dist.mode(), [0.5 + 2.5 * np.tanh(mean)], rtol=1e-6)


def test_squashed_gaussian_log_prob_is_exact_where_tanh_saturates():
    dist = get_dist_class(box(-1.0, 1.0), dist_type="squashed_gaussian")(jnp.array([20.0, -1.0]))
    action, log_prob = dist.sample_and_log_prob(jax.random.key(0))
    assert float(action[0]) == 1.0
    u = 20.0 + np.exp(-1.0) * float(jax.random.normal(jax.random.key(0), (1,))[0])
    expected = stats.norm.logpdf(u, 20.0, np.exp(-1.0)) - 2 * (np.log(2) - u)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    assert np.isfinite(dist.log_prob(action))
    assert np.isfinite(jax.grad(lambda mean: dist.replace(mean=mean).log_prob(action))(dist.mean)).all()


def test_squashed_gaussian_clips_log_std_and_stays_within_bounds():
    dist = get_dist_class(box(-2.0, 3.0), dist_type="squashed_gaussian")(jnp.full((1000, 2), 50.0).at[:, 0].set(0.0))
    np.testing.assert_allclose(dist.log_std, 2.0)
    drawn = np.asarray(dist.sample(jax.random.key(0)))
    assert drawn.min() >= -2.0
    assert drawn.max() <= 3.0


@pytest.mark.parametrize("mean", [0.0, 1.0, -8.0])
@pytest.mark.parametrize("log_std", [-5.0, 0.0, 1.0, 2.0])
def test_squashed_gaussian_entropy_by_quadrature(mean, log_std):
    std = np.exp(log_std)

    def integrand(z):
        u = mean + std * z
        return stats.norm.pdf(z) * 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))

    kink = [-mean / std] if abs(mean / std) < 12 else None
    log_det = integrate.quad(integrand, -12, 12, points=kink, limit=300)[0]
    dist = get_dist_class(box(), dist_type="squashed_gaussian")(jnp.array([mean, log_std]))
    expected = stats.norm(0, std).entropy() + log_det + np.log(2.5)
    np.testing.assert_allclose(dist.entropy(), expected, atol=1e-3 if log_std == 2.0 else 1e-5, rtol=1e-6)


def test_beta_against_scipy():
    inputs = np.array([0.3, -1.0, 2.0, 0.5])
    alpha, beta = 1 + softplus(inputs[:2]), 1 + softplus(inputs[2:])
    low, span = -2.0, 5.0
    dist = get_dist_class(box(shape=(2,)), dist_type="beta")(jnp.asarray(inputs))
    action = np.array([-0.5, 2.5])
    np.testing.assert_allclose(
        dist.log_prob(action), stats.beta.logpdf(action, alpha, beta, low, span).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(dist.entropy(), stats.beta.entropy(alpha, beta, low, span).sum(), rtol=1e-4)
    np.testing.assert_allclose(dist.mode(), low + span * (alpha - 1) / (alpha + beta - 2), rtol=1e-5)


def test_beta_draws():
    dist = get_dist_class(box(), dist_type="beta")(jnp.broadcast_to(jnp.array([0.0, 1.0]), (DRAWS, 2)))
    drawn = np.asarray(jax.jit(type(dist).sample)(dist, jax.random.key(0)))[:, 0]
    reference = stats.beta(1 + softplus(0.0), 1 + softplus(1.0), loc=-2.0, scale=5.0)
    assert stats.kstest(drawn, reference.cdf).pvalue > 1e-3


def test_flat_beta_and_dirichlet_have_a_mode():
    flat = get_dist_class(box(), dist_type="beta")(jnp.full(2, -200.0))
    np.testing.assert_allclose(flat.mode(), [0.5], atol=1e-6)
    np.testing.assert_allclose(get_dist_class(Simplex(4))(jnp.full(4, -200.0)).mode(), np.full(4, 0.25), atol=1e-6)


def test_dirichlet_against_scipy():
    inputs = np.array([0.3, -1.0, 2.0])
    space = Simplex(3)
    p = get_dist_class(space)(jnp.asarray(inputs))
    alpha = 1 + softplus(inputs)
    action = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(p.log_prob(action), stats.dirichlet(alpha).logpdf(action), rtol=1e-5)
    np.testing.assert_allclose(p.entropy(), stats.dirichlet(alpha).entropy(), rtol=1e-5)
    np.testing.assert_allclose(p.mode(), (alpha - 1) / (alpha - 1).sum(), rtol=1e-5)


def test_dirichlet_over_several_simplexes():
    dist_class, single = get_dist_class(Simplex((2, 3))), get_dist_class(Simplex(3))

    def shapes(inputs, key):
        dist = dist_class(inputs)
        drawn = dist.sample(key)
        assert drawn.shape == dist.mode().shape == (5, 2, 3)
        assert dist.log_prob(drawn).shape == dist.entropy().shape == dist.kl(dist).shape == dist.batch_shape == (5,)

    jax.eval_shape(shapes, jnp.zeros((5, 6)), jax.random.key(0))
    entropy = jax.jit(lambda x, y: (dist_class(x).entropy(), 2 * single(y).entropy()))
    np.testing.assert_allclose(*entropy(jnp.zeros(6), jnp.zeros(3)), rtol=1e-6)


def test_deterministic_is_a_point_mass():
    dist = get_dist_class(box(shape=(2,)), dist_type="deterministic")(jnp.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(dist.sample(jax.random.key(0)), [[1.0, 2.0]])
    np.testing.assert_array_equal(dist.mode(), [[1.0, 2.0]])
    np.testing.assert_array_equal(
        [dist.entropy(), dist.kl(dist), dist.sample_and_log_prob(jax.random.key(0))[1]], [[0.0]] * 3
    )


@pytest.mark.parametrize("dist_type", ["diag_gaussian", "squashed_gaussian"])
def test_samples_are_differentiable(dist_type):
    dist_class = get_dist_class(box(), dist_type=dist_type)
    gradient = jax.jit(jax.grad(lambda x: dist_class(x).sample(jax.random.key(0)).sum()))(jnp.array([0.1, 0.2]))
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


def test_simplex_space():
    space = Simplex(3, seed=0)
    assert space.contains(space.sample())
    assert not space.contains(np.array([0.5, 0.6, -0.1], np.float32))
    assert not space.contains(np.array([0.2, 0.2, 0.2], np.float32))
    assert Simplex((2, 3), seed=0).sample().shape == (2, 3)
    assert Simplex(3) == Simplex(3) != Simplex(4)
    assert repr(space) == "Simplex((3,))"
    with pytest.raises(ValueError, match="at least 2 entries"):
        Simplex(1)
    with pytest.raises(ValueError, match="no mask"):
        space.sample(mask=np.ones(3))  # pyright: ignore[reportArgumentType]
