"""Options of the built-in models, by RLlib's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxrl import registry
from jaxrl.config import option
from jaxrl.types import Array, ConfigError

Activation = Callable[[Array], Array]

# fmt: off
_ACTIVATIONS = (
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu",
    "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax", "softplus",
    "sparse_plus", "sparse_sigmoid", "squareplus", "swish", "tanh",
)
# fmt: on

_INITIALIZERS = ("orthogonal", "glorot", "normc")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelConfig:
    """Options of the built-in models; `eq=False` makes an instance hashable by identity, so it can be static under jit.

    Lists become tuples, and every value is checked on construction.

    Raises:
        ConfigError: for an unknown name, a size below one or two options that exclude each other.

    Example:
        >>> ModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="relu").fcnet_hiddens
        (64, 64)
    """

    fcnet_hiddens: tuple[int, ...] = option(
        (256, 256), "sizes of the hidden layers; not used where the observation is one image (see post_fcnet_hiddens)"
    )
    fcnet_activation: str | None = option("tanh", "activation of the hidden layers: a name of jax.nn, 'linear' or None")
    conv_filters: Sequence[Sequence[Any]] | None = option(
        None,
        "convolutions as [out, kernel or [kh, kw], stride] or [out, kernel, stride, 'same' or 'valid']; without "
        "padding given, the last layer is 'valid' and the others 'same', as in RLlib; None: a default for the size",
    )
    conv_activation: str | None = option("relu", "activation after each convolution")
    post_fcnet_hiddens: tuple[int, ...] = option(
        (), "sizes of layers after the convolutions and fcnet_hiddens; for images, activated by conv_activation"
    )
    free_log_std: bool = option(
        False,
        "log standard deviations are free parameters, not outputs of the network (Box actions, diagonal Gaussian)",
    )
    no_final_linear: bool = option(
        False, "no linear output layer: the last hidden layer, activated, has as many units as the distribution inputs"
    )
    vf_share_layers: bool = option(True, "policy and value function share the encoder; False: two separate networks")
    use_lstm: bool = option(False, "put an LSTM cell between the encoder and the heads")
    use_gru: bool = option(False, "put a GRU cell between the encoder and the heads")
    lstm_cell_size: int = option(256, "units of the LSTM or GRU cell", low=1)
    max_seq_len: int = option(20, "rows of the sequences that a recurrent model is trained on", low=1)
    lstm_use_prev_action_reward: bool = option(
        False, "feed the previous action (one-hot where discrete) and the previous reward to the LSTM or GRU cell"
    )
    initializer: str = option(
        "orthogonal",
        "orthogonal (gain sqrt 2 hidden, 0.01 policy head, 1 value head), glorot (Gaussian, every layer) or normc "
        "(columns of norm 1 hidden, 0.01 policy head, 1 value head: RLlib's)",
        choices=_INITIALIZERS,
    )
    custom_model: str | Callable[..., Any] | None = option(
        None, "name given to register_model, or a function (obs_space, action_space, num_outputs, config) -> model"
    )
    custom_model_config: Mapping[str, Any] = option(
        {}, "options for custom_model, which reads them from its config argument"
    )
    custom_action_dist: str | Callable[..., Any] | None = option(
        None, "name given to register_distribution, or a function, in place of the action space's distribution"
    )

    def __post_init__(self) -> None:
        for name in ("fcnet_hiddens", "post_fcnet_hiddens"):
            sizes = getattr(self, name)
            if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
                raise ConfigError(f"model.{name}: expected a list of layer sizes such as [64, 64], got {sizes!r}")
            for size in sizes:
                _check_size(f"model.{name}", size)
            object.__setattr__(self, name, tuple(sizes))
        _check_size("model.lstm_cell_size", self.lstm_cell_size)
        _check_size("model.max_seq_len", self.max_seq_len)
        activation(self.fcnet_activation, "model.fcnet_activation")
        activation(self.conv_activation, "model.conv_activation")
        if self.initializer not in _INITIALIZERS:
            raise unknown_name("model.initializer", self.initializer, _INITIALIZERS)
        if self.use_lstm and self.use_gru:
            raise ConfigError("model: use_lstm and use_gru are both true; set one of them")
        if self.lstm_use_prev_action_reward and not self.recurrent and self.custom_model is None:
            raise ConfigError("model.lstm_use_prev_action_reward needs use_lstm or use_gru; neither is true")
        if self.no_final_linear and self.recurrent:
            raise ConfigError("model.no_final_linear: the LSTM or GRU cell's output has its own size; set it to false")

    @property
    def recurrent(self) -> bool:
        """Whether the built-in model has an LSTM or GRU cell."""
        return self.use_lstm or self.use_gru


def activation(name: str | None, where: str = "activation") -> Activation:
    """Looks up an activation function.

    Args:
        name: an elementwise function of `jax.nn`, "linear" or None (both the identity).
        where: the option that the error names.

    Returns:
        A function from array to array of the same shape.

    Raises:
        ConfigError: for an unknown name; the message has the nearest name and the list.
    """
    if name is None or name == "linear":
        return jax.nn.identity
    if name not in _ACTIVATIONS:
        raise unknown_name(where, name, (*_ACTIVATIONS, "linear"))
    return getattr(jax.nn, name)


def unknown_name(where: str, name: Any, known: Sequence[str]) -> ConfigError:
    """The error for a name that is not in `known`: it gives the nearest name and all of them."""
    hint = registry.did_you_mean(str(name), known) or "."
    return ConfigError(f"{where}: unknown name {name!r}{hint} Known: {', '.join(sorted(known))}")


def _check_size(where: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"{where}: expected whole numbers of at least 1, got {size!r}")
