"""From `exploration_config` to an exploration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from jaxrl import registry
from jaxrl.exploration.exploration import Exploration
from jaxrl.types import ConfigError

# Names and factories `(action_space, **options) -> Exploration`; a keyword-only parameter of a factory is an option.
BUILT_IN: Mapping[str, str] = {
    "EpsilonGreedy": "jaxrl.exploration.epsilon_greedy:epsilon_greedy",
    "GaussianNoise": "jaxrl.exploration.action_noise:gaussian_noise",
    "OrnsteinUhlenbeckNoise": "jaxrl.exploration.action_noise:ornstein_uhlenbeck_noise",
    "ParameterNoise": "jaxrl.exploration.parameter_noise:parameter_noise",
    "PerWorkerEpsilonGreedy": "jaxrl.exploration.epsilon_greedy:per_worker_epsilon_greedy",
    "PerWorkerGaussianNoise": "jaxrl.exploration.action_noise:per_worker_gaussian_noise",
    "PerWorkerOrnsteinUhlenbeckNoise": "jaxrl.exploration.action_noise:per_worker_ornstein_uhlenbeck_noise",
    "Random": "jaxrl.exploration.random:random_actions",
    "SoftQ": "jaxrl.exploration.soft_q:soft_q",
    "StochasticSampling": "jaxrl.exploration.stochastic_sampling:stochastic_sampling",
}

for _name, _ref in BUILT_IN.items():
    registry.register_exploration(_name, _ref)


def make_exploration(exploration_config: Mapping[str, Any], action_space: gymnasium.Space) -> Exploration:
    """Builds the exploration that `exploration_config` names.

    Args:
        exploration_config: `{"type": ..., **options}`; the type is a registered name, or a factory
            `(action_space, **options) -> Exploration`.
        action_space: the space of actions.

    Returns:
        The exploration.

    Raises:
        ConfigError: no type, an unknown one, or an option that the type does not have or needs.

    Example:
        >>> make_exploration({"type": "StochasticSampling"}, gymnasium.spaces.Discrete(2)).samples_policy
        True
    """
    options = dict(exploration_config)
    kind = options.pop("type", None)
    if kind is None:
        known = ", ".join(registry.names("exploration"))
        raise ConfigError(
            f"exploration_config: expected a key 'type' (one of {known}), got {dict(exploration_config)!r}"
        )
    factory: Callable[..., Any] = registry.resolve("exploration", kind) if isinstance(kind, str) else kind
    if not callable(factory):
        raise ConfigError(f"exploration_config: type: expected a registered name or a factory, got {factory!r}")
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind))
    _check_options(name, factory, options)
    exploration = factory(action_space, **options)
    if not isinstance(exploration, Exploration):
        raise ConfigError(f"exploration_config: {name} returned {type(exploration).__name__}, expected an Exploration")
    return exploration


def _check_options(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(factory).parameters.values())[1:]  # the first one is action_space
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            hint = registry.did_you_mean(option, known) or "."
            has = f"It has: {', '.join(known)}" if known else "It has no options"
            raise ConfigError(f"exploration_config: {name} has no option {option!r}{hint} {has}")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ConfigError(f"exploration_config: {name} needs the option {parameter.name!r}")
