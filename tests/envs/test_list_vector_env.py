"""The own loop: same-step autoreset, true final observations, rows, nested spaces, skipping, truncation."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.envs import EnvPlace, ListVectorEnv, make_vector_env
from jaxrl.envs.rows import empty_rows, leaves, row_writer
from jaxrl.types import EnvError


class Counter(gym.Env):
    """Counts up to `length`; observation (count, episode number)."""

    observation_space = spaces.Box(0, 1000, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, length=3, cut=False):
        self.length, self.cut, self.episode, self.t = length, cut, -1, 0
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return self._obs(), {"seed": seed}

    def step(self, action):
        self.actions.append(action)
        self.t += 1
        over = self.t >= self.length
        return self._obs(), float(action), over and not self.cut, over and self.cut, {"t": self.t}

    def _obs(self) -> Any:
        return np.array([self.t, self.episode], np.float64)


def rows_for(vector):
    count = vector.num_envs
    return (
        empty_rows(vector.observation_space, count),
        np.full(count, np.nan),
        np.ones(count, np.bool_),
        np.ones(count, np.bool_),
    )


def test_ended_episodes_are_reset_in_the_same_step_and_the_final_observation_is_returned():
    vector = ListVectorEnv([Counter(3), Counter(5, cut=True)], EnvPlace("Counter"))
    np.testing.assert_array_equal(vector.reset([1, 2]), [[0, 0], [0, 0]])
    assert vector.reset_infos == [{"seed": 1}, {"seed": 2}]
    history = []
    for t in range(40):  # beyond the checked steps, into the fast path
        obs, rewards, terminateds, truncateds = rows_for(vector)
        ended = vector.step(np.array([t % 3, 1], np.int32), obs, rewards, terminateds, truncateds)
        history.append((obs, rewards, terminateds, truncateds, ended))
        np.testing.assert_array_equal(rewards, [t % 3, 1])
        assert obs.dtype == np.float32
    for t, (obs, _, terminateds, truncateds, ended) in enumerate(history, start=1):
        assert terminateds.tolist() == [t % 3 == 0, False]
        assert truncateds.tolist() == [False, t % 5 == 0]
        np.testing.assert_array_equal(obs, [[t % 3, t // 3], [t % 5, t // 5]])
        finals = {b: final.tolist() for b, final in ended}
        assert finals == ({0: [3, t // 3 - 1]} if t % 3 == 0 else {}) | ({1: [5, t // 5 - 1]} if t % 5 == 0 else {})
    assert vector.infos == [{"t": 1}, {"t": 5}]


@pytest.mark.parametrize("checks", [True, False])
def test_equal_to_a_plain_loop(checks):
    vector = make_vector_env("CartPole-v1", 3, checks=checks)
    plain = [gym.make("CartPole-v1") for _ in range(3)]
    first = vector.reset([7, 8, 9])
    np.testing.assert_array_equal(first, [env.reset(seed=7 + b)[0] for b, env in enumerate(plain)])
    generator = np.random.default_rng(0)
    for _ in range(100):
        actions = generator.integers(0, 2, 3)
        obs, rewards, terminateds, truncateds = rows_for(vector)
        ended = dict(vector.step(actions, obs, rewards, terminateds, truncateds))
        for b, env in enumerate(plain):
            expected, reward, terminated, truncated, _ = env.step(int(actions[b]))
            assert (rewards[b], terminateds[b], truncateds[b]) == (reward, terminated, truncated)
            assert (b in ended) == (terminated or truncated)
            if b in ended:
                np.testing.assert_array_equal(ended[b], expected)
                expected, _ = env.reset()
            np.testing.assert_array_equal(obs[b], expected)
    vector.close()
    vector.close()


def test_final_observation_survives_an_environment_that_reuses_its_array():
    class Reusing(Counter):
        def __init__(self):
            super().__init__(2)
            self.array = np.zeros(2, np.float32)

        def _obs(self) -> Any:
            self.array[:] = [self.t, self.episode]
            return self.array

    vector = ListVectorEnv([Reusing()], EnvPlace("Reusing"), checks=False)
    vector.reset()
    obs, rewards, terminateds, truncateds = rows_for(vector)
    vector.step(np.zeros(1, int), obs, rewards, terminateds, truncateds)
    ((b, final),) = vector.step(np.zeros(1, int), obs, rewards, terminateds, truncateds)
    assert b == 0
    np.testing.assert_array_equal(final, [2, 0])
    np.testing.assert_array_equal(obs, [[0, 1]])


def test_inactive_environments_stand_still():
    envs = [Counter(3), Counter(3)]
    vector = ListVectorEnv(envs, EnvPlace("Counter"))
    vector.reset()
    for active, expected in [([True, False], [[1, 0], [0, 0]]), ([False, True], [[1, 0], [1, 0]])]:
        obs, rewards, terminateds, truncateds = rows_for(vector)
        assert not vector.step(np.array([2, 2]), obs, rewards, terminateds, truncateds, np.array(active))
        np.testing.assert_array_equal(obs, expected)
        np.testing.assert_array_equal(rewards, np.where(active, 2.0, 0.0))
        assert not terminateds.any() and not truncateds.any()
    assert [len(env.actions) for env in envs] == [1, 1]


def test_truncate_ends_an_episode_now():
    vector = ListVectorEnv([Counter(9), Counter(9)], EnvPlace("Counter"))
    vector.reset()
    obs, rewards, terminateds, truncateds = rows_for(vector)
    for _ in range(2):
        vector.step(np.zeros(2, int), obs, rewards, terminateds, truncateds)
    final = vector.truncate(1, obs)
    np.testing.assert_array_equal(final, [2, 0])
    np.testing.assert_array_equal(obs, [[2, 0], [0, 1]])
    np.testing.assert_array_equal(vector.observations(), obs)
    elsewhere = obs.copy()
    vector.truncate(0, elsewhere)
    np.testing.assert_array_equal(elsewhere, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(vector.observations(), elsewhere)


def test_nested_observations_and_actions_keep_their_structure_and_get_narrow_dtypes():
    class Nested(gym.Env):
        observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (2, 2), np.uint8),
                "pair": spaces.Tuple([spaces.Discrete(5), spaces.Box(-1, 1, (3,), np.float64)]),
                "bits": spaces.MultiBinary(2),
                "several": spaces.MultiDiscrete([2, 3]),
            }
        )
        action_space = spaces.Dict({"go": spaces.Discrete(3), "force": spaces.Box(-1, 1, (2,), np.float32)})
        received: list = []

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self._obs(), {}

        def step(self, action):
            assert self.action_space.contains({"go": np.int64(action["go"]), "force": action["force"]})
            self.received.append(action)
            return self._obs(), 0.0, False, False, {}

        def _obs(self):
            image = np.full((2, 2), 200, np.uint8)
            return {"image": image, "pair": (4, [0.1, 0.2, 0.3]), "bits": [1, 0], "several": (1, 2)}

    vector = ListVectorEnv([Nested(), Nested()], EnvPlace("Nested"))
    obs = vector.reset()
    assert {k: v.dtype.name for k, v in obs.items() if k != "pair"} == {
        "image": "uint8",
        "bits": "int8",
        "several": "int32",
    }
    assert [part.dtype.name for part in obs["pair"]] == ["int32", "float32"]
    assert [part.shape for part in obs["pair"]] == [(2,), (2, 3)]
    for _ in range(20):
        rows, rewards, terminateds, truncateds = rows_for(vector)
        actions = {"go": np.array([1, 2], np.int32), "force": np.array([[0.5, 0], [0, 0.25]], np.float32)}
        vector.step(actions, rows, rewards, terminateds, truncateds)
        for got, want in zip(
            leaves(vector.observation_space, rows), leaves(vector.observation_space, obs), strict=True
        ):
            np.testing.assert_array_equal(got, want)
    assert Nested.received[1]["go"] == 2
    np.testing.assert_array_equal(Nested.received[1]["force"], [0, 0.25])


def test_an_environment_may_change_its_action_in_place():
    class Doubling(gym.Env):
        observation_space = spaces.Box(-9, 9, (1,), np.float32)
        action_space = spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            action *= 2
            return action, 0.0, False, False, {}

    vector = ListVectorEnv([Doubling()], EnvPlace("Doubling"))
    vector.reset()
    actions = np.array([[0.5]], np.float32)
    actions.flags.writeable = False
    obs, rewards, terminateds, truncateds = rows_for(vector)
    for _ in range(20):
        vector.step(actions, obs, rewards, terminateds, truncateds)
    assert obs[0, 0] == 1.0
    assert actions[0, 0] == 0.5


def test_differing_spaces_and_wrong_number_of_seeds_are_refused():
    other = Counter()
    other.action_space = spaces.Discrete(2)
    with pytest.raises(
        EnvError, match=r"Counter \(worker 0, env 1\): expected the action_space of env 0, Discrete\(3\)"
    ):
        ListVectorEnv([Counter(), other], EnvPlace("Counter"))
    with pytest.raises(EnvError, match="expected at least one environment"):
        ListVectorEnv([], EnvPlace("Counter"))
    with pytest.raises(EnvError, match="expected 2 seeds, one per environment, got 1"):
        ListVectorEnv([Counter(), Counter()], EnvPlace("Counter")).reset([1])


def test_row_writer_refuses_what_numpy_would_broadcast():
    space = spaces.Box(-1, 1, (3,))
    with pytest.raises(ValueError, match=r"^obs: expected shape \(3,\).*got \(1,\)"):
        row_writer(space)(empty_rows(space, 2), 0, np.zeros(1))
