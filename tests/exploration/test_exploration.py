import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import registry
from jaxrl.distributions import get_dist_class
from jaxrl.distributions.simplex import Simplex
from jaxrl.exploration import Exploration, make_exploration
from jaxrl.types import ConfigError, UnsupportedSpaceError

KEY = jax.random.key(0)

NESTED = spaces.Dict(
    {
        "z": spaces.Discrete(3, start=5),
        "a": spaces.Tuple((spaces.Box(-2.0, 3.0, (2,), np.float32), spaces.MultiDiscrete([2, 4]))),
        "b": spaces.MultiBinary(3),
    }
)


def dist_for(space, batch_shape=(512,), mask=None):
    dist_class = get_dist_class(space)
    inputs = jax.random.normal(jax.random.key(7), (*batch_shape, dist_class.input_size))
    if mask is not None:
        assert dist_class.mask_inputs is not None
        inputs = dist_class.mask_inputs(inputs, mask)
    return dist_class(inputs)


def row(actions, i):
    return jax.tree.map(lambda x: np.asarray(x)[i], actions)


def test_stochastic_sampling_samples_the_distribution():
    space = spaces.Discrete(4)
    dist, exploration = dist_for(space), make_exploration({"type": "StochasticSampling"}, space)
    assert exploration.samples_policy
    actions, logp, state = exploration.sample(dist, exploration.init(512), KEY, 0, {}, True)
    np.testing.assert_array_equal(actions, dist.sample(KEY))
    assert logp is None
    assert state == ()
    actions, _, _ = exploration.sample(dist, (), KEY, 0, {}, False)
    np.testing.assert_array_equal(actions, dist.mode())


def test_hooks_do_nothing_by_default():
    exploration = make_exploration({"type": "StochasticSampling"}, spaces.Discrete(2))
    params = {"w": jnp.ones(3)}
    assert exploration.perturb(params, ()) is params
    assert exploration.update((), None) == ()
    assert exploration.coeffs == {}


@pytest.mark.parametrize(
    ("space", "logp"),
    [
        (spaces.Discrete(5, start=-2), -np.log(5)),
        (spaces.MultiDiscrete([2, 3]), -np.log(6)),
        (spaces.MultiBinary(4), -np.log(16)),
        (spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32)), -np.log(8)),
        (Simplex(3), np.log(2)),  # density 2! on the 2-simplex
        (NESTED, -np.log(3 * 25 * 8 * 8)),
    ],
)
def test_random_is_uniform_and_knows_its_log_probability(space, logp):
    exploration = make_exploration({"type": "Random"}, space)
    assert not exploration.samples_policy
    actions, got, _ = jax.jit(exploration.sample, static_argnums=5)(dist_for(space), (), KEY, 0, {}, True)
    np.testing.assert_allclose(got, np.full(512, logp), rtol=1e-5)
    for i in range(0, 512, 16):
        assert space.contains(row(actions, i))


def test_random_covers_the_space_evenly():
    exploration = make_exploration({"type": "Random"}, spaces.Discrete(4))
    actions, _, _ = exploration.sample(dist_for(spaces.Discrete(4), (4000,)), (), KEY, 0, {}, True)
    assert np.abs(np.bincount(actions) / 4000 - 0.25).max() < 0.03
    box = spaces.Box(2.0, 6.0, (1,))
    actions, _, _ = make_exploration({"type": "Random"}, box).sample(dist_for(box, (4000,)), (), KEY, 0, {}, True)
    assert abs(float(actions.mean()) - 4.0) < 0.1
    assert abs(float(actions.std()) - 4 / np.sqrt(12)) < 0.05


def test_random_integer_box_without_a_discrete_distribution():
    space = spaces.Box(-3, 2, (2,), np.int8)
    dist = dist_for(spaces.Box(-1.0, 1.0, (2,)))
    actions, logp, _ = make_exploration({"type": "Random"}, space).sample(dist, (), KEY, 0, {}, True)
    assert set(np.unique(actions)) == {-3, -2, -1, 0, 1, 2}
    np.testing.assert_allclose(np.asarray(logp), -2 * np.log(6), rtol=1e-6)
    assert space.contains(row(actions, 0))


def test_random_never_draws_a_masked_action():
    space = spaces.Discrete(4)
    dist = dist_for(space, mask=jnp.array([True, False, True, False]))
    actions, logp, _ = make_exploration({"type": "Random"}, space).sample(dist, (), KEY, 0, {}, True)
    assert set(np.unique(actions)) == {0, 2}
    np.testing.assert_allclose(np.asarray(logp), -np.log(2), rtol=1e-6)

    dist = dist_for(NESTED, mask={"z": jnp.array([False, True, False])})
    actions, _, _ = make_exploration({"type": "Random"}, NESTED).sample(dist, (), KEY, 0, {}, True)
    assert set(np.unique(actions["z"])) == {6}


def test_random_without_exploration_is_the_mode():
    dist = dist_for(NESTED)
    actions, logp, _ = make_exploration({"type": "Random"}, NESTED).sample(dist, (), KEY, 0, {}, False)
    jax.tree.map(np.testing.assert_array_equal, actions, dist.mode())
    np.testing.assert_array_equal(np.asarray(logp), np.zeros(512))


def test_random_refuses_what_it_cannot_draw():
    unbounded = spaces.Dict({"move": spaces.Box(-np.inf, np.inf, (2,))})
    with pytest.raises(UnsupportedSpaceError, match=r"action space\['move'\]: expected a Box with finite bounds"):
        make_exploration({"type": "Random"}, unbounded)
    with pytest.raises(UnsupportedSpaceError, match="got Text"):
        make_exploration({"type": "Random"}, spaces.Text(3))


def test_unknown_types_and_options_name_what_there_is():
    space = spaces.Discrete(2)
    with pytest.raises(ConfigError, match=r"StochasticSamplin'; did you mean 'StochasticSampling'.*Random"):
        make_exploration({"type": "StochasticSamplin"}, space)
    with pytest.raises(ConfigError, match=r"Random has no option 'epsilon'\. It has no options"):
        make_exploration({"type": "Random", "epsilon": 0.1}, space)
    with pytest.raises(ConfigError, match="expected a key 'type'"):
        make_exploration({}, space)
    with pytest.raises(ConfigError, match="expected a registered name or a factory, got 3"):
        make_exploration({"type": 3}, space)


def test_own_exploration_by_name_or_factory(monkeypatch):
    def sticky(action_space, *, probability, scale=1.0):
        return Exploration(lambda *args: args, coeffs={"probability": probability * scale})

    space = spaces.Discrete(2)
    assert make_exploration({"type": sticky, "probability": 0.25}, space).coeffs == {"probability": 0.25}
    monkeypatch.setitem(registry._tables["exploration"], "Sticky", sticky)
    assert make_exploration({"type": "Sticky", "probability": 0.5, "scale": 2.0}, space).coeffs["probability"] == 1.0
    with pytest.raises(
        ConfigError, match=r"no option 'probabilty'; did you mean 'probability'\? It has: probability, sc"
    ):
        make_exploration({"type": "Sticky", "probabilty": 0.5}, space)
    with pytest.raises(ConfigError, match="Sticky needs the option 'probability'"):
        make_exploration({"type": "Sticky"}, space)
    with pytest.raises(ConfigError, match="returned int, expected an Exploration"):
        make_exploration({"type": lambda action_space: 3}, space)
