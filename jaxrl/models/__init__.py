"""Policy and value networks as pure functions: built-in ones by options, and adapters for Linen, NNX and functions."""

from jaxrl.models.catalog import make_model as make_model
from jaxrl.models.config import ModelConfig as ModelConfig
from jaxrl.models.model import Model as Model
