"""Environments: contexts, creation, the sampler's vector view, multi-agent environments, examples and probes."""

from jaxrl.envs.checks import EnvPlace, check_fragment
from jaxrl.envs.creation import EnvCreator, make_env_creator
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.list_vector_env import ListVectorEnv
from jaxrl.envs.replay_log import ResumeWarning
from jaxrl.envs.rows import empty_rows
from jaxrl.envs.vector_env import VectorEnv
from jaxrl.envs.vectorize import make_vector_env

__all__ = [
    "EnvContext",
    "EnvCreator",
    "EnvPlace",
    "ListVectorEnv",
    "ResumeWarning",
    "VectorEnv",
    "check_fragment",
    "empty_rows",
    "make_env_creator",
    "make_vector_env",
]
