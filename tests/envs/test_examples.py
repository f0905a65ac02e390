"""The example environments' rules, by hand-checked play, and their API."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl.envs import ENVS, EnvPlace, MultiAgentRunner, make_env_creator
from jaxrl.envs.probes import TASKS

SINGLE = [name for name in ENVS if not name.startswith(("MultiAgent", "Hierarchical", "TwoStep", "RockPaper"))]


def make(name, **config):
    return make_env_creator(name)(config)


def legal(env, obs):
    mask = obs.get("action_mask") if isinstance(obs, dict) else None
    return env.action_space.sample(mask) if mask is not None else env.action_space.sample()


@pytest.mark.parametrize("name", SINGLE)
def test_gymnasium_api_and_seeding(name):
    def rollout():
        env = make(name)
        env.action_space.seed(1)
        obs, info = env.reset(seed=3)
        seen: list = [repr(obs)]
        for _ in range(40):
            assert env.observation_space.contains(obs), obs
            obs, reward, terminated, truncated, info = env.step(legal(env, obs))
            assert isinstance(reward, float) and type(terminated) is bool and type(truncated) is bool
            seen.append((repr(obs), reward, terminated, truncated))
            if terminated or truncated:
                obs, info = env.reset()
        assert isinstance(info, dict)
        env.close()
        return seen

    assert rollout() == rollout()


@pytest.mark.parametrize("delay", [1, 3])
def test_repeat_after_me(delay):
    env = make("RepeatAfterMe", repeat_delay=delay)
    obs, _ = env.reset(seed=0)
    tokens, total, steps, over = [0] * delay + [obs], 0.0, 0, False
    while not over:
        obs, reward, terminated, over, _ = env.step(tokens[-1 - delay])
        assert not terminated
        tokens.append(obs)
        total += reward
        steps += 1
    assert (total, steps) == (100.0, 100)
    assert env.reset()[0] in (0, 1) and env.step(1)[1] == -1.0
    with pytest.raises(ValueError, match="at least 1"):
        env.__class__({"repeat_delay": 0})


def test_repeat_initial_obs():
    env = make("RepeatInitialObs", episode_len=4)
    token, _ = env.reset(seed=1)
    results = [env.step(token if t < 3 else 1 - token) for t in range(4)]
    assert [r[:2] for r in results] == [(0, 1.0)] * 3 + [(0, -1.0)]
    assert [r[3] for r in results] == [False] * 3 + [True]


def test_look_and_push():
    env = make("LookAndPush")
    for seed in range(6):
        env.reset(seed=seed)
        case, *_ = env.step(0)
        states, total = [], -1.0
        for action in (1, 1, 1, case):
            state, reward, terminated, _, _ = env.step(action)
            states.append(state)
            total += reward
        assert states[:3] == [2, 3, 4] and terminated and total == 6.0
    env.reset(seed=0)
    for _ in range(2):
        env.step(1)
    assert env.step(1 - env.unwrapped.case)[1:3] == (-10.0, True)


def test_simple_corridor():
    env = make("SimpleCorridor", corridor_length=3)
    env.reset()
    assert [env.step(a)[:3] for a in (0, 1, 1, 1)] == [
        (np.array([0.0]), -0.1, False),
        (np.array([1.0]), -0.1, False),
        (np.array([2.0]), -0.1, False),
        (np.array([3.0]), 1.0, True),
    ]


def test_correlated_actions_and_nested_repeat():
    env = make("CorrelatedActions")
    obs, _ = env.reset(seed=0)
    total, steps, over = 0.0, 0, False
    while not over:
        obs, reward, _, over, _ = env.step((obs, obs))
        total, steps = total + reward, steps + 1
    assert (total, steps) == (210.0, 21)
    env = make("NestedSpaceRepeatAfterMe", episode_len=2)
    obs, _ = env.reset(seed=0)
    obs, reward, _, over, _ = env.step(obs)
    assert (reward, over) == (1.0, False)
    off = (1 - obs[0], {"a": obs[1]["a"] + np.float32(0.25)})
    assert env.step(off)[1] == pytest.approx(-0.5)


def test_cartpole_variants():
    env = make("StatelessCartPole", max_episode_steps=7)
    obs, _ = env.reset(seed=0)
    full, _ = gym.make("CartPole-v1").reset(seed=0)
    np.testing.assert_array_equal(obs, full[[0, 2]])
    env = make("ParametricActionsCartPole", max_avail_actions=6)
    obs, _ = env.reset(seed=0)
    assert obs["action_mask"].sum() == 2
    left = int(np.flatnonzero((obs["avail_actions"] == [1, -1]).all(1))[0])
    assert obs["action_mask"][left] == 1
    speed = env.step(left)[0]["cart"][1]
    assert speed < 0
    masked = int(np.flatnonzero(env._places != -1)[0])
    masked = next(a for a in range(6) if a not in env._places)
    with pytest.raises(ValueError, match=f"action {masked} is masked"):
        env.step(masked)
    env = make("SparseRewardCartPole", max_episode_steps=5)
    env.reset(seed=0)
    results = [env.step(t % 2) for t in range(2)]
    state = env.get_state()
    results += [env.step(t % 2) for t in range(2, 5)]
    assert results[-1][1:4] == (5.0, False, True)
    env.set_state(state)
    assert [env.step(t % 2)[1] for t in range(2, 5)] == [0.0, 0.0, 5.0]


def test_counters_images_and_random():
    env = make("DebugCounter")
    env.reset()
    results = [env.step(0) for _ in range(15)]
    assert [r[1] for r in results[:4]] == [1.0, 2.0, 0.0, 1.0] and results[-1][2]
    env = make("FastImageEnv", shape=(42, 42, 4))
    assert env.reset()[0].shape == (42, 42, 4) and env.step(0)[1] == 1.0
    space = spaces.Dict(a=spaces.Discrete(3))
    env = make("RandomEnv", observation_space=space, p_terminated=0.0, max_episode_len=3, reward_range=(2.0, 2.0))
    env.reset(seed=0)
    assert [env.step(0)[1:4] for _ in range(3)] == [(2.0, False, False)] * 2 + [(2.0, False, True)]
    with pytest.raises(ValueError, match="is not in Discrete"):
        env.step(5)


def test_windy_maze():
    env = make("WindyMaze")
    (position, wind), _ = env.reset(seed=0)
    assert position.tolist() == [1, 1] and wind in range(4)
    route = [1] * 6 + [2] * 5 + [3] * 6
    results = []
    for direction in route:
        env.unwrapped.wind = direction
        results.append(env.step(1))
    (position, _), *rest, _ = results[-1]
    assert (position.tolist(), rest) == ([6, 1], [100.0, True, False])
    assert not any(reward for _, reward, *_ in results[:-1])


def test_hierarchical_windy_maze():
    env = make("HierarchicalWindyMaze")
    r = MultiAgentRunner(env, EnvPlace("HierarchicalWindyMaze"))
    r.reset(0)
    assert r.active == ["high_level"]
    r.step({"high_level": 1})
    assert r.active == ["low_level_1"]
    env.maze.wind = 1
    assert r.step({"low_level_1": 1}).rewards == {"low_level_1": 1.0}
    steps = [r.step({"low_level_1": 0}) for _ in range(24)]
    assert r.active == ["high_level"] and steps[-1].truncateds == {"low_level_1": True}
    for i in range(2, 9):
        r.step({"high_level": 1})
        steps += [r.step({f"low_level_{i}": 0}) for _ in range(25)]
    assert [step.truncated for step in steps].index(True) == len(steps) - 1 and r.active == []


def test_two_step_game_and_rock_paper_scissors():
    env = make("TwoStepGame")
    for first, second, expected in [(0, (1, 0), 3.5), (1, (1, 1), 4.0), (1, (0, 1), 0.5), (1, (0, 0), 0.0)]:
        assert env.reset()[0] == {0: 0, 1: 3}
        env.step({0: first, 1: 0})
        _, rewards, terminateds, _, _ = env.step(dict(enumerate(second)))
        assert rewards == {0: expected, 1: expected} and terminateds["__all__"]
    env = make("RockPaperScissors", rounds=2)
    env.reset()
    obs, rewards, *_ = env.step({"player1": 1, "player2": 0})
    assert obs == {"player1": 0, "player2": 1} and rewards == {"player1": 1.0, "player2": -1.0}
    _, rewards, terminateds, _, _ = env.step({"player1": 1, "player2": 2})
    assert rewards == {"player1": -1.0, "player2": 1.0} and terminateds["__all__"]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", list(TASKS))
def test_probe_answers_are_what_the_environment_pays(name, continuous):
    env = make(name, continuous=continuous)
    answers = env.answers(0.9)
    values: dict = {}
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        path, reward, over = [], 0.0, False
        while not over:
            answer = next(a for a in answers if a.obs == obs)
            action = 0 if answer.action is None else answer.action
            path.append(float(obs[0]))
            obs, reward, over, truncated, _ = env.step(np.array([action], np.float32) if continuous else int(action))
            assert not truncated
        for steps_left, start in enumerate(reversed(path)):
            values[start] = reward * 0.9**steps_left
    assert values == {float(a.obs[0]): a.value for a in answers}
    assert len(answers) == (2 if name in ("ObservationProbe", "DiscountProbe", "ObservationActionProbe") else 1)


@pytest.mark.parametrize("continuous", [False, True])
def test_other_probe_actions_pay_less(continuous):
    for name in ("ActionProbe", "ObservationActionProbe"):
        env = make(name, continuous=continuous)
        for seed in range(6):
            obs, _ = env.reset(seed=seed)
            (best,) = [a.action for a in env.answers(0.9) if a.obs == obs]
            worse = np.array([best + 0.2], np.float32) if continuous else 1 - int(best)
            assert env.step(worse)[1] < 1.0
