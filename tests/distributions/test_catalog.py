"""Which distribution serves which space, custom ones, and what is refused."""

import gymnasium.spaces as spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import registry
from jaxrl.distributions import DiagGaussian, DistClass, Simplex, get_dist_class
from jaxrl.types import ConfigError, UnsupportedSpaceError


@pytest.mark.parametrize(
    ("space", "dist_type", "name", "size"),
    [
        (spaces.Discrete(3), None, "Categorical", 3),
        (spaces.MultiDiscrete([2, 3]), None, "MultiCategorical", 5),
        (spaces.MultiBinary((2, 2)), None, "Bernoulli", 4),
        (spaces.Box(-1.0, 1.0, (3,)), None, "DiagGaussian", 6),
        (spaces.Box(-1.0, 1.0, (3,)), "squashed_gaussian", "SquashedGaussian", 6),
        (spaces.Box(-1.0, 1.0, (3,)), "beta", "Beta", 6),
        (spaces.Box(-1.0, 1.0, (3,)), "deterministic", "Deterministic", 3),
        (Simplex(3), None, "Dirichlet", 3),
        (spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (1,)))), None, "Joint(Categorical, DiagGaussian)", 5),
        (spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (1,)))), "beta", "Joint(Categorical, Beta)", 5),
    ],
)
def test_family_by_space(space, dist_type, name, size):
    dist_class = get_dist_class(space, dist_type=dist_type)
    assert (dist_class.name, dist_class.input_size) == (name, size)
    # Equal spaces give one object: no recompile where it is a static argument.
    assert hash(dist_class) == hash(get_dist_class(space, dist_type=dist_type))
    assert dist_class is get_dist_class(space, dist_type=dist_type)


def test_class_as_a_static_argument_compiles_once():
    traces = []

    def act(dist_class, inputs):
        traces.append(1)
        return dist_class(inputs).mode()

    jitted = jax.jit(act, static_argnums=0)
    for _ in range(2):
        jitted(get_dist_class(spaces.Tuple((spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,))))), jnp.zeros(4))
    assert len(traces) == 1


def test_unbounded_box_says_which_dimensions():
    space = spaces.Box(np.array([-1.0, -np.inf, 0.0], np.float32), np.array([1.0, 2.0, 0.0], np.float32))
    for dist_type in ("squashed_gaussian", "beta"):
        with pytest.raises(UnsupportedSpaceError, match=r"needs finite bounds.*1: \[-inf, 2\.0\], 2: \[0\.0, 0\.0\]"):
            get_dist_class(space, dist_type=dist_type)
    assert get_dist_class(space).name == "DiagGaussian"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), r"action_space: no distribution for Text.*supported are Simplex, Box, Discrete"),
        (spaces.Dict({"a": spaces.Text(3)}), r"action_space\['a'\]: no distribution for Text"),
        (spaces.Tuple(()), "no distribution for Tuple"),
        (spaces.Box(0, 255, (2,), np.uint8), "expected a Box of floats"),
        (spaces.Box(0.0, 1.0, (0,)), "at least one number"),
    ],
)
def test_unsupported_spaces(space, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        get_dist_class(space)


def test_type_that_does_not_serve_the_space():
    with pytest.raises(UnsupportedSpaceError, match="'beta' serves Box, got Discrete"):
        get_dist_class(spaces.Discrete(3), dist_type="beta")


def test_unknown_type_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        get_dist_class(spaces.Box(-1.0, 1.0), dist_type="betta")


def test_registered_distribution():
    def narrow(action_space):
        def from_inputs(inputs):
            return DiagGaussian(inputs, jnp.full_like(inputs, -3.0), action_space.shape)

        return DistClass("Narrow", action_space.shape[0], from_inputs)

    registry.register_distribution("test-narrow", narrow)
    dist_class = get_dist_class(spaces.Box(-1.0, 1.0, (2,)), dist_type="test-narrow")
    assert dist_class.name == "Narrow"
    assert dist_class(jnp.zeros((3, 2))).sample(jax.random.key(0)).shape == (3, 2)
    registry.register_distribution("test-broken", lambda action_space: "nothing")
    with pytest.raises(ConfigError, match="expected its factory to return a DistClass, got str"):
        get_dist_class(spaces.Discrete(2), dist_type="test-broken")
