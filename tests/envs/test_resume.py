"""Environments come back where they stood, bit for bit, also in a new process; or afresh, with one warning."""

import hashlib
import json
import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import storage, trees
from jaxrl.envs import ListVectorEnv, ResumeWarning, make_vector_env, replay_log
from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.rows import empty_rows, leaves, row_writer

IDS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"]


def drive(vector, steps, seed, active_share=None, fragment=64):
    """Takes `steps` random vector steps; returns a digest of all that came and the number of ended episodes."""
    generator = np.random.default_rng(seed)
    count = vector.num_envs
    vector.action_space.seed(seed)
    write = row_writer(vector.action_space)
    digest, episodes = hashlib.sha256(), 0
    for t in range(steps):
        actions = empty_rows(vector.action_space, count)
        for b in range(count):
            write(actions, b, vector.action_space.sample())
        obs, rewards = empty_rows(vector.observation_space, count), np.zeros(count)
        flags = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        active = None if active_share is None else generator.random(count) < active_share
        ended = vector.step(actions, obs, rewards, *flags, active)
        episodes += len(ended)
        for array in (*leaves(vector.observation_space, obs), rewards, *flags):
            digest.update(np.ascontiguousarray(array).tobytes())
        for _, final in ended:
            for array in leaves(vector.observation_space, final):
                digest.update(array.tobytes())
        if t % fragment == fragment - 1:
            vector.end_fragment()
    return digest.hexdigest(), episodes


def through_json(state):
    """The state as a checkpoint returns it."""
    structure, arrays = trees.encode(state)
    return trees.decode(json.loads(json.dumps(structure)), arrays)


def fresh(env, count=3):
    return make_vector_env(env, count)


CONTINUE = """
import json, sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
from test_resume import IDS, drive, fresh
from jaxrl import storage, trees
results = {}
files = storage.opened(sys.argv[2])
for name in IDS:
    state = trees.decode(files.json(f"{name}.json"), files.arrays(f"{name}.safetensors"))
    vector = fresh(name)
    assert vector.set_state(state) == [True] * 3
    results[name] = drive(vector, 300, 5)
print(json.dumps(results))
"""


def test_classic_control_continues_in_a_new_process(tmp_path):
    expected, writer = {}, storage.Writer(tmp_path)
    for name in IDS:
        vector = fresh(name)
        vector.reset([1, 2, 3])
        # 250: past the first autoresets of those with short episodes, amid an episode of the others.
        drive(vector, 250, 0)
        structure, arrays = trees.encode(vector.get_state())
        writer.json(f"{name}.json", structure)
        writer.arrays(f"{name}.safetensors", arrays)
        expected[name] = list(drive(vector, 300, 5))
    writer.finish({})
    command = [sys.executable, "-c", CONTINUE, os.path.dirname(__file__), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got == expected
    assert got["CartPole-v1"][1] > 20  # autoresets were among the 300 steps
    assert got["Pendulum-v1"][1] >= 3


@pytest.mark.parametrize("steps", [0, 3, 70])
def test_a_second_checkpoint_continues_the_first(steps):
    vector = fresh("CartPole-v1")
    vector.reset()  # unseeded: the state before the reset is what counts
    drive(vector, 41, 0)
    again = fresh("CartPole-v1")
    assert all(again.set_state(through_json(vector.get_state())))
    assert drive(again, steps, 1) == drive(vector, steps, 1)
    third = fresh("CartPole-v1")
    assert all(third.set_state(through_json(again.get_state())))
    np.testing.assert_array_equal(third.observations(), vector.observations())
    assert drive(third, 100, 2) == drive(vector, 100, 2)


def test_skipped_steps_and_truncations_are_part_of_the_log():
    vector = fresh("Pendulum-v1")
    vector.reset([4, 5, 6])
    drive(vector, 50, 0, active_share=0.6, fragment=7)
    rows = vector.observations()
    vector.truncate(1, rows)
    drive(vector, 9, 1, active_share=0.6)
    again = fresh("Pendulum-v1")
    assert all(again.set_state(through_json(vector.get_state())))
    assert drive(again, 60, 2) == drive(vector, 60, 2)


def test_reused_action_rows_do_not_change_the_log_after_end_fragment():
    vector, again = fresh("Pendulum-v1", 2), fresh("Pendulum-v1", 2)
    vector.reset([1, 2])
    rows = np.zeros((2, 1), np.float32)
    obs, rewards = empty_rows(vector.observation_space, 2), np.zeros(2)
    flags = np.zeros(2, np.bool_), np.zeros(2, np.bool_)
    for value in (0.5, -1.5):
        rows[:] = value
        vector.step(rows, obs, rewards, *flags)
        vector.end_fragment()
    rows[:], obs[:] = 9, 9
    state = vector.get_state()
    assert again.set_state(through_json(state)) == [True, True]
    np.testing.assert_array_equal(again.observations(), vector.observations())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.TransformReward(env, lambda r: float(r) * 0.1),
        lambda env: gym.wrappers.TimeLimit(env, 30),
        lambda env: gym.wrappers.FrameStackObservation(env, 4),
        lambda env: gym.wrappers.TimeAwareObservation(env),
    ],
)
def test_wrapped_environments_come_back(wrap):
    def create(context):
        return wrap(gym.make("CartPole-v1"))

    vector = fresh(create)
    vector.reset([1, 2, 3])
    drive(vector, 45, 0)
    again = fresh(create)
    assert all(again.set_state(through_json(vector.get_state())))
    assert drive(again, 100, 1) == drive(vector, 100, 1)


def test_an_environment_with_a_memory_of_its_own_starts_afresh_with_one_warning():
    def create(context):
        return gym.wrappers.NormalizeReward(gym.make("Pendulum-v1"))

    vector = fresh(create)
    vector.reset([1, 2, 3])
    drive(vector, 450, 0)  # past two autoresets: the running statistics are older than the episode
    again = fresh(create)
    with pytest.warns(
        ResumeWarning, match=r"env 0\): could not .* another reward .* 3 of 3 environments begin"
    ) as caught:
        assert again.set_state(through_json(vector.get_state())) == [False] * 3
    assert len(caught) == 1
    assert drive(again, 10, 1)[1] == 0


def test_without_a_generator_or_with_too_long_an_episode_there_is_a_warning(monkeypatch):
    class NoGenerator(gym.Env):
        observation_space = spaces.Box(-1, 1, (1,))
        action_space = spaces.Discrete(2)

        def __getattribute__(self, name):
            if name == "np_random":
                raise NotImplementedError
            return super().__getattribute__(name)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    vector = ListVectorEnv([NoGenerator()], EnvPlace("NoGenerator"))
    vector.reset()
    with pytest.warns(ResumeWarning, match="no NumPy generator"):
        assert vector.set_state(vector.get_state()) == [False]
    monkeypatch.setattr(replay_log, "MAX_REPLAY_STEPS", 20)
    vector = fresh("Pendulum-v1", 2)
    vector.reset([1, 2])
    drive(vector, 30, 0, fragment=8)
    state = vector.get_state()
    assert state["envs"][0]["actions"] is None
    with pytest.warns(ResumeWarning, match="its episode had taken 30 steps, more than the"):
        assert fresh("Pendulum-v1", 2).set_state(through_json(state)) == [False, False]


def test_fewer_environments_were_saved():
    vector = fresh("CartPole-v1", 1)
    vector.reset([1])
    with pytest.warns(ResumeWarning, match=r"env 1\): .* no state was saved for it. 2 of 3"):
        assert fresh("CartPole-v1", 3).set_state(vector.get_state()) == [True, False, False]
    with pytest.warns(ResumeWarning, match="no state was saved"):
        assert fresh("CartPole-v1", 1).set_state({"kind": "native"}) == [False]


def test_own_state_is_used_and_the_time_limit_around_it_comes_back():
    def create(context):
        return gym.wrappers.TimeLimit(make_sparse(), 12)

    def make_sparse():
        from jaxrl.envs.examples.cartpoles import SparseRewardCartPole

        return SparseRewardCartPole()

    vector = fresh(create)
    vector.reset([1, 2, 3])
    drive(vector, 31, 0)
    state = vector.get_state()
    assert all("actions" not in entry and entry["state"]["steps"] >= 0 for entry in state["envs"])
    again = fresh(create)
    assert again.set_state(through_json(state)) == [True] * 3
    np.testing.assert_array_equal(again.observations()["obs"], vector.observations()["obs"])
    assert drive(again, 80, 1) == drive(vector, 80, 1)
    # A second checkpoint of restored environments too.
    third = fresh(create)
    assert all(third.set_state(through_json(again.get_state())))
    assert drive(third, 80, 2) == drive(vector, 80, 2)


def test_own_state_under_a_wrapper_with_memory_is_not_trusted():
    def create(context):
        from jaxrl.envs.examples.cartpoles import SparseRewardCartPole

        return gym.wrappers.NormalizeReward(SparseRewardCartPole())

    vector = fresh(create, 1)
    vector.reset([1])
    drive(vector, 3, 0)
    assert "actions" in vector.get_state()["envs"][0]


def test_mersenne_twister_comes_back():
    class Twister(gym.Env):
        observation_space = spaces.Box(0, 1, (1,), np.float32)
        action_space = spaces.Discrete(2)

        def __init__(self):
            self.np_random = np.random.Generator(np.random.MT19937())

        def reset(self, *, seed=None, options=None):
            return self.np_random.random(1, np.float32), {}

        def step(self, action):
            return self.np_random.random(1, np.float32), 1.0, bool(self.np_random.random() < 0.1), False, {}

    vector = ListVectorEnv([Twister()], EnvPlace("Twister"))
    vector.reset()
    drive(vector, 25, 0)
    again = ListVectorEnv([Twister()], EnvPlace("Twister"))
    plain = json.loads(json.dumps(vector.get_state(), default=lambda array: array.tolist()))
    assert again.set_state(plain) == [True]
    assert drive(again, 50, 1) == drive(vector, 50, 1)


@pytest.mark.parametrize(
    "name", ["RandomEnv", "NestedSpaceRepeatAfterMe", "RepeatAfterMe", "WindyMaze", "CorrelatedActions"]
)
def test_example_environments_come_back(name):
    vector = fresh(name)
    vector.reset([1, 2, 3])
    drive(vector, 137, 0)
    again = fresh(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again.set_state(through_json(vector.get_state())) == [True] * 3
    assert drive(again, 120, 1) == drive(vector, 120, 1)
