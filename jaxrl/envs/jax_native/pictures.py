"""Pictures of a JAX environment's state, drawn by the Gymnasium environment that it was modelled on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from jaxrl.types import PyTree


def draw_with(gym_id: str, show: Callable[[Any, PyTree], None]) -> Callable[[PyTree], np.ndarray]:
    """Returns `render(state) -> uint8 [height, width, 3]`.

    Args:
        gym_id: the Gymnasium original.
        show: `show(original, state)` brings the unwrapped original to a state of NumPy arrays.
    """

    def render(state: PyTree) -> np.ndarray:
        original = _original(gym_id)
        show(original, state)
        frame = original.render()
        assert isinstance(frame, np.ndarray)
        return frame

    return render


@functools.cache
def _original(gym_id: str) -> Any:
    """One for a process: it holds a drawing surface and no state of its own."""
    env = gym.make(gym_id, render_mode="rgb_array", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    return env
