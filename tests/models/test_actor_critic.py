from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.distributions import get_dist_class
from jaxrl.models import ModelConfig, make_actor_critic
from jaxrl.types import ConfigError, ModelInputs, UnsupportedSpaceError

KEY = jax.random.key(0)
VECTOR = spaces.Box(-1.0, 1.0, (4,))
IMAGE = spaces.Box(0, 255, (10, 10, 2), np.uint8)
DICT = spaces.Dict({"image": IMAGE, "choice": spaces.Discrete(3)})
BOX = spaces.Box(np.array([-1.0, 0.0, -0.3], np.float32), np.array([1.0, 4.0, 0.1], np.float32))
THREE = spaces.Discrete(3)


def make(obs_space: Any = VECTOR, action_space: Any = BOX, num_outputs=3, config=None, **options):
    config = config or ModelConfig(conv_filters=[[4, 3, 2]])
    hiddens = {"actor_hiddens": (9, 8), "critic_hiddens": (7, 6)}
    model = make_actor_critic(obs_space, action_space, num_outputs, config, **{**hiddens, **options})
    return model._replace(init=jax.jit(model.init))


def observations(space, *leading) -> Any:
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Dict):
        return {key: observations(child, *leading) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, leading).astype(np.int32)
    if space.dtype == np.uint8:
        return rng.integers(0, 255, (*leading, *space.shape)).astype(np.uint8)
    return rng.normal(size=(*leading, *space.shape)).astype(np.float32)


@pytest.mark.parametrize("space", [VECTOR, IMAGE, DICT], ids=["vector", "image", "dict"])
@pytest.mark.parametrize("critics", [1, 2])
def test_shapes(space, critics):
    model = make(space, num_outputs=6, num_critics=critics, initial_alpha=0.2)
    assert model.reads == {"obs"}
    assert not model.recurrent
    params = jax.eval_shape(model.init, KEY)
    assert sorted(params) == ["log_alpha", "policy", "q"]
    assert len(params["q"]) == critics
    assert params["log_alpha"].shape == ()
    for leading in ((6,), (2, 3)):
        obs = observations(space, *leading)
        out = jax.eval_shape(model.apply, params, ModelInputs(obs))
        assert out.dist_inputs.shape == (*leading, 6)
        assert out.value.shape == leading
        q = jax.eval_shape(model.heads["q"], params, obs, jnp.zeros((*leading, 3)))
        assert q.shape == (critics, *leading)


def test_discrete_actions():
    model = make(action_space=THREE)
    params, obs = model.init(KEY), observations(VECTOR, 2, 3)
    assert sorted(params) == ["policy", "q"]
    assert model.apply(params, ModelInputs(obs)).dist_inputs.shape == (2, 3, 3)
    assert model.heads["q"](params, obs).shape == (2, 2, 3, 3)


def test_deterministic_actions_stay_within_bounds():
    model = make()
    params, obs = model.init(KEY), observations(VECTOR, 200)
    middle = (BOX.low + BOX.high) / 2
    first = model.apply(params, ModelInputs(obs)).dist_inputs
    np.testing.assert_allclose(first, np.tile(middle, (200, 1)), atol=0.2)
    params["policy"] = jax.tree.map(lambda x: 30 * x, params["policy"])
    actions = model.apply(params, ModelInputs(100 * obs)).dist_inputs
    assert (actions >= BOX.low).all() and (actions <= BOX.high).all()
    np.testing.assert_allclose(actions.min(axis=0), BOX.low, atol=1e-3)
    np.testing.assert_allclose(actions.max(axis=0), BOX.high, atol=1e-3)
    assert BOX.contains(np.asarray(get_dist_class(BOX, dist_type="deterministic")(actions).mode()[0]))
    raw = make(squash=False).apply(params, ModelInputs(100 * obs)).dist_inputs
    assert np.abs(raw).max() > 4


def test_gaussian_inputs_reach_the_distribution_as_they_are():
    model = make(num_outputs=6)
    params, obs = model.init(KEY), observations(VECTOR, 5)
    params["policy"] = jax.tree.map(lambda x: 30 * x, params["policy"])
    inputs = model.apply(params, ModelInputs(100 * obs)).dist_inputs
    assert np.abs(inputs).max() > 20
    dist = get_dist_class(BOX, dist_type="squashed_gaussian")(inputs)
    assert dist.log_std.min() >= -20 and dist.log_std.max() <= 2
    assert np.isfinite(dist.sample_and_log_prob(KEY)[1]).all()


def test_forward_is_the_formula():
    model = make(actor_activation="tanh", critic_activation="elu")
    params, obs, actions = model.init(KEY), observations(VECTOR, 5), observations(BOX, 5)

    def mlp(params, x, act):
        for layer in ("layer_0", "layer_1"):
            x = act(x @ np.asarray(params[layer]["kernel"]) + np.asarray(params[layer]["bias"]))
        return x @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])

    middle, half = (BOX.low + BOX.high) / 2, (BOX.high - BOX.low) / 2
    expected = middle + half * np.tanh(mlp(params["policy"]["net"], obs, np.tanh))
    np.testing.assert_allclose(model.apply(params, ModelInputs(obs)).dist_inputs, expected, rtol=1e-5, atol=1e-6)
    x = np.concatenate([obs, (actions - middle) / half], axis=-1)
    for i, q in enumerate(model.heads["q"](params, obs, actions)):
        by_hand = mlp(params["q"][f"critic_{i}"]["net"], x, lambda x: np.where(x > 0, x, np.expm1(x)))
        np.testing.assert_allclose(q, by_hand[:, 0], rtol=1e-4, atol=1e-5)


def test_actor_and_critics_are_apart():
    model = make(DICT, initial_alpha=0.2)
    params, obs, actions = model.init(KEY), observations(DICT, 5), observations(BOX, 5)
    np.testing.assert_allclose(params["log_alpha"], np.log(0.2), rtol=1e-6)

    def norms(tree):
        return {group: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree[group])) for group in tree}

    actor = norms(jax.grad(lambda p: model.apply(p, ModelInputs(obs)).dist_inputs.sum())(params))
    assert actor["policy"] > 0 and actor["q"] == 0 and actor["log_alpha"] == 0
    critic = norms(jax.grad(lambda p: model.heads["q"](p, obs, actions).sum())(params))
    assert critic["q"] > 0 and critic["policy"] == 0
    first = jax.grad(lambda p: model.heads["q"](p, obs, actions)[0].sum())(params)["q"]
    assert norms(first)["critic_0"] > 0 and norms(first)["critic_1"] == 0
    one, two = model.heads["q"](params, obs, actions)
    assert not np.allclose(one, two)
    by_action = jax.grad(lambda a: model.heads["q"](params, obs, a).sum())(actions)
    assert np.abs(by_action).min() > 0


def test_acting_costs_the_actor_alone():
    model, obs = make(actor_hiddens=(64, 64), critic_hiddens=(64, 64)), np.zeros((8, 4), np.float32)
    jaxpr = jax.make_jaxpr(lambda params: model.apply(params, ModelInputs(obs))[:2])(model.init(KEY))
    assert str(jaxpr).count("dot_general") == 3


def test_actions_of_any_shape():
    box = spaces.Box(-2.0, 2.0, (2, 2))
    model = make(action_space=box, num_outputs=4)
    params, obs = model.init(KEY), observations(VECTOR, 5)
    actions = get_dist_class(box, dist_type="deterministic")(model.apply(params, ModelInputs(obs)).dist_inputs).mode()
    assert actions.shape == (5, 2, 2)
    assert model.heads["q"](params, obs, actions).shape == (2, 5)


def test_state_preprocessor_and_layer_norm():
    config = ModelConfig(fcnet_hiddens=(5,))
    params = make(config=config, use_state_preprocessor=True).init(KEY)
    assert params["policy"]["encoder"]["layer_0"]["kernel"].shape == (4, 5)
    assert params["q"]["critic_1"]["net"]["layer_0"]["kernel"].shape == (5 + 3, 7)
    assert make(config=config).init(KEY)["policy"]["encoder"] == {}
    model, obs = make(layer_norm=True), observations(VECTOR, 5)
    params = model.init(KEY)
    net = params["policy"]["net"]
    scaled = {
        **params,
        "policy": {"encoder": {}, "net": {**net, "layer_0": jax.tree.map(lambda x: 9 * x, net["layer_0"])}},
    }
    np.testing.assert_allclose(
        *(model.apply(p, ModelInputs(obs)).dist_inputs for p in (params, scaled)), rtol=1e-3, atol=1e-4
    )


def test_custom_model_gives_each_network_its_features():
    def make_net(obs_space, action_space, num_outputs, config):
        return lambda key: {"w": jax.random.normal(key, (4, num_outputs))}, lambda params, obs: obs @ params["w"]

    model = make(config=ModelConfig(custom_model=make_net, fcnet_hiddens=(5,)), use_state_preprocessor=True)
    params, obs = model.init(KEY), observations(VECTOR, 5)
    weights = [params["policy"]["encoder"]["w"], *(critic["encoder"]["w"] for critic in params["q"].values())]
    assert all(w.shape == (4, 5) for w in weights)
    assert not np.allclose(weights[0], weights[1]) and not np.allclose(weights[1], weights[2])
    assert model.heads["q"](params, obs, observations(BOX, 5)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"action_space": spaces.MultiDiscrete([2, 2])}, UnsupportedSpaceError, "Box of floats or a Discrete"),
        ({"action_space": spaces.Box(-np.inf, np.inf, (3,))}, UnsupportedSpaceError, "finite bounds"),
        ({"action_space": THREE, "num_outputs": 6}, ConfigError, "one logit for each of 3 actions"),
        ({"config": ModelConfig(use_lstm=True)}, ConfigError, "feed-forward"),
        ({"config": ModelConfig(free_log_std=True)}, ConfigError, "model.free_log_std"),
        ({"num_critics": 0}, ConfigError, "num_critics"),
        ({"initial_alpha": 0.0}, ConfigError, "initial_alpha"),
        ({"actor_hiddens": (0,)}, ConfigError, "actor_hiddens"),
        ({"critic_activation": "rellu"}, ConfigError, "critic_activation: unknown name 'rellu'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_unbounded_actions_with_a_gaussian():
    box = spaces.Box(-np.inf, np.inf, (2,))
    model = make(action_space=box, num_outputs=4)
    params, obs = model.init(KEY), observations(VECTOR, 5)
    assert np.isfinite(model.heads["q"](params, obs, np.full((5, 2), 1e3, np.float32))).all()
