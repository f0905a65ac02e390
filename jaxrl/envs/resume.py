"""Saves where environments stand and brings them back, bit for bit or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers

from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.replay_log import MAX_REPLAY_STEPS, ReplayLog, ResumeWarning, random_state
from jaxrl.envs.rows import action_splitter, leaf_spaces, leaves, row_copier, unflatten

# Wrappers without memory between steps, and those whose memory `_wrapper_counters` knows. Around an environment with its own
# get_state/set_state any other wrapper may hold a state of its own, so then the episode is replayed instead.
_KNOWN_WRAPPERS = (
    wrappers.TimeLimit,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.TransformAction,
    wrappers.TransformObservation,
    wrappers.TransformReward,
)


def own_state_holder(env: Any) -> Any | None:
    """Returns the object whose get_state/set_state cover the whole environment, or None.

    The outermost environment's own pair is taken as it is; the inner one's only where all wrappers around it are known.
    """
    if _has_state_methods(env):
        return env
    node = env
    while isinstance(node, gym.Wrapper):
        if not isinstance(node, _KNOWN_WRAPPERS):
            return None
        node = node.env
        if _has_state_methods(node):
            return node
    return None


def save_states(
    envs: list[gym.Env], log: ReplayLog, observation_space: gym.Space, rows: Any, rewards: np.ndarray
) -> dict[str, Any]:
    """Saves every environment: its own state where it offers one, else its replay entry and what to compare it with.

    Args:
        envs: the environments.
        log: their compacted replay log.
        observation_space: space of one environment.
        rows: current observations `[B, ...]`.
        rewards: last rewards `[B]`.

    Returns:
        `{"kind": "list", "envs": [...]}` of JSON values and arrays.
    """
    saved = []
    columns = leaves(observation_space, rows)
    for b, env in enumerate(envs):
        entry: dict[str, Any] = {
            "obs": [np.array(column[b]) for column in columns],
            "rng_now": random_state(env.unwrapped),
            "reward": float(rewards[b]),
        }
        holder = own_state_holder(env)
        if holder is not None:
            entry |= {"state": holder.get_state(), "wrappers": _wrapper_counters(env), "steps": log.episode_step(b)}
        else:
            entry |= log.state(b)
        saved.append(entry)
    return {"kind": "list", "envs": saved}


def load_states(
    state: dict[str, Any],
    envs: list[gym.Env],
    log: ReplayLog,
    observation_space: gym.Space,
    action_space: gym.Space,
    rows: Any,
    rewards: np.ndarray,
    fresh: Callable[[int], Any],
    place: EnvPlace,
) -> list[bool]:
    """Brings environments back from `save_states` (the inverse; see there).

    Args:
        state: what `save_states` returned, possibly through JSON.
        envs, log, observation_space, action_space: as there.
        rows, rewards: written for each environment.
        fresh: starts a fresh episode in environment b and writes its row.
        place: names the environments in the warning.

    Returns:
        For each environment, whether it came back exactly.
    """
    entries = state.get("envs", []) if state.get("kind") == "list" else []
    copy = row_copier(observation_space)
    columns = leaves(observation_space, rows)
    reasons: dict[int, str] = {}
    for b, env in enumerate(envs):
        reason = "no state was saved for it"
        if b < len(entries):
            reason = _load_one(entries[b], b, env, log, observation_space, action_space, copy)
        if reason:
            reasons[b] = reason
            rewards[b] = 0.0
            fresh(b)
            continue
        for column, leaf in zip(columns, entries[b]["obs"], strict=True):
            column[b] = np.asarray(leaf, column.dtype)
        rewards[b] = entries[b]["reward"]
    warn_fresh(reasons, len(envs), place)
    return [b not in reasons for b in range(len(envs))]


def warn_fresh(reasons: dict[int, str], num_envs: int, place: EnvPlace) -> None:
    """Says once which environments begin a fresh episode, and why."""
    if reasons:
        first = min(reasons)
        warnings.warn(
            f"{place.describe(first)}: could not be brought back to where it stood: {reasons[first]}. "
            f"{len(reasons)} of {num_envs} environments begin a fresh episode; offer get_state() and set_state(state) "
            "to resume exactly.",
            ResumeWarning,
            stacklevel=3,
        )


def _load_one(
    entry: dict[str, Any],
    b: int,
    env: gym.Env,
    log: ReplayLog,
    observation_space: gym.Space,
    action_space: gym.Space,
    copy: Any,
) -> str:
    """Brings one environment back; returns why not, or an empty string."""
    try:
        if "state" in entry:
            return _load_own(entry, b, env, log)
        return _replay(entry, b, env, log, observation_space, action_space, copy)
    except Exception as error:  # whatever a user's environment raises here, a fresh episode is the answer
        return f"{type(error).__name__}: {error}"


def _load_own(entry: dict[str, Any], b: int, env: gym.Env, log: ReplayLog) -> str:
    holder = own_state_holder(env)
    if holder is None:
        return "the environment offered get_state() when it was saved, and offers none now"
    # Wrappers refuse steps before a reset, and an environment may build what its set_state needs only there.
    log.before_reset(b, None)
    env.reset()
    log.after_reset(b)
    holder.set_state(entry["state"])
    _set_wrapper_counters(env, entry["wrappers"])
    _set_random_state(env.unwrapped, entry["rng_now"])
    log.load(b, {"seed": None, "rng": None, "steps": entry["steps"]}, [])
    return ""


def _replay(
    entry: dict[str, Any],
    b: int,
    env: gym.Env,
    log: ReplayLog,
    observation_space: gym.Space,
    action_space: gym.Space,
    copy: Any,
) -> str:
    if entry["actions"] is None:
        return f"its episode had taken {entry['steps']} steps, more than the {MAX_REPLAY_STEPS} that are replayed"
    if entry["seed"] is None and entry["rng"] is None:
        return "it has no NumPy generator np_random whose state could be saved"
    kinds = [leaf.space.dtype for leaf in leaf_spaces(action_space)]
    actions = [np.asarray(a, dtype) for a, dtype in zip(entry["actions"], kinds, strict=False)]
    if entry["seed"] is None:
        _set_random_state(env.unwrapped, entry["rng"])
        obs, _ = env.reset()
    else:
        obs, _ = env.reset(seed=entry["seed"])
    reward = 0.0
    if entry["steps"]:
        for action in action_splitter(action_space)(unflatten(action_space, actions)):
            obs, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return "replaying its actions ended the episode earlier"
    log.load(b, entry, actions)
    if not _same(leaves(observation_space, copy(obs)), entry["obs"]):
        return "replaying its actions gave another observation"
    if not _same_random_state(random_state(env.unwrapped), entry["rng_now"]):
        return "replaying its actions gave another random state"
    if entry["steps"] and not _same([np.float64(reward)], [entry["reward"]]):
        return f"replaying its actions gave another reward ({float(reward)}, not {entry['reward']})"
    return ""


def _same(got: Iterable[Any], want: Iterable[Any]) -> bool:
    return all(
        np.asarray(w, g.dtype).tobytes() == np.ascontiguousarray(g).tobytes() for g, w in zip(got, want, strict=True)
    )


def _same_random_state(got: Any, want: Any) -> bool:
    """Compares generator states, whose arrays (MT19937's key) may have become lists."""
    if isinstance(got, dict) and isinstance(want, dict):
        return got.keys() == want.keys() and all(_same_random_state(got[key], want[key]) for key in got)
    return bool(np.array_equal(got, want)) if isinstance(got, np.ndarray | list) else got == want


def _set_random_state(base: Any, state: Any) -> None:
    if state is None:
        return
    generator = base.np_random.bit_generator
    if generator.state["bit_generator"] != state["bit_generator"]:
        kind = getattr(np.random, state["bit_generator"])
        base.np_random = np.random.Generator(kind())
        generator = base.np_random.bit_generator
    inner = state["state"]
    if isinstance(inner, dict) and "key" in inner:
        state = state | {"state": inner | {"key": np.asarray(inner["key"], np.uint32)}}
    generator.state = state


def _has_state_methods(env: Any) -> bool:
    return callable(getattr(type(env), "get_state", None)) and callable(getattr(type(env), "set_state", None))


def _wrapper_counters(env: Any) -> list[int]:
    """Elapsed steps of each TimeLimit, outermost first."""
    return [limit._elapsed_steps or 0 for limit in _time_limits(env)]


def _set_wrapper_counters(env: Any, counters: list[int]) -> None:
    for limit, count in zip(_time_limits(env), counters, strict=True):
        limit._elapsed_steps = int(count)


def _time_limits(env: Any) -> list[wrappers.TimeLimit]:
    found = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, wrappers.TimeLimit):
            found.append(env)
        env = env.env
    return found
