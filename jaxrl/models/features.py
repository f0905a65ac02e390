"""From model inputs to features: what the networks of off-policy algorithms stand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import gymnasium
import jax

from jaxrl.models import adapters, preprocess, visionnet
from jaxrl.models.catalog import make_model
from jaxrl.models.config import ModelConfig
from jaxrl.models.initializers import initialize
from jaxrl.models.model import FEED_FORWARD_READS, RECURRENT_READS, no_state
from jaxrl.models.networks import Encoder, make_cell
from jaxrl.types import Array, ConfigError, ModelInputs, Params, PyTree


class Features(NamedTuple):
    """An encoder of observations as pure functions.

    Attributes:
        shapes: shapes of the parameters that `initialize` fills in; `{}` where `custom_init` makes them.
        apply: `apply(params, inputs, state) -> (features [..., F], state)`.
        initial_state: `initial_state(batch_size) -> state`, `()` if feed-forward.
        reads: the fields of `ModelInputs` that it reads.
        size: `F`.
        custom_init: `init(key) -> params` of a custom model, else None.
    """

    shapes: PyTree
    apply: Callable[[Params, ModelInputs, PyTree], tuple[Array, PyTree]]
    initial_state: Callable[[int], PyTree]
    reads: frozenset[str]
    size: int
    custom_init: Callable[[Array], Params] | None = None


def make_features(
    obs_space: gymnasium.Space,
    action_space: gymnasium.Space,
    config: ModelConfig,
    *,
    layer_norm: bool = False,
    custom_size: int | None = None,
) -> Features:
    """Builds the encoder that the options ask for, the cell included.

    Args:
        obs_space: any that `jaxrl.models.make_model` reads.
        action_space: the space of actions, for `lstm_use_prev_action_reward`.
        config: the options. With `custom_model` the features are its `dist_inputs`.
        layer_norm: as in `jaxrl.models.fcnet.hidden_layers`; not for custom models.
        custom_size: `num_outputs` of a custom model; None: the size of the last of `fcnet_hiddens`, as in RLlib, or
            256.

    Returns:
        The encoder.

    Raises:
        ConfigError: for an option that only a policy's output layer has, and for those that cannot work with the space.
    """
    for name in ("free_log_std", "no_final_linear"):
        if getattr(config, name):
            raise ConfigError(
                f"model.{name}: it shapes the output layer of a stochastic policy network, which a Q-network or "
                "actor-critic of off-policy learning does not have; set it to false"
            )
    if config.custom_model is not None:
        return _custom(obs_space, action_space, config, custom_size)
    for leaf in preprocess.leaves(obs_space, drop_action_mask=True):
        if leaf.is_image:
            visionnet.conv_layers(leaf.space, config)
    encoder = Encoder(obs_space, action_space, config, layer_norm=layer_norm)
    initial_state = make_cell(config).initial_state if config.recurrent else no_state
    leading = (1, 1) if config.recurrent else (1,)
    reads = RECURRENT_READS if config.recurrent else FEED_FORWARD_READS
    inputs = ModelInputs(preprocess.zeros(obs_space, leading))
    if config.lstm_use_prev_action_reward:
        reads |= {"prev_actions", "prev_rewards"}
        inputs = adapters.example_inputs(obs_space, action_space, leading)

    def apply(params: Params, inputs: ModelInputs, state: PyTree) -> tuple[Array, PyTree]:
        return cast(tuple[Array, PyTree], encoder.apply({"params": params}, inputs, state))

    variables: Any = jax.eval_shape(encoder.init, jax.random.key(0), inputs, initial_state(1))
    shapes = variables.get("params", {})
    features, _ = jax.eval_shape(apply, shapes, inputs, initial_state(1))
    return Features(shapes, apply, initial_state, reads, features.shape[-1])


def _custom(
    obs_space: gymnasium.Space, action_space: gymnasium.Space, config: ModelConfig, size: int | None
) -> Features:
    if size is None:
        size = config.fcnet_hiddens[-1] if config.fcnet_hiddens else 256
    model = make_model(obs_space, action_space, size, config)

    def apply(params: Params, inputs: ModelInputs, state: PyTree) -> tuple[Array, PyTree]:
        out = model.apply(params, inputs, state)
        return out.dist_inputs, out.state

    return Features({}, apply, model.initial_state, model.reads, size, model.init)


def initialize_networks(
    key: Array, shapes: PyTree, encoders: Mapping[tuple[str, ...], Features], config: ModelConfig
) -> Params:
    """First values of networks that stand on encoders.

    Args:
        key: a key.
        shapes: nested dicts of all parameters' shapes; `{}` in the place of a custom model's.
        encoders: the encoder at each path within `shapes`.
        config: the options.

    Returns:
        The parameters: built-in layers from one draw (see `jaxrl.models.initializers`), each custom model's by its own
        `init`.
    """
    params = initialize(key, shapes, config) if jax.tree.leaves(shapes) else jax.tree.map(lambda x: x, shapes)
    for i, (path, features) in enumerate(encoders.items()):
        if features.custom_init is not None:
            place = params
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = features.custom_init(jax.random.fold_in(key, i + 1))
    return params
