"""The multi-agent runner: who acts next, every broken promise, independent copies, resume."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import trees
from jaxrl.envs import (
    EnvContext,
    EnvPlace,
    MultiAgentEnv,
    MultiAgentRunner,
    ResumeWarning,
    agent_space,
    make_env_creator,
    make_multi_agent,
    restore_runners,
)
from jaxrl.types import ConfigError, EnvError

BOX = spaces.Box(-1, 1, (2,), np.float32)
GOOD = np.zeros(2, np.float32)
GOING = {"__all__": False}


class Scripted(MultiAgentEnv):
    """Plays back `results`, one per step."""

    possible_agents = ["a", "b", "c"]
    observation_spaces = dict.fromkeys("abc", BOX)
    action_spaces = dict.fromkeys("abc", spaces.Discrete(2))

    def __init__(self, results, first=None):
        self.results, self.first = list(results), {"a": GOOD} if first is None else first

    def reset(self, *, seed=None, options=None):
        return self.first, {}

    def step(self, action_dict):
        return self.results.pop(0)


def runner(*results, first=None):
    made = MultiAgentRunner(Scripted(results, first), EnvPlace("Scripted", 2), vector_index=1)
    made.reset()
    return made


def test_agents_come_and_go():
    r = runner(
        ({"b": GOOD}, {"a": 1.0}, GOING, GOING, {}),
        ({"a": GOOD, "b": GOOD, "c": GOOD}, {"b": 2.0}, {"b": True} | GOING, GOING, {"b": {"x": 1}}),
        ({"a": GOOD}, {}, GOING, {"c": np.True_} | GOING, {}),
        ({"a": GOOD}, {"a": 0.5}, GOING, {"__all__": True}, {}),
    )
    assert r.active == ["a"]
    step = r.step({"a": 0})
    assert r.active == ["b"] and step.rewards == {"a": 1.0} and not step.terminated
    step = r.step({"b": 1})
    assert r.active == ["a", "c"] and step.terminateds == {"b": True} and r.infos == {"b": {"x": 1}}
    step = r.step({"a": 0, "c": 0})
    assert r.active == ["a"] and step.truncateds == {"c": True}
    step = r.step({"a": 0})
    assert r.active == [] and step.truncated and not step.terminated
    with pytest.raises(EnvError, match="the episode is over"):
        r.step({})
    r.reset(3)
    assert r.active == ["a"]


def test_no_agent_may_be_due_for_a_step():
    r = runner(({}, {}, GOING, GOING, {}), ({"a": GOOD}, {}, GOING, GOING, {}))
    r.step({"a": 0})
    assert r.active == []
    r.step({})
    assert r.active == ["a"]


ENDED = ({"a": GOOD, "b": GOOD}, {}, {"a": True} | GOING, GOING, {})


@pytest.mark.parametrize(
    ("results", "actions", "text"),
    [
        ([ENDED], [{"b": 0}], r"expected actions of the agents that were observed last, \['a'\], got \['b'\]"),
        ([ENDED], [{"a": 0}, {"a": 0}], r"\['b'\], got \['a'\]; agent 'a' ended at episode step 0"),
        (
            [ENDED, ({"a": GOOD}, {}, GOING, GOING, {})],
            [{"a": 0}, {"b": 0}],
            r"step: obs: got an observation of agent 'a', which ended at episode step 0; an",
        ),
        (
            [ENDED, ({"b": GOOD}, {"a": 1.0}, GOING, GOING, {})],
            [{"a": 0}, {"b": 0}],
            r"rewards: got a reward of agent 'a', which ended at episode step 0",
        ),
        (
            [({"z": GOOD}, {}, GOING, GOING, {})],
            [{"a": 0}],
            r"an observation of agent 'z', expected agents of possible_agents",
        ),
        ([({}, {"z": 1.0}, GOING, GOING, {})], [{"a": 0}], r"rewards: got a reward of agent 'z', expected agents of"),
        ([({}, {}, {"z": True} | GOING, GOING, {})], [{"a": 0}], r"got an end of agent 'z', expected agents of"),
        ([({}, {}, {}, GOING, {})], [{"a": 0}], r"step: expected terminateds\['__all__'\], got keys \[\]"),
        ([({}, {}, GOING, {"a": True}, {})], [{"a": 0}], r"step: expected truncateds\['__all__'\], got keys \['a'\]"),
        (
            [({}, {"a": np.nan}, GOING, GOING, {})],
            [{"a": 0}],
            r"reward of agent 'a': expected a finite reward, got nan",
        ),
        (
            [({}, {"a": None}, GOING, GOING, {})],
            [{"a": 0}],
            r"reward of agent 'a': expected the reward to be one finite",
        ),
        ([({"a": np.zeros(3)}, {}, GOING, GOING, {})], [{"a": 0}], r"obs of agent 'a': expected shape \(2,\)"),
        (
            [({"a": GOOD + np.nan}, {}, GOING, GOING, {})],
            [{"a": 0}],
            r"obs of agent 'a': expected finite numbers, got nan",
        ),
        ([({"a": GOOD + 3}, {}, GOING, GOING, {})], [{"a": 0}], r"obs of agent 'a': expected values within"),
        ([({}, {}, GOING, {})], [{"a": 0}], r"expected five dicts \(obs, .*\), got 4 values"),
        ([({}, 1.0, GOING, GOING, {})], [{"a": 0}], r"expected five dicts"),
        ([({}, {}, dict.fromkeys("abc", True) | GOING, GOING, {})], [{"a": 0}], r"every agent has ended, and neither"),
    ],
)
def test_broken_promises(results, actions, text):
    r = runner(*results)
    with pytest.raises(EnvError, match=r"^Scripted \(worker 2, env 1, episode step \d\): .*" + text):
        for acts in actions:
            r.step(acts)


@pytest.mark.parametrize(
    ("obs", "text"),
    [(GOOD + np.nan, "got nan"), (np.zeros(3), r"got \(3,\)"), (None, "got NoneType"), ({"x": 1}, "dict")],
)
def test_late_bad_observations_are_found_too(obs, text):
    good = ({"a": GOOD}, {"a": 0.0}, GOING, GOING, {})
    r = runner(*[good] * 30, ({"a": obs}, {}, GOING, GOING, {}))
    for _ in range(30):
        r.step({"a": 0})
    with pytest.raises(EnvError, match=f"episode step 30.: step: obs of agent 'a': .*{text}"):
        r.step({"a": 0})


def test_bad_resets_and_exceptions():
    for first, text in [
        ({}, "at least one agent"),
        (GOOD, "expected .obs dict, infos dict."),
        ({"z": GOOD}, "agent 'z'"),
    ]:
        with pytest.raises(EnvError, match=text):
            runner(first=first)
    with pytest.raises(EnvError, match="step raised IndexError: pop from empty list") as caught:
        runner().step({"a": 0})
    assert isinstance(caught.value.__cause__, IndexError)

    class Broken(Scripted):
        def reset(self, *, seed=None, options=None):
            raise OSError("gone")

    with pytest.raises(EnvError, match=r"worker 0, env 0\): reset raised OSError: gone"):
        MultiAgentRunner(Broken([]), EnvPlace("Broken")).reset()


def test_spaces_by_dict_method_or_one_for_all():
    class ByMethod(Scripted):
        observation_spaces = {}

        def observation_space(self, agent):
            return {"a": BOX, "b": spaces.Discrete(3), "c": BOX}[agent]

    class OneForAll(Scripted):
        action_spaces = {}
        action_space = spaces.Discrete(7)

    assert agent_space(ByMethod([]), "observation", "b") == spaces.Discrete(3)
    assert agent_space(OneForAll([]), "action", "c") == spaces.Discrete(7)
    with pytest.raises(ConfigError, match=r"OneForAll: expected observation_spaces\['z'\] to be a gymnasium space"):
        agent_space(OneForAll([]), "observation", "z")


def test_independent_copies():
    cls = make_multi_agent("CartPole-v1")
    assert cls.__name__ == "MultiAgentCartPole"
    with pytest.raises(ConfigError, match="num_agents: expected at least 1, got 0"):
        cls({"num_agents": 0})
    env = cls(EnvContext({"num_agents": 3, "max_episode_steps": 40}, worker_index=1))
    r = MultiAgentRunner(env, EnvPlace("MultiAgentCartPole"))
    first, _ = r.reset(5)
    again, _ = r.reset(5)
    assert all((first[i] == again[i]).all() for i in range(3))
    assert not np.array_equal(first[0], first[1])
    lengths = dict.fromkeys(range(3), 0)
    generator = np.random.default_rng(0)
    step = None
    while r.active:
        for agent in r.active:
            lengths[agent] += 1
        step = r.step({agent: int(generator.integers(2)) for agent in r.active})
        assert set(step.rewards) == set(step.obs)
    assert step and step.terminated and not step.truncated
    assert all(0 < n <= 40 for n in lengths.values()) and len(set(lengths.values())) > 1
    short = MultiAgentRunner(cls({"num_agents": 2, "max_episode_steps": 2}), EnvPlace("short"))
    short.reset(1)
    short.step({0: 0, 1: 0})
    step = short.step({0: 0, 1: 0})
    assert step.truncated and not step.terminated and step.truncateds == {0: True, 1: True}


def play(r, steps, seed):
    """Random play; returns all that came, as plain values."""
    for agent in r.possible_agents:
        r.action_spaces[agent].seed(seed)
    seen = []
    for _ in range(steps):
        if not r.active and r.obs is not None and r._over:
            r.reset()
        step = r.step({agent: r.action_spaces[agent].sample() for agent in r.active})
        seen.append((repr(sorted(step.obs.items(), key=str)), sorted(step.rewards.items(), key=str), r.active))
    return seen


def through_json(state):
    structure, arrays = trees.encode(state)
    return trees.decode(json.loads(json.dumps(structure)), arrays)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("MultiAgentCartPole", {"num_agents": 3}),
        ("MultiAgentPendulum", {"num_agents": 2}),
        ("RockPaperScissors", {}),
        ("TwoStepGame", {}),
        ("HierarchicalWindyMaze", {}),
    ],
)
@pytest.mark.parametrize("steps", [0, 47])
def test_resume(name, config, steps):
    def make():
        return MultiAgentRunner(make_env_creator(name)(config), EnvPlace(name))

    r, again = make(), make()
    r.reset(3)
    play(r, steps, 0)
    assert again.set_state(through_json(r.get_state()))
    assert again.active == r.active and again._ended == r._ended
    third = make()
    assert third.set_state(through_json(again.get_state()))
    expected = play(r, 80, 1)
    assert play(again, 80, 1) == expected
    assert play(third, 80, 1) == expected


def test_an_environment_may_change_its_actions_and_long_episodes_are_not_logged(monkeypatch):
    class Doubling(Scripted):
        action_spaces = dict.fromkeys("abc", spaces.Tuple([BOX, spaces.Dict(n=spaces.Discrete(3))]))

        def step(self, action_dict):
            force, rest = action_dict["a"]
            assert type(rest["n"]) is int
            force *= 2
            return {"a": force}, {}, GOING, GOING, {}

    monkeypatch.setattr("jaxrl.envs.multi_agent_runner.MAX_REPLAY_STEPS", 5)
    r = MultiAgentRunner(Doubling([]), EnvPlace("Doubling"))
    r.reset(1)
    action = (np.full(2, 0.25, np.float32), {"n": np.int32(2)})
    action[0].flags.writeable = False
    for t in range(7):
        assert r.step({"a": action}).obs["a"].tolist() == [0.5, 0.5]
        assert (r.get_state()["actions"] is None) == (t >= 5)
    assert not r._log
    with pytest.warns(ResumeWarning, match="had taken 7 steps, more than the 5"):
        assert not r.set_state(r.get_state())


def test_resume_with_own_state_or_not_at_all():
    class Drifting(Scripted):
        """Remembers more than an episode."""

        total = 0.0

        def step(self, action_dict):
            self.total += 0.25
            return {"a": GOOD}, {"a": self.total}, GOING, GOING, {}

    class Own(Drifting):
        def get_state(self):
            return {"total": self.total}

        def set_state(self, state):
            self.total = state["total"]

    def make(cls, index=0):
        made = MultiAgentRunner(cls([]), EnvPlace(cls.__name__), index)
        made.reset(1)
        return made

    r = make(Own)
    play(r, 5, 0)
    again = make(Own)
    assert again.set_state(through_json(r.get_state()))
    assert play(again, 5, 1) == play(r, 5, 1)
    r = make(Drifting)
    play(r, 3, 0)
    r.reset(1)
    play(r, 3, 0)
    runners = [make(Drifting, 0), make(Drifting, 1), make(Drifting, 2)]
    with pytest.warns(ResumeWarning, match=r"env 0\): .* other rewards. 3 of 3 environments") as caught:
        assert restore_runners(runners, [r.get_state(), r.get_state()]) == [False] * 3
    assert len(caught) == 1
    assert all(made.active == ["a"] for made in runners)
