"""B copies of a JAX environment as a sampler sees them (`jaxrl.envs.vector_env`): one jitted call per vector step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.checks import EnvPlace, check_observation
from jaxrl.envs.jax_native.auto_reset import select_rows
from jaxrl.envs.jax_native.conformance import check_jax_env
from jaxrl.envs.jax_native.env import JaxEnv
from jaxrl.envs.jax_native.host_state import load_leaves, new_seeds, save_leaves, to_host
from jaxrl.envs.resume import warn_fresh
from jaxrl.envs.rows import empty_rows, is_array_space, leaves, take_row, unflatten
from jaxrl.envs.vector_env import Ended, VectorEnv
from jaxrl.types import Array, EnvError, PyTree


class _Programs(NamedTuple):
    """The jitted functions of a JaxVectorEnv; `seeds` is uint32 `[B]`, `n` the number of the call (uint32).

    A row's random numbers follow from its own seed and `n`: they do not depend on B, nor on the other rows. The pair is
    its key as it stands: threefry needs keys that differ, no random ones, and folding numbers in costs as a draw does.
    """

    reset: Any  # (seeds, n) -> (states, obs)
    step: Any  # (seeds, n, states, actions) -> (states, obs, final_obs, rewards, flags [2, B])
    step_some: Any  # (seeds, n, states, actions, active, obs) -> the same
    reset_some: Any  # (seeds, n, rows, states, obs) -> (states, obs)


class JaxVectorEnv(VectorEnv):
    """Steps B copies of a JaxEnv on the CPU (see `VectorEnv`).

    Args:
        env: the environment.
        num_envs: B.
        place: names the environments in errors.
        checks: check what `reset` and `step` return, by tracing them, and the first observations in full.

    Raises:
        EnvError: the environment breaks the protocol (`check_jax_env`).
    """

    def __init__(self, env: JaxEnv, num_envs: int, place: EnvPlace, *, checks: bool = True) -> None:
        if checks:
            check_jax_env(env)
        self.jax_env = env
        self.num_envs = num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.place = place
        self.filler_rows = False
        self.filler_mask = np.zeros(num_envs, np.bool_)
        self.can_skip = True
        self.infos = [{} for _ in range(num_envs)]
        self.reset_infos = [{} for _ in range(num_envs)]
        self.envs = None
        self.num_restarts = 0
        self._checks = checks
        self._programs = _compile(env.reset, env.step)
        self._device = jax.local_devices(backend="cpu")[0]
        self._dtypes = [row.dtype for row in leaves(env.action_space, empty_rows(env.action_space, 1))]
        self._one_action, self._one_obs = is_array_space(env.action_space), is_array_space(env.observation_space)
        self._seeds: np.ndarray | None = None
        self._n = 0
        self._states: PyTree = None
        self._obs: PyTree = None

    def reset(self, seeds: list[int] | None = None) -> Any:
        """See `VectorEnv.reset`."""
        if seeds is not None and len(seeds) != self.num_envs:
            raise EnvError(
                f"{self.place.env_id}: expected {self.num_envs} seeds, one per environment, got {len(seeds)}"
            )
        if seeds is not None or self._seeds is None:
            self._seeds, self._n = new_seeds(seeds, self.num_envs), 0
        self._states, self._obs = self._call(self._programs.reset)
        rows = self.observations()
        if self._checks:
            for b in range(min(self.num_envs, 8)):
                first = take_row(self.observation_space, rows, b)
                check_observation(self.observation_space, first, f"{self.place.describe(b)}: reset")
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
        space = self.action_space
        if self._one_action:
            actions = np.asarray(actions, self._dtypes[0])
        else:
            parts = [np.asarray(x, kind) for x, kind in zip(leaves(space, actions), self._dtypes, strict=True)]
            actions = unflatten(space, parts)
        if active is None:
            out = self._call(self._programs.step, self._states, actions)
        else:
            stepped = np.array(active, np.bool_)
            out = self._call(self._programs.step_some, self._states, actions, stepped, self._obs)
        self._states, self._obs, final_obs, rewards, flags = out
        flags = np.asarray(flags)
        rewards_out[:] = rewards
        terminateds_out[:], truncateds_out[:] = flags
        self._write(obs_out, self._obs)
        if not flags.any():
            return []
        finals = to_host(final_obs)
        over = np.flatnonzero(flags.any(axis=0)).tolist()
        return [(b, take_row(self.observation_space, finals, b)) for b in over]

    def truncate(self, b: int, obs_out: Any) -> Any:
        """See `VectorEnv.truncate`."""
        final = take_row(self.observation_space, to_host(self._obs), b)
        rows = np.arange(self.num_envs) == b
        self._states, self._obs = self._call(self._programs.reset_some, rows, self._states, self._obs)
        fresh = to_host(self._obs)
        for column, leaf in zip(*self._leaves(obs_out, fresh), strict=True):
            column[b] = leaf[b]
        return final

    def observations(self) -> Any:
        """See `VectorEnv.observations`."""
        rows = empty_rows(self.observation_space, self.num_envs)
        self._write(rows, self._obs)
        return rows

    def end_fragment(self) -> None:
        """See `VectorEnv.end_fragment`; nothing of the caller's is kept."""

    def get_state(self) -> dict[str, Any]:
        """See `VectorEnv.get_state`."""
        if self._seeds is None:
            return {"kind": "jax"}
        kept = {"states": save_leaves(self._states), "obs": save_leaves(self._obs)}
        return {"kind": "jax", "seeds": self._seeds.tolist(), "n": self._n, **kept}

    def set_state(self, state: dict[str, Any]) -> list[bool]:
        """See `VectorEnv.set_state`: all environments come back, or none."""
        reason = self._restore(state)
        if reason:
            self._states, self._obs = None, None
            self.reset()
        warn_fresh(dict.fromkeys(range(self.num_envs), reason) if reason else {}, self.num_envs, self.place)
        return [not reason] * self.num_envs

    def render(self, b: int = 0) -> Any:
        """See `VectorEnv.render`; None where the environment has no pictures."""
        if self.jax_env.render is None or self._states is None:
            return None
        return self.jax_env.render(to_host(jax.tree.map(lambda leaf: leaf[b], self._states)))

    def close(self) -> None:
        """See `VectorEnv.close`; there is nothing to close."""

    def _call(self, program: Any, *args: Any) -> Any:
        self._n += 1
        with jax.default_device(self._device):
            return program(self._seeds, np.uint32(self._n % 2**31), *args)

    def _restore(self, state: dict[str, Any]) -> str:
        """Brings everything back; returns why it cannot, or an empty string."""
        if state.get("kind") != "jax" or "seeds" not in state:
            return "no state of JAX environments was saved"
        form, obs_form = jax.eval_shape(self.jax_env.reset, jax.random.key(0))
        try:
            with jax.default_device(self._device):
                states = load_leaves(form, state["states"], self.num_envs)
                obs = load_leaves(obs_form, state["obs"], self.num_envs)
        except ValueError as error:
            return str(error)
        self._states, self._obs = states, obs
        self._seeds, self._n = np.array(state["seeds"], np.uint32), int(state["n"])
        return ""

    def _write(self, rows: Any, obs: PyTree) -> None:
        if self._one_obs:
            rows[...] = np.asarray(obs)
            return
        for column, leaf in zip(*self._leaves(rows, obs), strict=True):
            column[...] = np.asarray(leaf)

    def _leaves(self, rows: Any, obs: PyTree) -> tuple[list[Any], list[Any]]:
        return leaves(self.observation_space, rows), leaves(self.observation_space, obs)


@functools.lru_cache(maxsize=16)
def _compile(reset_one: Callable[..., Any], step_one: Callable[..., Any]) -> _Programs:
    def keys_of(seeds: Array, n: Array, stream: int) -> Array:
        data = jnp.stack([seeds, jnp.broadcast_to(2 * n + jnp.uint32(stream), seeds.shape)], axis=-1)
        return jax.random.wrap_key_data(data, impl="threefry2x32")

    def reset(seeds: Array, n: Array) -> tuple[PyTree, PyTree]:
        return jax.vmap(reset_one)(keys_of(seeds, n, 0))

    def renew(seeds: Array, n: Array, rows: Array, states: PyTree, obs: PyTree) -> tuple[PyTree, PyTree]:
        return select_rows(rows, reset(seeds, n), (states, obs))

    def finish(seeds: Array, n: Array, out: Any) -> tuple[Any, ...]:
        ended = out.terminated | out.truncated
        # A true branch, over the whole batch: most steps draw no resets, and some environments' resets cost much.
        states, obs = jax.lax.cond(
            ended.any(), lambda: renew(seeds, n, ended, out.state, out.obs), lambda: (out.state, out.obs)
        )
        return states, obs, out.obs, out.reward, jnp.stack([out.terminated, out.truncated])

    def step(seeds: Array, n: Array, states: PyTree, actions: PyTree) -> tuple[Any, ...]:
        return finish(seeds, n, jax.vmap(step_one)(keys_of(seeds, n, 1), states, actions))

    def step_some(
        seeds: Array, n: Array, states: PyTree, actions: PyTree, active: Array, obs: PyTree
    ) -> tuple[Any, ...]:
        out = jax.vmap(step_one)(keys_of(seeds, n, 1), states, actions)
        states, obs = select_rows(active, (out.state, out.obs), (states, obs))
        rewards = jnp.where(active, out.reward, 0.0)
        flags = {"terminated": out.terminated & active, "truncated": out.truncated & active}
        return finish(seeds, n, out._replace(state=states, obs=obs, reward=rewards, **flags))

    return _Programs(*(jax.jit(fn) for fn in (reset, step, step_some, renew)))
