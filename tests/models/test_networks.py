from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.models import ModelConfig, make_model, preprocess
from jaxrl.types import ConfigError, ModelInputs, UnsupportedSpaceError

KEY = jax.random.key(0)
BOOL: Any = np.bool_
BITS = spaces.Box(0, 1, (10, 8, 3), BOOL)
VECTOR = spaces.Box(-1.0, 1.0, (4,))
TWO = spaces.Discrete(2)


def sample_batch(space, batch):
    """Random observations of a space, stacked as vector environments stack them."""
    space.seed(1)
    samples = [space.sample() for _ in range(batch)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(plain(sample) for sample in samples))


def plain(tree):
    if isinstance(tree, dict):
        return {key: plain(child) for key, child in tree.items()}
    return tuple(plain(child) for child in tree) if isinstance(tree, tuple) else np.asarray(tree)


@pytest.mark.parametrize(
    "space",
    [
        VECTOR,
        spaces.Box(-1.0, 1.0, ()),
        spaces.Box(-1.0, 1.0, (2, 3)),
        spaces.Box(0, 255, (2, 3, 4, 5), np.uint8),
        spaces.Box(0, 255, (128,), np.uint8),
        spaces.Discrete(5, start=3),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
        spaces.MultiBinary([2, 2]),
        BITS,
        spaces.Dict(
            {
                "position": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,)))),
                "image": spaces.Box(0, 255, (3, 9, 9), np.uint8),
                "flags": spaces.MultiBinary(3),
            }
        ),
    ],
    ids=str,
)
def test_every_observation_space_with_any_leading_axes(space):
    model = make_model(space, TWO, 2, ModelConfig(fcnet_hiddens=(8,), conv_filters=[[4, 3, 2]], vf_share_layers=False))
    params, apply = jax.jit(model.init)(KEY), jax.jit(model.apply)
    obs = sample_batch(space, 6)
    flat = apply(params, ModelInputs(obs), model.initial_state(6))
    assert flat.dist_inputs.shape == (6, 2)
    assert flat.value.shape == (6,)
    assert flat.state == ()
    grid = apply(params, ModelInputs(jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), obs)))
    np.testing.assert_allclose(grid.dist_inputs.reshape(6, 2), flat.dist_inputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grid.value.reshape(6), flat.value, rtol=1e-5, atol=1e-6)
    assert np.isfinite(flat.value).all()


def test_features_are_one_hot_scaled_and_in_order():
    space = spaces.Dict(
        {
            "b": spaces.MultiDiscrete([2, 3], start=[1, 0]),
            "a": spaces.Discrete(3, start=5),
            "c": spaces.Box(0, 255, (2,), np.uint8),
        }
    )
    obs = {"a": np.int32(6), "b": np.array([2, 0], np.int32), "c": np.array([255, 51], np.uint8)}
    # The space sorts its keys: a, b, c.
    np.testing.assert_allclose(preprocess.flat_tree(obs, space), [0, 1, 0, 0, 1, 1, 0, 0, 1.0, 0.2], rtol=1e-6)
    assert sum(preprocess.flat_size(leaf.space) for leaf in preprocess.leaves(space)) == 10
    assert preprocess.flat(np.array([100], np.uint8), spaces.Box(0, 100, (1,), np.uint8)) == 100.0


def test_action_mask_is_no_feature():
    inner = spaces.Dict({"action_mask": spaces.MultiBinary(2)})
    space = spaces.Dict({"action_mask": spaces.MultiBinary(2), "obs": VECTOR, "inner": inner})
    model = make_model(space, TWO, 2, ModelConfig(fcnet_hiddens=(8,)))
    params = model.init(KEY)
    assert params["encoder"]["layer_0"]["kernel"].shape == (4 + 2, 8)  # the mask further down is a feature
    obs = {"obs": np.ones((1, 4), np.float32), "inner": {"action_mask": np.zeros((1, 2), np.int8)}}
    one, other = (
        model.apply(params, ModelInputs({**obs, "action_mask": np.full((1, 2), v, np.int8)})).dist_inputs
        for v in (0, 1)
    )
    np.testing.assert_array_equal(one, other)
    with pytest.raises(UnsupportedSpaceError, match="at least one observation"):
        make_model(spaces.Dict({"action_mask": spaces.MultiBinary(2)}), TWO, 2)


def test_unsupported_observation_names_its_place():
    space = spaces.Dict({"a": spaces.Tuple((VECTOR, spaces.Text(3)))})
    with pytest.raises(UnsupportedSpaceError, match=r"space at \['a'\]\[1\]: expected Box.*got Text"):
        make_model(space, TWO, 2)


def test_groups_of_parameters():
    shared = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(8,))).init(KEY)
    assert sorted(shared) == ["encoder", "policy", "value"]
    separate = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(8,), vf_share_layers=False)).init(KEY)
    assert sorted(separate) == ["policy", "value"]
    linear = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=())).init(KEY)
    assert linear["encoder"] == {}
    assert linear["policy"]["out"]["kernel"].shape == (4, 2)


def test_initial_parameters():
    def init(initializer):
        config = ModelConfig(fcnet_hiddens=(64, 64), initializer=initializer)
        return make_model(spaces.Box(-1.0, 1.0, (64,)), TWO, 2, config).init(KEY)

    params = init("orthogonal")
    kernel = params["encoder"]["layer_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(64), atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(params["policy"]["out"]["kernel"], axis=0), 0.01, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(params["value"]["out"]["kernel"]), 1.0, rtol=1e-5)
    assert not params["encoder"]["layer_0"]["bias"].any()
    params = init("normc")
    np.testing.assert_allclose(jnp.linalg.norm(params["encoder"]["layer_1"]["kernel"], axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(params["policy"]["out"]["kernel"], axis=0), 0.01, rtol=1e-5)
    params = init("glorot")
    np.testing.assert_allclose(params["encoder"]["layer_1"]["kernel"].std(), np.sqrt(2 / 128), rtol=0.05)
    assert not np.allclose(params["encoder"]["layer_0"]["kernel"], params["encoder"]["layer_1"]["kernel"])


@pytest.mark.parametrize("share", [True, False])
def test_free_log_std(share):
    box = spaces.Box(-1.0, 1.0, (3,))
    model = make_model(VECTOR, box, 6, ModelConfig(fcnet_hiddens=(8,), free_log_std=True, vf_share_layers=share))
    params = model.init(KEY)
    where = params["policy"] if share else params["policy"]["head"]
    assert where["out"]["kernel"].shape == (8, 3)
    where["log_std"] = jnp.array([0.1, 0.2, 0.3])
    out = model.apply(params, ModelInputs(np.ones((5, 4), np.float32))).dist_inputs
    assert out.shape == (5, 6)
    np.testing.assert_allclose(out[:, 3:], np.tile([0.1, 0.2, 0.3], (5, 1)), rtol=1e-6)
    for space, size in ((TWO, 2), (box, 3)):
        with pytest.raises(ConfigError, match="free_log_std: expected a Box action space"):
            make_model(VECTOR, space, size, ModelConfig(free_log_std=True))


def test_no_final_linear():
    model = make_model(
        VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(8, 16), no_final_linear=True, fcnet_activation="relu")
    )
    params = model.init(KEY)
    assert params["encoder"]["layer_0"]["kernel"].shape == (4, 8)
    assert list(params["encoder"]) == ["layer_0"]
    assert params["policy"]["out"]["kernel"].shape == (8, 2)
    obs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    assert model.apply(params, ModelInputs(obs)).dist_inputs.min() == 0.0
    with pytest.raises(ConfigError, match="no hidden layer to put last"):
        make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(), no_final_linear=True))


def test_forward_is_the_formula():
    model = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(8,), post_fcnet_hiddens=(6,), fcnet_activation="elu"))
    params = model.init(KEY)
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x = obs
    for layer in ("layer_0", "layer_1"):
        x = x @ np.asarray(params["encoder"][layer]["kernel"]) + np.asarray(params["encoder"][layer]["bias"])
        x = np.where(x > 0, x, np.expm1(x))
    out = model.apply(params, ModelInputs(obs))
    np.testing.assert_allclose(out.dist_inputs, x @ np.asarray(params["policy"]["out"]["kernel"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        out.value, (x @ np.asarray(params["value"]["out"]["kernel"]))[:, 0], rtol=1e-5, atol=1e-6
    )


def test_acting_does_not_compute_a_separate_value_network():
    model = make_model(VECTOR, TWO, 2, ModelConfig(vf_share_layers=False))
    params, obs = model.init(KEY), np.zeros((8, 4), np.float32)

    def flops(f):
        costs: Any = jax.jit(f).lower(params, obs).compile().cost_analysis()
        return costs["flops"]

    both = flops(lambda params, obs: model.apply(params, ModelInputs(obs))[:2])
    policy = flops(lambda params, obs: model.apply(params, ModelInputs(obs)).dist_inputs)
    assert policy < 0.55 * both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fcnet_activation": "rellu"}, "model.fcnet_activation: unknown name 'rellu'; did you mean 'relu'"),
        ({"conv_activation": "one_hot"}, "model.conv_activation: unknown name 'one_hot'.*Known: celu"),
        ({"fcnet_hiddens": (64, 0)}, r"model.fcnet_hiddens: expected whole numbers of at least 1, got 0"),
        ({"fcnet_hiddens": 64}, r"model.fcnet_hiddens: expected a list of layer sizes such as \[64, 64\], got 64"),
        ({"initializer": "orthogonall"}, "model.initializer: unknown name 'orthogonall'; did you mean 'orthogonal'"),
        ({"use_lstm": True, "use_gru": True}, "use_lstm and use_gru are both true"),
        ({"lstm_use_prev_action_reward": True}, "needs use_lstm or use_gru"),
        ({"use_lstm": True, "no_final_linear": True}, "no_final_linear"),
        ({"lstm_cell_size": True}, "lstm_cell_size"),
        ({"max_seq_len": 0}, "max_seq_len"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**options)


def test_config_is_hashable_and_linear_is_the_identity():
    assert hash(ModelConfig()) != hash(ModelConfig())
    for name in ("linear", None):
        model = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(8, 8), fcnet_activation=name))
        params, obs = model.init(KEY), np.ones((1, 4), np.float32)
        once, twice = (model.apply(params, ModelInputs(k * obs)).dist_inputs for k in (1.0, 2.0))
        np.testing.assert_allclose(2 * once, twice, rtol=1e-5)
