import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.models import ModelConfig, make_model
from jaxrl.models.recurrent import GRU, LSTM
from jaxrl.types import ModelInputs

KEY = jax.random.key(0)
VECTOR = spaces.Box(-1.0, 1.0, (3,))
TWO = spaces.Discrete(2)
T, B = 7, 4

VARIANTS = [
    {"use_lstm": True},
    {"use_gru": True},
    {"use_lstm": True, "vf_share_layers": False},
    {"use_gru": True, "vf_share_layers": False, "lstm_use_prev_action_reward": True},
]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    model = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(5,), lstm_cell_size=6, **request.param))
    return model._replace(init=jax.jit(model.init), apply=jax.jit(model.apply))


@pytest.fixture
def inputs() -> Any:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "obs": rng.normal(size=(T, B, 3)).astype(np.float32),
        "prev_actions": rng.integers(0, 2, (T, B)).astype(np.int32),
        "prev_rewards": rng.normal(size=(T, B)).astype(np.float32),
        "reset": np.zeros((T, B), bool),
        "mask": np.ones((T, B), bool),
    }
    return ModelInputs(**fields)


def rows(inputs, index):
    return ModelInputs(*(None if x is None else x[index] for x in inputs))


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def some_state(model):
    """A state that no reset gives, drawn from a short run."""
    leaves, treedef = jax.tree.flatten(model.initial_state(B))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_lstm_is_flax_lstm():
    x, cell = jax.random.normal(KEY, (T, B, 3)), LSTM(6)
    state = {"c": jax.random.normal(KEY, (B, 6)), "h": jax.random.normal(jax.random.key(1), (B, 6))}
    params = cell.init(KEY, x, state, None, None)["params"]
    gates = "ifgo"
    flax_params = {}
    for i, gate in enumerate(gates):
        columns = slice(6 * i, 6 * (i + 1))
        flax_params[f"i{gate}"] = {"kernel": params["input_kernel"][:, columns]}
        flax_params[f"h{gate}"] = {"kernel": params["recurrent_kernel"][:, columns], "bias": params["bias"][columns]}
    carry, expected = (state["c"], state["h"]), []
    for x_t in x:
        carry, h = nn.OptimizedLSTMCell(6).apply({"params": flax_params}, carry, x_t)
        expected.append(h)
    got, last = cell.apply({"params": params}, x, state, None, None)
    assert_equal(got, jnp.stack(expected))
    assert_equal((last["c"], last["h"]), carry)


def test_gru_is_flax_gru():
    x, cell = jax.random.normal(KEY, (T, B, 3)), GRU(6)
    state = {"h": jax.random.normal(jax.random.key(1), (B, 6))}
    params = dict(cell.init(KEY, x, state, None, None)["params"])
    params["bias"] = jax.random.normal(jax.random.key(2), (18,))
    params["recurrent_bias"] = jax.random.normal(jax.random.key(3), (6,))
    flax_params = {}
    for i, gate in enumerate("rzn"):
        columns = slice(6 * i, 6 * (i + 1))
        flax_params[f"i{gate}"] = {"kernel": params["input_kernel"][:, columns], "bias": params["bias"][columns]}
        flax_params[f"h{gate}"] = {"kernel": params["recurrent_kernel"][:, columns]}
    flax_params["hn"]["bias"] = params["recurrent_bias"]
    carry, expected = state["h"], []
    for x_t in x:
        carry, h = nn.GRUCell(6).apply({"params": flax_params}, carry, x_t)
        expected.append(h)
    got, last = cell.apply({"params": params}, x, state, None, None)
    assert_equal(got, jnp.stack(expected))
    assert_equal(last["h"], carry)


def test_initial_cell():
    alone: Any = LSTM(6).init(KEY, jnp.zeros((1, 1, 3)), LSTM(6).initial_state(1), None, None)
    built_in = make_model(VECTOR, TWO, 2, ModelConfig(fcnet_hiddens=(), use_lstm=True, lstm_cell_size=6)).init(KEY)
    for params in (alone["params"], built_in["encoder"]["cell"]):
        check_initial_lstm(params)


def check_initial_lstm(params):
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 1, 0, 0], 6))
    for i in range(4):
        block = params["recurrent_kernel"][:, 6 * i : 6 * (i + 1)]
        np.testing.assert_allclose(block.T @ block, np.eye(6), atol=1e-5)


def test_state_and_reads(model):
    assert model.recurrent
    assert {"obs", "reset", "mask"} <= model.reads
    assert all(leaf.shape == (B, 6) and not leaf.any() for leaf in jax.tree.leaves(model.initial_state(B)))


def test_rows_one_by_one_and_in_chunks(model, inputs):
    inputs.reset[3, 1] = True
    inputs.mask[4, 2] = False
    params, state = model.init(KEY), some_state(model)
    whole = model.apply(params, inputs, state)
    assert whole.dist_inputs.shape == (T, B, 2)
    assert whole.value.shape == (T, B)
    for cuts in (range(T + 1), (0, 3, 6, T)):
        carry, pieces = state, []
        for start, stop in itertools.pairwise(cuts):
            out = model.apply(params, rows(inputs, slice(start, stop)), carry)
            carry = out.state
            pieces.append(out)
        assert_equal(jnp.concatenate([out.dist_inputs for out in pieces]), whole.dist_inputs)
        assert_equal(jnp.concatenate([out.value for out in pieces]), whole.value)
        assert_equal(carry, whole.state)


def test_reset_starts_a_new_sequence(model, inputs):
    inputs.reset[3] = True
    params, state = model.init(KEY), some_state(model)
    whole = model.apply(params, inputs, state)
    before = model.apply(params, rows(inputs, slice(0, 3)), state)
    fresh = rows(inputs, slice(3, T))._replace(reset=None)
    after = model.apply(params, fresh, model.initial_state(B))
    assert_equal(whole.dist_inputs, jnp.concatenate([before.dist_inputs, after.dist_inputs]))
    assert_equal(whole.state, after.state)


def test_absent_rows_change_nothing(model, inputs):
    params, state = model.init(KEY), some_state(model)
    inputs.mask[2:4, 1] = False
    inputs.mask[5:, 3] = False
    out = model.apply(params, inputs, state)
    other = model.apply(params, inputs._replace(obs=np.where(inputs.mask[..., None], inputs.obs, 99.0)), state)
    assert_equal(out.state, other.state)
    np.testing.assert_allclose(out.value[inputs.mask], other.value[inputs.mask], rtol=1e-5, atol=1e-6)
    assert np.isfinite(other.value).all()
    # Without the absent rows there is the same result.
    present = [0, 1, 4, 5, 6]
    column = ModelInputs(*(None if x is None else x[present, 1:2] for x in inputs))
    short = model.apply(params, column, jax.tree.map(lambda x: x[1:2], state))
    assert_equal(short.dist_inputs[:, 0], out.dist_inputs[jnp.array(present), 1])
    assert_equal(jax.tree.map(lambda x: x[0], short.state), jax.tree.map(lambda x: x[1], out.state))


def test_a_reset_counts_on_an_absent_row(model, inputs):
    inputs.mask[2, 0] = False
    inputs.reset[2, 0] = True
    out = model.apply(model.init(KEY), rows(inputs, slice(0, 3)), some_state(model))
    assert all(not leaf[0].any() and leaf[1].any() for leaf in jax.tree.leaves(out.state))


def test_no_reset_and_mask_is_none_of_them(model, inputs):
    params, state = model.init(KEY), some_state(model)
    assert_equal(model.apply(params, inputs, state), model.apply(params, inputs._replace(reset=None, mask=None), state))


def test_previous_action_and_reward_are_inputs(inputs):
    config = ModelConfig(use_lstm=True, lstm_use_prev_action_reward=True, fcnet_hiddens=(5,), lstm_cell_size=6)
    model = make_model(VECTOR, spaces.Tuple((TWO, spaces.Box(-1.0, 1.0, (2,)))), 6, config)
    assert model.reads == {"obs", "reset", "mask", "prev_actions", "prev_rewards"}
    params = model.init(KEY)
    assert params["encoder"]["cell"]["input_kernel"].shape == (5 + 2 + 2 + 1, 24)
    inputs = inputs._replace(prev_actions=(inputs.prev_actions, np.zeros((T, B, 2), np.float32)))
    value = model.apply(params, inputs, model.initial_state(B)).value
    for change in (
        {"prev_rewards": inputs.prev_rewards + 1},
        {"prev_actions": (1 - inputs.prev_actions[0], inputs.prev_actions[1])},
    ):
        assert not np.allclose(model.apply(params, inputs._replace(**change), model.initial_state(B)).value, value)


def test_input_products_are_outside_the_scan():
    model = make_model(VECTOR, TWO, 2, ModelConfig(use_lstm=True, fcnet_hiddens=(5,), lstm_cell_size=6))
    inputs = ModelInputs(jnp.zeros((T, B, 3)), reset=jnp.zeros((T, B), bool), mask=jnp.ones((T, B), bool))
    jaxpr = jax.make_jaxpr(model.apply)(model.init(KEY), inputs, model.initial_state(B))
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    inner = [eqn for eqn in scan.params["jaxpr"].eqns if eqn.primitive.name == "dot_general"]
    assert len(inner) == 1
    one = ModelInputs(jnp.zeros((1, B, 3)), reset=jnp.zeros((1, B), bool), mask=jnp.ones((1, B), bool))
    assert "scan" not in str(jax.make_jaxpr(model.apply)(model.init(KEY), one, model.initial_state(B)))


def test_feed_forward_is_not_recurrent():
    model = make_model(VECTOR, TWO, 2)
    assert not model.recurrent
    assert model.reads == {"obs"}
    assert model.initial_state(3) == ()
