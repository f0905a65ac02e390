"""Actor-critics of off-policy learning: an actor, and critics of actions, each a network of its own.

Measured on 2 CPU cores, one jitted SAC update (batch 256, nets of 256x256, two critics, their targets, Adam, Polyak):
critics that each have their own matrices take 7.9 ms of CPU time and 4.4 ms of the clock; stacked into `[2, inputs,
outputs]` with batched products (vmap) 8.7 and 5.0, since a batched product is slower with one side transposed, as both
gradients have it; with one wide first layer 8.7 and 5.1; stacked but sliced at use 8.6 and 5.0. They compile in the
same 2 s. About four fifths of the time goes to the 16 products of 256x256x256, so there is little else to gain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.distributions import inner_bounds, middle_and_half
from jaxrl.models.config import ModelConfig, activation
from jaxrl.models.fcnet import Mlp
from jaxrl.models.features import initialize_networks, make_features
from jaxrl.models.model import Model, no_state
from jaxrl.types import Array, ConfigError, ModelInputs, ModelOutput, Params, PyTree, UnsupportedSpaceError


def make_actor_critic(
    obs_space: gymnasium.Space,
    action_space: gymnasium.Space,
    num_outputs: int,
    config: ModelConfig | None = None,
    *,
    actor_hiddens: tuple[int, ...] = (256, 256),
    critic_hiddens: tuple[int, ...] = (256, 256),
    actor_activation: str | None = "relu",
    critic_activation: str | None = "relu",
    num_critics: int = 2,
    squash: bool = True,
    initial_alpha: float | None = None,
    use_state_preprocessor: bool = False,
    layer_norm: bool = False,
) -> Model:
    """Builds an actor and `num_critics` critics.

    The groups of parameters are "policy", "q" (all critics: `critic_0`, `critic_1`...; each has its own encoder and
    first values) and, with `initial_alpha`, "log_alpha", a scalar.

    - `apply` runs the actor alone. `value` is 0: these algorithms have no state-value function, and acting and
      postprocessing need none.
    - `heads["q"](params, obs, actions) -> [C, ...]` for Box actions `[..., *shape]`, which the critics see scaled to
      [-1, 1] where they have finite bounds.
    - `heads["q"](params, obs) -> [C, ..., A]` for Discrete actions: a value for each.

    First values are the catalog's (`config.initializer`). "orthogonal" starts the actor's last layer at gain 0.01:
    actions begin in the middle of the Box (Gaussians: with a deviation of 1 before squashing), which is what DDPG's
    3e-3 is for (Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971, section 7); the critics' at gain 1. For
    three networks of 256x256 it takes 1.5 s of CPU time to compile and 0.07 s to run; "glorot" 0.9 s and 2 ms.

    Args:
        obs_space: any that `jaxrl.models.make_model` reads.
        action_space: a Box of floats, or a Discrete.
        num_outputs: inputs of the action distribution. For a Box of A entries, A make a deterministic actor (DDPG,
            TD3); other numbers go to the distribution as they are (SAC's `SquashedGaussian` clips log standard
            deviations and squashes actions itself). For a Discrete space, logits.
        config: the encoders' options; None for the defaults.
        actor_hiddens: sizes of the actor's hidden layers.
        critic_hiddens: sizes of each critic's, which see the observation's features and the action.
        actor_activation: as `fcnet_activation`.
        critic_activation: as `fcnet_activation`.
        num_critics: 1, or 2 for clipped double Q-learning (Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477).
        squash: a deterministic actor's outputs go through tanh and are scaled to the Box's bounds.
        initial_alpha: first temperature of SAC; None for no such parameter.
        use_state_preprocessor: the encoders' own layers (`fcnet_hiddens`, `post_fcnet_hiddens`) come before the hidden
            layers of actor and critics; False: only convolutions, one-hot encoding and concatenation do.
        layer_norm: standardise each of the actor's hidden layers, as parameter noise needs.

    Returns:
        The model, feed-forward.

    Raises:
        UnsupportedSpaceError: for another kind of action space, or one without bounds where they are needed.
        ConfigError: for options that cannot work.

    Example:
        >>> box = spaces.Box(-2.0, 2.0, (1,))
        >>> model = make_actor_critic(spaces.Box(-1, 1, (3,)), box, 2, initial_alpha=1.0)
        >>> params = model.init(jax.random.key(0))
        >>> model.heads["q"](params, jnp.zeros((8, 3)), jnp.zeros((8, 1))).shape
        (2, 8)
    """
    config = config or ModelConfig()
    _validate(action_space, num_outputs, num_critics, squash, initial_alpha)
    if not use_state_preprocessor:
        config = dataclasses.replace(config, fcnet_hiddens=(), post_fcnet_hiddens=())
    features = make_features(obs_space, action_space, config, layer_norm=layer_norm)
    critic_features = make_features(obs_space, action_space, config) if layer_norm else features
    if jax.tree.leaves(features.initial_state(1)):
        raise ConfigError(
            "model: this actor-critic is feed-forward; set use_lstm and use_gru to false and give a custom model no "
            "state, or stack frames"
        )
    box = action_space if isinstance(action_space, spaces.Box) else None
    num_actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 0
    to_unit, to_box = _scalings(box) if box is not None else (None, None)
    actor = _mlp("actor", actor_hiddens, actor_activation, num_outputs, layer_norm=layer_norm)
    critic = _mlp("critic", critic_hiddens, critic_activation, num_actions or 1)
    critics = [f"critic_{i}" for i in range(num_critics)]
    is_squashed = squash and box is not None and num_outputs == math.prod(box.shape)

    def init(key: Array) -> Params:
        action_size = 0 if box is None else math.prod(box.shape)
        shapes: dict[str, Any] = {
            "policy": {"encoder": features.shapes, "net": _shapes(actor, features.size)},
            "q": {
                name: {
                    "encoder": critic_features.shapes,
                    "net": _shapes(critic, critic_features.size + action_size),
                }
                for name in critics
            },
        }
        if initial_alpha is not None:
            shapes["log_alpha"] = jax.ShapeDtypeStruct((), jnp.float32)
        encoders = {("policy", "encoder"): features, **{("q", name, "encoder"): critic_features for name in critics}}
        params = initialize_networks(key, shapes, encoders, config)
        if initial_alpha is not None:
            params["log_alpha"] = jnp.asarray(math.log(initial_alpha), jnp.float32)
        return params

    def apply(params: Params, inputs: ModelInputs, state: PyTree = ()) -> ModelOutput:
        x, _ = features.apply(params["policy"]["encoder"], inputs, ())
        out = cast(Array, actor.apply({"params": params["policy"]["net"]}, x))
        if is_squashed and to_box is not None:
            out = to_box(jnp.tanh(out))
        return ModelOutput(out, jnp.zeros(out.shape[:-1], out.dtype), state)

    def q(params: Params, obs: PyTree, actions: Any = None) -> Array:
        values = []
        for name in critics:
            x, _ = critic_features.apply(params["q"][name]["encoder"], ModelInputs(obs), ())
            if to_unit is not None:
                x = jnp.concatenate([x, to_unit(jnp.asarray(actions))], axis=-1)
            values.append(cast(Array, critic.apply({"params": params["q"][name]["net"]}, x)))
        return jnp.stack(values) if num_actions else jnp.stack(values)[..., 0]

    return Model(init, apply, no_state, features.reads, {"q": q})


def _mlp(where: str, hiddens: tuple[int, ...], name: str | None, outputs: int, *, layer_norm: bool = False) -> Mlp:
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in hiddens):
        raise ConfigError(f"{where}_hiddens: expected whole numbers of at least 1, got {list(hiddens)}")
    act = activation(name, f"{where}_activation")
    return Mlp(tuple((size, act) for size in hiddens), outputs, layer_norm)


def _shapes(module: Mlp, inputs: int) -> PyTree:
    variables: Any = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, inputs)))
    return variables["params"]


def _scalings(box: spaces.Box) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """From actions `[..., *shape]` to `[..., A]` in [-1, 1] and, without the shape, back.

    Entries without finite bounds, or with equal ones, are not scaled.
    """
    low, high = (bound.reshape(-1) for bound in inner_bounds(box))
    bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
    low, high = np.where(bounded, low, -1.0).astype(np.float32), np.where(bounded, high, 1.0).astype(np.float32)
    middle, half = middle_and_half(low, high)

    def to_unit(actions: Array) -> Array:
        leading = actions.shape[: actions.ndim - len(box.shape)]
        return (actions.reshape(*leading, low.size).astype(jnp.float32) - middle) / half

    def to_box(unit: Array) -> Array:
        return jnp.clip(middle + half * unit, low, high)  # the sum may round to just above the bound

    return to_unit, to_box


def _validate(
    action_space: gymnasium.Space,
    num_outputs: int,
    num_critics: int,
    squash: bool,
    initial_alpha: float | None,
) -> None:
    is_box = isinstance(action_space, spaces.Box) and np.dtype(action_space.dtype).kind == "f"
    if not is_box and not isinstance(action_space, spaces.Discrete):
        raise UnsupportedSpaceError(
            f"action_space: an actor-critic with critics of actions needs a Box of floats or a Discrete space; got "
            f"{action_space}. Use a policy gradient (PPO), or an environment wrapper"
        )
    if isinstance(action_space, spaces.Box) and squash and num_outputs == math.prod(action_space.shape):
        low, high = action_space.low, action_space.high
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise UnsupportedSpaceError(
                f"action_space: a squashed deterministic actor needs finite bounds, low < high in every entry; got "
                f"{action_space}. Rescale the actions in an environment wrapper, or set squash=False"
            )
    if isinstance(action_space, spaces.Discrete) and num_outputs != action_space.n:
        raise ConfigError(
            f"num_outputs: expected one logit for each of {action_space.n} actions, got {num_outputs}; use the "
            "categorical distribution"
        )
    if num_critics < 1:
        raise ConfigError(f"num_critics: expected 1 or more, got {num_critics}")
    if initial_alpha is not None and initial_alpha <= 0:
        raise ConfigError(f"initial_alpha: expected a temperature above 0, got {initial_alpha}")
