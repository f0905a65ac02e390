"""Which engine runs a plan: rollout workers, in-process or on Ray actors, or one compiled program."""

from __future__ import annotations

import logging
from typing import Any

from jaxrl.envs import find_jax_env, jax_twin
from jaxrl.envs.jax_native import JaxEnv
from jaxrl.types import CannotCompileError, ConfigError

logger = logging.getLogger("jaxrl")


def env_to_compile(options: Any) -> JaxEnv | None:
    """The environment of a run as pure functions, where its plan should be compiled; None where workers sample.

    Args:
        options: the trainer's.

    Raises:
        ConfigError: `engine` is "compiled", and the environment is none of pure functions.
    """
    if options.engine == "workers" or (options.engine == "auto" and options.num_workers > 0):
        return None
    env = find_jax_env(options.env, options.env_config)
    if env is None and options.engine == "compiled":
        twin = jax_twin(options.env) if isinstance(options.env, str) else None
        adapters = "`jaxrl.envs.jax_native.from_gymnax` and its kin adapt other libraries'"
        instead = f'its JAX twin is "{twin}"' if twin else adapters
        raise ConfigError(
            f"engine='compiled': env {options.env!r} is stepped in Python, which no compiled program can hold. It runs "
            "with engine='workers', in-process (num_workers=0) or on Ray actors (num_workers>0); to compile, give a "
            f"JAX-native environment: {instead}."
        )
    return env


def settle_for_workers(options: Any, error: CannotCompileError) -> None:
    """Says that workers sample although the environment could be compiled.

    Args:
        options: the trainer's.
        error: why it is not compiled.

    Raises:
        CannotCompileError: `error`, where `engine` asks for a compiled plan.
    """
    if options.engine == "compiled":
        raise error
    reason = str(error).removeprefix("engine='compiled': ")
    logger.warning("%s is stepped by a worker, since the plan does not compile: %s", options.env, reason)
