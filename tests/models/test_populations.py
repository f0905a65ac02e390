"""Models and their initialisation under vmap."""

import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from jaxrl.models import ModelConfig, make_model


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "config", [ModelConfig(vf_share_layers=False, fcnet_hiddens=(64, 64)), ModelConfig(use_lstm=True)]
)
def test_a_population_is_initialised_like_its_members(config):
    # Batched QRs of several layers in one program hang on the CPU: this would time out.
    model = make_model(Box(-1.0, 1.0, (4,)), Discrete(2), 2, config)
    keys = jax.random.split(jax.random.key(0), 4)
    population = jax.jit(jax.vmap(model.init))(keys)
    member = jax.jit(model.init)(keys[2])
    jax.tree.map(lambda many, one: np.testing.assert_allclose(many[2], one, rtol=1e-5, atol=1e-6), population, member)
