"""Environments that raise are created anew: rows, final observations, seeds, limits, resume; in processes too."""

import json
import logging
import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import trees
from jaxrl.envs import RESET_FAILED, STEP_FAILED, EnvContext, ProcessVectorEnv, ResumeWarning, make_vector_env
from jaxrl.envs.restarting import MAX_IN_A_ROW
from jaxrl.envs.rows import empty_rows
from jaxrl.types import ConfigError, EnvError


def brittle(**faults):
    """A class of environments that count (their number, episode, step; the seed of the episode, a random number).

    Args:
        faults: by method, (vector_index, number of the environment, call) at which it raises; number and call from 0.
    """

    class Brittle(gym.Env):
        observation_space = spaces.Box(-1, 2**32, (5,), np.float64)
        action_space = spaces.Discrete(3)
        created: dict = {}
        closed: list = []

        def __init__(self, config):
            self.b = config.vector_index
            self.number = self.created.get(self.b, 0)
            self.created[self.b] = self.number + 1
            self.calls = {"reset": 0, "step": 0}
            self.episode, self.seed = -1, -1
            self.length = config.pop("length", 4)
            self.fail("create", 0)

        def fail(self, method, call):
            if (self.b, self.number, call) in faults.get(method, ()):
                raise RuntimeError(f"{method} broke")

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.fail("reset", self.calls["reset"])
            self.calls["reset"] += 1
            self.episode, self.t = self.episode + 1, 0
            self.seed = self.seed if seed is None else seed
            return self.obs(), {"number": self.number}

        def step(self, action):
            call = self.calls["step"]
            self.calls["step"] += 1
            self.t += 1
            self.fail("step", call)
            return self.obs(), float(action), self.t == self.length, False, {}

        def obs(self):
            return np.array([self.number, self.episode, self.t, self.seed % 1000, self.np_random.integers(1000)])

        def close(self):
            self.closed.append((self.b, self.number))
            self.fail("close", 0)

    return Brittle


def drive(vector, steps):
    """Steps with action 1; for each step what came: obs `[B, 5]`, rewards, flags, ended, infos."""
    count, told = vector.num_envs, []
    for _ in range(steps):
        obs, rewards = empty_rows(vector.observation_space, count), np.zeros(count)
        terminateds, truncateds = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        ended = vector.step(np.ones(count, int), obs, rewards, terminateds, truncateds)
        told.append((obs, rewards, terminateds, truncateds, dict(ended), list(vector.infos), list(vector.reset_infos)))
    return told


def derived(seed, failures):
    """The seed after so many failures."""
    return int(np.random.SeedSequence([seed, failures]).generate_state(1)[0])


@pytest.fixture(params=["sync", "async"])
def make(request):
    made = []

    def make(creator, count=2, context=None, **options):
        made.append(make_vector_env(creator, count, context, stepping=request.param, restart=True, **options))
        return made[-1]

    yield make
    for vector in made:
        vector.close()


@pytest.mark.parametrize("checks", [True, False])
def test_a_failed_step_ends_the_episode_and_the_next_one_begins_in_a_new_environment(make, checks, caplog):
    # Environment 1 breaks in its third step, which is the first one's of its second episode, and so on.
    creator = brittle(step=[(1, 0, 2), (1, 1, 5)])
    vector = make(creator, context=EnvContext(worker_index=3), checks=checks)
    with caplog.at_level(logging.WARNING, "jaxrl.workers"):
        vector.reset([7, 8])
        told = drive(vector, 11)
    # Environment 0 is not disturbed.
    for t, (obs, rewards, terminateds, truncateds, ended, _, _) in enumerate(told, start=1):
        assert obs[0, :4].tolist() == [0, t // 4, t % 4, 7] and rewards[0] == 1
        assert (terminateds[0], truncateds[0]) == (t % 4 == 0, False)
        assert (0 in ended) == (t % 4 == 0)
    # Environment 1: number, episode and step of the rows; -: failed steps, whose row shows the next episode's start.
    rows = [tuple(int(x) for x in obs[1, :3]) for obs, *_ in told]
    first = [(0, 0, 1), (0, 0, 2), (1, 0, 0)]
    second = [(1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 0), (1, 1, 1), (2, 0, 0)]
    assert rows == [*first, *second, (2, 0, 1), (2, 0, 2)]
    failed = [t for t, (*_, infos, _) in enumerate(told) if STEP_FAILED in infos[1]]
    assert failed == [2, 8]
    for t in failed:
        obs, rewards, terminateds, truncateds, ended, _, _ = told[t]
        assert (rewards[1], terminateds[1], truncateds[1]) == (0, False, True)
        np.testing.assert_array_equal(ended[1], told[t - 1][0][1])  # the one that the action was taken on
    assert [int(told[t][0][1, 3]) for t in failed] == [derived(8, 1) % 1000, derived(8, 2) % 1000]
    assert vector.num_restarts == 2
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(record.name == "jaxrl.workers" for record in caplog.records)
    assert said[0].startswith("Brittle (worker 3, env 1, episode step 2): step raised RuntimeError: step broke (test_")
    assert "episode step 1)" in said[1]


def test_the_step_right_after_a_reset_may_fail():
    vector = make_vector_env(brittle(step=[(0, 0, 0), (0, 1, 4)]), 2, restart=True)
    vector.reset([1, 2])
    told = drive(vector, 6)
    rows = [tuple(int(x) for x in obs[0, :3]) for obs, *_ in told]
    assert rows == [(1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 0), (2, 0, 0)]
    assert told[0][4][0].tolist()[:3] == [0, 0, 0] and told[5][4][0].tolist()[:3] == [1, 1, 0]


def test_a_reset_that_raises_is_tried_again_in_a_new_environment(make, caplog):
    vector = make(brittle(reset=[(0, 0, 1), (0, 1, 0), (1, 0, 0)], create=[(0, 3, 0)], close=[(0, 0, 0)]))
    with caplog.at_level(logging.WARNING, "jaxrl.workers"):
        first = vector.reset([7, 8])
        assert first[:, 0].tolist() == [0, 1] and first[1, 3] == derived(8, 1) % 1000
        told = drive(vector, 5)
    # The end before it is a true one, with its transition.
    obs, rewards, terminateds, truncateds, ended, infos, resets = told[3]
    assert (terminateds[0], truncateds[0], rewards[0]) == (True, False, 1) and infos[0] == {}
    assert ended[0].tolist()[:3] == [0, 0, 4]
    assert obs[0, :3].tolist() == [2, 0, 0] and obs[0, 3] == derived(7, 2) % 1000
    assert resets[0] == {"number": 2, RESET_FAILED: True}
    assert told[4][0][0, :3].tolist() == [2, 0, 1]
    assert vector.num_restarts == 3
    assert [m.split(": ")[0] for m in caplog.messages] == ["Brittle (worker 0, env 1)"] + [
        "Brittle (worker 0, env 0)"
    ] * 2


def test_a_constructor_that_raises_is_tried_again(make, caplog):
    vector = make(brittle(step=[(0, 0, 1)], create=[(0, 1, 0), (0, 2, 0)]))
    vector.reset([7, 8])
    told = drive(vector, 2)
    assert told[1][0][0, :4].tolist() == [3, 0, 0, derived(7, 3) % 1000]
    assert vector.num_restarts == 1
    assert [": creation raised RuntimeError: create broke" in m for m in caplog.messages] == [False, True, True]


def test_truncated_and_waiting_environments(make):
    vector = make(brittle(reset=[(0, 0, 1)], step=[(1, 0, 1)]))
    vector.reset([7, 8])
    ((obs, *_),) = drive(vector, 1)
    final = vector.truncate(0, obs)
    assert (
        final[:3].tolist() == [0, 0, 1] and obs[0, :3].tolist() == [1, 0, 0] and RESET_FAILED in vector.reset_infos[0]
    )
    rows, rewards, flags = empty_rows(vector.observation_space, 2), np.zeros(2), np.zeros((2, 2), np.bool_)
    ended = vector.step(np.ones(2, int), rows, rewards, *flags, active=np.array([False, True]))
    assert [b for b, _ in ended] == [1] and ended[0][1].tolist()[:3] == [0, 0, 1]
    assert rows[:, :3].tolist() == [[1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("method", ["step", "reset", "create"])
def test_an_environment_that_fails_time_and_again_is_an_error(make, method):
    fault = (0, 0, 1) if method == "create" else None
    later = [(0, n, 0) for n in range(1, 99)]
    faults = {"step": [(0, 0, 1), *(later if method == "step" else [])], method: [fault or (0, 0, 1), *later]}
    vector = make(brittle(**faults))
    vector.reset([7, 8])
    with pytest.raises(
        EnvError,
        match=rf"env 0.*raised RuntimeError: {method.replace('create', 'create')} broke.*failed {MAX_IN_A_ROW} times",
    ) as caught:
        drive(vector, 20)
    assert "creation raised" in str(caught.value) if method == "create" else f": {method} raised" in str(caught.value)


def test_a_step_that_goes_well_begins_the_count_anew():
    vector = make_vector_env(brittle(step=[(0, n, 1) for n in range(99)]), 2, restart=True)
    vector.reset([7, 8])
    drive(vector, 40)
    assert vector.num_restarts == 20


@pytest.mark.parametrize("stepping", ["sync", "async"])
def test_without_it_the_error_is_told(stepping):
    vector = make_vector_env(brittle(step=[(1, 0, 2)]), 2, stepping=stepping)
    vector.reset([7, 8])
    with pytest.raises(EnvError, match=r"Brittle \(worker 0, env 1, episode step 2\): step raised RuntimeError"):
        drive(vector, 3)
    assert vector.num_restarts == 0
    vector.close()


def test_old_environments_are_closed_and_new_ones_take_their_place():
    creator = brittle(step=[(0, 0, 1)], reset=[(1, 0, 1)], close=[(0, 0, 0)])
    vector: Any = make_vector_env(creator, 2, EnvContext({"length": 3}), restart=True)
    vector.reset([7, 8])
    drive(vector, 3)
    assert creator.closed == [(0, 0), (1, 0)]
    assert [(env.number, env.length) for env in vector.envs] == [(1, 3), (1, 3)]
    vector.close()
    assert creator.closed == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_a_new_environment_of_other_spaces_is_an_error():
    class Changing(gym.Env):
        made = 0
        action_space = spaces.Discrete(3)

        def __init__(self):
            Changing.made += 1
            self.observation_space = spaces.Box(-1, 1, (min(self.made, 3),))

        def reset(self, *, seed=None, options=None):
            return np.zeros(self.observation_space.shape or (), np.float32), {}

        def step(self, action):
            raise RuntimeError("broke")

    Changing.made = 1
    vector = make_vector_env(Changing, 1, restart=True)
    vector.reset([7])
    with pytest.raises(EnvError, match=r"env 0\): expected the observation_space"):
        drive(vector, 1)


def test_nested_observations():
    class Nested(gym.Env):
        observation_space = spaces.Dict(a=spaces.Discrete(9), b=spaces.Tuple([spaces.Box(0, 9, (2,), np.float64)]))
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return self.obs(), {}

        def obs(self):
            return {"a": self.t, "b": (np.full(2, self.t / 10),)}

        def step(self, action):
            self.t += 1
            assert self.t < 3
            return self.obs(), 1.0, False, False, {}

    vector = make_vector_env(Nested, 1, restart=True)
    vector.reset([1])
    told = drive(vector, 40)
    for t, (obs, *_, ended, _, _) in enumerate(told, start=1):
        assert obs["a"][0] == t % 3 and (0 in ended) == (t % 3 == 0)
        if ended:
            assert ended[0]["a"] == 2 and ended[0]["b"][0].tolist() == [np.float32(0.2)] * 2


def through_json(state):
    """The state as a checkpoint returns it."""
    structure, arrays = trees.encode(state)
    return trees.decode(json.loads(json.dumps(structure)), arrays)


def test_seeds_go_on_where_they_were_saved(make):
    vector = make(brittle(step=[(1, n, 2) for n in range(99)]))
    vector.reset([7, 8])
    for steps in (2, 1, 2, 4):
        drive(vector, steps)
        failures = vector.num_restarts
        entry = through_json(vector.get_state())["envs"][1]
        assert entry["restarts"] == {"seed": 8, "failures": failures}
        assert entry["seed"] == (derived(8, failures) if failures else 8) and entry["steps"] == (2 if steps == 2 else 0)
    assert failures == 3
    # Another run's environment takes it up, and breaks once more.
    other = make(brittle(step=[(1, 0, 1)]))
    other.reset([1, 2])
    state = vector.get_state()
    state["envs"][1] |= {"seed": derived(8, 3), "obs": [np.array([0, 0, 0, 0, 0])]}
    with pytest.warns(ResumeWarning):
        other.set_state(state)
    drive(other, 2)
    assert other.get_state()["envs"][1]["seed"] == derived(8, 4)


def test_cartpole_is_replayed_in_the_environment_that_stands_now():
    class Fragile(gym.Wrapper):
        """CartPole whose engine breaks where the cart is far from the middle."""

        def __init__(self, config):
            gym.Wrapper.__init__(self, gym.make("CartPole-v1"))

        def step(self, action):
            result = self.env.step(action)
            assert abs(result[0][0]) < 0.06
            return result

    def play(vector, steps):
        generator = np.random.default_rng(0)
        for _ in range(steps):
            obs, rewards = empty_rows(vector.observation_space, 3), np.zeros(3)
            vector.step(generator.integers(0, 2, 3), obs, rewards, np.zeros(3, np.bool_), np.zeros(3, np.bool_))
        return vector.observations()

    vector = make_vector_env(Fragile, 3, restart=True)
    vector.reset([1, 2, 3])
    first = play(vector, 100)
    vector.reset([1, 2, 3])
    np.testing.assert_array_equal(play(vector, 100), first)  # failures and all
    restarts, state = vector.num_restarts, through_json(vector.get_state())
    assert restarts > 6
    again = make_vector_env(Fragile, 3, restart=True)
    again.reset([4, 5, 6])
    assert again.set_state(state) == [True] * 3
    np.testing.assert_array_equal(play(again, 200), play(vector, 200))
    assert again.num_restarts == vector.num_restarts - restarts > 3


def test_what_cannot_be_created_anew_is_refused():
    with pytest.raises(ConfigError, match=r"restart_failed_sub_environments: env_stepping='native'"):
        make_vector_env("CartPole-v1", 2, stepping="native", restart=True)
    with pytest.raises(ConfigError, match=r"restart_failed_sub_environments: .* is a vector env"):
        make_vector_env(lambda: gym.make_vec("CartPole-v1", 2), 2, restart=True)
    with pytest.raises(ConfigError, match=r"restart_failed_sub_environments: .*exist already"):
        make_vector_env([gym.make("CartPole-v1")], 1, restart=True)
    vector = make_vector_env("CartPole-v1", 32, restart=True)  # a native vector env without it
    assert vector.envs is not None
    vector.close()


class Crashes(gym.Env):
    """Counts its steps; kills its process where `config["kill"]` has (method, seed of the episode, step)."""

    observation_space = spaces.Box(-1, 2**33, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, config):
        self.kills = config.get("kill", ())
        self.seed = -1

    def _crash(self, method):
        if any(one in ((method, self.seed, self.t), (method, None, self.t)) for one in map(tuple, self.kills)):
            os.kill(os.getpid(), signal.SIGSEGV)

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        self.t = 0
        self._crash("reset")
        return np.array([self.t, self.seed % 1000], np.float64), {}

    def step(self, action):
        self.t += 1
        self._crash("step")
        return np.array([self.t, self.seed % 1000], np.float64), 1.0, False, False, {}


def crashing(kill, num_processes=2):
    vector = make_vector_env(
        Crashes, 3, EnvContext({"kill": kill}), stepping="async", num_processes=num_processes, restart=True
    )
    vector.reset([7, 8, 9])
    return vector


def anew(seed, deaths):
    return int(np.random.SeedSequence([seed, deaths, 0]).generate_state(1)[0]) % 1000


def test_a_process_that_segfaults_is_replaced_as_an_environment_that_raises_is(caplog):
    vector = crashing([("step", 8, 3)])  # of envs 1 and 2
    told = drive(vector, 5)
    assert [obs[0].tolist() for obs, *_ in told] == [[t, 7] for t in range(1, 6)]
    obs, rewards, terminateds, truncateds, ended, infos, _ = told[2]
    assert rewards.tolist() == [1, 0, 0] and truncateds.tolist() == [False, True, True] and not terminateds.any()
    assert {b: final.tolist() for b, final in ended.items()} == {1: [2, 8], 2: [2, 9]}
    assert obs[1:].tolist() == [[0, anew(8, 1)], [0, anew(9, 1)]]
    assert [STEP_FAILED in info for info in infos] == [False, True, True]
    assert told[4][0][1:].tolist() == [[2, anew(8, 1)], [2, anew(9, 1)]] and not told[4][4]
    assert vector.num_restarts == 2
    (record,) = caplog.records
    assert "the process of envs 1 to 2 is gone (killed by SIGSEGV)" in record.getMessage()
    vector.close()


@pytest.mark.parametrize("method", ["truncate", "end_fragment", "reset"])
def test_a_process_that_was_killed_between_steps_is_replaced(method, caplog):
    vector = crashing([])
    assert isinstance(vector, ProcessVectorEnv)
    drive(vector, 2)
    vector._processes[1].kill()
    vector._processes[1].wait()
    rows = vector.observations()
    if method == "truncate":
        assert vector.truncate(2, rows).tolist() == [2, 9]
        assert rows[2].tolist() == [0, anew(9, 1)]
    elif method == "end_fragment":
        vector.end_fragment()
    else:
        assert vector.reset([4, 5, 6]).tolist() == [[0, 4], [0, anew(5, 1)], [0, anew(6, 1)]]
    (first, *_, infos, _), (second, *_) = drive(vector, 2)
    assert [STEP_FAILED in info for info in infos] == [False, *[method != "reset"] * 2]
    assert (second[1:, 0] == (1 if method != "reset" else 2)).all() and (first[1:, 1] == second[1:, 1]).all()
    assert vector.num_restarts == 2
    vector.close()


def test_a_process_that_dies_time_and_again_is_an_error():
    vector = crashing([("step", None, 1)], num_processes=1)
    with pytest.raises(EnvError, match=rf"died {MAX_IN_A_ROW} times without a step between that went well"):
        drive(vector, MAX_IN_A_ROW)
    vector.close()
