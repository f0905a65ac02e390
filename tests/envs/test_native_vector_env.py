"""Vector envs of gymnasium's three autoreset modes, filler rows, CartPole's own vector env and its resume."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxrl.envs import EnvPlace, ListVectorEnv, NativeVectorEnv, ResumeWarning, make_vector_env
from jaxrl.envs.native_vector_env import split_infos
from jaxrl.envs.rows import empty_rows
from jaxrl.types import ConfigError, EnvError

PLACE = EnvPlace("Native")


class Counter(gym.Env):
    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {"fresh": True}

    def step(self, action) -> Any:
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t >= self.length, False, {"t": self.t}


def native(mode, lengths=(2, 3)):
    functions = [lambda n=n: Counter(n) for n in lengths]
    return NativeVectorEnv(SyncVectorEnv(functions, autoreset_mode=mode), PLACE)


def step(vector, active=None):
    count = vector.num_envs
    obs, rewards = empty_rows(vector.observation_space, count), np.zeros(count)
    flags = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    ended = vector.step(np.zeros(count, np.int32), obs, rewards, *flags, active)
    return obs[:, 0].tolist(), rewards.tolist(), flags[0].tolist(), {b: float(final[0]) for b, final in ended}


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_same_step_and_disabled_reset_in_the_step_that_ends(mode):
    vector = native(mode)
    assert not vector.filler_rows
    assert vector.reset([1, 2]).tolist() == [[0], [0]]
    assert step(vector) == ([1, 1], [1, 1], [False, False], {})
    assert step(vector) == ([0, 2], [1, 1], [True, False], {0: 2})
    assert vector.infos[0] == {"t": 2}
    assert vector.reset_infos[0] == {"fresh": True}
    assert step(vector) == ([1, 0], [1, 1], [False, True], {1: 3})
    final = vector.truncate(0, rows := vector.observations())
    assert final.tolist() == [1] and rows.tolist() == [[0], [0]]
    assert step(vector)[0] == [1, 1]


def test_next_step_has_filler_rows():
    vector = native(AutoresetMode.NEXT_STEP)
    assert vector.filler_rows
    vector.reset([1, 2])
    step(vector)
    assert step(vector) == ([2, 2], [1, 1], [True, False], {0: 2})
    assert not vector.filler_mask.any()
    assert step(vector) == ([0, 3], [0, 1], [False, True], {1: 3})
    assert vector.filler_mask.tolist() == [True, False]
    assert vector.reset_infos[0] == {"fresh": True}
    assert step(vector) == ([1, 0], [1, 0], [False, False], {})
    assert vector.filler_mask.tolist() == [False, True]
    assert step(vector)[3] == {0: 2}
    assert not vector.filler_mask.any()
    with pytest.raises(EnvError, match=r"Native \(worker 0, env 1\): a native vector env of NextStep autoreset cannot"):
        vector.truncate(1, vector.observations())


def test_equal_to_our_own_loop():
    theirs, ours = native(AutoresetMode.SAME_STEP), ListVectorEnv([Counter(2), Counter(3)], PLACE)
    theirs.reset([1, 2])
    ours.reset([1, 2])
    for _ in range(12):
        assert step(theirs) == step(ours)


def test_one_final_observation_batch_for_all_as_in_ale():
    class AleLike(SyncVectorEnv):
        def step(self, actions) -> Any:
            *rest, infos = super().step(actions)
            if "final_obs" in infos:
                batch = [np.full(1, -1.0) if final is None else final for final in infos["final_obs"]]
                infos = {"final_obs": np.stack(batch)}
            return *rest, infos

    functions = [lambda n=n: Counter(n) for n in (2, 3)]
    vector = NativeVectorEnv(AleLike(functions, autoreset_mode=AutoresetMode.SAME_STEP), PLACE)
    vector.reset([1, 2])
    step(vector)
    assert step(vector) == ([0, 2], [1, 1], [True, False], {0: 2})


def test_nested_final_observations():
    class Nested(Counter):
        observation_space = spaces.Dict(a=spaces.Box(0, 9, (1,)), b=spaces.Tuple([spaces.Discrete(9)]))

        def reset(self, *, seed=None, options=None) -> Any:
            super().reset(seed=seed)
            return self._obs(), {}

        def step(self, action) -> Any:
            _, *rest = super().step(action)
            return self._obs(), *rest

        def _obs(self):
            return {"a": np.full(1, self.t, np.float32), "b": (self.t,)}

    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP):
        vector = NativeVectorEnv(SyncVectorEnv([lambda: Nested(1)] * 2, autoreset_mode=mode), PLACE)
        vector.reset([1, 2])
        obs = empty_rows(vector.observation_space, 2)
        ended = vector.step(np.zeros(2, int), obs, np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
        assert [(b, final["a"].tolist(), int(final["b"][0])) for b, final in ended] == [(0, [1], 1), (1, [1], 1)]
        kept = 1 if vector.filler_rows else 0
        assert obs["a"].tolist() == [[kept], [kept]]


def test_unknown_mode_and_partial_steps_are_refused():
    env = SyncVectorEnv([lambda: Counter(2)])
    env.metadata = {}
    with pytest.raises(EnvError, match=r"expected metadata\['autoreset_mode'\] to be one of .*got None"):
        NativeVectorEnv(env, PLACE)
    vector = native(AutoresetMode.SAME_STEP)
    vector.reset()
    with pytest.raises(EnvError, match="expected to step all environments, got 1 of 2"):
        step(vector, np.array([True, False]))


def test_missing_final_observations_are_refused():
    class Silent(SyncVectorEnv):
        def step(self, actions) -> Any:
            *rest, _ = super().step(actions)
            return *rest, {}

    vector = NativeVectorEnv(Silent([lambda: Counter(1)], autoreset_mode=AutoresetMode.SAME_STEP), PLACE)
    vector.reset()
    with pytest.raises(EnvError, match=r"expected infos\['final_obs'\] at the end of an episode"):
        step(vector)


def test_auto_is_native_from_32_environments_up():
    small, big = make_vector_env("CartPole-v1", 31), make_vector_env("CartPole-v1", 32)
    assert isinstance(small, ListVectorEnv)
    assert isinstance(big, NativeVectorEnv) and big.filler_rows
    assert isinstance(make_vector_env("CartPole-v1", 2, stepping="native"), NativeVectorEnv)
    assert isinstance(make_vector_env("CartPole-v1", 32, stepping="sync"), ListVectorEnv)
    assert isinstance(make_vector_env("Pendulum-v1", 33), ListVectorEnv)
    with pytest.raises(ConfigError, match="Pendulum-v1 has none"):
        make_vector_env("Pendulum-v1", 2, stepping="native")
    with pytest.raises(ConfigError, match="expected one of auto, sync, async, native, got 'threads'"):
        make_vector_env("Pendulum-v1", 2, stepping="threads")
    with pytest.raises(ConfigError, match="expected at least 1, got 0"):
        make_vector_env("Pendulum-v1", 0)


def test_a_vector_env_from_a_creator():
    def create(context):
        return SyncVectorEnv([lambda: Counter(2)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)

    # gymnasium's own loop is unpacked into ours, which can resume; asked for natively it stays.
    assert isinstance(make_vector_env(create, 3), ListVectorEnv)
    assert isinstance(make_vector_env(create, 3, stepping="native"), NativeVectorEnv)
    with pytest.raises(
        ConfigError, match="has 3 environments and num_envs_per_worker is 2; set num_envs_per_worker to 3"
    ):
        make_vector_env(create, 2)


def test_native_cartpole_equals_gym_make_and_truncates_into_a_filler_row():
    vector = make_vector_env("CartPole-v1", 32)
    vector.reset([5] * 32)
    for _ in range(3):
        step(vector)
    final = vector.truncate(4, rows := vector.observations())
    np.testing.assert_array_equal(final, rows[4])
    _, rewards, _, _ = step(vector)
    assert vector.filler_mask.tolist() == [b == 4 for b in range(32)]
    assert rewards == [0.0 if b == 4 else 1.0 for b in range(32)]
    vector.close()


def test_native_cartpole_comes_back():
    vector, again = make_vector_env("CartPole-v1", 32), make_vector_env("CartPole-v1", 32)
    vector.reset([5] * 32)
    for _ in range(35):
        step(vector)
    state = vector.get_state()
    assert again.set_state(state) == [True] * 32
    np.testing.assert_array_equal(again.observations(), vector.observations())
    fillers = 0
    for _ in range(60):
        assert step(again) == step(vector)
        np.testing.assert_array_equal(again.filler_mask, vector.filler_mask)
        fillers += vector.filler_mask.sum()
    assert fillers > 32


def test_another_native_vector_env_starts_afresh_with_one_warning():
    vector = native(AutoresetMode.SAME_STEP)
    vector.reset([1, 2])
    step(vector)
    with pytest.warns(ResumeWarning, match="SyncVectorEnv offers no get_state.*2 of 2") as caught:
        assert vector.set_state(vector.get_state()) == [False, False]
    assert len(caught) == 1
    assert vector.observations().tolist() == [[0], [0]]
    with pytest.warns(ResumeWarning, match="no state of a native vector env of 2 environments"):
        vector.set_state({"kind": "list", "envs": []})


def test_a_native_vector_env_with_its_own_state_comes_back():
    class Stateful(SyncVectorEnv):
        envs: list[Any]

        def get_state(self):
            return {"t": [env.t for env in self.envs]}

        def set_state(self, state):
            for env, t in zip(self.envs, state["t"], strict=True):
                env.t = t

    def make():
        functions = [lambda n=n: Counter(n) for n in (4, 5)]
        return NativeVectorEnv(Stateful(functions, autoreset_mode=AutoresetMode.SAME_STEP), PLACE)

    vector, again = make(), make()
    vector.reset([1, 2])
    step(vector)
    assert again.set_state(vector.get_state()) == [True, True]
    for _ in range(9):
        assert step(again) == step(vector)


def test_split_infos():
    infos = {
        "lives": np.array([3, 0]),
        "_lives": np.array([True, False]),
        "nested": {"x": np.array([1, 2]), "_x": np.array([False, True])},
        "_nested": np.array([True, True]),
        "every": np.array([7, 8]),
        "scalar": 5,
    }
    assert split_infos(infos, 2) == [
        {"lives": 3, "nested": {}, "every": 7, "scalar": 5},
        {"nested": {"x": 2}, "every": 8, "scalar": 5},
    ]
