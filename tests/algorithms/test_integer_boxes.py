"""A Box of integers is refused as an action space by every algorithm, with the space to declare in its place."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium import spaces

from jaxrl import registry
from jaxrl.distributions import get_dist_class
from jaxrl.types import UnsupportedSpaceError


class Whole(gym.Env):
    """Takes 0, 1, 2 or 3."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(0, 3, (1,), np.int32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
@pytest.mark.parametrize("normalize", [True, False])
def test_refused_before_training(name: str, normalize: bool) -> None:
    cls = registry.resolve("algorithm", name)
    with pytest.raises(UnsupportedSpaceError, match="Box.*int32"):
        cls(config={"env": Whole, "normalize_actions": normalize, "compile_cache": False})
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        (spaces.Box(0, 3, (1,), np.int32), r"MultiDiscrete\(\[4\]\)"),
        (spaces.Box(-1, 1, (2,), np.int8), r"MultiDiscrete\(\[3, 3\], start=\[-1, -1\]\)"),
        (spaces.Box(0, 255, (84, 84), np.uint8), r"MultiDiscrete\(\[256\] \* 7056\)"),
        (spaces.Box(np.array([0, 1]), np.array([1, 5]), dtype=np.int64), "MultiDiscrete space"),
        (spaces.Dict({"a": spaces.Box(0, 10**9, (1,), np.int64)}), r"action_space\['a'\].*Box of floats"),
    ],
    ids=str,
)
def test_the_advice_is_a_space(space: Any, advice: str) -> None:
    for kind in (None, "squashed_gaussian", "beta"):
        with pytest.raises(UnsupportedSpaceError, match=advice):
            get_dist_class(space, dist_type=kind)
