"""The `env_config` of the built-in JAX environments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl.envs.jax_native.env import JaxEnv
from jaxrl.registry import did_you_mean
from jaxrl.types import ConfigError


def made_once(make: Callable[[Mapping[str, Any] | None], JaxEnv]) -> Callable[..., JaxEnv]:
    """Lets a maker give the same JaxEnv for the same options.

    Jitted functions are found again by the functions that they were made of: an evaluation's environments, say, run the
    programs that training's have compiled.
    """
    made: dict[str, JaxEnv] = {}

    @functools.wraps(make)
    def remember(env_config: Mapping[str, Any] | None = None) -> JaxEnv:
        options = {key: value for key, value in (env_config or {}).items() if key != "render_mode"}
        name = repr(sorted(options.items()))
        if name not in made:
            made[name] = make(options)
        return made[name]

    return remember


def take_options(name: str, env_config: Mapping[str, Any] | None, **defaults: Any) -> dict[str, Any]:
    """Returns the defaults with what `env_config` sets.

    Args:
        name: of the environment, for errors.
        env_config: options by name.
        **defaults: each option's default, whose type a value must have (an int serves as a float).

    Raises:
        ConfigError: an option that does not exist, or a value of another type.

    Example:
        >>> take_options("jax/CartPole-v1", {"max_episode_steps": 200}, max_episode_steps=500)
        {'max_episode_steps': 200}
    """
    options = dict(defaults)
    for key, value in (env_config or {}).items():
        if key not in defaults:
            raise ConfigError(
                f"{name}: env_config has no option {key!r}{did_you_mean(key, defaults)}; it has "
                f"{', '.join(defaults) or 'none'}"
            )
        kind = type(defaults[key])
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{name}: env_config[{key!r}]: expected {kind.__name__}, got {value!r}")
        options[key] = kind(value)
    return options
