"""The sampler's view of environments: B of them, stepped together, each reset in the step that ends its episode."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from jaxrl.envs.checks import EnvPlace

# (index of the environment, its true final observation)
Ended = list[tuple[int, Any]]

# A key of the infos of an end and of the reset after it. True in the reset's: for learning an episode has ended, and
# what is played (a game of several lives) goes on; results count it as one episode. A step that ends an episode so says
# that the reset will go on, unless it finds that there is nothing left to play.
EPISODE_CONTINUES = "episode_continues"

# A key of a step's info: the environment's step raised, and the environment was created anew
# (`restart_failed_sub_environments`). The row is no transition; the written observation is the first of the next
# episode, and the "final" one is that which the action was taken on.
STEP_FAILED = "step_failed"

# A key of a reset's info: the environment's reset raised, and the environment was created anew.
RESET_FAILED = "reset_failed"


class VectorEnv(abc.ABC):
    """B environments behind one `step` that writes into rows which the sampler owns.

    An ended episode is reset in the same step: the written observation is the first of the next episode, and the
    true final observation is returned. Observation rows are pytrees of arrays `[B, ...]` in the structure of
    `observation_space`, 64-bit dtypes narrowed to 32-bit (`jaxrl.envs.rows.empty_rows` allocates them).

    Rows handed to `step` and `truncate` stay the caller's, but must keep their content until the next call of one of
    these or of `end_fragment`; action arrays must keep theirs until `end_fragment`.

    Attributes:
        num_envs: B.
        observation_space: space of one environment.
        action_space: space of one environment.
        place: names the environments in errors.
        filler_rows: True only for native vector envs of NEXT_STEP autoreset: there the written observation of an
            ended episode is its final one, and the step after it, which resets, is no transition.
        can_skip: whether `step(active=...)` may leave environments out.
        filler_mask: bool `[B]`, the rows of the last step that were no transition.
        infos: `infos[b]` is the info of environment b's last step (the final one where it has just ended).
        reset_infos: `reset_infos[b]` is the info of environment b's last reset; see `EPISODE_CONTINUES`.
        envs: the environments, or None where they are not Python objects of this process.
        num_restarts: how often one of them failed and was created anew.
        before_reset: called as `(b, reward)` within `step` where environment b's episode has ended, before its reset
            and with `infos[b]` as it will be; None, or environments that are no Python objects of this process: not.
    """

    num_envs: int
    observation_space: gym.Space
    action_space: gym.Space
    place: EnvPlace
    filler_rows: bool
    filler_mask: np.ndarray
    can_skip: bool
    infos: list[dict[str, Any]]
    reset_infos: list[dict[str, Any]]
    envs: list[gym.Env] | None
    num_restarts: int
    before_reset: Callable[[int, float], None] | None = None

    @abc.abstractmethod
    def reset(self, seeds: list[int] | None = None) -> Any:
        """Resets every environment.

        Args:
            seeds: one per environment; None leaves each environment's random state as it is.

        Returns:
            First observations, pytree of `[B, ...]`.
        """

    @abc.abstractmethod
    def step(
        self,
        actions: Any,
        obs_out: Any,
        rewards_out: np.ndarray,
        terminateds_out: np.ndarray,
        truncateds_out: np.ndarray,
        active: np.ndarray | None = None,
    ) -> Ended:
        """Steps the environments and writes what comes into the given rows.

        Args:
            actions: pytree of `[B, ...]` in the structure of `action_space`, as the environment wants them (clipped).
            obs_out: rows for the next observations (the first of the next episode where one ended).
            rewards_out: float64 (or float32) `[B]`.
            terminateds_out: bool `[B]`.
            truncateds_out: bool `[B]`.
            active: bool `[B]`; the others are not stepped: their observation is repeated, reward 0, flags False.

        Returns:
            `(b, final_obs)` for each environment whose episode ended.

        Raises:
            EnvError: an environment raised (one that is created anew when it fails: time and again) or broke its
                contract.
        """

    @abc.abstractmethod
    def truncate(self, b: int, obs_out: Any) -> Any:
        """Ends environment b's episode now (the sampler's horizon) and resets it.

        Args:
            b: index of the environment.
            obs_out: the observation rows of the last step; row b becomes the first observation of the next episode
                (with `filler_rows` it stays, and the next step of b is a filler row).

        Returns:
            The true final observation of the cut episode.
        """

    @abc.abstractmethod
    def observations(self) -> Any:
        """Returns a copy of the current observations, pytree of `[B, ...]`."""

    @abc.abstractmethod
    def end_fragment(self) -> None:
        """Compacts the resume log and lets go of the caller's rows and action arrays; call it after each fragment."""

    @abc.abstractmethod
    def get_state(self) -> dict[str, Any]:
        """Returns where each environment stands, as a nested dict of JSON values and arrays."""

    @abc.abstractmethod
    def set_state(self, state: dict[str, Any]) -> list[bool]:
        """Brings the environments back to where `get_state` found them.

        Args:
            state: what `get_state` returned, possibly through JSON.

        Returns:
            For each environment, whether it came back exactly. The others are freshly reset, with one ResumeWarning
            for all of them. `observations()` then gives everyone's current observation.
        """

    @abc.abstractmethod
    def render(self, b: int = 0) -> Any:
        """Renders environment b: an array for `rgb_array`, None for `human`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the environments and what runs them; safe to call twice."""
