"""Chooses how a worker's environments are stepped."""

from __future__ import annotations

from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.creation import EnvCreator, make_env_creator
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.list_vector_env import ListVectorEnv
from jaxrl.envs.vector_env import VectorEnv


def make_vector_env(
    creator: EnvCreator,
    num_envs: int,
    context: EnvContext | None = None,
    *,
    stepping: str = "auto",
    checks: bool = True,
) -> VectorEnv:
    """Creates a worker's environments behind one VectorEnv."""
    creator = make_env_creator(creator)
    context = context or EnvContext()
    place = EnvPlace(creator.name, context.worker_index)
    envs = [creator(context.copy_with_overrides(vector_index=b)) for b in range(num_envs)]
    return ListVectorEnv(envs, place, checks=checks)
