"""`compute_action` takes what environments give, in the containers they give it in, and refuses anything else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.types import ConfigError, EnvError, JaxrlError

GRID = np.arange(6.0, dtype=np.float32).reshape(2, 3)
OBS = {"grid": GRID, "kind": 3, "pair": (np.array([0.5], np.float32), 1)}


class Parts(gym.Env):
    """Observations of several parts."""

    observation_space = spaces.Dict(
        {
            "kind": spaces.Discrete(5),
            "grid": spaces.Box(-9.0, 9.0, (2, 3)),
            "pair": spaces.Tuple([spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(2)]),
        }
    )
    action_space = spaces.Dict({"turn": spaces.Discrete(2), "push": spaces.Box(-1.4, 0.8, (2,), np.float64)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return OBS, {}

    def step(self, action: Any) -> Any:
        return OBS, 0.0, False, False, {}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config = {
        "env": Parts,
        "normalize_actions": True,
        "compile_cache": False,
        "seed": 1,
        "model": {
            "fcnet_hiddens": [8],
            "use_lstm": True,
            "lstm_cell_size": 4,
            "max_seq_len": 4,
            "lstm_use_prev_action_reward": True,
        },
    }
    with PPOTrainer(config=config, results_dir=tmp_path_factory.mktemp("results")) as made:
        yield made


SAME = {
    "an ordered dict": OrderedDict(kind=3, pair=OBS["pair"], grid=GRID),
    "a list for a tuple": {**OBS, "pair": list(OBS["pair"])},
    "lists for arrays": {"grid": GRID.tolist(), "kind": np.int64(3), "pair": ([0.5], np.array(1))},
    "other dtypes": {"grid": GRID.astype(int), "kind": np.uint8(3), "pair": (np.array([0.5]), np.int8(1))},
}


@pytest.mark.parametrize("name", SAME)
def test_containers_and_dtypes(trainer: Any, name: str) -> None:
    start = trainer.get_initial_state()
    want, state = trainer.compute_action(OBS, start, explore=False)
    action, _ = trainer.compute_action(SAME[name], start, explore=False)
    assert action["turn"] == want["turn"] and isinstance(action["turn"], int)
    np.testing.assert_array_equal(action["push"], want["push"])
    assert Parts.action_space.contains(action)
    both, states = trainer.compute_actions({"a": OBS, "b": SAME[name]}, {"a": start, "b": start}, explore=False)
    np.testing.assert_allclose(both["a"]["push"], both["b"]["push"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), states["a"].model, state.model)


BAD_OBSERVATIONS = {
    "a transposed array": {**OBS, "grid": GRID.T},
    "a flat array": {**OBS, "grid": GRID.ravel()},
    "NaN": {**OBS, "grid": np.where(GRID == 2.0, np.nan, GRID)},
    "outside of a Discrete": {**OBS, "kind": 7},
    "a negative choice": {**OBS, "kind": -1},
    "a fraction of a choice": {**OBS, "kind": 2.7},
    "words": {**OBS, "kind": "left"},
    "None": {**OBS, "pair": (None, 1)},
    "a key too few": {key: OBS[key] for key in ("grid", "kind")},
    "a key too many": {**OBS, "more": 1},
    "an entry too many": {**OBS, "pair": (*OBS["pair"], 1)},
    "an array for parts": GRID,
    "nothing": None,
}


@pytest.mark.parametrize("name", BAD_OBSERVATIONS)
def test_other_observations_are_refused(trainer: Any, name: str) -> None:
    with pytest.raises(EnvError, match=r"compute_action\(.*obs.*expected .* got "):
        trainer.compute_action(BAD_OBSERVATIONS[name])
    with pytest.raises(EnvError, match=r"compute_actions\(.*obs.*expected .* got "):
        trainer.compute_actions({"a": OBS, "b": BAD_OBSERVATIONS[name]})


def test_beyond_the_bounds_of_floats_a_policy_can_be_asked(trainer: Any) -> None:
    assert Parts.action_space.contains(trainer.compute_action({**OBS, "grid": GRID * 10.0}))


def test_other_arguments_are_refused(trainer: Any) -> None:
    start = trainer.get_initial_state()
    action = trainer.compute_action(OBS)
    bad: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "state": ((OBS, start.model), {}),
        "state: ": ((OBS, start._replace(model=jax.tree.map(lambda x: x[:2], start.model))), {}),
        r"prev_action\['push'\]": ((OBS, start, {**action, "push": action["push"][:1]}), {}),
        r"prev_action\['turn'\]": ((OBS, start, {**action, "turn": 2}), {}),
        r"prev_action.*keys": ((OBS, start, {"turn": 1}), {}),
        "prev_reward.*'1'": ((OBS, start, action, "1"), {}),
        "prev_reward.*nan": ((OBS, start, action, float("nan")), {}),
        "prev_reward.*list": ((OBS, start, action, [1.0, 2.0]), {}),
        "no policy 'other'": ((OBS,), {"policy_id": "other"}),
    }
    for message, (args, options) in bad.items():
        with pytest.raises(JaxrlError, match=message):
            trainer.compute_action(*args, **options)
    with pytest.raises(ConfigError, match="no policy 'other'"):
        trainer.compute_actions({}, policy_id="other")
    with pytest.raises(ConfigError, match=r"prev_reward: expected the keys \['a'\], got \['b'\]"):
        trainer.compute_actions({"a": OBS}, prev_reward={"b": 0.0})


def test_a_previous_action_is_read_as_it_was_given(trainer: Any) -> None:
    start = trainer.get_initial_state()
    action, state = trainer.compute_action(OBS, start, explore=True)
    remembered, _ = trainer.compute_action(OBS, state, explore=False)
    told, _ = trainer.compute_action(OBS, state, action, 0.0, explore=False)
    np.testing.assert_array_equal(told["push"], remembered["push"])
    # Without the memory of it, what was not clipped is found again up to rounding.
    inside = {"turn": 1, "push": np.array([-0.3, 0.1])}
    raw = {"turn": np.int32(1), "push": np.array([0.0, 0.4 / 1.1], np.float32)}
    want, _ = trainer.compute_action(OBS, state._replace(action=raw), explore=False)
    told, _ = trainer.compute_action(OBS, state, inside, explore=False)
    np.testing.assert_allclose(told["push"], want["push"], rtol=1e-5)
