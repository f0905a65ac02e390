"""Chooses how a worker's environments are stepped."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym

from jaxrl.envs.checks import EnvPlace, env_failure
from jaxrl.envs.creation import EnvCreator, make_env_creator
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.list_vector_env import ListVectorEnv
from jaxrl.envs.multi_agent import MultiAgentEnv
from jaxrl.envs.multi_agent_runner import MultiAgentRunner
from jaxrl.envs.native_vector_env import NativeVectorEnv
from jaxrl.envs.process_vector_env import ProcessVectorEnv
from jaxrl.envs.restarting import Restarter
from jaxrl.envs.vector_env import VectorEnv
from jaxrl.types import ConfigError

STEPPING = ("auto", "sync", "async", "native")

# Below this a native vector env's NumPy calls cost more than our loop (measured on CartPole).
NATIVE_FROM = 32

_RESTART = "restart_failed_sub_environments"
_NO_RESTART = "cannot create one of its environments anew; step environments one by one ('sync' or 'async')"


def make_environments(
    env: Any,
    num_envs: int = 1,
    context: EnvContext | None = None,
    *,
    stepping: str = "auto",
    num_processes: int | None = None,
    checks: bool = True,
    restart: bool = False,
) -> VectorEnv | list[MultiAgentRunner]:
    """Creates a worker's environments: a VectorEnv, or a list of MultiAgentRunners for a multi-agent environment.

    Args:
        env: a creator, or anything that `make_env_creator` takes.
        num_envs: how many environments.
        context: `env_config` and place of the worker.
        stepping: "sync" loops over them in this process; "async" steps them in processes of their own; "native" uses
            the environment's own vector env; "auto" is native where the creator returns a vector env, or where the
            gymnasium id has one and `num_envs >= 32`, else sync. JAX environments step in one compiled call, whatever
            of "auto", "sync" and "native" it is.
        num_processes: for "async": how many processes (default: one per environment, at most one per CPU core).
        checks: check the first resets and steps in full.
        restart: an environment that raises in step or reset is created anew (`restart_failed_sub_environments`). With
            it "auto" is sync.

    Returns:
        A VectorEnv, or a MultiAgentRunner for each multi-agent environment.

    Raises:
        ConfigError: unknown stepping, or one that this environment cannot offer.
        EnvError: an environment could not be created, or breaks its contract.

    Example:
        >>> vector = make_environments("CartPole-v1", 4)
        >>> vector.reset(seeds=[0, 1, 2, 3]).shape
        (4, 4)
        >>> vector.close()
    """
    if stepping not in STEPPING:
        raise ConfigError(f"env_stepping: expected one of {', '.join(STEPPING)}, got {stepping!r}")
    if num_envs < 1:
        raise ConfigError(f"num_envs_per_worker: expected at least 1, got {num_envs}")
    creator = make_env_creator(env)
    if restart:
        stepping = _restartable(creator, stepping)
    context = context if context is not None else EnvContext()
    place = EnvPlace(creator.name, context.worker_index)
    jax_env = creator.jax_env(context) if stepping != "async" else None
    if jax_env is not None:
        from jaxrl.envs.jax_native.vector import JaxVectorEnv

        return JaxVectorEnv(jax_env, num_envs, place, checks=checks)
    native_id = creator.gym_id if creator.gym_id is not None and _has_vector_entry_point(creator.gym_id) else None
    if native_id is not None and (stepping == "native" or (stepping == "auto" and num_envs >= NATIVE_FROM)):
        return NativeVectorEnv(_make_native(native_id, num_envs, context, place), place, checks=checks)
    if stepping == "async":
        if creator.instances is not None:
            raise ConfigError(
                "env_stepping='async': expected a class, a creator or a name that each process can create its "
                "environments from, got environments that exist already"
            )
        return ProcessVectorEnv(creator, num_envs, context, num_processes=num_processes, checks=checks, restart=restart)
    create = [functools.partial(_create, creator, context, b) for b in range(num_envs)]
    first = create[0]()
    if isinstance(first, gym.vector.VectorEnv):
        if restart:
            first.close()
            raise ConfigError(f"{_RESTART}: {creator.name} is a vector env, which {_NO_RESTART}")
        return _from_vector_env(first, num_envs, place, stepping, checks)
    if stepping == "native":
        first.close()
        raise ConfigError(
            f"env_stepping='native': expected an environment with a vector env of its own, and {creator.name} has "
            "none that does the same; use 'auto', 'sync' or 'async', or a creator that returns a "
            "gymnasium.vector.VectorEnv"
        )
    if creator.instances is not None and len(creator.instances) != num_envs:
        raise ConfigError(
            f"env: expected {num_envs} environments (num_envs_per_worker), got a list of {len(creator.instances)}"
        )
    envs = [first, *(one() for one in create[1:])]
    restarters = [Restarter(one) for one in create] if restart else None
    if isinstance(first, MultiAgentEnv):
        care = [None] * num_envs if restarters is None else restarters
        return [MultiAgentRunner(env, place, b, checks=checks, restarter=care[b]) for b, env in enumerate(envs)]
    return ListVectorEnv(envs, place, checks=checks, restarters=restarters)


def make_vector_env(
    env: Any,
    num_envs: int = 1,
    context: EnvContext | None = None,
    *,
    stepping: str = "auto",
    num_processes: int | None = None,
    checks: bool = True,
    restart: bool = False,
) -> VectorEnv:
    """`make_environments` for single-agent environments.

    Raises:
        ConfigError: as `make_environments`; a multi-agent environment.
    """
    options = {"stepping": stepping, "num_processes": num_processes, "checks": checks, "restart": restart}
    made = make_environments(env, num_envs, context, **options)
    if isinstance(made, list):
        kind = type(made[0].env).__name__
        for runner in made:
            runner.close()
        raise ConfigError(
            f"{made[0].place.env_id}: expected a single-agent environment here, got the multi-agent {kind}; "
            "configure `multiagent` (policies and policy_mapping_fn)"
        )
    return made


def _create(creator: EnvCreator, context: EnvContext, b: int) -> Any:
    # A context of its own each time: an environment may take options out of it.
    return creator(context.copy_with_overrides(vector_index=b))


def _restartable(creator: EnvCreator, stepping: str) -> str:
    """The stepping of environments that are created anew when they fail."""
    if stepping == "native":
        raise ConfigError(f"{_RESTART}: env_stepping='native' steps a vector env, which {_NO_RESTART}")
    if creator.instances is not None:
        raise ConfigError(
            f"{_RESTART}: expected a class, a creator or a name that environments can be created from anew, got "
            "environments that exist already"
        )
    return "sync" if stepping == "auto" else stepping


def _from_vector_env(
    env: gym.vector.VectorEnv, num_envs: int, place: EnvPlace, stepping: str, checks: bool
) -> VectorEnv:
    if env.num_envs != num_envs:
        raise ConfigError(
            f"{place.env_id}: the vector env has {env.num_envs} environments and num_envs_per_worker is {num_envs}; "
            "set "
            f"num_envs_per_worker to {env.num_envs}"
        )
    # gymnasium's own loop adds nothing over ours, and its environments can be resumed one by one.
    if type(env) is gym.vector.SyncVectorEnv and env.observation_mode == "same" and stepping != "native":
        return ListVectorEnv(env.envs, place, checks=checks)
    return NativeVectorEnv(env, place, checks=checks)


def _make_native(gym_id: str, num_envs: int, context: EnvContext, place: EnvPlace) -> gym.vector.VectorEnv:
    arguments = {key: value for key, value in context.items() if key != "disable_env_checker"}
    try:
        return gym.make_vec(gym_id, num_envs, vectorization_mode="vector_entry_point", **arguments)
    except Exception as error:
        where = place.describe(0)
        raise env_failure(where, f"creation of its vector env with env_config {dict(context)!r}", error) from error


def _has_vector_entry_point(gym_id: str) -> bool:
    spec = gym.spec(gym_id)
    return spec.vector_entry_point is not None and not spec.additional_wrappers
