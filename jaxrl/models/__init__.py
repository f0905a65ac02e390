"""Policy and value networks as pure functions: built-in ones by options, and adapters for Linen, NNX and functions."""

from jaxrl.models.actor_critic import make_actor_critic
from jaxrl.models.adapters import from_functions, from_linen, from_nnx
from jaxrl.models.catalog import make_model
from jaxrl.models.config import ModelConfig
from jaxrl.models.model import Model
from jaxrl.models.noisy import NoisyDense
from jaxrl.models.q_networks import make_q_model

__all__ = [
    "Model",
    "ModelConfig",
    "NoisyDense",
    "from_functions",
    "from_linen",
    "from_nnx",
    "make_actor_critic",
    "make_model",
    "make_q_model",
]
