"""From spaces and options to a model."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, cast

import flax.linen as nn
import gymnasium
import jax
from gymnasium import spaces

from jaxrl import registry
from jaxrl.models import adapters, preprocess, visionnet
from jaxrl.models.config import ModelConfig
from jaxrl.models.fcnet import PolicyHead, ValueHead
from jaxrl.models.initializers import initialize
from jaxrl.models.model import FEED_FORWARD_READS, RECURRENT_READS, Model, no_state
from jaxrl.models.networks import Encoder, PolicyNet, SeparateNets, SharedNet, ValueNet, layer_specs, make_cell
from jaxrl.types import ConfigError, ModelInputs, ModelOutput, Params, PyTree

if TYPE_CHECKING:
    from flax import nnx


def make_model(
    obs_space: gymnasium.Space, action_space: gymnasium.Space, num_outputs: int, config: ModelConfig | None = None
) -> Model:
    """Builds the model that the options ask for.

    Args:
        obs_space: Box of any rank (rank 3 with sides of at least 7: an image), Discrete, MultiDiscrete, MultiBinary,
            and any nesting of Dict and Tuple. "action_mask" at the top of a Dict is no feature.
        action_space: the space of actions.
        num_outputs: inputs of the action distribution, per row.
        config: the options; None for the defaults.

    Returns:
        The model.

    With `custom_model` the registered function, or the one given, is called with these four arguments (and, for NNX,
    with `rngs` if it has that parameter); `jaxrl.models.adapters` says what it may return.

    Raises:
        ConfigError: for options that cannot work with these spaces.
        UnsupportedSpaceError: for an observation space that the built-in networks do not read.

    Example:
        >>> model = make_model(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), 2, ModelConfig(fcnet_hiddens=(64, 64)))
        >>> params = model.init(jax.random.key(0))
        >>> model.apply(params, ModelInputs(jnp.zeros((8, 4)))).dist_inputs.shape
        (8, 2)
    """
    config = config or ModelConfig()
    if config.custom_model is not None:
        return _custom_model(obs_space, action_space, num_outputs, config)
    _validate(obs_space, action_space, num_outputs, config)
    net = _network(obs_space, action_space, num_outputs, config)
    groups = ("encoder", "policy", "value") if config.vf_share_layers else ("policy", "value")
    cell = make_cell(config) if config.recurrent else None

    def initial_state(batch_size: int) -> PyTree:
        assert cell is not None
        if config.vf_share_layers:
            return cell.initial_state(batch_size)
        return {"policy": cell.initial_state(batch_size), "value": cell.initial_state(batch_size)}

    state_fn = no_state if cell is None else initial_state

    def init(key: jax.Array) -> Params:
        leading = (1,) if cell is None else (1, 1)
        inputs = ModelInputs(preprocess.zeros(obs_space, leading))
        if config.lstm_use_prev_action_reward:
            inputs = adapters.example_inputs(obs_space, action_space, leading)
        variables: Any = jax.eval_shape(net.init, key, inputs, state_fn(1))
        params = initialize(key, variables.get("params", {}), config)
        return {group: params.get(group, {}) for group in groups}

    def apply(params: Params, inputs: ModelInputs, state: PyTree = ()) -> ModelOutput:
        return cast(ModelOutput, net.apply({"params": params}, inputs, state))

    reads = FEED_FORWARD_READS if cell is None else RECURRENT_READS
    if config.lstm_use_prev_action_reward:
        reads |= {"prev_actions", "prev_rewards"}
    images = any(leaf.is_image for leaf in preprocess.leaves(obs_space, drop_action_mask=True))
    return Model(init, apply, state_fn, reads, keep_outputs=images and config.vf_share_layers and cell is None)


def _custom_model(
    obs_space: gymnasium.Space, action_space: gymnasium.Space, num_outputs: int, config: ModelConfig
) -> Model:
    custom = config.custom_model
    make: Any = registry.resolve("model", custom) if isinstance(custom, str) else custom
    if not callable(make):
        raise ConfigError(f"model.custom_model: expected a registered name or a function, got {make!r}")
    name = custom if isinstance(custom, str) else getattr(make, "__name__", repr(make))
    args = (obs_space, action_space, num_outputs, config)
    if "rngs" in inspect.signature(make).parameters:

        def make_nnx(rngs: nnx.Rngs) -> nnx.Module:
            module: Any = make(*args, rngs=rngs)
            return module

        model = adapters.from_nnx(make_nnx, obs_space)
    else:
        model = adapters.adapt(make(*args), obs_space, action_space, name)
    model = adapters.checked(model, obs_space, action_space, num_outputs, name)
    if config.recurrent and not model.recurrent:
        raise ConfigError(
            f"model.use_lstm and use_gru are for the built-in models, and custom_model {name} has no state; put the "
            "cell into the custom model (jaxrl.models.recurrent has LSTM and GRU) or set them to false"
        )
    return model


def _network(
    obs_space: gymnasium.Space, action_space: gymnasium.Space, num_outputs: int, config: ModelConfig
) -> nn.Module:
    layers = layer_specs(obs_space, config)
    drop = 1 if config.no_final_linear else 0
    head = PolicyHead(num_outputs, config, layers[-1][1] if layers else jax.nn.identity)
    encoder = Encoder(obs_space, action_space, config, drop)
    if config.vf_share_layers:
        return SharedNet(encoder, head, ValueHead())
    value_encoder = Encoder(obs_space, action_space, config)
    return SeparateNets(PolicyNet(encoder, head), ValueNet(value_encoder, ValueHead()))


def _validate(obs_space: gymnasium.Space, action_space: gymnasium.Space, num_outputs: int, config: ModelConfig) -> None:
    for leaf in preprocess.leaves(obs_space, drop_action_mask=True):
        if leaf.is_image:
            visionnet.conv_layers(leaf.space, config)
    if config.no_final_linear and not layer_specs(obs_space, config):
        raise ConfigError(
            "model.no_final_linear: there is no hidden layer to put last; set fcnet_hiddens, or post_fcnet_hiddens for "
            "an observation that is one image"
        )
    if config.free_log_std:
        size = math.prod(action_space.shape) if isinstance(action_space, spaces.Box) else None
        if size is None or num_outputs != 2 * size:
            raise ConfigError(
                f"model.free_log_std: expected a Box action space and a distribution with a mean and a log standard "
                f"deviation per action; got {action_space} and {num_outputs} inputs per row; set free_log_std to false"
            )
    if config.lstm_use_prev_action_reward:
        preprocess.leaves(action_space)
