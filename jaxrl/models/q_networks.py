"""Q-networks for discrete actions: dueling streams, noisy layers, distributions of returns (C51, IQN).

The encoder is the catalog's: any observation, convolutions for images, LSTM or GRU cell, custom models. On its features
stand an advantage and a value stream, whose hidden layers are activated by relu, as in RLlib; the encoder's own are by
`fcnet_activation`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
from gymnasium import spaces

from jaxrl.distributions.distribution import mask_logits
from jaxrl.losses.distributional import expected_values, quantile_midpoints, value_support
from jaxrl.models.config import ModelConfig
from jaxrl.models.fcnet import DenseWeights
from jaxrl.models.features import initialize_networks, make_features
from jaxrl.models.model import Model
from jaxrl.models.noisy import NoisyDense, draw_noise, initialize_noisy
from jaxrl.models.preprocess import ACTION_MASK
from jaxrl.models.products import dense_layers
from jaxrl.types import Array, ConfigError, ModelInputs, ModelOutput, Params, PyTree, UnsupportedSpaceError

zeros = nn.initializers.zeros


class Stream(nn.Module):
    """Hidden layers with relu and a linear layer `out`, noisy or not: from `[..., F]` to `[..., outputs]`."""

    hiddens: tuple[int, ...]
    outputs: int
    sigma0: float | None  # of noisy layers; None: plain ones
    layer_norm: bool

    @nn.compact
    def __call__(self, x: Array, noise: list[Array] | None) -> Array:
        sizes = (*self.hiddens, self.outputs)
        names = [*(f"layer_{i}" for i in range(len(self.hiddens))), "out"]
        act = (lambda x: nn.relu(jax.nn.standardize(x))) if self.layer_norm else nn.relu
        activations = [act] * len(self.hiddens) + [jax.nn.identity]
        if self.sigma0 is None:
            inputs = (x.shape[-1], *self.hiddens)
            weights = [DenseWeights(size, name=name)(n) for size, name, n in zip(sizes, names, inputs, strict=True)]
            return dense_layers(x, weights, activations, is_head=True)
        for i, (size, name, act) in enumerate(zip(sizes, names, activations, strict=True)):
            x = act(NoisyDense(size, self.sigma0, name=name)(x, noise=None if noise is None else noise[i]))
        return x

    def layer_sizes(self, features: int) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        sizes = (features, *self.hiddens, self.outputs)
        return list(itertools.pairwise(sizes))


class QHead(nn.Module):
    """From features `[..., F]` to `atoms` numbers per action.

    Dueling: Wang et al. 2016, https://arxiv.org/abs/1511.06581, equation 9: `Q = V + A - mean_a A`, for each atom or
    quantile. The mean is over the actions that the row's mask allows: the others' advantages are never trained.
    """

    num_actions: int
    atoms: int
    hiddens: tuple[int, ...]
    dueling: bool
    sigma0: float | None
    layer_norm: bool
    embedding_size: int

    @nn.compact
    def __call__(self, x: Array, taus: Array | None, key: Array | None, allowed: Array | None) -> Array:
        """From features to `[..., A, atoms]`, or with fractions `taus` to `[..., N, A, atoms]`.

        Args:
            x: `[..., F]`.
            taus: fractions of quantiles `[..., N]`, or `[N]` for every row; None without quantiles.
            key: a key for the noise; None for the mean of noisy layers.
            allowed: bool `[..., A]`, the actions that a row has; None for all.
        """
        if taus is not None:
            x = x[..., None, :] * self.embed(taus, x.shape[-1])
            allowed = None if allowed is None else allowed[..., None, :]

        def stream(outputs: int, name: str) -> Stream:
            return Stream(self.hiddens, outputs, self.sigma0, self.layer_norm, name=name)

        advantage = stream(self.num_actions * self.atoms, "advantage")
        streams = [advantage, stream(self.atoms, "value")] if self.dueling else [advantage]
        noise: list[list[Array] | None] = [None, None]
        if key is not None and self.sigma0 is not None:
            sizes = [stream.layer_sizes(x.shape[-1]) for stream in streams]
            drawn = draw_noise(key, [size for each in sizes for size in each])
            noise = [drawn[: len(sizes[0])], drawn[len(sizes[0]) :]]
        q = advantage(x, noise[0])
        q = q.reshape(*q.shape[:-1], self.num_actions, self.atoms)
        if self.dueling:
            q += streams[1](x, noise[1])[..., None, :] - _mean_over_actions(q, allowed)
        return q

    def embed(self, taus: Array, features: int) -> Array:
        """Dabney et al. 2018, https://arxiv.org/abs/1806.06923, equation 4: `relu(sum_i cos(pi i tau) w_ij + b_j)`."""
        cosines = jnp.cos(math.pi * jnp.arange(self.embedding_size) * taus[..., None])
        return nn.relu(nn.Dense(features, kernel_init=zeros, name="embedding")(cosines))


def _mean_over_actions(advantage: Array, allowed: Array | None) -> Array:
    if allowed is None:
        return jnp.mean(advantage, axis=-2, keepdims=True)
    allowed |= ~jnp.any(allowed, axis=-1, keepdims=True)  # a mask that allows nothing says nothing
    share = allowed / jnp.sum(allowed, axis=-1, keepdims=True)
    return jnp.sum(advantage * share[..., None], axis=-2, keepdims=True)


def make_q_model(
    obs_space: gymnasium.Space,
    action_space: gymnasium.Space,
    config: ModelConfig | None = None,
    *,
    hiddens: tuple[int, ...] = (256,),
    dueling: bool = True,
    noisy: bool = False,
    sigma0: float = 0.5,
    num_atoms: int = 1,
    v_min: float = -10.0,
    v_max: float = 10.0,
    num_quantiles: int = 0,
    embedding_size: int = 64,
    layer_norm: bool = False,
) -> Model:
    """Builds a Q-network: one value per action.

    `apply` returns `dist_inputs [..., A]`, the Q-values (masked actions still have theirs: the policy masks them), and
    `value [...]`, the largest of the actions that the observation's mask allows. The groups of parameters are "encoder"
    and "q".

    With a noisy or quantile network `reads` has "key". Noisy layers share one draw over the batch and, without a key,
    take their means. Fractions are drawn uniformly for each row; without a key they are the midpoints of N equal parts,
    which makes greedy acting deterministic.

    Args:
        obs_space: any that `jaxrl.models.make_model` reads.
        action_space: a Discrete.
        config: the encoder's options; None for the defaults. With `custom_model` the features are its `dist_inputs`, of
            the size of the last of `fcnet_hiddens`; where nothing of the head is asked for (no `hiddens`, `dueling`,
            `noisy`, atoms or quantiles) they are the Q-values themselves.
        hiddens: sizes of the hidden layers of each stream; `()` for linear streams.
        dueling: separate streams of advantages and of the state's value; False: the advantage stream alone is Q.
        noisy: the streams' layers are `NoisyDense`, with `sigma0`.
        sigma0: first deviation of noisy weights.
        num_atoms: over 1, a categorical distribution of returns over that many atoms from `v_min` to `v_max` (C51,
            Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, section 4): `extras["q_logits"] [..., A, atoms]`,
            and Q its mean.
        v_min: the smallest return of the distribution.
        v_max: the largest.
        num_quantiles: over 0, an implicit quantile network (Dabney et al. 2018, https://arxiv.org/abs/1806.06923,
            section 3) at that many fractions, in training and in acting: `extras["quantiles"] [..., N, A]` at
            `extras["taus"] [..., N]`, and Q their mean (equation 3).
        embedding_size: cosines that a fraction is embedded by.
        layer_norm: standardise each dense hidden layer, as parameter noise needs.

    Returns:
        The model.

    Raises:
        UnsupportedSpaceError: for another kind of action space.
        ConfigError: for options that cannot work, alone or together.

    Example:
        >>> model = make_q_model(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), num_atoms=51)
        >>> out = model.apply(model.init(jax.random.key(0)), ModelInputs(jnp.zeros((8, 4))))
        >>> out.dist_inputs.shape, out.extras["q_logits"].shape
        ((8, 2), (8, 2, 51))
    """
    config = config or ModelConfig()
    if not isinstance(action_space, spaces.Discrete):
        raise UnsupportedSpaceError(
            f"action_space: a Q-network has one output per action, so it needs a Discrete space; got {action_space}. "
            "Flatten the actions to one Discrete in an environment wrapper, or use an actor-critic or policy gradient"
        )
    hiddens = tuple(hiddens)
    _validate(hiddens, sigma0, num_atoms, v_min, v_max, num_quantiles)
    num_actions = int(action_space.n)
    plain = not (hiddens or dueling or noisy or num_atoms > 1 or num_quantiles)
    has_head = not (plain and config.custom_model is not None)
    features = make_features(
        obs_space, action_space, config, layer_norm=layer_norm, custom_size=None if has_head else num_actions
    )
    head = QHead(num_actions, num_atoms, hiddens, dueling, sigma0 if noisy else None, layer_norm, embedding_size)
    midpoints = quantile_midpoints(num_quantiles) if num_quantiles else None
    masks = ACTION_MASK in getattr(obs_space, "spaces", {})
    reads = features.reads | ({"key"} if noisy or num_quantiles else set())

    def init(key: Array) -> Params:
        shapes = {"encoder": features.shapes, "q": {}}
        if has_head:
            x = jnp.zeros((1, features.size))
            variables: Any = jax.eval_shape(lambda: head.init(jax.random.key(0), x, midpoints, None, None))
            shapes["q"] = variables["params"]
        params = initialize_networks(key, shapes, {("encoder",): features}, config)
        return initialize_noisy(jax.random.fold_in(key, 0), params, sigma0) if noisy else params

    def apply(params: Params, inputs: ModelInputs, state: PyTree = ()) -> ModelOutput:
        x, state = features.apply(params["encoder"], inputs, state)
        mask = jnp.asarray(inputs.obs[ACTION_MASK]).astype(bool) if masks else None
        extras: dict[str, Array] = {}
        if not has_head:
            q = x
        else:
            noise_key, taus = inputs.key if noisy else None, midpoints
            if num_quantiles and inputs.key is not None:
                tau_key = inputs.key
                if noisy:
                    tau_key, noise_key = jax.random.split(inputs.key)
                taus = jax.random.uniform(tau_key, (*x.shape[:-1], num_quantiles))
            out = cast(Array, head.apply({"params": params["q"]}, x, taus, noise_key, mask))
            if taus is not None:
                quantiles = out[..., 0]
                q = jnp.mean(quantiles, axis=-2)
                extras = {"quantiles": quantiles, "taus": jnp.broadcast_to(taus, quantiles.shape[:-1])}
            elif num_atoms > 1:
                q = expected_values(out, value_support(v_min, v_max, num_atoms))
                extras = {"q_logits": out}
            else:
                q = out[..., 0]
        value = jnp.max(q if mask is None else mask_logits(q, mask), axis=-1)
        return ModelOutput(q, value, state, extras)

    return Model(init, apply, features.initial_state, frozenset(reads))


def _validate(
    hiddens: tuple[int, ...], sigma0: float, num_atoms: int, v_min: float, v_max: float, num_quantiles: int
) -> None:
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in hiddens):
        raise ConfigError(f"hiddens: expected whole numbers of at least 1, got {list(hiddens)}")
    if sigma0 <= 0:
        raise ConfigError(f"sigma0: expected a number above 0, got {sigma0}")
    if num_atoms < 1 or num_quantiles < 0:
        raise ConfigError(
            f"expected num_atoms >= 1 (1: no distribution) and num_quantiles >= 0, got {num_atoms} and {num_quantiles}"
        )
    if num_atoms > 1 and num_quantiles:
        raise ConfigError(
            f"num_atoms={num_atoms} and num_quantiles={num_quantiles} are two models of the returns' distribution; "
            "choose one: num_atoms=1 or num_quantiles=0"
        )
    if num_atoms > 1 and not v_min < v_max:
        raise ConfigError(f"v_min and v_max: expected v_min < v_max, the range of returns; got {v_min} and {v_max}")
