"""Our own loop over gymnasium environments: rows written in place, ended episodes reset in the same step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from jaxrl.envs.checks import (
    FLAGS,
    NUMBERS,
    EnvPlace,
    check_reset_result,
    check_reset_types,
    check_step_result,
    check_step_types,
    env_failure,
    has_step_types,
)
from jaxrl.envs.fitting import MisfitError, exact_dtype
from jaxrl.envs.leaves import checked_space, is_array_space, leaf_spaces, leaves
from jaxrl.envs.replay_log import ReplayLog
from jaxrl.envs.restarting import Restarter
from jaxrl.envs.resume import load_env, save_env, warn_fresh
from jaxrl.envs.rows import (
    action_splitter,
    copy_rows,
    empty_rows,
    row_copier,
    row_writer,
    take_row,
)
from jaxrl.envs.users import claim, release
from jaxrl.envs.vector_env import RESET_FAILED, STEP_FAILED, Ended, VectorEnv
from jaxrl.types import EnvError

# Vector steps in which numbers are looked at too: an environment that is wrong from the start says so at once.
_CHECKED_STEPS = 16
_NO_STEP: Any = (None, 0.0, False, False, {})


class ListVectorEnv(VectorEnv):
    """Steps a list of environments one after the other (see `VectorEnv`).

    Args:
        envs: environments of equal spaces.
        place: names them in errors.
        checks: look at the numbers of the first resets and steps; later ones are the caller's to look at, once a
            fragment (`check_fragment`).
        restarters: one for each environment, which then is created anew when it fails.

    Raises:
        EnvError: the environments' spaces differ, or there is none.
    """

    def __init__(
        self,
        envs: Sequence[gym.Env],
        place: EnvPlace,
        *,
        checks: bool = True,
        restarters: Sequence[Restarter] | None = None,
    ) -> None:
        if not envs:
            raise EnvError(f"{place.env_id}: expected at least one environment, got none")
        # One list by two names: restarts put new environments into it.
        self._envs = list(envs)
        self.envs: list[gym.Env] | None = self._envs
        self.num_envs = len(self._envs)
        first, where = self._envs[0], place.describe(0)
        self.observation_space = checked_space(getattr(first, "observation_space", None), "observation_space", where)
        self.action_space = checked_space(getattr(first, "action_space", None), "action_space", where)
        self.place = place
        self.filler_rows = False
        self.filler_mask = np.zeros(self.num_envs, np.bool_)
        self.can_skip = True
        self.infos = [{} for _ in self._envs]
        self.reset_infos = [{} for _ in self._envs]
        for b, env in enumerate(self._envs):
            self._check_spaces(b, env)
        self.num_restarts = 0
        self._restarters = None if restarters is None else list(restarters)
        self._step_functions: list[Any] = [env.step for env in self._envs]
        if restarters is not None:
            self._step_functions = [functools.partial(self._try_step, b) for b in range(self.num_envs)]
        self._rows = empty_rows(self.observation_space, self.num_envs)
        self._rewards: np.ndarray = np.zeros(self.num_envs)
        self._write = row_writer(self.observation_space)
        self._copy = row_copier(self.observation_space)
        self._split = action_splitter(self.action_space)
        # Of arrays of this form a step may be written as it is; `_write` looks at all others.
        self._shape, self._dtype = self.observation_space.shape, None
        if is_array_space(self.observation_space):
            self._dtype = exact_dtype(leaf_spaces(self.observation_space)[0])
        self._steps_to_check = _CHECKED_STEPS if checks else 0
        self._resets_to_check = [2 if checks else 0] * self.num_envs
        self._log = ReplayLog([getattr(env, "unwrapped", env) for env in self._envs], self.action_space)
        self._closed = False
        claim(self._envs, self, place)

    def reset(self, seeds: list[int] | None = None) -> Any:
        """See `VectorEnv.reset`."""
        if seeds is not None and len(seeds) != self.num_envs:
            raise EnvError(
                f"{self.place.env_id}: expected {self.num_envs} seeds, one per environment, got {len(seeds)}"
            )
        self._log.compact()
        rows = empty_rows(self.observation_space, self.num_envs)
        for b in range(self.num_envs):
            self._reset_env(b, rows, None if seeds is None else int(seeds[b]))
        self._rows = rows
        self._rewards = np.zeros(self.num_envs)
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
        if active is not None or self._steps_to_check:
            return self._step_general(actions, obs_out, rewards_out, terminateds_out, truncateds_out, active)
        ended: Ended = []
        infos, shape, dtype, b = self.infos, self._shape, self._dtype, 0
        array, usual, numbers, result = np.ndarray, float, NUMBERS, _NO_STEP
        parts = self._split(actions)
        self._log.steps.append(actions)
        terminateds_out.fill(False)
        truncateds_out.fill(False)
        try:
            for b, step in enumerate(self._step_functions):
                result = step(parts[b])
                obs, reward, terminated, truncated, info = result
                if (
                    (reward.__class__ is not usual and reward.__class__ not in numbers)
                    or info.__class__ is not dict
                    or result.__class__ is not tuple
                ):
                    check_step_types(result, self._where(b))
                rewards_out[b] = reward
                infos[b] = info
                if terminated is not False or truncated is not False:
                    if terminated.__class__ not in FLAGS or truncated.__class__ not in FLAGS:
                        check_step_types(result, self._where(b))
                    if terminated or truncated:
                        self._note_end(b, result, terminateds_out, truncateds_out, ended)
                        continue
                if obs.__class__ is array and obs.dtype is dtype and obs.shape == shape:
                    obs_out[b] = obs
                else:
                    self._write(obs_out, b, obs)
        except EnvError:
            raise
        except Exception as error:
            check_step_types(result, self._where(b))  # what cannot be taken apart is no tuple of five
            raise self._blame(b, "step", error) from error
        self._renew(ended, obs_out, rewards_out)
        self._rows, self._rewards = obs_out, rewards_out
        return ended

    def truncate(self, b: int, obs_out: Any) -> Any:
        """See `VectorEnv.truncate`."""
        final = take_row(self.observation_space, self._rows, b)
        self._reset_env(b, obs_out)
        if obs_out is not self._rows:
            self._write(self._rows, b, take_row(self.observation_space, obs_out, b))
        return final

    def observations(self) -> Any:
        """See `VectorEnv.observations`."""
        rows = empty_rows(self.observation_space, self.num_envs)
        copy_rows(self.observation_space, rows, self._rows)
        return rows

    def end_fragment(self) -> None:
        """See `VectorEnv.end_fragment`."""
        self._rows = self.observations()
        self._rewards = np.array(self._rewards)
        self._log.compact()

    def get_state(self) -> dict[str, Any]:
        """See `VectorEnv.get_state`."""
        self.end_fragment()
        columns = leaves(self.observation_space, self._rows)
        entries = [
            save_env(env, self._log, b, [np.array(column[b]) for column in columns], float(self._rewards[b]))
            for b, env in enumerate(self._envs)
        ]
        if self._restarters is not None:
            for entry, restarter in zip(entries, self._restarters, strict=True):
                entry["restarts"] = restarter.get_state()
        return {"kind": "list", "envs": entries}

    def set_state(self, state: dict[str, Any]) -> list[bool]:
        """See `VectorEnv.set_state`."""
        reasons = self.restore(state)
        warn_fresh(reasons, self.num_envs, self.place)
        return [b not in reasons for b in range(self.num_envs)]

    def restore(self, state: dict[str, Any]) -> dict[int, str]:
        """Does what `set_state` does, without a warning.

        Returns:
            For each environment that did not come back exactly (and begins a fresh episode), why.
        """
        self.end_fragment()
        entries = state["envs"] if state.get("kind") == "list" else []
        columns = leaves(self.observation_space, self._rows)
        reasons: dict[int, str] = {}
        for b, env in enumerate(self._envs):
            reason = "no state was saved for it"
            if b < len(entries):
                if self._restarters is not None:
                    self._restarters[b].set_state(entries[b].get("restarts"))
                reason = load_env(entries[b], env, self._log, b, self.observation_space, self.action_space)
            if reason:
                reasons[b] = reason
                self._rewards[b] = 0.0
                self._reset_env(b, self._rows)
                continue
            self._rewards[b] = entries[b]["reward"]
            for column, leaf in zip(columns, entries[b]["obs"], strict=True):
                column[b] = np.asarray(leaf, column.dtype)
        return reasons

    def render(self, b: int = 0) -> Any:
        """See `VectorEnv.render`."""
        return self._envs[b].render()

    def close(self) -> None:
        """See `VectorEnv.close`."""
        if not self._closed:
            self._closed = True
            release(self._envs, self)
            for env in self._envs:
                env.close()

    def _step_general(
        self,
        actions: Any,
        obs_out: Any,
        rewards_out: np.ndarray,
        terminateds_out: np.ndarray,
        truncateds_out: np.ndarray,
        active: np.ndarray | None,
    ) -> Ended:
        """Steps with some environments left out, or with full checks."""
        ended: Ended = []
        parts = self._split(actions)
        if active is not None:
            self._log.active[len(self._log.steps)] = np.array(active, np.bool_)
        self._log.steps.append(actions)
        b = 0
        try:
            for b, step in enumerate(self._step_functions):
                if active is not None and not active[b]:
                    if obs_out is not self._rows:
                        self._write(obs_out, b, take_row(self.observation_space, self._rows, b))
                    rewards_out[b], terminateds_out[b], truncateds_out[b] = 0.0, False, False
                    continue
                result = step(parts[b])
                if self._steps_to_check:
                    check_step_result(self.observation_space, result, self._where(b))
                elif not has_step_types(result):
                    check_step_types(result, self._where(b))
                obs, rewards_out[b], terminated, truncated, self.infos[b] = result
                terminateds_out[b] = truncateds_out[b] = False
                if terminated or truncated:
                    self._note_end(b, result, terminateds_out, truncateds_out, ended)
                else:
                    self._write(obs_out, b, obs)
        except EnvError:
            raise
        except Exception as error:
            raise self._blame(b, "step", error) from error
        self._renew(ended, obs_out, rewards_out)
        if self._steps_to_check:
            self._steps_to_check -= 1
        # A skipped environment's last reward stays the one that it gave.
        self._rewards = rewards_out if active is None else np.where(active, rewards_out, self._rewards)
        self._rows = obs_out
        return ended

    def _note_end(
        self, b: int, result: Any, terminateds_out: np.ndarray, truncateds_out: np.ndarray, ended: Ended
    ) -> None:
        """Environment b's episode has ended."""
        obs, _, terminateds_out[b], truncateds_out[b], info = result
        self.infos[b] = info.copy()  # its reset may write into the same one
        ended.append((b, self._copy(obs)))

    def _renew(self, ended: Ended, obs_out: Any, rewards_out: np.ndarray) -> None:
        """Resets the environments whose episode has ended."""
        for b, _ in ended:
            if self.before_reset is not None and STEP_FAILED not in self.infos[b]:
                self.before_reset(b, float(rewards_out[b]))
            self._reset_env(b, obs_out)

    def _try_step(self, b: int, action: Any) -> tuple[Any, ...]:
        """A step of an environment that is created anew when it fails: the reset that follows an end does it."""
        assert self._restarters is not None
        try:
            result = self._envs[b].step(action)
        except Exception as error:
            self._restarters[b].step_failed(self._where(b), error)
            return take_row(self.observation_space, self._rows, b), 0.0, False, True, {STEP_FAILED: True}
        self._restarters[b].in_a_row = 0
        return result

    def _reset_env(self, b: int, obs_out: Any, seed: int | None = None) -> None:
        """Resets environment b, and writes its first observation."""
        log, where, failed = self._log, self.place.describe(b), False
        if self._restarters is not None:
            before = functools.partial(self._before_reset, b)
            _, result, failed = self._restarters[b].reset(self._envs[b], seed, where, before)
            self.num_restarts = sum(restarter.count for restarter in self._restarters)
        else:
            log.before_reset(b, seed)
            env = self._envs[b]
            try:
                result = env.reset() if seed is None else env.reset(seed=seed)
            except Exception as error:
                raise env_failure(where, "reset", error) from error
        if self._resets_to_check[b]:
            self._resets_to_check[b] -= 1
            check_reset_result(self.observation_space, result, where)
        else:
            check_reset_types(result, where)
        log.after_reset(b)
        obs, self.reset_infos[b] = result
        if failed:
            self.reset_infos[b] = {**self.reset_infos[b], RESET_FAILED: True}
        try:
            self._write(obs_out, b, obs)
        except Exception as error:
            raise self._blame(b, "reset", error) from error

    def _blame(self, b: int, method: str, error: Exception) -> EnvError:
        """The EnvError for what was raised while environment b was stepped or reset, or what it gave was written."""
        where = self.place.describe(b) if method == "reset" else self._where(b)
        return (
            EnvError(f"{where}: {method}: {error}")
            if isinstance(error, MisfitError)
            else env_failure(where, method, error)
        )

    def _before_reset(self, b: int, env: Any, seed: int | None) -> None:
        if env is not self._envs[b]:
            self._check_spaces(b, env)
            claim([env], self, self.place._replace(first_index=self.place.first_index + b), instead_of=[self._envs[b]])
            self._envs[b] = env
            self._log.replace(b, getattr(env, "unwrapped", env))
        self._log.before_reset(b, seed)

    def _check_spaces(self, b: int, env: Any) -> None:
        for name in ("observation_space", "action_space"):
            if getattr(env, name, None) != getattr(self, name):
                raise EnvError(
                    f"{self.place.describe(b)}: expected the {name} of env 0, {getattr(self, name)}, "
                    f"got {getattr(env, name, None)}; environments of one worker must have equal spaces"
                )

    def _where(self, b: int) -> str:
        # The step being taken is in the log already.
        return self.place.describe(b, max(self._log.episode_step(b) - 1, 0))
