"""Policy and value networks as pure functions: built-in ones by options, and adapters for Linen, NNX and functions."""

from jaxrl.models.adapters import from_functions, from_linen, from_nnx
from jaxrl.models.catalog import make_model
from jaxrl.models.config import ModelConfig
from jaxrl.models.model import Model

__all__ = ["Model", "ModelConfig", "from_functions", "from_linen", "from_nnx", "make_model"]
