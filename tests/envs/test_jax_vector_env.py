"""JAX environments as ordinary ones: names, vector envs, single ones, exact resume, pictures, broken ones."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete

from jaxrl import registry, trees
from jaxrl.envs import (
    JAX_ENVS,
    EnvContext,
    ListVectorEnv,
    ResumeWarning,
    VectorEnv,
    empty_rows,
    find_jax_env,
    jax_twin,
    make_env_creator,
    make_vector_env,
)
from jaxrl.envs.jax_native import JaxEnv, JaxStep, cart_pole, time_limit
from jaxrl.envs.jax_native.conformance import check_jax_env
from jaxrl.envs.jax_native.vector import JaxVectorEnv
from jaxrl.types import ConfigError, EnvError


class Played:
    """Steps a vector env by a fixed sequence of actions and keeps what comes."""

    def __init__(self, env: VectorEnv, seed: int = 0) -> None:
        self.env = env
        self.random = np.random.default_rng(seed)
        self.obs: list[Any] = []
        self.rewards: list[Any] = []
        self.ended: list[tuple[int, int, Any]] = []
        self.flags: list[Any] = []

    def play(self, steps: int, active: np.ndarray | None = None) -> Played:
        num_envs, space = self.env.num_envs, self.env.action_space
        for _ in range(steps):
            obs = empty_rows(self.env.observation_space, num_envs)
            rewards, ends = np.zeros(num_envs), np.zeros((2, num_envs), np.bool_)
            if isinstance(space, Discrete):
                # Rows of wider batches come after those of narrower ones.
                actions: Any = self.random.integers(space.n, size=64)[:num_envs].astype(np.int32)
            else:
                actions = self.random.uniform(-1, 1, (64, 1))[:num_envs].astype(np.float32)
            for b, final in self.env.step(actions, obs, rewards, ends[0], ends[1], active):
                self.ended.append((len(self.obs), b, final))
            self.obs.append(obs)
            self.rewards.append(rewards)
            self.flags.append(ends)
        return self


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", JAX_ENVS)
def test_names_stand_for_environments_that_any_engine_steps(name):
    env = find_jax_env(name)
    assert env is not None and env.name == name
    check_jax_env(env)
    vector = make_vector_env(name, 3)
    assert isinstance(vector, JaxVectorEnv)
    vector.reset(seeds=[0, 1, 2])
    assert all(np.isfinite(rewards).all() for rewards in Played(vector).play(5).rewards)
    vector.close()


def test_what_is_jax_native_and_what_is_not():
    assert find_jax_env("CartPole-v1") is None
    assert find_jax_env(CartPoleEnv) is None
    assert find_jax_env(lambda config: gym.make("CartPole-v1")) is None
    env = cart_pole()
    assert find_jax_env(env) is env
    made = find_jax_env(cart_pole, {"max_episode_steps": 7})
    assert made is not None and made.max_episode_steps == 7
    by_reference = find_jax_env("jaxrl.envs.jax_native.cart_pole_env:cart_pole", {"max_episode_steps": 8})
    assert by_reference is not None and by_reference.max_episode_steps == 8
    assert jax_twin("CartPole-v1") == "jax/CartPole-v1"
    assert jax_twin("StatelessCartPole") == "jax/StatelessCartPole"
    assert jax_twin("ALE/Pong-v5") is None


def test_environments_of_equal_options_share_their_programs():
    assert find_jax_env("jax/Pendulum-v1", {"g": 9.0}) is find_jax_env("jax/Pendulum-v1", {"g": 9.0})
    assert find_jax_env("jax/Pendulum-v1", {"g": 9.0}) is not find_jax_env("jax/Pendulum-v1")
    drawn = find_jax_env("jax/Pendulum-v1", {"render_mode": "rgb_array"})
    assert drawn is find_jax_env("jax/Pendulum-v1")
    vectors: list[Any] = [make_vector_env("jax/Pendulum-v1", 2) for _ in range(2)]
    assert vectors[0]._programs is vectors[1]._programs


def test_a_registered_jax_env_is_found_by_its_name():
    registry.register_env("short-cartpole", time_limit(cart_pole(), 5))
    found = find_jax_env("short-cartpole")
    assert found is not None and found.max_episode_steps == 5
    assert isinstance(make_vector_env("short-cartpole", 2), JaxVectorEnv)


def test_a_function_that_does_not_say_what_it_makes_serves_too():
    vector = make_vector_env(lambda env_config: cart_pole({"max_episode_steps": 6}), 2)
    assert isinstance(vector, ListVectorEnv)
    vector.reset(seeds=[0, 1])
    played = Played(vector).play(9)
    assert [(t, b) for t, b, _ in played.ended] == [(5, 0), (5, 1)]
    structure, arrays = trees.encode(vector.get_state())
    kept = trees.decode(json.loads(json.dumps(structure)), arrays)
    going_on = Played(vector, 3).play(20)
    assert vector.set_state(kept) == [True, True]
    assert same(going_on.obs, Played(vector, 3).play(20).obs)


def test_a_checkpoint_of_one_kind_of_vector_env_is_none_of_the_other():
    vector = make_vector_env("CartPole-v1", 2)
    vector.reset(seeds=[0, 1])
    jax_vector = make_vector_env("jax/CartPole-v1", 2)
    jax_vector.reset(seeds=[0, 1])
    with pytest.warns(ResumeWarning, match="no state was saved for it"):
        assert vector.set_state(jax_vector.get_state()) == [False, False]


def test_options_for_an_environment_that_exists_are_refused():
    with pytest.raises(ConfigError, match="is a JaxEnv that exists already"):
        make_vector_env(cart_pole(), 2, EnvContext({"max_episode_steps": 5}))
    with pytest.raises(ConfigError, match="env_config has no option 'max_steps'"):
        make_vector_env("jax/CartPole-v1", 2, EnvContext({"max_steps": 5}))
    with pytest.raises(ConfigError, match="jax/CartPole-v1"):
        make_vector_env("jax/CartPole-v2", 2)


def test_ended_rows_go_on_and_give_their_true_successor():
    vector = make_vector_env("jax/CartPole-v1", 4, EnvContext({"max_episode_steps": 30}))
    vector.reset(seeds=[0, 1, 2, 3])
    played = Played(vector).play(120)
    assert len(played.ended) >= 12
    over = [(t, b) for t, flags in enumerate(played.flags) for b in np.flatnonzero(flags.any(0))]
    assert [(t, b) for t, b, _ in played.ended] == over
    for t, b, final in played.ended:
        assert np.abs(played.obs[t][b]).max() <= 0.05
        terminated, truncated = played.flags[t][:, b]
        assert terminated == (abs(final[0]) > 2.4 or abs(final[2]) > 12 * 2 * np.pi / 360)
        assert terminated or truncated
    first = [played.obs[t][b] for t, b, _ in played.ended]
    assert len(np.unique(first, axis=0)) == len(first)


@pytest.mark.parametrize("name", ["jax/CartPole-v1", "jax/Pendulum-v1", "jax/RepeatAfterMe"])
def test_a_row_depends_on_its_own_seed_alone(name):
    narrow, wide = make_vector_env(name, 2), make_vector_env(name, 5)
    narrow.reset(seeds=[3, 4])
    wide.reset(seeds=[3, 4, 5, 6, 2**33])
    few, many = Played(narrow).play(40), Played(wide).play(40)
    np.testing.assert_allclose(np.array(few.obs), np.array(many.obs)[:, :2], rtol=1e-4, atol=1e-4)
    assert not np.array_equal(np.array(many.obs)[0, 0], np.array(many.obs)[0, 2]) or name == "jax/RepeatAfterMe"


def test_seeds_repeat_and_resets_without_seeds_go_on():
    vector = make_vector_env("jax/CartPole-v1", 2)
    first = vector.reset(seeds=[1, 2])
    second = vector.reset()
    assert not np.array_equal(first, second)
    assert np.array_equal(first, vector.reset(seeds=[1, 2]))
    assert np.array_equal(second, vector.reset())
    unseeded = make_vector_env("jax/CartPole-v1", 2)
    assert not np.array_equal(unseeded.reset(), make_vector_env("jax/CartPole-v1", 2).reset())
    with pytest.raises(EnvError, match="expected 2 seeds"):
        vector.reset(seeds=[1])


@pytest.mark.parametrize("name", ["jax/CartPole-v1", "jax/Pendulum-v1", "jax/RepeatAfterMe", "jax/ObservationProbe"])
def test_state_comes_back_bit_for_bit_through_a_checkpoint(name):
    vector = make_vector_env(name, 3)
    vector.reset(seeds=[0, 1, 2])
    Played(vector).play(33)
    structure, arrays = trees.encode(vector.get_state())
    kept = trees.decode(json.loads(json.dumps(structure)), arrays)
    current = vector.observations()
    going_on = Played(vector, 7).play(60)
    other = make_vector_env(name, 3)
    other.reset(seeds=[9, 9, 9])
    assert other.set_state(kept) == [True] * 3
    assert same(other.observations(), current)
    again = Played(other, 7).play(60)
    assert same((going_on.obs, going_on.rewards, going_on.flags), (again.obs, again.rewards, again.flags))
    assert same([end[2] for end in going_on.ended], [end[2] for end in again.ended])


def test_a_state_of_another_form_begins_fresh_episodes():
    vector = make_vector_env("jax/CartPole-v1", 2)
    vector.reset(seeds=[0, 1])
    pendulum = make_vector_env("jax/Pendulum-v1", 2)
    pendulum.reset(seeds=[0, 1])
    wider = make_vector_env("jax/CartPole-v1", 3)
    wider.reset(seeds=[0, 1, 2])
    for state in ({"kind": "list", "envs": []}, pendulum.get_state(), wider.get_state()):
        with pytest.warns(ResumeWarning, match="2 of 2 environments begin a fresh episode"):
            assert vector.set_state(state) == [False, False]
        assert np.abs(vector.observations()).max() <= 0.05


def test_environments_left_out_stand_still():
    vector = make_vector_env("jax/CartPole-v1", 3)
    first = vector.reset(seeds=[0, 1, 2])
    played = Played(vector).play(50, np.array([True, False, True]))
    assert all(np.array_equal(obs[1], first[1]) for obs in played.obs)
    assert not np.sum(played.rewards, 0)[1]
    assert {b for _, b, _ in played.ended} == {0, 2}
    alone = make_vector_env("jax/CartPole-v1", 3)
    alone.reset(seeds=[0, 1, 2])
    np.testing.assert_allclose(np.array(played.obs)[:9, 0], np.array(Played(alone).play(9).obs)[:, 0], rtol=1e-5)


def test_the_horizon_ends_one_episode():
    vector = make_vector_env("jax/CartPole-v1", 2)
    vector.reset(seeds=[0, 1])
    rows = Played(vector).play(3).obs[-1]
    before = rows.copy()
    final = vector.truncate(1, rows)
    assert np.array_equal(final, before[1]) and np.array_equal(rows[0], before[0])
    assert np.abs(rows[1]).max() <= 0.05
    assert np.array_equal(vector.observations(), rows)


def test_a_vector_env_draws_its_rows():
    vector = make_vector_env("jax/MountainCar-v0", 2)
    vector.reset(seeds=[0, 1])
    frames = [vector.render(b) for b in range(2)]
    assert frames[0].shape == (400, 600, 3) and not np.array_equal(*frames)
    assert make_vector_env("jax/RepeatAfterMe", 1).render() is None


def test_a_single_one_is_a_gymnasium_environment():
    made = make_env_creator("jax/CartPole-v1")({"render_mode": "rgb_array", "max_episode_steps": 20})
    assert isinstance(made, gym.Env) and made.render_mode == "rgb_array"
    env: Any = made
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs)
    assert env.render().shape == (400, 600, 3)
    kept = json.loads(json.dumps(trees.encode(env.get_state())[0])), trees.encode(env.get_state())[1]
    steps = [env.step(t % 2) for t in range(20)]
    assert steps[-1][3] or steps[-1][2]
    other = make_env_creator("jax/CartPole-v1")({"max_episode_steps": 20})
    other.set_state(trees.decode(*kept))
    assert all(same(a[:4], other.step(t % 2)[:4]) for t, a in enumerate(steps))
    first, second = other.reset(seed=1)[0], other.reset()[0]
    assert np.array_equal(first, obs) and not np.array_equal(first, second)
    with pytest.raises(ConfigError, match="expected a render_mode of"):
        make_env_creator("jax/CartPole-v1")({"render_mode": "human"})


def test_processes_step_single_ones():
    vector = make_vector_env("jax/CartPole-v1", 2, stepping="async", num_processes=1)
    vector.reset(seeds=[0, 1])
    assert Played(vector).play(30).ended
    vector.close()


def count_up(**changes: Any) -> JaxEnv:
    """An environment that counts to 3, with observations in a Dict; changes break it."""
    space = Dict({"z": Box(0, 10, (2,), np.float32), "a": Discrete(11)})

    def observe(t: Any) -> dict[str, Any]:
        return {"a": t, "z": jnp.stack([t, t]).astype(jnp.float32)}

    def step(key: Any, state: Any, action: Any) -> JaxStep:
        t = state + 1
        values = {"state": t, "obs": observe(t), "reward": jnp.float32(action["force"][0])}
        flags = {"terminated": t >= 3, "truncated": jnp.zeros((), jnp.bool_)}
        return JaxStep(**{**values, **flags, **{k: f(t) for k, f in changes.items()}})

    action_space = Dict({"force": Box(-1, 1, (1,), np.float32)})
    return JaxEnv("count-up", lambda key: (jnp.int32(0), observe(jnp.int32(0))), step, space, action_space)


def test_nested_spaces():
    vector = make_vector_env(count_up(), 2)
    first = vector.reset(seeds=[0, 1])
    assert list(first) == ["a", "z"] or list(first) == ["z", "a"]
    obs, rewards, ends = empty_rows(vector.observation_space, 2), np.zeros(2), np.zeros((2, 2), np.bool_)
    ended: Any = []
    for t in range(3):
        ended = vector.step({"force": np.array([[0.5], [1.0]])}, obs, rewards, ends[0], ends[1])
        assert rewards.tolist() == [0.5, 1.0]
        assert obs["a"].tolist() == [(t + 1) % 3] * 2
    assert [b for b, _ in ended] == [0, 1]
    assert ended[0][1]["a"] == 3 and ended[0][1]["z"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": lambda t: t.astype(jnp.float32)}, r"state: expected int32\[\] as from reset, got float32\[\]"),
        ({"state": lambda t: (t, t)}, "expected a state of the structure that reset returns"),
        ({"obs": lambda t: {"a": t}}, "obs has not the structure of observation_space"),
        (
            {"obs": lambda t: {"a": t, "z": jnp.zeros(3)}},
            r"count-up: step: obs\['z'\]: expected float32\[2\].*got float32\[3\]",
        ),
        ({"reward": lambda t: t}, r"expected reward to be a float32 scalar, got int32\[\]"),
        ({"terminated": lambda t: 0.5 * t}, r"expected terminated to be a bool scalar, got float32\[\]"),
        ({"truncated": lambda t: jnp.bool_(t > 3) if t else t}, "step cannot be traced by JAX"),
    ],
)
def test_broken_environments_are_refused_before_they_step(changes, message):
    with pytest.raises(EnvError, match=message):
        make_vector_env(count_up(**changes), 2)
