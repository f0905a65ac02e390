import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.models import ModelConfig, convolutions, make_model, preprocess, visionnet
from jaxrl.types import ConfigError, ModelInputs

KEY = jax.random.key(0)
TWO = spaces.Discrete(2)


def image(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def out_shapes(space, **options):
    height, width, _ = preprocess.image_shape(space)
    shapes = []
    for layer in visionnet.conv_layers(space, ModelConfig(**options)):
        height, width = (
            convolutions.out_size(n, k, s, layer.padding)
            for n, k, s in zip((height, width), layer.kernel, layer.stride, strict=True)
        )
        shapes.append((height, width, layer.out))
    return shapes


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((4, 2), (2, 1)), ((4, 3), (3, 2)), ((1, 2), (2, 3))])
def test_both_lowerings_agree(padding, kernel, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 11, 8, 3)).astype(np.float32)
    w = rng.normal(size=(*kernel, 3, 5)).astype(np.float32)

    def out_and_gradients(conv):
        out, vjp = jax.vjp(lambda x, w: conv(x, w, stride, padding), x, w)
        return out, vjp(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    got, expected = (
        jax.jit(out_and_gradients, static_argnums=0)(f) for f in (convolutions.conv_cpu, convolutions.conv_xla)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_a_kernel_as_large_as_the_image_is_a_dense_layer():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 5, 4, 3), (5, 4, 3, 6)))
    got = convolutions.conv2d(x, w, (1, 1), "VALID")
    np.testing.assert_allclose(got, convolutions.conv_xla(x, w, (1, 1), "VALID"), rtol=1e-4, atol=1e-5)


def test_lowering_follows_the_backend(monkeypatch):
    def primitives(x, w):
        return str(jax.make_jaxpr(lambda x, w: convolutions.conv2d(x, w, (2, 2), "SAME"))(x, w))

    x, w = jnp.zeros((1, 8, 8, 1)), jnp.zeros((3, 3, 1, 2))
    with jax.default_device(jax.devices("cpu")[0]):
        assert "custom_vjp_call" in primitives(x, w)
    monkeypatch.setattr(convolutions, "_platform", lambda: "gpu")
    assert "custom_vjp_call" not in primitives(x, w)


def test_every_convolution_has_the_form_that_is_fast_in_loops():
    def step(w, _):
        def loss(w):
            hidden = convolutions.conv2d(x, w, (2, 2), "SAME")
            return (convolutions.conv2d(hidden, w2, (1, 1), "VALID") ** 2).sum()

        return w - 0.1 * jax.grad(loss)(w), None

    x, w, w2 = jnp.ones((4, 9, 9, 2)), jnp.ones((4, 4, 2, 3)), jnp.ones((3, 3, 3, 5))
    text = jax.jit(lambda w: jax.lax.scan(step, w, length=2)[0]).lower(w).compile().as_text() or ""
    forms = re.findall(r"dim_labels=(\S+?)[,\s]", text)
    assert len(forms) == 4  # forward twice, one gradient of an image, one of a kernel (the second is a constant)
    assert set(forms) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("rows", [1, 31, 32, 50])
def test_chunks_of_rows_change_nothing(rows):
    space = image(12, 12, 1)
    model = make_model(space, TWO, 2, ModelConfig(conv_filters=[[4, 3, 2], [8, 3, 1, "valid"], [5, 4, 1]]))
    params = model.init(KEY)
    obs = np.random.default_rng(0).integers(0, 256, (rows, 12, 12, 1), np.uint8)

    def loss(params, obs):
        return (model.apply(params, ModelInputs(obs)).dist_inputs ** 2).sum()

    gradients = jax.jit(jax.value_and_grad(loss))
    value, gradient = gradients(params, obs)
    single = [gradients(params, row[None]) for row in obs]
    np.testing.assert_allclose(value, sum(v for v, _ in single), rtol=1e-4)
    expected = jax.tree.map(lambda *x: sum(x), *(g for _, g in single))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, expected)


@pytest.mark.parametrize(
    ("space", "shapes"),
    [
        (image(84, 84, 4), [(20, 20, 32), (9, 9, 64), (7, 7, 64), (1, 1, 512)]),
        (image(42, 42, 4), [(21, 21, 16), (11, 11, 32), (1, 1, 256)]),
        (image(10, 10, 4), [(10, 10, 32), (1, 1, 256)]),
        (image(7, 7, 3), [(7, 7, 32), (1, 1, 256)]),
        (image(64, 64, 3), [(32, 32, 16), (16, 16, 32), (8, 8, 64), (1, 1, 256)]),
        (image(96, 96, 3), [(24, 24, 16), (12, 12, 32), (1, 1, 256)]),
        (image(210, 160, 3), [(53, 40, 16), (27, 20, 32), (14, 10, 64), (7, 5, 64), (1, 1, 256)]),
    ],
    ids=str,
)
def test_default_filters(space, shapes):
    assert out_shapes(space) == shapes


def test_given_filters_are_padded_as_in_rllib():
    filters = [[16, [8, 8], 4], [32, 4, [2, 2]], [256, [11, 11], 1]]
    assert out_shapes(image(84, 84, 4), conv_filters=filters) == [(21, 21, 16), (11, 11, 32), (1, 1, 256)]
    valid = [[8, 3, 2, "valid"], [4, 3, 1, "same"]]
    assert out_shapes(image(9, 9, 1), conv_filters=valid) == [(4, 4, 8), (4, 4, 4)]


@pytest.mark.parametrize("layer", [[16, 3], [16, [3], 1], 16, [16, 3, 1, "reflect"], [0, 3, 1], ["a", 3, 1]])
def test_malformed_filters(layer):
    with pytest.raises(ConfigError, match=r"model.conv_filters\[0\]: expected \[out, kernel, stride\]"):
        make_model(image(20, 20, 3), TWO, 2, ModelConfig(conv_filters=[layer]))


def test_a_kernel_too_large_names_the_layer():
    with pytest.raises(ConfigError, match=r"conv_filters\[1\]: kernel \[11, 11\] is larger than the 5x5 image"):
        make_model(image(20, 20, 3), TWO, 2, ModelConfig(conv_filters=[[16, 4, 4], [32, 11, 1]]))


def test_channels_first_is_recognised():
    assert preprocess.image_shape(image(4, 84, 80)) == (84, 80, 4)
    assert preprocess.image_shape(image(84, 80, 4)) == (84, 80, 4)
    x = np.arange(4 * 9 * 8, dtype=np.uint8).reshape(4, 9, 8)
    got = preprocess.to_image(jnp.asarray(x), image(4, 9, 8))
    np.testing.assert_allclose(got, np.moveaxis(x, 0, -1) / 255.0, rtol=1e-6)
    assert not preprocess.is_image(image(6, 6, 3))
    assert not preprocess.is_image(image(84, 84))


def test_one_image_skips_the_hidden_layers_and_keeps_the_last_ones():
    model = make_model(image(10, 10, 2), TWO, 2, ModelConfig(fcnet_hiddens=(7,), post_fcnet_hiddens=(5,)))
    params = jax.eval_shape(model.init, KEY)
    assert params["encoder"]["layer_0"]["kernel"].shape == (256, 5)
    assert "layer_1" not in params["encoder"]


def test_bytes_stay_bytes_until_inside_the_model():
    space = image(10, 10, 2)
    config = ModelConfig(conv_filters=[[4, 3, 2]])
    model = make_model(space, TWO, 2, config)
    params = model.init(KEY)
    obs = np.random.default_rng(0).integers(0, 256, (3, 10, 10, 2), np.uint8)
    out = jax.jit(model.apply)(params, ModelInputs(obs))
    same = make_model(spaces.Box(0.0, 1.0, (10, 10, 2)), TWO, 2, config)
    expected = jax.jit(same.apply)(params, ModelInputs(obs.astype(np.float32) / 255))
    np.testing.assert_allclose(out.dist_inputs, expected.dist_inputs, rtol=1e-4, atol=1e-6)


def test_gradient_inside_a_scan():
    space = image(12, 12, 1)
    model = make_model(space, TWO, 2, ModelConfig(conv_filters=[[4, 3, 2], [8, 6, 1]]))
    params = model.init(KEY)
    obs = np.random.default_rng(0).integers(0, 256, (3, 4, 12, 12, 1), np.uint8)

    def loss(params, obs):
        out = model.apply(params, ModelInputs(obs))
        return (out.dist_inputs**2).sum() + (out.value**2).sum()

    def step(total, obs):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(params, obs)), None

    total, _ = jax.jit(lambda obs: jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), obs))(obs)
    expected = jax.jit(jax.grad(loss))(params, obs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), total, expected)
