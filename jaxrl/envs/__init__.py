"""Environments: contexts, creation, the sampler's vector view, multi-agent environments, examples and probes."""

from jaxrl.envs.atari import AtariOptions, DeepMindAtari
from jaxrl.envs.checks import EnvPlace, check_finals, check_fragment, check_rows, step_at
from jaxrl.envs.creation import (
    EnvCreator,
    env_name,
    find_jax_env,
    gets_sign_rewards,
    is_jax_env,
    make_env_creator,
    stacked_frames,
)
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.list_vector_env import ListVectorEnv
from jaxrl.envs.multi_agent import MultiAgentEnv, agent_space, make_multi_agent
from jaxrl.envs.multi_agent_runner import MultiAgentRunner, MultiAgentStep, restore_runners
from jaxrl.envs.names import ENVS, JAX_ENVS, jax_twin, register_built_in
from jaxrl.envs.native_vector_env import NativeVectorEnv
from jaxrl.envs.process_vector_env import ProcessVectorEnv
from jaxrl.envs.replay_log import ResumeWarning
from jaxrl.envs.rows import empty_rows
from jaxrl.envs.vector_env import EPISODE_CONTINUES, RESET_FAILED, STEP_FAILED, VectorEnv
from jaxrl.envs.vectorize import make_environments, make_vector_env

register_built_in()

__all__ = [
    "ENVS",
    "EPISODE_CONTINUES",
    "JAX_ENVS",
    "RESET_FAILED",
    "STEP_FAILED",
    "AtariOptions",
    "DeepMindAtari",
    "EnvContext",
    "EnvCreator",
    "EnvPlace",
    "ListVectorEnv",
    "MultiAgentEnv",
    "MultiAgentRunner",
    "MultiAgentStep",
    "NativeVectorEnv",
    "ProcessVectorEnv",
    "ResumeWarning",
    "VectorEnv",
    "agent_space",
    "check_finals",
    "check_fragment",
    "check_rows",
    "empty_rows",
    "env_name",
    "find_jax_env",
    "gets_sign_rewards",
    "is_jax_env",
    "jax_twin",
    "make_env_creator",
    "make_environments",
    "make_multi_agent",
    "make_vector_env",
    "register_built_in",
    "restore_runners",
    "stacked_frames",
    "step_at",
]
