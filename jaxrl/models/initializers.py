"""First values of the built-in networks' parameters, all from one draw.

Compiling a random draw takes about 0.3 s of CPU time, and Linen's initializers make one per layer: 2.5 s for PPO's two
networks of 64x64, where one draw and the same algebra take 1.3 s. So the networks declare zeros, and `initialize` fills
them in by their names.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxrl.models.config import ModelConfig
from jaxrl.types import Array, Params, PyTree


def initialize(key: Array, shapes: PyTree, config: ModelConfig) -> Params:
    """Draws the parameters of a built-in network.

    - Kernels follow `config.initializer`. "orthogonal": gain sqrt 2 in hidden layers, 0.01 in the policy's last layer,
      1 in the value function's (Huang et al., "The 37 Implementation Details of PPO", detail 2,
      https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/). "normc": Gaussian columns scaled to
      norm 1, 0.01 and 1, as RLlib's. "glorot": Gaussian with variance 2 / (fan in + fan out) in every layer (Glorot &
      Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, equation 12).
    - LSTM and GRU: each gate's recurrent block is orthogonal, each gate's input block as "glorot". The LSTM's forget
      gate has a bias of 1 (Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15.html, section 2.2).
    - Everything else is 0.

    Args:
        key: a key.
        shapes: pytree of dicts with `shape` and `dtype` at the leaves, as `jax.eval_shape` gives.
        config: the model's options.

    Returns:
        The parameters.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = [tuple(entry.key for entry in path) for path, _ in leaves]
    sizes = [
        math.prod(leaf.shape) if "kernel" in name[-1] else 0 for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    noise = jnp.split(jax.random.normal(key, (sum(sizes),)), [sum(sizes[:i]) for i in range(1, len(sizes))])
    params = []
    for name, (_, leaf), draw in zip(names, leaves, noise, strict=True):
        if "kernel" in name[-1]:
            params.append(_kernel(name, draw.reshape(leaf.shape), config))
        elif name[-2:] == ("cell", "bias") and config.use_lstm:
            params.append(lstm_bias(leaf.shape[0] // 4))
        else:
            params.append(jnp.zeros(leaf.shape))
    return jax.tree.unflatten(treedef, params)


def _kernel(name: tuple[str, ...], noise: Array, config: ModelConfig) -> Array:
    if name[-2] == "cell":
        return cell_kernel(name[-1], noise, 4 if config.use_lstm else 3)
    if config.initializer == "glorot":
        return glorot(noise)
    is_head = name[-2] == "out"
    if is_head and not (name[0] == "policy" and config.no_final_linear):
        gain = 0.01 if name[0] == "policy" else 1.0
    else:
        gain = math.sqrt(2) if config.initializer == "orthogonal" else 1.0
    return gain * (orthogonal if config.initializer == "orthogonal" else normc)(noise)


def cell_kernel(name: str, noise: Array, gates: int) -> Array:
    """The "recurrent_kernel" or "input_kernel" of a cell from noise `[inputs, gates * H]`, gate by gate."""
    init = orthogonal if name == "recurrent_kernel" else glorot
    return jnp.concatenate([init(block) for block in jnp.split(noise, gates, axis=-1)], axis=-1)


def lstm_bias(size: int) -> Array:
    """Bias `[4 * H]` of the gates i, f, g, o: 1 for f."""
    return jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), size)


# One matrix after the other under vmap (populations): several batched QRs in one program can block XLA's CPU threads
# for ever (seen with jaxlib 0.10.2 on 2 cores), as has happened to others (https://github.com/jax-ml/jax/issues/24219).
@jax.custom_batching.sequential_vmap
def orthogonal(noise: Array) -> Array:
    """Orthonormal columns, or rows where there are fewer, of Gaussian noise `[..., inputs, outputs]`."""
    matrix = noise.reshape(-1, noise.shape[-1])
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    q, r = jnp.linalg.qr(tall)
    q = q * jnp.sign(jnp.diagonal(r))  # uniform over orthogonal matrices
    return (q if tall is matrix else q.T).reshape(noise.shape)


def normc(noise: Array) -> Array:
    """Gaussian noise `[..., inputs, outputs]` with the weights into each output scaled to norm 1."""
    return noise / jnp.linalg.norm(noise.reshape(-1, noise.shape[-1]), axis=0)


def glorot(noise: Array) -> Array:
    """Gaussian noise `[..., inputs, outputs]` scaled to the variance 2 / (fan in + fan out)."""
    *window, inputs, outputs = noise.shape
    return noise * math.sqrt(2 / (math.prod(window) * (inputs + outputs)))
