"""Saves where environments stand and brings them back, bit for bit or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers

from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.replay_log import MAX_REPLAY_STEPS, ReplayLog, ResumeWarning, random_state
from jaxrl.envs.rows import action_splitter, leaf_spaces, leaves, row_copier, unflatten

# Wrappers without memory between steps, and those whose memory `_wrapper_counters` knows. Around an environment with
# its own get_state/set_state any other wrapper may hold a state of its own, so then the episode is replayed instead.
_KNOWN_WRAPPERS = (
    wrappers.TimeLimit,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.TransformAction,
    wrappers.TransformObservation,
    wrappers.TransformReward,
)


_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


def own_state_holder(env: Any) -> Any | None:
    """Returns the object whose get_state/set_state cover the whole environment, or None.

    The outermost environment's own pair is taken as it is; the inner one's only where all wrappers around it are
    known.
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


def save_env(env: Any, log: ReplayLog, b: int, obs: list[np.ndarray], reward: float) -> dict[str, Any]:
    """Saves one environment: its own state where it offers one, else its replay entry and what to compare it with.

    Args:
        env: the environment, wrappers and all.
        log: the compacted replay log.
        b: index of the environment in the log.
        obs: leaves of its current observation.
        reward: its last reward.

    Returns:
        A dict of JSON values and arrays.
    """
    entry: dict[str, Any] = {"obs": obs, "rng_now": random_state(_base(env)), "reward": reward}
    holder = own_state_holder(env)
    if holder is None:
        return entry | log.state(b)
    return entry | {"state": holder.get_state(), "wrappers": _wrapper_counters(env), "steps": log.episode_step(b)}


def load_env(
    entry: dict[str, Any],
    env: Any,
    log: ReplayLog,
    b: int,
    observation_space: gym.Space,
    action_space: gym.Space,
) -> str:
    """Brings one environment back from `save_env`.

    Args:
        entry: what `save_env` returned, possibly through JSON.
        env, log, b: as there.
        observation_space: space of its observations.
        action_space: space of its actions.

    Returns:
        Why it did not come back exactly (its state is then arbitrary), or an empty string.
    """
    try:
        if "state" in entry:
            return _load_own(entry, env, log, b)
        return _replay(entry, env, log, b, observation_space, action_space)
    except Exception as error:  # whatever a user's environment raises here, a fresh episode is the answer
        return f"{type(error).__name__}: {error}"


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


def _load_own(entry: dict[str, Any], env: Any, log: ReplayLog, b: int) -> str:
    holder = own_state_holder(env)
    if holder is None:
        return "the environment offered get_state() when it was saved, and offers none now"
    # Wrappers refuse steps before a reset, and an environment may build what its set_state needs only there.
    log.before_reset(b, None)
    env.reset()
    log.after_reset(b)
    holder.set_state(entry["state"])
    _set_wrapper_counters(env, entry["wrappers"])
    set_random_state(_base(env), entry["rng_now"])
    log.load(b, {"seed": None, "rng": None, "steps": entry["steps"]}, [])
    return ""


def _replay(
    entry: dict[str, Any],
    env: Any,
    log: ReplayLog,
    b: int,
    observation_space: gym.Space,
    action_space: gym.Space,
) -> str:
    if entry["actions"] is None:
        return f"its episode had taken {entry['steps']} steps, more than the {MAX_REPLAY_STEPS} that are replayed"
    if entry["steps"] > MAX_REPLAY_STEPS or any(len(column) != entry["steps"] for column in entry["actions"]):
        return f"its {entry['steps']} steps are more than {MAX_REPLAY_STEPS}, or not as many as its actions"
    if entry["seed"] is None and entry["rng"] is None:
        return "it has no NumPy generator np_random whose state could be saved"
    set_random_state(_base(env), entry["rng"])
    obs, _ = env.reset() if entry["seed"] is None else env.reset(seed=entry["seed"])
    reward, actions = 0.0, []
    if entry["steps"]:
        kinds = [leaf.space.dtype for leaf in leaf_spaces(action_space)]
        actions = [np.asarray(column, kind) for column, kind in zip(entry["actions"], kinds, strict=True)]
        for action in action_splitter(action_space)(unflatten(action_space, actions)):
            obs, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return "replaying its actions ended the episode earlier"
    log.load(b, entry, actions)
    if not same_bits(leaves(observation_space, row_copier(observation_space)(obs)), entry["obs"]):
        return "replaying its actions gave another observation"
    if not same_random_state(random_state(_base(env)), entry["rng_now"]):
        return "replaying its actions gave another random state"
    # The sampler's reward row may be float32.
    if entry["steps"] and entry["reward"] not in (float(reward), float(np.float32(reward))):
        return f"replaying its actions gave another reward ({float(reward)}, not {entry['reward']})"
    return ""


def same_bits(got: Iterable[Any], want: Iterable[Any]) -> bool:
    """True where each array of `want` (or the list that JSON made of it) has the bits of its partner in `got`."""
    return all(
        np.asarray(w, g.dtype).tobytes() == np.ascontiguousarray(g).tobytes() for g, w in zip(got, want, strict=True)
    )


def same_random_state(got: Any, want: Any) -> bool:
    """Compares generator states, whose arrays (MT19937's key) may have become lists."""
    if isinstance(got, dict) and isinstance(want, dict):
        return got.keys() == want.keys() and all(same_random_state(got[key], want[key]) for key in got)
    return bool(np.array_equal(got, want)) if isinstance(got, np.ndarray | list) else got == want


def set_random_state(base: Any, state: dict[str, Any] | None) -> None:
    """Puts a saved generator state (possibly through JSON) into the unwrapped environment; None leaves it."""
    if state is None:
        return
    generator = base.np_random.bit_generator
    if generator.state["bit_generator"] != state["bit_generator"]:
        base.np_random = np.random.Generator(_BIT_GENERATORS[state["bit_generator"]]())
        generator = base.np_random.bit_generator
    inner = state["state"]
    if isinstance(inner, dict) and "key" in inner:
        state = state | {"state": inner | {"key": np.asarray(inner["key"], np.uint32)}}
    generator.state = state


def _base(env: Any) -> Any:
    return getattr(env, "unwrapped", env)


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
