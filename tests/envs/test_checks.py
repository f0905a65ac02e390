"""Every way in which an environment breaks its contract is an EnvError that says where, expected and got."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.envs import EnvContext, EnvPlace, ListVectorEnv, check_fragment, make_vector_env
from jaxrl.types import EnvError, UnsupportedSpaceError

SPACE: gym.Space = spaces.Box(-1.0, 1.0, (2,), np.float32)
GOOD = np.zeros(2, np.float32)


class Scripted(gym.Env):
    """Returns what it is told to: `reset_result`, and `step_result` from step `at` on."""

    observation_space: gym.Space = SPACE
    action_space: gym.Space = spaces.Discrete(2)

    def __init__(
        self, reset_result=(GOOD, {}), step_result=(GOOD, 0.0, False, False, {}), at=0, space: gym.Space = SPACE
    ):
        self.reset_result, self.step_result, self.at, self.t = reset_result, step_result, at, 0
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        return self.reset_result

    def step(self, action):
        self.t += 1
        if self.t <= self.at:
            return GOOD, 0.0, False, False, {}
        return self.step_result


def run(env, steps=1, checks=True):
    vector = ListVectorEnv([Scripted(), env], EnvPlace("Scripted", 3), checks=checks)
    vector.reset()
    obs, rewards = np.zeros((2, 2), np.float32), np.zeros(2)
    flags = np.zeros(2, np.bool_), np.zeros(2, np.bool_)
    for _ in range(steps):
        vector.step(np.zeros(2, int), obs, rewards, *flags)
    return obs, rewards


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (GOOD, r"reset: expected a tuple \(obs, info dict\), got ndarray .*gym before 0.26"),
        ((GOOD, 1), r"reset: expected a tuple \(obs, info dict\), got tuple"),
        ((None, {}), r"reset: obs: expected an array of dtype float32, got NoneType None"),
        ((np.zeros(3), {}), r"reset: obs: expected shape \(2,\) .*got \(3,\)"),
        (([[1, 2], [3]], {}), r"reset: obs: expected an array of shape \(2,\), got list"),
        ((np.array([0.0, np.nan]), {}), r"reset: obs: expected finite numbers, got nan at index \(1,\)"),
        (
            (np.array([0.0, 1.5]), {}),
            r"reset: obs: expected values within \[-1.0\d*, 1.0\d*\], got 1.5 at index \(1,\)",
        ),
        ((np.array([-np.inf, 0.0]), {}), r"reset: obs: expected finite numbers, got -inf at index \(0,\)"),
        ((np.array(["a", "b"]), {}), r"reset: obs: expected an array of dtype float32, got ndarray"),
    ],
)
def test_bad_resets(result, text):
    with pytest.raises(EnvError, match=r"^Scripted \(worker 3, env 1\): " + text):
        run(Scripted(reset_result=result), steps=0)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (
            (GOOD, 0.0, False, {}),
            r"step: expected \(obs, reward, terminated, truncated, info\), got 4 values; .*gym before",
        ),
        (GOOD, r"step: expected \(obs, reward, terminated, truncated, info\), got ndarray"),
        ((GOOD, None, False, False, {}), r"step: expected the reward to be one finite number, got NoneType None"),
        ((GOOD, np.inf, False, False, {}), r"step: expected a finite reward, got inf"),
        ((GOOD, np.zeros(1), False, False, {}), r"step: expected the reward to be one finite number, got ndarray"),
        ((GOOD, "1", False, False, {}), r"step: expected the reward to be one finite number, got str '1'"),
        ((GOOD, 0.0, 1, False, {}), r"step: expected terminated to be a bool, got int 1"),
        ((GOOD, 0.0, False, None, {}), r"step: expected truncated to be a bool, got NoneType None"),
        ((GOOD, 0.0, False, False, None), r"step: expected info to be a dict, got NoneType None"),
        ((np.zeros((1, 2)), 0.0, False, False, {}), r"step: obs: expected shape \(2,\).*got \(1, 2\)"),
    ],
)
def test_bad_steps(result, text):
    with pytest.raises(EnvError, match=r"^Scripted \(worker 3, env 1, episode step \d\): " + text):
        run(Scripted(step_result=result))


def test_the_message_names_the_episode_step():
    with pytest.raises(EnvError, match=r"episode step 5\)"):
        run(Scripted(step_result=(GOOD, None, False, False, {}), at=5), steps=10)


@pytest.mark.parametrize(
    ("space", "obs", "text"),
    [
        (spaces.Discrete(3), 3, r"obs: expected values within \[0, 2\], got 3 at index \(\)"),
        (spaces.Discrete(3, start=1), 0, r"obs: expected values within \[1, 3\], got 0"),
        (spaces.Discrete(3), 1.0, r"obs: expected dtype int64, got float64; cast it"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], r"obs: expected values within \[0, 2\], got 3 at index \(1,\)"),
        (spaces.MultiBinary(2), [0, 2], r"obs: expected values within \[0, 1\], got 2"),
        (spaces.Box(0, 255, (2,), np.uint8), [0, 256], r"obs: expected values within \[0, 255\], got 256"),
        (spaces.Dict(a=SPACE), {"b": GOOD}, r"obs: expected a dict with keys \['a'\], got keys \['b'\]"),
        (spaces.Dict(a=SPACE), GOOD, r"obs: expected a dict with keys \['a'\], got ndarray"),
        (spaces.Dict(a=spaces.Tuple([SPACE])), {"a": (GOOD, GOOD)}, r"obs\['a'\]: expected a tuple of 1, got tuple"),
        (spaces.Dict(a=spaces.Tuple([SPACE])), {"a": (GOOD + 2,)}, r"obs\['a'\]\[0\]: expected values within"),
    ],
)
def test_bad_observations_by_space_and_key_path(space, obs, text):
    vector = ListVectorEnv([Scripted(reset_result=(obs, {}), space=space)], EnvPlace("Scripted"))
    with pytest.raises(EnvError, match=text):
        vector.reset()


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (SPACE, [0, 1]),
        (SPACE, (0.5, np.float32(1.0))),
        (SPACE, np.array([1.0 + 1e-9, -1.0], np.float64)),
        (spaces.Discrete(3), np.int64(2)),
        (spaces.Discrete(3), np.array(2)),
        (spaces.Box(-np.inf, np.inf, (1,)), [1e30]),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255], np.int64)),
    ],
)
def test_what_converts_passes(space, obs):
    ListVectorEnv([Scripted(reset_result=(obs, {}), space=space)], EnvPlace("Scripted")).reset()


@pytest.mark.parametrize("steps", [1, 30])
def test_an_exception_in_step_is_chained(steps):
    class Raising(Scripted):
        def step(self, action):
            self.t += 1
            return {}["missing"] if self.t == steps else (GOOD, 0.0, False, False, {})

    with pytest.raises(
        EnvError, match=r"worker 3, env 1, episode step \d+\): step raised KeyError: 'missing'"
    ) as caught:
        run(Raising(), steps=40)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_exception_in_reset_or_constructor_is_chained():
    class Broken(Scripted):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("no simulator")

    with pytest.raises(EnvError, match=r"worker 3, env 1\): reset raised RuntimeError: no simulator") as caught:
        run(Broken())
    assert isinstance(caught.value.__cause__, RuntimeError)

    def create(context):
        if context.vector_index == 1:
            raise OSError("no licence")
        return Scripted()

    with pytest.raises(EnvError, match=r"create \(worker 2, env 1\): creation .* raised OSError: no licence") as caught:
        make_vector_env(create, 2, EnvContext(worker_index=2))
    assert isinstance(caught.value.__cause__, OSError)


def test_spaces_without_fixed_shape_are_refused_by_path():
    space = spaces.Dict(a=SPACE, names=spaces.Text(5))
    with pytest.raises(UnsupportedSpaceError, match=r"space\['names'\]: expected Box, .*got Text"):
        ListVectorEnv([Scripted(space=space)], EnvPlace("Scripted"))
    with pytest.raises(UnsupportedSpaceError, match=r"space of the environment: .*got Sequence"):
        ListVectorEnv([Scripted(space=spaces.Sequence(SPACE))], EnvPlace("Scripted"))


def fragment():
    return np.zeros((4, 3, 2), np.float32), np.zeros((4, 3))


def test_a_good_fragment_passes():
    check_fragment(SPACE, *fragment(), EnvPlace("E"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_fragment_with_a_non_finite_reward_or_observation(value):
    obs, rewards = fragment()
    rewards[2, 1] = value
    with pytest.raises(
        EnvError, match=r"E \(worker 4, env 1\): row 2 of the fragment .*step 7\): reward: .* got (nan|-?inf)"
    ):
        check_fragment(SPACE, obs, rewards, EnvPlace("E", 4), first_t=np.array([0, 7, 0]))
    obs, rewards = fragment()
    obs[3, 2, 1] = value
    space = spaces.Dict(x=spaces.Discrete(2), y=SPACE)
    nested = {"x": np.zeros((4, 3), np.int32), "y": obs}
    with pytest.raises(EnvError, match=r"E \(worker 0, env 2\): row 3 of the fragment: obs\['y'\]: .* at index \(1,\)"):
        check_fragment(space, nested, rewards, EnvPlace("E"))


def test_a_fragment_out_of_bounds():
    obs, rewards = fragment()
    obs[1, 0, 0] = -3
    with pytest.raises(
        EnvError, match=r"row 1 of the fragment: obs: expected values within .*, got -3.0 at index \(0,\)"
    ):
        check_fragment(SPACE, obs, rewards, EnvPlace("E"))
    tokens = np.zeros((4, 3), np.int32)
    tokens[0, 1] = 2
    with pytest.raises(EnvError, match=r"env 1\): row 0 of the fragment: obs: expected values within \[0, 1\], got 2"):
        check_fragment(spaces.Discrete(2), tokens, rewards, EnvPlace("E"))
