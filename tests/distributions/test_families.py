"""Properties that every family has: jit, vmap, pytree, KL, entropy, leading axes."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.distributions import Joint, Simplex, get_dist_class

BOX = spaces.Box(-2.0, 3.0, (2,), np.float32)
LEAVES = [
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
    spaces.Discrete(3, start=2),
    spaces.Box(-1.0, 1.0, (2, 2)),
]
NESTED = spaces.Dict({"b": spaces.Tuple(LEAVES[2:]), "a": spaces.Dict({"x": LEAVES[0], "y": LEAVES[1]})})
FAMILIES = [
    (spaces.Discrete(4), None),
    (spaces.MultiDiscrete([2, 3]), None),
    (spaces.MultiBinary(3), None),
    (BOX, None),
    (BOX, "squashed_gaussian"),
    (BOX, "beta"),
    (Simplex(3), None),
    (NESTED, None),
    (NESTED, "squashed_gaussian"),
]
families = pytest.mark.parametrize(("space", "dist_type"), FAMILIES, ids=lambda x: str(x)[:24])


def inputs_for(dist_class, leading=(), seed=0):
    return 0.7 * jax.random.normal(jax.random.key(seed), (*leading, dist_class.input_size))


@families
def test_every_method_under_vmap_scan_and_any_leading_axes(space, dist_type):
    dist_class = get_dist_class(space, dist_type=dist_type)
    x, y = inputs_for(dist_class, (3, 2)), inputs_for(dist_class, (3, 2), seed=1)

    def methods(x, y):
        p, q = dist_class(x), dist_class(y)
        return p.log_prob(q.mode()), p.entropy(), p.kl(q), p.mode()

    @jax.jit
    def every_way(x, y):
        _, scanned = jax.lax.scan(lambda carry, d: (carry, d.entropy()), 0, dist_class(x))  # a value is a pytree
        return methods(x, y), jax.vmap(jax.vmap(methods))(x, y), scanned

    plain, mapped, scanned = every_way(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), plain, mapped)
    np.testing.assert_allclose(scanned, plain[1], rtol=2e-5, atol=2e-5)
    assert plain[0].shape == plain[1].shape == plain[2].shape == (3, 2)
    with pytest.raises(AttributeError):
        dist_class(x).nothing = 1


@families
def test_kl_and_entropy_agree_with_monte_carlo(space, dist_type):
    dist_class = get_dist_class(space, dist_type=dist_type)
    n = 20_000

    @jax.jit
    def draw(x, y):
        p, q = dist_class(x), dist_class(y)
        many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), p)
        actions, log_p = many.sample_and_log_prob(jax.random.key(3))
        return log_p, log_p - q.log_prob(actions), p.kl(q), p.entropy(), p.kl(p)

    log_p, difference, kl, entropy, kl_self = draw(inputs_for(dist_class), inputs_for(dist_class, seed=1))
    np.testing.assert_allclose(kl, np.mean(difference), atol=5 * np.std(difference) / np.sqrt(n) + 1e-5)
    np.testing.assert_allclose(entropy, -np.mean(log_p), atol=5 * np.std(log_p) / np.sqrt(n) + 1e-3)
    np.testing.assert_allclose(kl_self, 0.0, atol=1e-5)
    assert float(kl) > 0.0


@families
def test_draws_are_in_the_space_and_log_probs_agree(space, dist_type):
    dist_class = get_dist_class(space, dist_type=dist_type)

    @jax.jit
    def draw(x, key):
        dist = dist_class(x)
        actions, log_prob = dist.sample_and_log_prob(key)
        return actions, log_prob, dist.sample(key), dist.log_prob(actions), dist.mode()

    actions, log_prob, again, expected, mode = draw(0.4 * inputs_for(dist_class, (50,)), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, actions, again)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3, atol=1e-3)
    if dist_type is None and (space is BOX or space is NESTED):
        return  # a Gaussian is unbounded
    for drawn in (actions, mode):
        assert all(space.contains(jax.tree.map(lambda a, i=i: np.asarray(a[i]), drawn)) for i in range(50))


@families
def test_gradients_are_finite(space, dist_type):
    dist_class = get_dist_class(space, dist_type=dist_type)

    @jax.jit
    @jax.grad
    def gradient(x):
        p, q = dist_class(x), dist_class(jnp.zeros_like(x))
        return jnp.sum(p.log_prob(q.mode()) + p.entropy() + p.kl(q) + q.kl(p))

    for scale in (0.0, 1.0, 20.0):
        assert np.isfinite(gradient(scale * inputs_for(dist_class, (4,)))).all(), scale


def test_joint_is_the_sum_of_its_parts_nested_as_the_space():
    dist_class = get_dist_class(NESTED)
    x = inputs_for(dist_class, (4,))
    # JAX flattens dicts by sorted key: a.x, a.y, b.0, b.1.
    classes = [get_dist_class(leaf) for leaf in LEAVES]
    pieces = np.split(np.asarray(x), np.cumsum([c.input_size for c in classes])[:-1], axis=-1)

    @jax.jit
    def joint_and_parts(x, pieces):
        dist = dist_class(x)
        assert isinstance(dist, Joint)
        assert dist.batch_shape == (4,)
        actions = dist.sample(jax.random.key(0))
        assert actions["b"][1].shape == (4, 2, 2)
        flat = [actions["a"]["x"], actions["a"]["y"], actions["b"][0], actions["b"][1]]
        parts = [c(piece) for c, piece in zip(classes, pieces, strict=True)]
        expected = sum(part.log_prob(action) for part, action in zip(parts, flat, strict=True))
        return dist.log_prob(actions), expected, dist.entropy(), sum(part.entropy() for part in parts)

    log_prob, log_prob_parts, entropy, entropy_parts = joint_and_parts(x, pieces)
    np.testing.assert_allclose(log_prob, log_prob_parts, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, entropy_parts, rtol=1e-5)


def test_joint_draws_its_parts_independently():
    dist = get_dist_class(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))))(jnp.zeros((10_000, 4)))
    first, second = dist.sample(jax.random.key(0))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
