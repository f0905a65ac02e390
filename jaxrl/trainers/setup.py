"""From a config to policies and workers: spaces, the policies of a multi-agent run, resources."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from jaxrl.rollout import PolicyRecipe, is_multi_agent, make_worker_env
from jaxrl.rollout.actions import policy_action_space
from jaxrl.rollout.multi_agent_sampler import map_agents
from jaxrl.types import DEFAULT_POLICY_ID, ConfigError, PolicyID


def with_seed(config: Any) -> Any:
    """The config with a seed: its own, or one drawn now."""
    return config if config.seed is not None else dataclasses.replace(config, seed=secrets.randbelow(2**31))


def with_fragment_length(config: Any) -> Any:
    """The config with `rollout_fragment_length` as a number.

    Raises:
        ConfigError: batch sizes that do not divide.
    """
    length = config.rollout_fragment_length
    if length == "auto":
        return dataclasses.replace(config, rollout_fragment_length=_auto_length(config))
    if length < 1:
        raise ConfigError(f"config: rollout_fragment_length should be at least 1 or 'auto', got {length}.")
    return config


def _auto_length(config: Any) -> int:
    near, of, sizes = config.auto_fragment
    if of is None:
        return near
    name = next(name for name in sizes if getattr(config, name) is not None)
    size, columns = getattr(config, name), config.num_envs_per_worker
    if of == "round":
        columns *= max(1, config.num_workers)
    whole = max(1, size // columns)
    if config.batch_mode != "truncate_episodes":
        return whole if near is None else min(whole, near)
    if size % columns:
        counted = "num_envs_per_worker x workers" if of == "round" else "num_envs_per_worker"
        raise ConfigError(
            f"config: {name}={size} does not divide among {columns} environments ({counted}); use "
            f"{size - size % columns or columns} or {size - size % columns + columns}, or set rollout_fragment_length."
        )
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    return whole if near is None else min(divisors, key=lambda n: abs(math.log(n / near)))


def check_batch_sizes(config: Any) -> None:
    """Checks that fragments fill train batches exactly, and that minibatches fit.

    For plans that join synchronous fragments to train batches.

    Raises:
        ConfigError: with the sizes that would fit.
    """
    size = config.train_batch_size
    rollout = config.rollout_fragment_length * config.num_envs_per_worker * max(1, config.num_workers)
    if config.batch_mode == "truncate_episodes" and size % rollout:
        below, above = size - size % rollout, size - size % rollout + rollout
        fits = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"config: train_batch_size={size} is no multiple of the {rollout} steps that one round of sampling gives "
            f"(rollout_fragment_length={config.rollout_fragment_length} x "
            f"num_envs_per_worker={config.num_envs_per_worker} x "
            f"{max(1, config.num_workers)} workers); use {fits}, or rollout_fragment_length='auto'."
        )
    if config.sgd_minibatch_size > size:
        raise ConfigError(
            f"config: sgd_minibatch_size={config.sgd_minibatch_size} is larger than train_batch_size={size}; lower "
            "it, or 0 for "
            "whole batches."
        )


OwnOptions = Callable[[PolicyID, Mapping[str, Any], Any], Any]
"""`(policy id, its own options, its PolicyFactory or None) -> its complete options`; see `policy_options`."""


def make_recipes(
    config: Any, factory: Any, env: Any, own_options: OwnOptions | None = None
) -> dict[PolicyID, PolicyRecipe]:
    """How to build each policy of a run.

    Args:
        config: the trainer's config.
        factory: the default PolicyFactory.
        env: a worker's environments, for their spaces.
        own_options: makes the options of a policy that has some of its own; None: all have the trainer's.

    Raises:
        ConfigError: a policy's recipe is malformed, agents map to policies that do not exist or differ in spaces.
    """
    if not is_multi_agent(env):
        if config.multiagent.policies is not None:
            raise ConfigError("multiagent.policies is set, but the environment is no MultiAgentEnv; leave it out.")
        action_space = policy_action_space(env.action_space, normalize=config.normalize_actions)
        return {DEFAULT_POLICY_ID: PolicyRecipe(factory, env.observation_space, action_space, config, env.action_space)}
    return _multi_agent_recipes(config, factory, env[0], own_options)


def _multi_agent_recipes(
    config: Any, factory: Any, runner: Any, own_options: OwnOptions | None
) -> dict[PolicyID, PolicyRecipe]:
    options = config.multiagent
    declared: Mapping[PolicyID, Any] = {DEFAULT_POLICY_ID: None} if options.policies is None else options.policies
    agents_of = map_agents(runner, declared, options.policy_mapping_fn)
    recipes = {}
    for pid, spec in declared.items():
        chosen, obs_space, action_space, overrides = _policy_spec(pid, spec)
        agents = agents_of.get(pid, [])
        if obs_space is None or action_space is None:
            if not agents:
                raise ConfigError(
                    f"multiagent.policies[{pid!r}]: no agent maps to it, so its spaces are unknown; give (None, "
                    "obs_space, "
                    "action_space, {}) or change policy_mapping_fn."
                )
            spaces = {(repr(runner.observation_spaces[a]), repr(runner.action_spaces[a])) for a in agents}
            if len(spaces) > 1:
                raise ConfigError(
                    f"multiagent.policies[{pid!r}]: its agents {agents} differ in spaces: {sorted(spaces)}; map them "
                    "to separate "
                    "policies."
                )
            obs_space = runner.observation_spaces[agents[0]] if obs_space is None else obs_space
            action_space = runner.action_spaces[agents[0]] if action_space is None else action_space
        acting_space = policy_action_space(action_space, normalize=config.normalize_actions)
        own = config
        if own_options is not None and (overrides or chosen is not None):
            own = own_options(pid, overrides, chosen)
        recipes[pid] = PolicyRecipe(factory if chosen is None else chosen, obs_space, acting_space, own, action_space)
    unknown = sorted(set(options.policies_to_train or ()) - set(recipes))
    if unknown:
        raise ConfigError(f"multiagent.policies_to_train: no policies {unknown}; there are {sorted(recipes)}.")
    return recipes


def _policy_spec(pid: PolicyID, spec: Any) -> tuple[Any, Any, Any, Mapping[str, Any]]:
    if spec is None:
        return None, None, None, {}
    if isinstance(spec, Mapping):
        return None, None, None, spec
    if not isinstance(spec, (tuple, list)) or len(spec) != 4:
        raise ConfigError(
            f"multiagent.policies[{pid!r}]: expected None, a dict of options, or (policy, obs_space, action_space, "
            "options), got "
            f"{spec!r}."
        )
    chosen, obs_space, action_space, overrides = spec
    for label, space in (("obs_space", obs_space), ("action_space", action_space)):
        if space is not None and not isinstance(space, gym.Space):
            raise ConfigError(
                f"multiagent.policies[{pid!r}]: {label} should be a Gymnasium space or None, got {space!r}."
            )
    return chosen, obs_space, action_space, overrides or {}


def probe_env(config: Any) -> Any:
    """The environments of the trainer's own worker, or, where actors sample, one of each to read the spaces from."""
    return make_worker_env(config, 0, config.num_workers, None if config.num_workers == 0 else 1)


def close_env(env: Any) -> None:
    """Closes what `probe_env` made."""
    for one in env if isinstance(env, list) else [env]:
        one.close()
