"""Parameter noise: the policy explores by acting with perturbed parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from jaxrl.distributions.bounds import inner_bounds
from jaxrl.exploration.action_noise import SCALE
from jaxrl.exploration.annealing import number
from jaxrl.exploration.catalog import make_exploration
from jaxrl.exploration.epsilon_greedy import EPSILON
from jaxrl.exploration.exploration import Exploration
from jaxrl.exploration.per_worker import WorkerState, worker_coeffs
from jaxrl.types import Array, ConfigError, Params, PyTree, UnsupportedSpaceError

# What one adaptation multiplies or divides the standard deviation by.
_ADAPTATION = 1.01
_LAYER_NORM = re.compile("layer_?norm", re.IGNORECASE)


class ParameterNoiseState(NamedTuple):
    """Standard deviation of the noise, a scalar, and the state of the exploration that is added to it."""

    stddev: Array
    sub: PyTree


def parameter_noise(
    action_space: gymnasium.Space,
    *,
    initial_stddev: float = 1.0,
    random_timesteps: int = 10_000,
    sub_exploration: Mapping[str, Any] | None = None,
) -> Exploration:
    """Acts with `params + stddev * N(0, 1)`, redrawn for each fragment, stddev adapted to the change of actions.

    Plappert et al. 2017, https://arxiv.org/abs/1706.01905, section 3: stddev is multiplied by 1.01 where the distance
    between the perturbed and the unperturbed policy was at most delta, divided by it otherwise. Distance and delta, the
    change that noise on actions would make, are (appendix C):

    - discrete: the mean of `KL(softmax(Q) || softmax(Q_perturbed))`, and `delta = -log(1 - epsilon + epsilon / n)`;
    - continuous: the root mean square change of the mode, in half-ranges of the box where it is bounded (the paper's
      actions are in [-1, 1]), and `delta = ou_sigma * scale`.

    Other than in the paper the environments of a worker share one perturbation; and it is redrawn between fragments, so
    that they have to be complete episodes for it to last for one. Layer normalisation's scale and bias are not
    perturbed. Give networks layer normalisation, without which one stddev does not suit all layers.

    Args:
        action_space: Discrete or Box.
        initial_stddev: first standard deviation.
        random_timesteps: env steps of the run before which actions are random; only where `sub_exploration` is None.
        sub_exploration: `{"type": ..., **options}` of an exploration that acts on top, with the coeff `epsilon`
            (discrete) or `exploration_scale` (Box). None: EpsilonGreedy with epsilon 1, then 0.01; or
            OrnsteinUhlenbeckNoise.

    Returns:
        An exploration that perturbs, with the coeffs of its sub-exploration. It returns a log-probability if that does,
        under the perturbed policy.

    Raises:
        UnsupportedSpaceError: for another kind of space.
        ConfigError: a sub-exploration without that coeff, or a number out of range.
    """
    number("ParameterNoise: initial_stddev", initial_stddev)
    number("ParameterNoise: random_timesteps", random_timesteps)
    config = _default_sub(action_space, random_timesteps) if sub_exploration is None else sub_exploration
    sub = make_exploration(config, action_space)
    name, distance, delta = _measure(action_space, config)
    if name not in sub.coeffs:
        raise ConfigError(
            f"exploration_config: ParameterNoise: sub_exploration: expected one with the coeff {name!r}, which says "
            f"how far noise may change actions, got {config.get('type')!r} with {sorted(sub.coeffs)}"
        )

    def init(batch_size: int, worker_index: int = 0, num_workers: int = 0) -> ParameterNoiseState:
        stddev = jnp.asarray(initial_stddev, jnp.float32)
        return ParameterNoiseState(stddev, sub.init(batch_size, worker_index, num_workers))

    def perturb(params: Params, state: ParameterNoiseState, key: Array) -> Params:
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        noisy = [
            leaf + (state.stddev * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)).astype(leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating) and not _LAYER_NORM.search(jax.tree_util.keystr(path))
            else leaf
            for i, (path, leaf) in enumerate(leaves)
        ]
        return jax.tree.unflatten(treedef, noisy)

    def sample(
        dist: Any, state: ParameterNoiseState, key: Array, t: Any, coeffs: Mapping[str, Any], explore: bool
    ) -> tuple[PyTree, Array | None, PyTree]:
        actions, logp, sub_state = sub.sample(dist, state.sub, key, t, coeffs, explore)
        return actions, logp, state._replace(sub=sub_state)

    def update(
        state: ParameterNoiseState, batch: Any, dist: Any, dist_clean: Any, coeffs: Mapping[str, Any]
    ) -> ParameterNoiseState:
        own = worker_coeffs(state.sub, coeffs, name) if isinstance(state.sub, WorkerState) else coeffs
        near = distance(batch, dist, dist_clean) <= delta(own[name])
        return state._replace(stddev=state.stddev * jnp.where(near, _ADAPTATION, 1.0 / _ADAPTATION))

    return sub._replace(sample=sample, init=init, perturb=perturb, update=update, samples_policy=False)


def _default_sub(action_space: gymnasium.Space, random_timesteps: float) -> Mapping[str, Any]:
    if isinstance(action_space, spaces.Discrete):
        steps = [[0, 1.0], [random_timesteps, 1.0], [random_timesteps, 0.01]]
        return {"type": "EpsilonGreedy", "epsilon_schedule": steps}
    return {"type": "OrnsteinUhlenbeckNoise", "random_timesteps": random_timesteps}


def _measure(
    space: gymnasium.Space, config: Mapping[str, Any]
) -> tuple[str, Callable[[Any, Any, Any], Array], Callable[[Array], Array]]:
    """A coeff, `distance(batch, dist, dist_clean)`, and the largest distance wanted as a function of the coeff."""
    if isinstance(space, spaces.Discrete):
        n = int(space.n)
        return EPSILON, _mean_kl, lambda epsilon: -jnp.log1p(epsilon / n - epsilon)
    if not isinstance(space, spaces.Box):
        raise UnsupportedSpaceError(f"ParameterNoise: expected a Discrete or Box action space, got {space}")
    low, high = inner_bounds(space)
    half = high / 2 - low / 2
    half = np.where(np.isfinite(half) & (half > 0), half, 1.0).astype(np.float32)
    size = math.prod(space.shape)

    def distance(batch: Any, dist: Any, dist_clean: Any) -> Array:
        change = jnp.square((dist.mode() - dist_clean.mode()) / half)
        return jnp.sqrt(batch.mean(jnp.sum(change.reshape((*dist.batch_shape, size)), axis=-1) / size))

    sigma = number("ParameterNoise: sub_exploration: ou_sigma", config.get("ou_sigma", 0.2))
    return SCALE, distance, lambda scale: sigma * scale


def _mean_kl(batch: Any, dist: Any, dist_clean: Any) -> Array:
    return batch.mean(dist_clean.kl(dist))
