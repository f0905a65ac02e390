"""The built-in networks: an encoder of observation pytrees, then one policy and one value head, shared or separate."""

from __future__ import annotations

import flax.linen as nn
import gymnasium
import jax.numpy as jnp

from jaxrl.models import preprocess
from jaxrl.models.config import Activation, ModelConfig, activation
from jaxrl.models.fcnet import PolicyHead, ValueHead, hidden_layers
from jaxrl.models.recurrent import GRU, LSTM
from jaxrl.models.visionnet import VisionNet
from jaxrl.types import Array, ModelInputs, ModelOutput, PyTree


def make_cell(config: ModelConfig, name: str | None = None) -> LSTM | GRU:
    """The recurrent cell that the options ask for."""
    return (LSTM if config.use_lstm else GRU)(config.lstm_cell_size, name=name)


def layer_specs(obs_space: gymnasium.Space, config: ModelConfig) -> list[tuple[int, Activation]]:
    """Size and activation of each dense hidden layer, in order."""
    found = preprocess.leaves(obs_space, drop_action_mask=True)
    if len(found) == 1 and found[0].is_image:
        return [(size, activation(config.conv_activation)) for size in config.post_fcnet_hiddens]
    return [(size, activation(config.fcnet_activation)) for size in (*config.fcnet_hiddens, *config.post_fcnet_hiddens)]


class Encoder(nn.Module):
    """From model inputs to features `[..., F]` and the next state.

    Each image goes through its own convolutions; the other leaves are flattened and concatenated with the images'
    features; `fcnet_hiddens` and `post_fcnet_hiddens` follow, then the LSTM or GRU cell. An observation that is one
    image skips `fcnet_hiddens`, as in RLlib: its convolutions end in a dense layer already.
    """

    obs_space: gymnasium.Space
    action_space: gymnasium.Space
    config: ModelConfig
    drop_layers: int = 0  # of the last hidden layers; 1 where `no_final_linear` puts the last one into the policy head
    layer_norm: bool = False  # of the dense hidden layers, for parameter noise

    @nn.compact
    def __call__(self, inputs: ModelInputs, state: PyTree) -> tuple[Array, PyTree]:
        features = []
        for leaf in preprocess.leaves(self.obs_space, drop_action_mask=True):
            x = jnp.asarray(leaf.of(inputs.obs))
            if leaf.is_image:
                features.append(VisionNet(leaf.space, self.config, name=f"conv_{leaf.name}")(x))
            else:
                features.append(preprocess.flat(x, leaf.space))
        x = jnp.concatenate(features, axis=-1) if len(features) > 1 else features[0]
        layers = layer_specs(self.obs_space, self.config)
        x = hidden_layers(x, layers[: len(layers) - self.drop_layers], layer_norm=self.layer_norm)
        if not self.config.recurrent:
            return x, state
        if self.config.lstm_use_prev_action_reward:
            prev_actions = preprocess.flat_tree(inputs.prev_actions, self.action_space)
            prev_rewards = jnp.asarray(inputs.prev_rewards, jnp.float32)[..., None]
            x = jnp.concatenate([x, prev_actions, prev_rewards], axis=-1)
        return make_cell(self.config, "cell")(x, state, inputs.reset, inputs.mask)


class PolicyNet(nn.Module):
    """An encoder and a policy head in one group of parameters."""

    encoder: Encoder
    head: PolicyHead

    def __call__(self, inputs: ModelInputs, state: PyTree) -> tuple[Array, PyTree]:
        x, state = self.encoder(inputs, state)
        return self.head(x), state


class ValueNet(nn.Module):
    """An encoder and a value head in one group of parameters."""

    encoder: Encoder
    head: ValueHead

    def __call__(self, inputs: ModelInputs, state: PyTree) -> tuple[Array, PyTree]:
        x, state = self.encoder(inputs, state)
        return self.head(x), state


class SharedNet(nn.Module):
    """One encoder under both heads: parameter groups "encoder", "policy" and "value"."""

    encoder: Encoder
    policy: PolicyHead
    value: ValueHead

    def __call__(self, inputs: ModelInputs, state: PyTree) -> ModelOutput:
        x, state = self.encoder(inputs, state)
        return ModelOutput(self.policy(x), self.value(x), state)


class SeparateNets(nn.Module):
    """Two networks: parameter groups "policy" and "value"; a recurrent one has the state `{"policy", "value"}`.

    XLA drops the network whose output is not used, so that acting costs the policy alone.
    """

    policy: PolicyNet
    value: ValueNet

    def __call__(self, inputs: ModelInputs, state: PyTree) -> ModelOutput:
        dist_inputs, policy_state = self.policy(inputs, state["policy"] if state else ())
        value, value_state = self.value(inputs, state["value"] if state else ())
        return ModelOutput(dist_inputs, value, {"policy": policy_state, "value": value_state} if state else ())
