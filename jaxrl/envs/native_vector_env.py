"""A vector env that steps all its environments itself (`gymnasium.vector.VectorEnv`), as a sampler sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from jaxrl.envs.checks import EnvPlace, check_observation, check_reset_types, check_vector_step, env_failure
from jaxrl.envs.fitting import MisfitError, fitter
from jaxrl.envs.leaves import leaf_spaces, leaves, unflatten
from jaxrl.envs.replay_log import random_state
from jaxrl.envs.resume import set_random_state, warn_fresh
from jaxrl.envs.rows import copy_rows, empty_rows, row_copier, take_row
from jaxrl.envs.users import claim, release
from jaxrl.envs.vector_env import Ended, VectorEnv
from jaxrl.types import EnvError

_CHECKED_STEPS = 4


class NativeVectorEnv(VectorEnv):
    """Wraps a gymnasium VectorEnv of any autoreset mode (see `VectorEnv`).

    SAME_STEP: the final observation comes from `infos["final_obs"]`. NEXT_STEP: `filler_rows` is True. DISABLED: ended
    environments are reset by `options={"reset_mask": ...}`. What each mode does:
    https://farama.org/Vector-Autoreset-Mode

    Args:
        env: the vector env.
        place: names its environments in errors.
        checks: look at the numbers of the first reset and steps (see `ListVectorEnv`).

    Raises:
        EnvError: `env.metadata["autoreset_mode"]` is missing or unknown.
    """

    def __init__(self, env: gym.vector.VectorEnv, place: EnvPlace, *, checks: bool = True) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.place = place
        self._mode = _autoreset_mode(env, place)
        self.filler_rows = self._mode is AutoresetMode.NEXT_STEP
        self.filler_mask = np.zeros(self.num_envs, np.bool_)
        self.can_skip = False
        self.infos = [{} for _ in range(self.num_envs)]
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self.envs = None
        self.num_restarts = 0
        self._rows = empty_rows(self.observation_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._fit = fitter(self.observation_space, batch=self.num_envs)
        self._copy = row_copier(self.observation_space)
        self._to_check = _CHECKED_STEPS if checks else 0
        self._closed = False
        claim([env], self, place)

    def reset(self, seeds: list[int] | None = None) -> Any:
        """See `VectorEnv.reset`; a vector env that seeds itself gets the first seed alone."""
        seed: Any = None
        if seeds is not None:
            several = isinstance(self.env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
            seed = [int(s) for s in seeds] if several else int(seeds[0])
        obs, infos = self._reset(seed=seed)
        rows = empty_rows(self.observation_space, self.num_envs)
        self._put(rows, obs, "reset")
        self.reset_infos = split_infos(infos, self.num_envs)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self.filler_mask = np.zeros(self.num_envs, np.bool_)
        self._rows = rows
        return rows

    def step(
        self,
        actions: Any,
        obs_out: Any,
        rewards_out: np.ndarray,
        terminateds_out: np.ndarray,
        truncateds_out: np.ndarray,
        active: np.ndarray | None = None,
    ) -> Ended:
        """See `VectorEnv.step`."""
        if active is not None and not np.all(active):
            raise EnvError(
                f"{self.place.env_id}: expected to step all environments, got {int(np.sum(active))} of "
                f"{self.num_envs}: a "
                "native vector env cannot leave some out; use env_stepping='sync'"
            )
        where = f"{self.place.env_id} (worker {self.place.worker_index})"
        try:
            result = self.env.step(self._cast(actions))
        except Exception as error:
            raise env_failure(where, "step", error) from error
        obs, rewards, terminateds, truncateds, infos = check_vector_step(result, self.num_envs, where)
        rewards_out[:], terminateds_out[:], truncateds_out[:] = rewards, terminateds, truncateds
        over = np.logical_or(terminateds_out, truncateds_out)
        self.infos = split_infos(infos, self.num_envs)
        ended: Ended = []
        if self._mode is AutoresetMode.SAME_STEP:
            if over.any():
                ended = [(int(b), self._final(infos, int(b))) for b in np.flatnonzero(over)]
                self._take_final_infos(infos, over)
            self._put(obs_out, obs, "step")
        else:
            ended = self._put_final(obs_out, obs, terminateds_out, over)
        if self._mode is AutoresetMode.NEXT_STEP:
            self.filler_mask = self._ended
            for b in np.flatnonzero(self._ended):
                self.reset_infos[b] = self.infos[b]
            self._ended = over
        elif self._mode is AutoresetMode.DISABLED and over.any():
            obs, infos = self._reset(options={"reset_mask": over.copy()})
            for b, info in enumerate(split_infos(infos, self.num_envs)):
                if over[b]:
                    self.reset_infos[b] = info
            self._put(obs_out, obs, "reset")
        self._rows = obs_out
        return ended

    def truncate(self, b: int, obs_out: Any) -> Any:
        """See `VectorEnv.truncate`."""
        final = take_row(self.observation_space, self._rows, b)
        base = self.env.unwrapped
        if self._mode is AutoresetMode.DISABLED or (
            self._mode is AutoresetMode.SAME_STEP and isinstance(base, SyncVectorEnv | AsyncVectorEnv)
        ):
            mask = np.zeros(self.num_envs, np.bool_)
            mask[b] = True
            obs, infos = self._reset(options={"reset_mask": mask})
            self.reset_infos[b] = split_infos(infos, self.num_envs)[b]
            flat = self._fitted(obs, "reset")
            for rows in (obs_out, self._rows):
                for column, leaf in zip(leaves(self.observation_space, rows), flat, strict=True):
                    column[b] = leaf[b]
        elif isinstance(base, CartPoleVectorEnv):
            base.prev_done[b] = True  # its next step resets b, and is b's filler row
            self._ended = self._ended.copy()
            self._ended[b] = True
        else:
            raise EnvError(
                f"{self.place.describe(b)}: a native vector env of {self._mode.value} autoreset cannot end one "
                "episode at the "
                "horizon; set its own time limit (max_episode_steps), or use env_stepping='sync'"
            )
        return final

    def observations(self) -> Any:
        """See `VectorEnv.observations`."""
        rows = empty_rows(self.observation_space, self.num_envs)
        copy_rows(self.observation_space, rows, self._rows)
        return rows

    def end_fragment(self) -> None:
        """See `VectorEnv.end_fragment`."""
        self._rows = self.observations()

    def get_state(self) -> dict[str, Any]:
        """See `VectorEnv.get_state`; only CartPole's vector env and those with get_state/set_state come back."""
        self.end_fragment()
        base = self.env
        state: dict[str, Any] = {
            "kind": "native",
            "obs": leaves(self.observation_space, self._rows),
            "ended": self._ended.copy(),
        }
        if _offers_state(self.env):
            return state | {"state": _state_methods(self.env)[0]()}
        if isinstance(base, CartPoleVectorEnv) and base.state is not None:
            kept = {"state": np.array(base.state), "steps": base.steps.copy(), "prev_done": base.prev_done.copy()}
            return state | {"cartpole": kept, "rng": random_state(base)}
        return state

    def set_state(self, state: dict[str, Any]) -> list[bool]:
        """See `VectorEnv.set_state`."""
        reason = ""
        obs, _ = self._reset()
        base = self.env
        if state.get("kind") != "native" or np.shape(state["ended"]) != (self.num_envs,):
            reason = f"no state of a native vector env of {self.num_envs} environments was saved"
        elif "state" in state and _offers_state(self.env):
            _state_methods(self.env)[1](state["state"])
        elif "cartpole" in state and isinstance(base, CartPoleVectorEnv):
            kept = state["cartpole"]
            base.state = np.asarray(kept["state"], np.float64)
            base.steps = np.asarray(kept["steps"], np.int32)
            base.prev_done = np.asarray(kept["prev_done"], np.bool_)
            set_random_state(base, state["rng"])
        else:
            reason = f"{type(base).__name__} offers no get_state() and set_state()"
        rows = empty_rows(self.observation_space, self.num_envs)
        self._ended = np.zeros(self.num_envs, np.bool_)
        if reason:
            self._put(rows, obs, "reset")
        else:
            for column, leaf in zip(leaves(self.observation_space, rows), state["obs"], strict=True):
                column[...] = np.asarray(leaf, column.dtype)
            self._ended = np.array(state["ended"], np.bool_)
        self._rows = rows
        warn_fresh(dict.fromkeys(range(self.num_envs), reason) if reason else {}, self.num_envs, self.place)
        return [not reason] * self.num_envs

    def render(self, b: int = 0) -> Any:
        """See `VectorEnv.render`."""
        frames = self.env.render()
        return None if frames is None else frames[b]

    def close(self) -> None:
        """See `VectorEnv.close`."""
        if not self._closed:
            self._closed = True
            release([self.env], self)
            self.env.close()

    def _reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        where = f"{self.place.env_id} (worker {self.place.worker_index})"
        try:
            result = self.env.reset(**arguments)
        except Exception as error:
            raise env_failure(where, "reset", error) from error
        check_reset_types(result, where)
        return result

    def _cast(self, actions: Any) -> Any:
        parts = leaf_spaces(self.action_space)
        columns = leaves(self.action_space, actions)
        # Copied: the environment may keep or change them.
        flat = [np.array(column, leaf.space.dtype) for column, leaf in zip(columns, parts, strict=True)]
        return unflatten(self.action_space, flat)

    def _put(self, rows: Any, obs: Any, method: str, terminated: np.ndarray | None = None) -> None:
        """Copies a batch of observations into rows; those that follow a terminal state need not be finite."""
        flat = self._fitted(obs, method)
        if self._to_check:
            self._to_check -= 1
            for b in range(self.num_envs):
                one = unflatten(self.observation_space, [leaf[b] for leaf in flat])
                where = f"{self.place.describe(b)}: {method}"
                finite = terminated is None or not terminated[b]
                check_observation(self.observation_space, one, where, finite=finite)
        for column, leaf in zip(leaves(self.observation_space, rows), flat, strict=True):
            column[...] = leaf

    def _put_final(self, rows: Any, obs: Any, terminated: np.ndarray, over: np.ndarray) -> Ended:
        """`_put` where ended environments are not reset yet; their rows are acted on once more, and not counted."""
        self._put(rows, obs, "step", terminated)
        for column in leaves(self.observation_space, rows) if terminated.any() else ():
            if column.dtype.kind == "f":
                column[terminated] = np.where(np.isfinite(column[terminated]), column[terminated], 0.0)
        return [(int(b), take_row(self.observation_space, rows, int(b))) for b in np.flatnonzero(over)]

    def _fitted(self, obs: Any, method: str) -> list[np.ndarray]:
        try:
            return self._fit(obs)
        except MisfitError as error:
            raise EnvError(f"{self.place.env_id} (worker {self.place.worker_index}): {method}: {error}") from None

    def _final(self, infos: dict[str, Any], b: int) -> Any:
        """Environment b's final observation: gymnasium keeps an object array of them, ale-py one batch for all."""
        final = infos.get("final_obs", infos.get("final_observation"))
        if final is None:
            raise EnvError(
                f"{self.place.describe(b)}: step: expected infos['final_obs'] at the end of an episode (SAME_STEP "
                f"autoreset), got infos with keys {sorted(infos)}"
            )
        try:
            if isinstance(final, dict | tuple):
                columns = leaves(self.observation_space, final)
                return self._copy(unflatten(self.observation_space, [column[b] for column in columns]))
            return self._copy(final[b])
        except (MisfitError, LookupError, TypeError, ValueError) as error:
            raise EnvError(f"{self.place.describe(b)}: step: infos['final_obs']: {error}") from error

    def _take_final_infos(self, infos: dict[str, Any], over: np.ndarray) -> None:
        finals = split_infos(infos.get("final_info", {}), self.num_envs)
        for b in np.flatnonzero(over):
            reset_info = {k: v for k, v in self.infos[b].items() if k not in ("final_obs", "final_info")}
            self.reset_infos[b], self.infos[b] = reset_info, finals[b]


def split_infos(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Splits a vector env's infos into one dict per environment.

    Args:
        infos: arrays by name, `_name` beside each telling which environments have it; nested dicts likewise.
        num_envs: B.

    Returns:
        B dicts.

    Example:
        >>> split_infos({"lives": np.array([3, 0]), "_lives": np.array([True, False])}, 2)
        [{'lives': np.int64(3)}, {}]
    """
    result: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        rows: Any = split_infos(value, num_envs) if isinstance(value, dict) else value
        if np.ndim(rows) == 0 or len(rows) != num_envs:
            rows = [value] * num_envs
        for b in range(num_envs):
            if mask is None or mask[b]:
                result[b][key] = rows[b]
    return result


def _autoreset_mode(env: gym.vector.VectorEnv, place: EnvPlace) -> AutoresetMode:
    mode = (env.metadata or {}).get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise EnvError(
            f"{place.env_id}: expected metadata['autoreset_mode'] to be one of {[m.value for m in AutoresetMode]}, got "
            f"{mode!r}; set it on the vector env to what its step does when an episode ends "
            "(https://farama.org/Vector-Autoreset-Mode): guessing would mix episodes"
        ) from error


def _offers_state(env: Any) -> bool:
    return callable(getattr(type(env), "get_state", None)) and callable(getattr(type(env), "set_state", None))


def _state_methods(env: Any) -> tuple[Any, Any]:
    return env.get_state, env.set_state
