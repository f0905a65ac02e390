"""One JAX environment as an ordinary Gymnasium one: for playing, recording, and processes of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import numpy as np

from jaxrl.envs.jax_native.conformance import check_jax_env
from jaxrl.envs.jax_native.env import JaxEnv
from jaxrl.envs.jax_native.host_state import load_leaves, new_seeds, save_leaves, to_host
from jaxrl.envs.rows import empty_rows, leaves, unflatten
from jaxrl.types import ConfigError


class JaxGymEnv(gym.Env):
    """Steps a JaxEnv on the CPU, one jitted call per step, with `get_state` and `set_state` for exact resume.

    Args:
        env: the environment.
        render_mode: None, or "rgb_array" where the environment has pictures.

    Raises:
        ConfigError: another render mode.
        EnvError: the environment breaks the protocol (`check_jax_env`).
    """

    def __init__(self, env: JaxEnv, render_mode: str | None = None) -> None:
        check_jax_env(env)
        modes = [] if env.render is None else ["rgb_array"]
        if render_mode is not None and render_mode not in modes:
            raise ConfigError(f"{env.name}: expected a render_mode of {modes or 'none'}, got {render_mode!r}")
        self.jax_env = env
        self.render_mode = render_mode
        self.metadata = {"render_modes": modes, "render_fps": 30}
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._device = jax.local_devices(backend="cpu")[0]
        self._seed: np.uint32 | None = None
        self._n = 0
        self._state: Any = None
        # The action's structure and dtypes, whatever forms of numbers come: another dtype would be another program.
        self._dtypes = [row.dtype for row in leaves(env.action_space, empty_rows(env.action_space, 1))]
        self._reset_program, self._step_program = _compile(env.reset, env.step)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        gym.Env.reset(self, seed=seed)
        if seed is not None or self._seed is None:
            self._seed, self._n = np.uint32(new_seeds(None if seed is None else [seed], 1)[0]), 0
        with jax.default_device(self._device):
            self._state, obs = self._reset_program(self._seed, self._count())
        return self._own(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        space = self.action_space
        parts = [np.asarray(x, dtype) for x, dtype in zip(leaves(space, action), self._dtypes, strict=True)]
        with jax.default_device(self._device):
            out = self._step_program(self._seed, self._count(), self._state, unflatten(space, parts))
        self._state = out.state
        return self._own(out.obs), float(out.reward), bool(out.terminated), bool(out.truncated), {}

    def render(self) -> Any:
        """See `gymnasium.Env.render`."""
        if self.render_mode is None or self.jax_env.render is None or self._state is None:
            return None
        return self.jax_env.render(to_host(self._state))

    def get_state(self) -> dict[str, Any]:
        """Returns where the episode and the random numbers stand: JSON values and arrays."""
        kept = None if self._state is None else save_leaves(self._state)
        return {"seed": None if self._seed is None else int(self._seed), "n": self._n, "state": kept}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `get_state` was called.

        Raises:
            ValueError: the saved state has another form than this environment's.
        """
        self._seed = None if state["seed"] is None else np.uint32(state["seed"])
        self._n = int(state["n"])
        form = jax.eval_shape(self.jax_env.reset, jax.random.key(0))[0]
        with jax.default_device(self._device):
            self._state = None if state["state"] is None else load_leaves(form, state["state"])

    def _count(self) -> np.uint32:
        self._n += 1
        return np.uint32(self._n % 2**32)

    def _own(self, obs: Any) -> Any:
        columns = leaves(self.observation_space, obs)
        return unflatten(self.observation_space, [np.array(column) for column in columns])


@functools.lru_cache(maxsize=16)
def _compile(reset: Callable[..., Any], step: Callable[..., Any]) -> tuple[Any, Any]:
    """The jitted `reset(seed, n)` and `step(seed, n, state, action)`; `n` is the number of the call."""

    def key_of(seed: Any, n: Any) -> Any:
        return jax.random.fold_in(jax.random.key(seed), n)

    def step_numbered(seed: Any, n: Any, state: Any, action: Any) -> Any:
        return step(key_of(seed, n), state, action)

    return jax.jit(lambda seed, n: reset(key_of(seed, n))), jax.jit(step_numbered)
