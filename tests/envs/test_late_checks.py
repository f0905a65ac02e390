"""What environments get wrong late is found as what they get wrong at once: the same EnvError, at whatever step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.envs import (
    EnvPlace,
    ListVectorEnv,
    MultiAgentEnv,
    MultiAgentRunner,
    NativeVectorEnv,
    ProcessVectorEnv,
    check_finals,
    check_fragment,
    empty_rows,
    make_env_creator,
)
from jaxrl.envs.env_context import EnvContext
from jaxrl.types import ConfigError, EnvError, UnsupportedSpaceError

FLOATS = spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (2,), np.uint8)
WHOLE = spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64)
PARTS = spaces.Dict(a=spaces.Tuple([spaces.Discrete(5)]), b=FLOATS)
GOOD = np.zeros(2, np.float32)
FLAGS: Any = spaces.Box(0, 1, (2,), np.bool_)  # pyright: ignore
MIXED: Any = {"a": spaces.Discrete(2), 1: spaces.Discrete(2)}


class Late(gym.Env):
    """Right until step `at`; then `step` returns what it is told to, the good values in the places of `...`."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: Any, good: Any, at: int, bad: Any) -> None:
        self.observation_space, self.good, self.at, self.bad, self.t = space, good, at, bad, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t = 0
        return self.good, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        right = (self.good, 0.0, False, False, {})
        if self.t <= self.at:
            return right
        if isinstance(self.bad, tuple) and len(self.bad) == 5:
            return tuple(r if b is ... else b for r, b in zip(right, self.bad, strict=True))
        return self.bad


def obs(value: Any) -> Any:
    return (value, ..., ..., ..., ...)


# space, a good observation, what step returns, the message after "<env> (worker 3, env 1, episode step <n>): "
LATE: list[tuple[Any, Any, Any, str]] = [
    (
        FLOATS,
        GOOD,
        (GOOD, 0.0, False, {}),
        r"step: expected \(obs, reward, terminated, truncated, info\), got 4 values",
    ),
    (FLOATS, GOOD, [GOOD, 0.0, False, False, {}], r"step: expected \(obs, .*\), got 5 values in a list"),
    (FLOATS, GOOD, None, r"step: expected \(obs, .*\), got NoneType None"),
    (FLOATS, GOOD, 7, r"step: expected \(obs, .*\), got int 7"),
    (FLOATS, GOOD, (..., "1", ..., ..., ...), "step: expected the reward to be one finite number, got str '1'"),
    (FLOATS, GOOD, (..., None, ..., ..., ...), "step: expected the reward to be one finite number, got NoneType None"),
    (FLOATS, GOOD, (..., np.ones(1), ..., ..., ...), "step: expected the reward to be one finite number, got ndarray"),
    (FLOATS, GOOD, (..., 1j, ..., ..., ...), "step: expected the reward to be one finite number, got complex"),
    (FLOATS, GOOD, (..., ..., 1, ..., ...), "step: expected terminated to be a bool, got int 1"),
    (FLOATS, GOOD, (..., ..., ..., "no", ...), "step: expected truncated to be a bool, got str 'no'"),
    (FLOATS, GOOD, (..., ..., ..., None, ...), "step: expected truncated to be a bool, got NoneType None"),
    (FLOATS, GOOD, (..., ..., ..., ..., None), "step: expected info to be a dict, got NoneType None"),
    (FLOATS, GOOD, obs(None), "step: obs: expected an array of dtype float32, got NoneType None"),
    (FLOATS, GOOD, obs(["1", "2"]), "step: obs: expected an array of dtype float32, got list"),
    (FLOATS, GOOD, obs([[1], [1, 2]]), r"step: obs: expected an array of shape \(2,\), got list"),
    (FLOATS, GOOD, obs(np.zeros(1)), r"step: obs: expected shape \(2,\).*got \(1,\)"),
    (FLOATS, GOOD, obs(np.ones(2) * 1j), "step: obs: expected dtype float32, got complex128"),
    (IMAGE, np.zeros(2, np.uint8), obs(np.array([0, 300])), r"step: obs: expected values within \[0, 255\], got 300"),
    (IMAGE, np.zeros(2, np.uint8), obs([0, -1]), r"step: obs: expected values within \[0, 255\], got -1"),
    (IMAGE, np.zeros(2, np.uint8), obs(np.zeros(2) + 0.5), "step: obs: expected dtype uint8, got float64; cast it"),
    (WHOLE, np.zeros(2, np.int64), obs(np.array([0, 2**33 + 5])), r"got 8589934597 at .*32 bits: scale or split them"),
    (spaces.Discrete(5), 0, obs(2.7), "step: obs: expected dtype int64, got float64; cast it"),
    (spaces.Discrete(5), 0, obs(2**33 + 5), r"step: obs: expected values within \[0, 4\], got 8589934597"),
    (spaces.Discrete(5), 0, obs("2"), "step: obs: expected an array of dtype int64, got str '2'"),
    (spaces.MultiDiscrete([3, 9]), [0, 0], obs([0.0, 1.0]), "step: obs: expected dtype int64, got float64"),
    (spaces.MultiBinary(2), [0, 1], obs([0, 256]), r"step: obs: expected values within \[0, 1\], got 256"),
    (PARTS, {"a": (0,), "b": GOOD}, obs({"a": (1.5,), "b": GOOD}), r"step: obs\['a'\]\[0\]: expected dtype int64"),
    (PARTS, {"a": (0,), "b": GOOD}, obs({"a": (0,)}), r"step: obs: expected a dict with keys \['a', 'b'\], got keys"),
    (PARTS, {"a": (0,), "b": GOOD}, obs({"a": (0,), "b": GOOD, "c": 1}), r"expected a dict with keys \['a', 'b'\]"),
    (PARTS, {"a": (0,), "b": GOOD}, obs({"a": 0, "b": GOOD}), r"step: obs\['a'\]: expected a tuple of 1, got int 0"),
]


def play(vector: Any, steps: int) -> tuple[Any, np.ndarray, list[tuple[int, int, Any]]]:
    """Steps and looks at the numbers as a sampler does; returns rows, rewards and ends."""
    space, width = vector.observation_space, vector.num_envs
    rows, rewards = empty_rows(space, steps + 1, width), np.zeros((steps, width))
    flags, starts = np.zeros((2, steps, width), bool), np.zeros((steps + 1, width), bool)

    def row(t: int) -> Any:
        return rows[t] if isinstance(rows, np.ndarray) else {"a": (rows["a"][0][t],), "b": rows["b"][t]}

    vector.reset([1] * width)
    starts[0], ends = True, []
    for t in range(steps):
        for b, final in vector.step(np.zeros(width, np.int64), row(t + 1), rewards[t], flags[0, t], flags[1, t]):
            starts[t + 1, b] = True
            ends.append((t, b, final))
    check_fragment(space, rows, rewards, vector.place, starts=starts)
    return rows, rewards, ends


def pair(space: Any, good: Any, at: int, bad: Any) -> ListVectorEnv:
    steady = Late(space, good, 10**6, None)
    return ListVectorEnv([steady, Late(space, good, at, bad)], EnvPlace("Late", 3))


@pytest.mark.parametrize("at", [0, 30])
@pytest.mark.parametrize(("space", "good", "bad", "text"), LATE)
def test_types_shapes_and_dtypes_at_every_step(space, good, bad, text, at):
    with pytest.raises(EnvError, match=rf"^Late \(worker 3, env 1, episode step {at}\): .*{text}"):
        play(pair(space, good, at, bad), 40)


# What fits, and is kept as it is (or to float32).
FITS: list[tuple[Any, Any, Any]] = [
    (FLOATS, [0, 1], [0, 1]),
    (FLOATS, (0.5, np.float32(1)), [0.5, 1]),
    (FLOATS, np.array([0.25, -1.0]), [0.25, -1]),
    (FLOATS, np.array([True, False]), [1, 0]),
    (IMAGE, np.array([7, 255], np.int64), [7, 255]),
    (WHOLE, np.array([-(2**31), 2**31 - 1]), [-(2**31), 2**31 - 1]),
    (spaces.Discrete(5), np.array(3), 3),
    (spaces.Discrete(5), np.uint8(4), 4),
    (FLAGS, [True, False], [True, False]),
]


@pytest.mark.parametrize(("space", "value", "want"), FITS)
def test_what_fits_is_kept_late_too(space, value, want):
    rows, _, _ = play(pair(space, value, 30, (value, np.float32(0.5), np.False_, False, {})), 40)
    np.testing.assert_array_equal(rows[40, 1], want)
    assert rows.dtype == {"int64": "int32"}.get(str(space.dtype), str(space.dtype))


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (obs(np.array([0, np.nan], np.float32)), r"obs: expected finite numbers, got nan at index \(1,\)"),
        (obs(np.array([0, 1.5], np.float32)), r"obs: expected values within \[-1.0\d*, 1.0\d*\], got 1.5"),
        ((..., np.nan, ..., ..., ...), "reward: expected a finite number of 32 bits, got nan"),
        ((..., 1e39, ..., ..., ...), r"reward: expected a finite number of 32 bits, got 1e\+39"),
    ],
)
def test_numbers_at_every_step(bad, text):
    with pytest.raises(EnvError, match=rf"^Late \(worker 3, env 1, episode step 30\): step: {text}"):
        play(pair(FLOATS, GOOD, 30, bad), 40)


def test_bounds_within_an_image_dtype():
    space = spaces.Box(0, 100, (2,), np.uint8)
    bad = obs(np.array([0, 101], np.uint8))
    with pytest.raises(EnvError, match=r"episode step 30\): step: obs: expected values within \[0, 100\], got 101"):
        play(pair(space, np.zeros(2, np.uint8), 30, bad), 40)


class Ending(Late):
    """Episodes of 20 steps in one array; the end of the second is told."""

    def __init__(self, end: Any, terminated: bool) -> None:
        super().__init__(spaces.Box(-np.inf, 100, (2,), np.float32), np.zeros(2, np.float32), 0, None)
        self.end, self.terminated, self.count, self.info = end, terminated, 0, {}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t, self.count = 0, self.count + 1
        self.good[:] = -self.count
        self.info["reset"] = self.count
        return self.good, self.info

    def step(self, action: Any) -> Any:
        self.t += 1
        self.good[:] = 1000 * self.count if self.end is None else self.t
        self.info["t"] = self.t
        over = self.t == 20
        value = self.end if over and self.count == 2 and self.end is not None else np.minimum(self.good, 100)
        return value, 1.0, over and self.terminated, over and not self.terminated, self.info


def finals_of(end: Any, terminated: bool) -> Any:
    vector = ListVectorEnv([Ending(end, terminated)], EnvPlace("Ending", 3))
    _, _, ends = play(vector, 45)
    starts = np.zeros((46, 1), bool)
    starts[[0, 20, 40]] = True
    kind = np.full(len(ends), terminated)
    stacked = np.stack([final for _, _, final in ends])
    return check_finals(vector.observation_space, stacked, kind, lambda k: f"end {k}")


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (np.array([0, np.nan], np.float32), "end 1: final obs: expected finite numbers, got nan"),
        (np.array([0, 101], np.float32), "end 1: final obs: expected values within .*, got 101"),
        (np.array(["a", "b"]), r"episode step 19\): step: obs: expected an array of dtype float32, got ndarray"),
        (np.zeros(3, np.float32), r"episode step 19\): step: obs: expected shape \(2,\).*got \(3,\)"),
    ],
)
def test_final_observations_are_looked_at(end, text):
    with pytest.raises(EnvError, match=text):
        finals_of(end, terminated=False)


def test_what_follows_a_terminal_state_need_not_be_finite_but_within_bounds():
    np.testing.assert_array_equal(finals_of(np.array([5, np.nan], np.float32), terminated=True)[1], [5, 0])
    np.testing.assert_array_equal(finals_of(np.array([np.inf, 7], np.float32), terminated=True)[1], [0, 7])
    with pytest.raises(EnvError, match="end 1: final obs: expected values within .*, got 101"):
        finals_of(np.array([np.nan, 101], np.float32), terminated=True)


def test_a_terminal_nan_in_the_first_steps_is_no_error_either():
    bad = (np.array([np.nan, 0], np.float32), 0.0, True, False, {})
    play(pair(FLOATS, GOOD, 3, bad), 8)


def test_an_environment_that_writes_into_its_own_array_and_info_again():
    vector = ListVectorEnv([Ending(None, True)], EnvPlace("Ending"))
    rows, _, ends = play(vector, 45)
    assert [final.tolist() for _, _, final in ends] == [[100, 100], [100, 100]]
    np.testing.assert_array_equal(rows[[0, 1, 20, 40], 0, 0], [0, 100, -2, -3])
    assert vector.infos[0] == {"reset": 3, "t": 5}
    rewards, flags = np.zeros(1), np.zeros((2, 1), bool)
    while not flags.any():
        vector.step(np.zeros(1, np.int64), rows[0], rewards, *flags)
    assert vector.infos[0] == {"reset": 3, "t": 20} and vector.reset_infos[0]["reset"] == 4


def test_processes_check_as_the_loop_does():
    for bad, text in (((..., "1", ..., ..., ...), "got str '1'"), (obs(2.7), "expected dtype int64, got float64")):

        def create(context: Any, bad: Any = bad) -> Any:
            return Late(spaces.Discrete(5), 0, 30 if context.vector_index else 10**6, bad)

        vector = ProcessVectorEnv(make_env_creator(create), 2, EnvContext(worker_index=3), num_processes=1)
        try:
            with pytest.raises(EnvError, match=rf"create \(worker 3, env 1, episode step 30\): step: .*{text}"):
                play(vector, 40)
        finally:
            vector.close()


class Batched(gym.vector.VectorEnv):
    """Two environments in one, of any autoreset mode; the 21st step is told."""

    def __init__(self, mode: Any, bad: dict[str, Any]) -> None:
        self.num_envs, self.metadata, self.bad, self.t = 2, {"autoreset_mode": mode}, bad, 0
        self.single_observation_space, self.single_action_space = FLOATS, spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions: Any) -> Any:
        self.t += 1
        no = np.zeros(2, bool)
        right = {"obs": np.zeros((2, 2)), "rewards": np.zeros(2), "terminateds": no, "truncateds": no, "infos": {}}
        return tuple({**right, **(self.bad if self.t == 21 else {})}.values())

    def close(self, **_: Any) -> None:
        return


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"obs": np.zeros((2, 3))}, r"obs: expected shape \(2, 2\).*got \(2, 3\)"),
        ({"obs": np.array([["a", "b"]] * 2)}, "obs: expected an array of dtype float32"),
        ({"obs": None}, "obs: expected an array of dtype float32, got NoneType None"),
        ({"rewards": np.array(["1", "2"])}, "expected rewards to be 2 numbers"),
        ({"rewards": np.zeros(1)}, "expected rewards to be 2 numbers"),
        ({"terminateds": np.zeros(2)}, "expected terminateds to be 2 bools"),
        ({"truncateds": False}, "expected truncateds to be 2 bools"),
        ({"infos": None}, r"expected \(obs, rewards, terminateds, truncateds, infos dict\)"),
    ],
)
def test_vector_envs_at_every_step(bad, text):
    vector = NativeVectorEnv(Batched("NextStep", bad), EnvPlace("Batched", 3))
    with pytest.raises(EnvError, match=rf"^Batched \(worker 3\): step: {text}"):
        play(vector, 30)


def test_a_terminal_nan_of_a_vector_env_that_resets_a_step_later_is_acted_on_as_zero():
    end = {"obs": np.array([[np.nan, 1], [0, 1]]), "terminateds": np.array([True, False])}
    rows, _, ends = play(NativeVectorEnv(Batched("NextStep", end), EnvPlace("Batched")), 30)
    assert rows[21, 0].tolist() == [0, 1] == ends[0][2].tolist()


class Several(MultiAgentEnv):
    """Two agents that act together, in one array; after step `at` agent b's part is told."""

    possible_agents = ["a", "b"]
    observation_spaces: Any
    action_spaces = dict.fromkeys(possible_agents, spaces.Discrete(2))

    def __init__(self, space: Any, good: Any, at: int, bad: Any) -> None:
        self.observation_spaces = dict.fromkeys(self.possible_agents, space)
        self.good, self.at, self.bad, self.t = good, at, bad, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t = 0
        return dict.fromkeys("ab", self.good), {}

    def step(self, action_dict: Any) -> Any:
        self.t += 1
        parts = [self.good, 0.0, False, False, {}]
        out = [dict.fromkeys("ab", part) for part in parts]
        out[2]["__all__"] = out[3]["__all__"] = False
        if self.t > self.at:
            if not (isinstance(self.bad, tuple) and len(self.bad) == 5):
                return self.bad
            for part, value in zip(out, self.bad, strict=True):
                if value is not ...:
                    part["b"] = value
        return tuple(out)


MULTI = [case for case in LATE if isinstance(case[2], tuple) and len(case[2]) == 5 and case[2][4] is ...]


@pytest.mark.parametrize("at", [0, 30])
@pytest.mark.parametrize(("space", "good", "bad", "text"), MULTI)
def test_multi_agent_types_shapes_and_dtypes_at_every_step(space, good, bad, text, at):
    runner = MultiAgentRunner(Several(space, good, at, bad), EnvPlace("Several", 3), 1)
    runner.reset(seed=1)
    text = text.replace("step: obs", "step: obs of agent 'b'").replace("step: expected the", "reward of agent 'b': .*")
    for name in ("terminated", "truncated"):
        text = text.replace(f"expected {name} to", rf"expected {name}s\['b'\] to")
    with pytest.raises(EnvError, match=rf"^Several \(worker 3, env 1, episode step {at}\): .*{text}"):
        for _ in range(40):
            runner.step(dict.fromkeys("ab", 0))


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (None, "expected five dicts .*, got NoneType None"),
        (({}, {}, {}, {}), "expected five dicts .*, got 4 values"),
        ([{}, {}, {}, {}, {}], "expected five dicts .*, got list"),
        (({}, {}, {}, None, {}), "expected five dicts .*, got tuple"),
    ],
)
def test_multi_agent_arity_at_every_step(bad, text):
    class Other(Several):
        def step(self, action_dict: Any) -> Any:
            return self.bad if self.t >= 30 else super().step(action_dict)

    runner = MultiAgentRunner(Other(FLOATS, GOOD, 10**6, bad), EnvPlace("Other", 3), 1)
    runner.reset()
    with pytest.raises(EnvError, match=rf"^Other \(worker 3, env 1, episode step 30\): step: {text}"):
        for _ in range(40):
            runner.step(dict.fromkeys("ab", 0))


def test_multi_agent_observations_are_copies():
    env = Several(FLOATS, np.zeros(2, np.float32), 10**6, None)
    runner = MultiAgentRunner(env, EnvPlace("Several"))
    runner.reset()
    env.good[:] = 0.5
    step = runner.step(dict.fromkeys("ab", 0))
    env.good[:] = 1
    assert step.obs["a"].tolist() == runner.obs["b"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (spaces.Box(0, 2**40, (1,), np.int64), r"expected integers within \[-2147483648, 2147483647\].*float32 Box"),
        (spaces.Box(0, 2**33, (1,), np.uint64), r"expected integers within \[0, 4294967295\]"),
        (spaces.Discrete(5, start=2**33), "expected integers within"),
        (spaces.Box(0, 1, (0,)), r"space of the environment: expected at least one number, got .* of shape \(0,\)"),
        (spaces.Dict(a=spaces.Box(0, 1, (3, 0))), r"space\['a'\]: expected at least one number"),
        (spaces.Dict(MIXED), r"expected keys that can be sorted, got"),
        (spaces.Dict({}), "expected at least one part, got an empty Dict"),
        (spaces.Dict(a=spaces.Tuple([])), r"space\['a'\]: expected at least one part, got an empty Tuple"),
    ],
)
def test_spaces_that_no_row_can_hold_are_refused(space, text):
    with pytest.raises(UnsupportedSpaceError, match=text):
        pair(space, 0, 0, None)
    env = Late(FLOATS, GOOD, 0, None)
    env.action_space = space
    with pytest.raises(UnsupportedSpaceError, match=text):
        ListVectorEnv([env], EnvPlace("Late"))


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_an_environment_without_a_space(name):
    env: Any = Late(FLOATS, GOOD, 0, None)
    setattr(env, name, None)
    with pytest.raises(EnvError, match=rf"^Late \(worker 0, env 0\): expected {name} to be a gymnasium space"):
        ListVectorEnv([env], EnvPlace("Late"))


@pytest.mark.parametrize("agents", [..., None, [], "ab", ["a", "a"], ["a", "__all__"], [["a"]]])
def test_an_environment_that_does_not_name_its_agents(agents):
    env: Any = Several(FLOATS, GOOD, 0, None)
    if agents is ...:
        Bare = type("Bare", (MultiAgentEnv,), {"reset": Several.reset, "step": Several.step})
        env = Bare()
    else:
        env.possible_agents = agents
    with pytest.raises(ConfigError, match="expected possible_agents to list every agent"):
        MultiAgentRunner(env, EnvPlace("Several"))
