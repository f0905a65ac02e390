from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.models import ModelConfig, make_q_model
from jaxrl.types import ConfigError, ModelInputs, UnsupportedSpaceError

KEY = jax.random.key(0)
VECTOR = spaces.Box(-1.0, 1.0, (4,))
THREE = spaces.Discrete(3)
MASKED = spaces.Dict({"action_mask": spaces.MultiBinary(3), "obs": VECTOR})
IMAGE = spaces.Box(0, 255, (10, 10, 2), np.uint8)
SMALL = ModelConfig(fcnet_hiddens=(8,), conv_filters=[[4, 3, 2]], lstm_cell_size=6)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"dueling": False},
    {"hiddens": ()},
    {"hiddens": (), "dueling": False},
    {"noisy": True},
    {"num_atoms": 5},
    {"num_quantiles": 6, "noisy": True},
    {"layer_norm": True},
    {"noisy": True, "num_atoms": 5, "hiddens": (7, 6)},
]


def make(space: Any = VECTOR, config=SMALL, **options):
    model = make_q_model(space, THREE, config, **{"hiddens": (7,), **options})
    return model._replace(init=jax.jit(model.init), apply=jax.jit(model.apply))


def observations(space, *leading) -> Any:
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Dict):
        obs = {key: observations(child, *leading) for key, child in space.spaces.items()}
        return {**obs, "action_mask": np.broadcast_to(np.array([1, 0, 1], np.int8), (*leading, 3))}
    if space.dtype == np.uint8:
        return rng.integers(0, 255, (*leading, *space.shape)).astype(np.uint8)
    return rng.normal(size=(*leading, *space.shape)).astype(np.float32)


@pytest.mark.parametrize("space", [VECTOR, MASKED, IMAGE], ids=["vector", "masked", "image"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_shapes(space, options):
    model = make_q_model(space, THREE, SMALL, **{"hiddens": (7,), **options})
    stochastic = options.get("noisy", False) or "num_quantiles" in options
    assert model.reads == {"obs"} | ({"key"} if stochastic else set())
    assert not model.recurrent
    params = jax.eval_shape(model.init, KEY)
    assert sorted(params) == ["encoder", "q"]
    for leading in ((6,), (2, 3)):
        for key in (None, KEY):
            inputs = ModelInputs(observations(space, *leading), key=key)
            out = jax.eval_shape(model.apply, params, inputs)
            assert out.dist_inputs.shape == (*leading, 3)
            assert out.value.shape == leading
            expected = {}
            if "num_atoms" in options:
                expected = {"q_logits": (*leading, 3, 5)}
            if "num_quantiles" in options:
                expected = {"quantiles": (*leading, 6, 3), "taus": (*leading, 6)}
            assert {name: x.shape for name, x in out.extras.items()} == expected


def test_images():
    model = make(IMAGE, noisy=True, num_quantiles=4)
    out = model.apply(model.init(KEY), ModelInputs(observations(IMAGE, 2, 3), key=KEY))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))
    assert np.ptp(out.dist_inputs) > 0


def test_value_is_the_largest_of_allowed_actions():
    model = make(MASKED)
    out = model.apply(model.init(KEY), ModelInputs(observations(MASKED, 50)))
    np.testing.assert_array_equal(out.value, out.dist_inputs[:, [0, 2]].max(axis=1))
    nothing = {**observations(MASKED, 2), "action_mask": np.zeros((2, 3), np.int8)}
    assert np.isfinite(model.apply(model.init(KEY), ModelInputs(nothing)).value).all()


def dense(params, x):
    return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def test_dueling_is_the_formula():
    obs = observations(VECTOR, 6)
    params = jax.tree.map(lambda x: x + 0.1, make().init(KEY))
    x = np.tanh(dense(params["encoder"]["layer_0"], obs))
    advantage, value = (
        dense(stream["out"], np.maximum(dense(stream["layer_0"], x), 0.0))
        for stream in (params["q"]["advantage"], params["q"]["value"])
    )
    q = make().apply(params, ModelInputs(obs)).dist_inputs
    np.testing.assert_allclose(q, value + advantage - advantage.mean(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.mean(axis=1), value[:, 0], rtol=1e-4, atol=1e-5)  # the mean advantage is 0
    # With a mask, the mean is over the actions that there are.
    masked = make(MASKED).apply(params, ModelInputs({**observations(MASKED, 6), "obs": obs})).dist_inputs
    np.testing.assert_allclose(masked[:, [0, 2]].mean(axis=1), value[:, 0], rtol=1e-4, atol=1e-5)
    plain = {"encoder": params["encoder"], "q": {"advantage": params["q"]["advantage"]}}
    np.testing.assert_allclose(
        make(dueling=False).apply(plain, ModelInputs(obs)).dist_inputs, advantage, rtol=1e-4, atol=1e-5
    )


def test_no_hiddens_is_a_linear_head():
    model = make(hiddens=(), dueling=False)
    params = model.init(KEY)
    assert jax.tree.map(jnp.shape, params["q"]) == {"advantage": {"out": {"kernel": (8, 3), "bias": (3,)}}}
    obs = observations(VECTOR, 6)
    x = np.tanh(dense(params["encoder"]["layer_0"], obs))
    np.testing.assert_allclose(
        model.apply(params, ModelInputs(obs)).dist_inputs,
        dense(params["q"]["advantage"]["out"], x),
        rtol=1e-4,
        atol=1e-5,
    )
    assert sorted(make(hiddens=()).init(KEY)["q"]) == ["advantage", "value"]


def test_categorical_q_is_the_mean_over_the_support():
    model = make(num_atoms=5, v_min=-2.0, v_max=6.0)
    out = model.apply(model.init(KEY), ModelInputs(observations(VECTOR, 6)))
    logits = np.asarray(out.extras["q_logits"])
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(out.dist_inputs, p @ np.array([-2.0, 0.0, 2.0, 4.0, 6.0]), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"noisy": True}, {"num_quantiles": 6}, {"noisy": True, "num_quantiles": 6}], ids=str
)
def test_keys(options):
    model, inputs = make(**options), ModelInputs(observations(VECTOR, 6))
    params = model.init(KEY)
    mean, again, one, same, other = (
        model.apply(params, inputs._replace(key=key)).dist_inputs for key in (None, None, KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(mean, again)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, mean) and not np.allclose(one, other)


def test_noisy_without_a_key_is_the_plain_network_of_its_means():
    noisy, plain, inputs = make(noisy=True), make(), ModelInputs(observations(VECTOR, 6))
    params = noisy.init(KEY)

    def means(tree):
        return {
            name: means(child) if isinstance(child, dict) else child
            for name, child in tree.items()
            if not name.startswith("sigma")
        }

    np.testing.assert_allclose(
        noisy.apply(params, inputs).dist_inputs, plain.apply(means(params), inputs).dist_inputs, rtol=1e-5, atol=1e-6
    )
    sigma = params["q"]["advantage"]["out"]["sigma_kernel"]
    np.testing.assert_allclose(sigma, 0.5 / np.sqrt(7), rtol=1e-6)
    gradients = jax.grad(lambda p: noisy.apply(p, inputs._replace(key=KEY)).dist_inputs.sum())(params)
    assert np.abs(gradients["q"]["value"]["out"]["sigma_kernel"]).max() > 0


def test_quantiles_are_a_function_of_the_fraction():
    model = make(num_quantiles=6)
    params, inputs = model.init(KEY), ModelInputs(observations(VECTOR, 4), key=KEY)
    extras = model.apply(params, inputs).extras
    assert extras["taus"].min() >= 0 and extras["taus"].max() < 1
    assert len(np.unique(extras["taus"])) == 24  # drawn for each row
    midpoints = model.apply(params, inputs._replace(key=None))
    np.testing.assert_allclose(midpoints.extras["taus"][2], (np.arange(6) + 0.5) / 6, rtol=1e-6)
    np.testing.assert_allclose(midpoints.dist_inputs, midpoints.extras["quantiles"].mean(axis=1), rtol=1e-5)

    def at(taus):
        """Quantiles [4, N, A] by the paper's formula at the same fractions for all rows."""
        x = np.tanh(dense(params["encoder"]["layer_0"], inputs.obs))
        cosines = np.cos(np.pi * np.arange(64) * taus[:, None])
        x = x[:, None] * np.maximum(dense(params["q"]["embedding"], cosines), 0.0)
        advantage, value = (
            dense(stream["out"], np.maximum(dense(stream["layer_0"], x), 0.0))
            for stream in (params["q"]["advantage"], params["q"]["value"])
        )
        return value + advantage - advantage.mean(axis=-1, keepdims=True)

    for row in range(4):
        taus = np.asarray(extras["taus"][row])
        np.testing.assert_allclose(extras["quantiles"][row], at(taus)[row], rtol=1e-3, atol=1e-4)
        order = np.argsort(taus)
        np.testing.assert_allclose(at(taus)[row][order], at(taus[order])[row], rtol=1e-6)


@pytest.mark.parametrize("cell", ["use_lstm", "use_gru"])
@pytest.mark.parametrize("options", [{}, {"noisy": True, "num_quantiles": 4}], ids=str)
def test_recurrent(cell, options):
    cells: dict[str, Any] = {cell: True, "lstm_use_prev_action_reward": True}
    config = ModelConfig(fcnet_hiddens=(5,), lstm_cell_size=6, **cells)
    model = make(config=config, **options)
    assert {"obs", "reset", "mask", "prev_actions", "prev_rewards"} <= model.reads
    params, obs = model.init(KEY), observations(VECTOR, 7, 3)
    rng: Any = np.random.default_rng(1)
    reset: Any = np.zeros((7, 3), bool)
    mask: Any = np.ones((7, 3), bool)
    reset[3] = True
    actions = rng.integers(0, 3, (7, 3)).astype(np.int32)
    inputs = ModelInputs(obs, actions, rng.normal(size=(7, 3)).astype(np.float32), reset, mask)
    state = jax.tree.map(lambda x: x + 0.3, model.initial_state(3))
    whole = model.apply(params, inputs, state)
    assert whole.dist_inputs.shape == (7, 3, 3)

    def rows(index):
        return ModelInputs(*(None if x is None else x[index] for x in inputs))

    after = model.apply(params, rows(slice(3, 7)), model.initial_state(3))
    np.testing.assert_allclose(whole.dist_inputs[3:], after.dist_inputs, rtol=1e-4, atol=1e-5)
    before = model.apply(params, rows(slice(0, 3)), state)
    np.testing.assert_allclose(whole.dist_inputs[:3], before.dist_inputs, rtol=1e-4, atol=1e-5)
    assert not np.allclose(
        before.dist_inputs, model.apply(params, rows(slice(0, 3)), model.initial_state(3)).dist_inputs
    )


def test_layer_norm_standardises_hidden_layers():
    model, obs = make(layer_norm=True), observations(VECTOR, 6)
    params = model.init(KEY)
    assert jax.tree.structure(params) == jax.tree.structure(make().init(KEY))
    scaled = {**params, "encoder": jax.tree.map(lambda x: 50 * x, params["encoder"])}
    out, other = (model.apply(p, ModelInputs(obs)).dist_inputs for p in (params, scaled))
    np.testing.assert_allclose(out, other, rtol=1e-3, atol=1e-3)


def test_custom_model_gives_the_features():
    class Net(nn.Module):
        num_outputs: int

        @nn.compact
        def __call__(self, obs):
            return nn.Dense(self.num_outputs)(obs)

    sizes = []

    def make_net(obs_space, action_space, num_outputs, config):
        sizes.append(num_outputs)
        return Net(num_outputs)

    config = ModelConfig(custom_model=make_net, fcnet_hiddens=(11,))
    params = make(config=config).init(KEY)
    assert sorted(params["encoder"]) == ["Dense_0"]
    assert params["q"]["advantage"]["layer_0"]["kernel"].shape == (11, 7)
    assert np.abs(params["encoder"]["Dense_0"]["kernel"]).max() > 0
    # Nothing of the head asked for: the model's outputs are the Q-values.
    bare = make(config=config, hiddens=(), dueling=False)
    params = bare.init(KEY)
    assert params["q"] == {}
    out = bare.apply(params, ModelInputs(observations(VECTOR, 6)))
    np.testing.assert_allclose(out.dist_inputs, dense(params["encoder"]["Dense_0"], observations(VECTOR, 6)), rtol=1e-5)
    assert sizes == [11, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hiddens": (0,)}, "hiddens: expected whole numbers"),
        ({"num_atoms": 0}, "num_atoms >= 1"),
        ({"num_atoms": 5, "num_quantiles": 5}, "choose one"),
        ({"num_atoms": 5, "v_min": 1.0, "v_max": 1.0}, "v_min < v_max"),
        ({"sigma0": 0.0}, "sigma0"),
        ({"config": ModelConfig(no_final_linear=True)}, "model.no_final_linear"),
        ({"config": ModelConfig(free_log_std=True)}, "model.free_log_std"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_other_action_spaces_are_refused():
    for space in (spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([2, 2])):
        with pytest.raises(UnsupportedSpaceError, match="needs a Discrete space; got"):
            make_q_model(VECTOR, space)
