"""Environments in processes of their own: the rows of this process, errors with traceback, resume, no process left."""

import gc
import inspect
import signal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.envs import EnvContext, ProcessVectorEnv, make_vector_env
from jaxrl.envs.rows import empty_rows
from jaxrl.types import ConfigError, EnvError


def step(vector, actions, active=None):
    count = vector.num_envs
    obs, rewards = empty_rows(vector.observation_space, count), np.zeros(count)
    flags = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    ended = vector.step(actions, obs, rewards, *flags, active)
    return obs, rewards, *flags, ended


def assert_same(got, want):
    for a, b in zip(got[:4], want[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert [b for b, _ in got[4]] == [b for b, _ in want[4]]
    for (_, a), (_, b) in zip(got[4], want[4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_to_our_own_loop_and_resumes_into_it():
    far = make_vector_env("CartPole-v1", 3, stepping="async", num_processes=2)
    near = make_vector_env("CartPole-v1", 3, stepping="sync")
    assert isinstance(far, ProcessVectorEnv)
    assert far.envs is None
    np.testing.assert_array_equal(far.reset([1, 2, 3]), near.reset([1, 2, 3]))
    generator = np.random.default_rng(0)
    ended = 0
    for t in range(60):
        actions = generator.integers(0, 2, 3)
        active = np.array([True, t % 3 > 0, True]) if t % 2 else None
        got, want = step(far, actions, active), step(near, actions, active)
        assert_same(got, want)
        ended += len(got[4])
    assert ended > 3
    rows, same = far.observations(), near.observations()
    np.testing.assert_array_equal(far.truncate(2, rows), near.truncate(2, same))
    np.testing.assert_array_equal(rows, same)
    far.end_fragment()
    near.end_fragment()
    resumed = make_vector_env("CartPole-v1", 3)
    assert resumed.set_state(far.get_state()) == [True] * 3
    assert far.set_state(near.get_state()) == [True] * 3
    np.testing.assert_array_equal(resumed.observations(), far.observations())
    for _ in range(40):
        actions = generator.integers(0, 2, 3)
        got = step(far, actions)
        assert_same(got, step(near, actions))
        assert_same(got, step(resumed, actions))
    processes = far._processes
    far.close()
    far.close()
    assert [process.poll() for process in processes] == [0, 0]


def local_environment():
    """An environment that no other process can import: it travels by value."""

    class Local(gym.Env):
        observation_space = spaces.Dict(x=spaces.Box(-1, 9, (1,)))
        action_space = spaces.Discrete(3)

        def __init__(self, context):
            self.context = context
            if context.get("broken") == context.vector_index:
                raise OSError("no licence")

        def reset(self, *, seed=None, options=None):
            return {"x": np.zeros(1, np.float32)}, {"remote": self.context.remote}

        def step(self, action):
            if action == 2:
                raise KeyError("lost")
            return {"x": np.full(1, self.context.vector_index, np.float32)}, 0.0, False, False, {"at": self.context}

    return Local


def test_an_error_in_step_names_the_environment_and_carries_its_traceback():
    vector = make_vector_env(local_environment(), 2, EnvContext(worker_index=5), stepping="async", num_processes=2)
    assert vector.reset()["x"].tolist() == [[0], [0]]
    assert vector.reset_infos == [{"remote": True}, {"remote": True}]
    obs, *_ = step(vector, np.array([0, 0]))
    assert obs["x"].tolist() == [[0], [1]]
    assert vector.infos[1]["at"].vector_index == 1
    with pytest.raises(
        EnvError, match=r"(?s)Local \(worker 5, env 1, episode step 1\): step raised KeyError: 'lost'"
    ) as caught:
        step(vector, np.array([0, 2]))
    # The user's line, though the class was sent by value.
    lines, first = inspect.getsourcelines(local_environment)
    raising = first + next(i for i, line in enumerate(lines) if "lost" in line)
    assert f'File "{__file__}", line {raising}, in step\n    raise KeyError("lost")' in caught.value.__notes__[0]
    # The others' replies were taken: nothing stale is read.
    assert vector.reset()["x"].tolist() == [[0], [0]]
    vector.close()


def test_an_error_in_the_constructor_leaves_no_process():
    creator = local_environment()
    with pytest.raises(EnvError, match=r"(?s)Local \(worker 0, env 1\): creation .* raised OSError: no licence.*File"):
        make_vector_env(creator, 2, EnvContext({"broken": 1}), stepping="async", num_processes=2)
    with pytest.raises(ConfigError, match="got environments that exist already"):
        make_vector_env([creator(EnvContext())], 1, stepping="async")


def test_a_killed_process_is_an_error_and_collection_ends_the_others():
    vector = make_vector_env("CartPole-v1", 2, stepping="async", num_processes=2)
    assert isinstance(vector, ProcessVectorEnv)
    vector.reset([1, 2])
    processes = vector._processes
    processes[1].send_signal(signal.SIGKILL)
    with pytest.raises(EnvError, match=r"env 1\): step: the process of envs 1 to 1 is gone \(killed by SIGKILL\)"):
        for _ in range(3):
            step(vector, np.zeros(2, int))
    del vector
    gc.collect()
    assert [process.poll() for process in processes] == [0, -9]
