from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gymnasium import spaces

from jaxrl import registry
from jaxrl.models import ModelConfig, from_functions, from_linen, from_nnx, make_model
from jaxrl.models.recurrent import LSTM
from jaxrl.types import ConfigError, ModelInputs, ModelOutput

KEY = jax.random.key(0)
SPACE = spaces.Box(-1.0, 1.0, (4,))
TWO = spaces.Discrete(2)
OBS = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)


class Net(nn.Module):
    num_outputs: int = 2

    @nn.compact
    def __call__(self, obs):
        assert obs.ndim == 2  # whatever the leading axes, the network sees one
        x = nn.relu(nn.Dense(6, name="hidden")(obs))
        return nn.Dense(self.num_outputs, name="policy")(x), nn.Dense(1, name="value")(x)


class StepNet(nn.Module):
    """One step of a running sum."""

    @nn.compact
    def __call__(self, obs, state):
        state = state + obs.sum(-1)
        return nn.Dense(2)(obs) + state[:, None], state, state


class WholeNet(nn.Module):
    """All of the inputs, over time, by the built-in cell."""

    @nn.compact
    def __call__(self, inputs, state):
        x = jnp.concatenate([inputs.obs, jax.nn.one_hot(inputs.prev_actions, 2)], axis=-1)
        x, state = LSTM(6)(x, state, inputs.reset, inputs.mask)
        return ModelOutput(nn.Dense(2)(x), nn.Dense(1)(x), state)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, obs):
        return self.layers[1](nnx.relu(self.dropout(self.layers[0](obs))))


def build(make: Any, num_outputs=2, **options):
    return make_model(SPACE, TWO, num_outputs, ModelConfig(custom_model=make, **options))


def test_linen():
    model = build(lambda obs_space, action_space, num_outputs, config: Net(num_outputs))
    params = model.init(KEY)
    assert sorted(params) == ["hidden", "policy", "value"]
    assert model.reads == {"obs"}
    assert not model.recurrent
    out = jax.jit(model.apply)(params, ModelInputs(OBS))
    expected: Any = Net().apply({"params": params}, OBS.reshape(15, 4))
    dist_inputs, value = expected
    np.testing.assert_allclose(out.dist_inputs, dist_inputs.reshape(3, 5, 2), rtol=1e-6)
    np.testing.assert_allclose(out.value, value.reshape(3, 5), rtol=1e-6)
    one = model.apply(params, ModelInputs(OBS[0, 0]))
    assert one.dist_inputs.shape == (2,)
    assert one.value.shape == ()


def test_a_step_over_time_is_reset_and_held():
    model = build(lambda *args: from_linen(StepNet(), SPACE, initial_state=lambda batch_size: jnp.zeros(batch_size)))
    assert model.recurrent
    assert model.reads == {"obs", "reset", "mask"}
    reset, mask = np.zeros((3, 5), bool), np.ones((3, 5), bool)
    reset[1, 0], mask[1, 1] = True, False
    inputs = ModelInputs(OBS, reset=jnp.asarray(reset), mask=jnp.asarray(mask))
    out = jax.jit(model.apply)(model.init(KEY), inputs, model.initial_state(5) + 10)
    sums = OBS.sum(-1)
    np.testing.assert_allclose(
        out.value[2], [*(10 * (np.arange(5) > 0) + sums.sum(0) - [sums[0, 0], sums[1, 1], 0, 0, 0])], rtol=1e-4
    )
    np.testing.assert_allclose(out.state, out.value[2], rtol=1e-6)


def test_whole_inputs():
    def make(obs_space, action_space, num_outputs, config):
        return from_linen(WholeNet(), obs_space, action_space, initial_state=LSTM(6, parent=None).initial_state)

    model = build(make, use_lstm=True)
    assert model.reads == {"obs", "prev_actions", "reset", "mask"}  # prev_rewards is not read
    inputs = ModelInputs(OBS, prev_actions=jnp.zeros((3, 5), jnp.int32))
    out = model.apply(model.init(KEY), inputs, model.initial_state(5))
    assert out.value.shape == (3, 5)


def test_whole_inputs_feed_forward():
    def apply(params, inputs):
        return inputs.obs @ params["w"] + inputs.prev_rewards[..., None]

    model = build(lambda *args: (lambda key: {"w": jnp.ones((4, 2))}, apply))
    assert model.reads == {"obs", "prev_rewards"}
    out = model.apply(model.init(KEY), ModelInputs(OBS, prev_rewards=jnp.ones((3, 5))))
    np.testing.assert_allclose(out.dist_inputs, (OBS.sum(-1) + 1)[..., None].repeat(2, -1), rtol=1e-5)
    assert not out.value.any()


def test_nnx_parameters_follow_the_key():
    def make(obs_space, action_space, num_outputs, config, rngs):
        return NNXNet(rngs)

    model = build(make)
    params = model.init(KEY)
    assert sorted(params["layers"]) == ["0", "1"]
    other = model.init(jax.random.key(1))
    assert not np.allclose(params["layers"]["0"]["kernel"], other["layers"]["0"]["kernel"])
    out = jax.jit(model.apply)(params, ModelInputs(OBS))
    layers = params["layers"]
    expected = jnp.maximum(OBS @ layers["0"]["kernel"], 0) @ layers["1"]["kernel"]  # biases start at 0; no dropout
    np.testing.assert_allclose(out.dist_inputs, expected, rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda params: (model.apply(params, ModelInputs(OBS)).dist_inputs ** 2).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert np.abs(grads["layers"]["0"]["kernel"]).max() > 0


def test_nnx_instance_keeps_its_parameters():
    net = NNXNet(nnx.Rngs(3))
    model = build(lambda *args: net)
    kernel = model.init(jax.random.key(9))["layers"]["0"]["kernel"]
    np.testing.assert_array_equal(kernel, net.layers[0].kernel[...])
    assert not net.dropout.deterministic  # the user's own module stays as it was


def test_nnx_factory():
    model = from_nnx(lambda rngs: NNXNet(rngs), SPACE)
    out = model.apply(model.init(KEY), ModelInputs(OBS))
    assert out.dist_inputs.shape == (3, 5, 2)


def test_functions_with_a_state():
    def apply(params, obs, state):
        state = state + params["rate"]
        return jnp.stack([obs.sum(-1), state], -1), state, state

    functions = (lambda key: {"rate": jnp.ones(())}, apply, lambda batch_size: jnp.zeros(batch_size))
    model = build(lambda *args: functions)
    out = model.apply(model.init(KEY), ModelInputs(OBS), model.initial_state(5))
    np.testing.assert_array_equal(out.value, np.arange(1, 4)[:, None].repeat(5, 1))
    same = from_functions(*functions[:2], SPACE, initial_state=functions[2])
    np.testing.assert_array_equal(same.apply({"rate": 1.0}, ModelInputs(OBS), same.initial_state(5)).value, out.value)


def test_by_registered_name_with_its_own_options(monkeypatch):
    def make(obs_space, action_space, num_outputs, config):
        assert config.custom_model_config == {"width": 3}
        return Net(num_outputs)

    monkeypatch.setitem(registry._tables["model"], "net", make)
    assert build("net", custom_model_config={"width": 3}).init(KEY)["policy"]["kernel"].shape == (6, 2)
    with pytest.raises(ConfigError, match="unknown model 'nets'; did you mean 'net'"):
        build("nets")


class BatchNormNet(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.BatchNorm(use_running_average=True)(obs)[..., :2]


class NNXBatchNormNet(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, obs):
        return self.norm(obs)[..., :2]


def no_params(key):
    return {}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Net(3), r"dist_inputs \[2, 3, 2\].*got \[2, 3, 3\]: the distribution takes num_outputs=2"),
        ((no_params, lambda params, obs: (obs[:, :2], obs)), r"one value per row, \[2, 3\].*got \[2, 3, 4\]"),
        (
            (no_params, lambda params, obs: (obs[:, :2], obs.astype(int)[:, 0])),
            "expected floats for value, got int32",
        ),
        ((no_params, lambda params, obs: (obs, obs, obs)), "got a tuple of 3"),
        ((no_params, lambda params, obs: {"logits": obs}), "got dict"),
        ((no_params, lambda params, obs, state: (obs, obs[:, 0], state)), "it takes a state; give initial_state="),
        ((no_params, lambda params, obs: obs, lambda n: jnp.zeros(n)), "no second argument for the state"),
        ((no_params, lambda params, obs, state: (obs, state), lambda n: jnp.zeros(n)), "dist_inputs, value, state"),
        (
            (
                lambda key: {},
                lambda params, inputs, state: (inputs.obs[..., :2], inputs.obs[..., 0], ()),
                lambda n: jnp.zeros(n),
            ),
            r"state after a row differs from the initial state: got \(\), expected float32\[3\]",
        ),
        (BatchNormNet(), "model BatchNormNet: expected parameters alone, got variables of kind batch_stats.*LayerNorm"),
        (NNXBatchNormNet(nnx.Rngs(0)), "model NNXBatchNormNet: expected parameters alone, got.*BatchStat"),
        (3, "expected it to return a Model, a Linen or NNX module.*got int"),
    ],
)
def test_bad_networks_are_refused_before_training(network, message):
    with pytest.raises(ConfigError, match=message):
        build(lambda *args: network)


def test_lstm_wrapper_around_a_custom_model_is_refused():
    with pytest.raises(ConfigError, match="custom_model <lambda> has no state"):
        build(lambda *args: Net(), use_lstm=True)
    with pytest.raises(ConfigError, match="expected a registered name or a function"):
        build(3)
