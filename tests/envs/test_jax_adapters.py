"""Environments of other libraries as JaxEnvs: stand-ins with the libraries' interfaces.

`test_jax_adapters_real.py` has the real ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxrl.envs.jax_native import (
    JaxEnv,
    draw_resets,
    from_brax,
    from_gymnax,
    from_jumanji,
    from_pgx,
    vector_step,
)
from jaxrl.envs.jax_native.conformance import check_jax_env
from jaxrl.types import ConfigError, UnsupportedSpaceError


def play(env: JaxEnv, steps: int, num_envs: int = 4) -> Any:
    """Random steps inside one `lax.scan`, whose carry may change no dtype: the VectorSteps `[T, B]`."""
    check_jax_env(env)
    env.action_space.seed(0)
    rows = [env.action_space.sample() for _ in range(steps * num_envs)]
    actions = np.reshape(np.array(rows), (steps, num_envs, *np.shape(rows[0])))
    states, _ = draw_resets(env, jax.random.key(0), (num_envs,))
    fresh = draw_resets(env, jax.random.key(1), (steps, num_envs))

    def one(states: Any, inputs: Any) -> Any:
        key, action, fresh = inputs
        out = vector_step(env, key, states, action, fresh)
        return out.states, out._replace(states=())

    keys = jax.random.split(jax.random.key(2), steps)
    return jax.jit(lambda states: jax.lax.scan(one, states, (keys, actions, fresh)))(states)[1]


# ---- gymnax


class Discrete:
    def __init__(self, n: int) -> None:
        self.n, self.shape, self.dtype = n, (), jnp.int_


class Box:
    def __init__(self, low: Any, high: Any, shape: tuple[int, ...]) -> None:
        self.low, self.high, self.shape, self.dtype = low, high, shape, jnp.float32


class Sphere:
    pass


@struct.dataclass
class CountState:
    at: Any
    time: int


@struct.dataclass
class CountParams:
    goal: int = 5
    max_steps_in_episode: int = 8


class CountOld:
    """gymnax before 1.0: one flag for both kinds of ends, Python numbers in the first state."""

    name = "Count"
    default_params = CountParams()

    def reset_env(self, key: Any, params: Any) -> Any:
        state = CountState(at=0, time=0)
        return self.observe(state), state

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        state = CountState(at=state.at + action, time=state.time + 1)
        done = (state.at >= params.goal) | (state.time >= params.max_steps_in_episode)
        return self.observe(state), state, state.at, done, {}

    def observe(self, state: Any) -> Any:
        return jnp.array([state.at])

    def observation_space(self, params: Any) -> Any:
        return Box(0, jnp.array([100.0]), (1,))

    def action_space(self, params: Any) -> Any:
        return Discrete(2)


class CountNew(CountOld):
    """gymnax from 1.0 on."""

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        obs, state, reward, _, info = CountOld.step_env(self, key, state, action, params)
        return obs, state, reward, state.at >= params.goal, info

    def is_truncated(self, state: Any, params: Any) -> Any:
        return state.time >= params.max_steps_in_episode


@pytest.mark.parametrize("kind", [CountOld, CountNew])
def test_gymnax_ends_are_told_apart(kind):
    env = from_gymnax(kind())
    assert (env.name, env.max_episode_steps) == ("gymnax/Count", 8)
    assert env.observation_space.dtype == np.float32
    step, key = jax.jit(env.step), jax.random.key(0)

    def ends(actions: list[int]) -> list[tuple[bool, bool]]:
        state, _ = env.reset(key)
        found = []
        for action in actions:
            out = step(key, state, action)
            state = out.state
            found.append((bool(out.terminated), bool(out.truncated)))
        return found

    assert ends([1] * 5) == [(False, False)] * 4 + [(True, False)]
    assert ends([0] * 8) == [(False, False)] * 7 + [(False, True)]
    out = play(env, 40)
    assert out.final_obs.dtype == out.rewards.dtype == jnp.float32
    assert float(out.final_obs.max()) == 5.0


def test_gymnax_spaces_that_gymnasium_lacks():
    class Odd(CountOld):
        def action_space(self, params: Any) -> Any:
            return Sphere()

    with pytest.raises(UnsupportedSpaceError, match="got gymnax's Sphere"):
        from_gymnax(Odd())


# ---- brax


@struct.dataclass
class BraxState:
    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any
    metrics: dict[str, Any]
    info: dict[str, Any]


class Push:
    """brax's interface: raw keys, float flags, a state that carries everything."""

    action_size = 1

    def __init__(self, sizes: Any = 2) -> None:
        self.observation_size = sizes

    @property
    def unwrapped(self) -> Push:
        return self

    def reset(self, rng: Any) -> Any:
        at = jax.random.uniform(rng, (), minval=-0.1, maxval=0.1)
        return BraxState(at, self.observe(at), jnp.zeros(()), jnp.zeros(()), {"x": at}, {"rng": rng})

    def step(self, state: Any, action: Any) -> Any:
        at = state.pipeline_state + 1.5 * action[0]
        done = jnp.where(jnp.abs(at) > 2, 1.0, 0.0)
        return state.replace(pipeline_state=at, obs=self.observe(at), reward=-at, done=done, metrics={"x": at})

    def observe(self, at: Any) -> Any:
        obs = jnp.stack([at, -at])
        return obs if self.observation_size == 2 else {"state": obs, "privileged_state": obs[None]}


class EpisodeWrapper(Push):
    def __init__(self, env: Push) -> None:
        Push.__init__(self)
        self.env = env

    def reset(self, rng: Any) -> Any:
        state = self.env.reset(rng)
        return state.replace(info={**state.info, "steps": jnp.zeros(()), "truncation": jnp.zeros(())})

    def step(self, state: Any, action: Any) -> Any:
        after = self.env.step(state, action)
        steps = state.info["steps"] + 1
        cut = jnp.where(steps >= 3, 1 - after.done, 0.0)
        info = {**after.info, "steps": steps, "truncation": cut}
        return after.replace(info=info, done=jnp.where(steps >= 3, 1.0, after.done))


class AutoResetWrapper(Push):
    def __init__(self, env: Push) -> None:
        Push.__init__(self)
        self.env = env


def test_brax():
    env = from_brax(Push(), max_episode_steps=6)
    assert env.name.endswith("/Push") and env.max_episode_steps == 6
    assert env.action_space.shape == (1,) and env.observation_space.shape == (2,)
    out = play(env, 60)
    assert out.terminateds.any() and out.truncateds.any()
    assert np.array_equal(np.asarray(out.terminateds), np.abs(np.asarray(out.final_obs[..., 0])) > 2)
    nested = from_brax(Push({"state": (2,), "privileged_state": (1, 2)}), name="nested")
    assert nested.name == "nested" and play(nested, 5).obs["privileged_state"].shape == (5, 4, 1, 2)


def test_brax_under_its_own_time_limit():
    env = from_brax(EpisodeWrapper(Push()), max_episode_steps=None)
    out = play(env, 30)
    assert out.truncateds.any() and out.terminateds.any()
    assert not (out.truncateds & out.terminateds).any()


def test_brax_wrappers_of_training_are_refused():
    with pytest.raises(ConfigError, match="without AutoResetWrapper"):
        from_brax(EpisodeWrapper(AutoResetWrapper(Push())))


# ---- pgx


@struct.dataclass
class NimState:
    current_player: Any
    observation: Any
    rewards: Any
    terminated: Any
    truncated: Any
    legal_action_mask: Any
    left: Any


class Nim:
    """pgx's interface: two players take one or two of seven in turn; who takes the last one wins."""

    id, num_players, num_actions = "nim", 2, 2

    def init(self, key: Any) -> Any:
        first = jax.random.bernoulli(key).astype(jnp.int32)
        no = jnp.bool_(False)
        state: Any = NimState(
            first, jnp.zeros(8, jnp.bool_), jnp.zeros(2), no, no, jnp.ones(2, jnp.bool_), jnp.int32(7)
        )
        return state.replace(observation=self.observe(state))

    def step(self, state: Any, action: Any, key: Any = None) -> Any:
        left = state.left - action - 1
        over = left == 0
        sign = jnp.where(jnp.arange(2) == state.current_player, 1.0, -1.0)
        # An int where there was a float: casts are the adapter's.
        rewards = jnp.where(over, sign, 0.0).astype(jnp.int32)
        mask = jnp.array([True, False]) | (left >= 2)
        return state.replace(
            current_player=1 - state.current_player, rewards=rewards, terminated=over, legal_action_mask=mask, left=left
        )

    def observe(self, state: Any) -> Any:
        return jnp.arange(8) == state.left


@pytest.mark.parametrize("seat", [0, 1])
def test_pgx_opponents_move_within_a_step(seat):
    def greedy(key: Any, state: Any) -> Any:
        """Leaves multiples of three where it can."""
        return jnp.where((state.left % 3 == 2), 1, 0)

    env = from_pgx(Nim(), opponent=greedy, seat=seat)
    assert env.name == "pgx/nim"
    step = jax.jit(env.step)
    lefts, rewards = set(), []
    for n in range(30):
        state, obs = env.reset(jax.random.key(n))
        lefts.add(int(state.left))
        for t in range(8):
            assert int(state.current_player) == seat
            assert obs["action_mask"].tolist() == [1, int(state.left >= 2)]
            assert int(jnp.argmax(obs["obs"])) == int(state.left)
            out = step(jax.random.key(100 * n + t), state, jnp.int32(0))
            state, obs = out.state, out.obs
            if out.terminated:
                rewards.append(float(out.reward))
                break
            assert float(out.reward) == 0.0
    assert lefts == {7, 6}  # where the other begins, it takes one
    assert len(rewards) == 30 and set(rewards) == {-1.0}  # always taking one loses against who counts
    with pytest.raises(ConfigError, match="expected 0 to 1, got 2"):
        from_pgx(Nim(), seat=2)


def test_pgx_random_opponents_take_legal_actions():
    class Watched(Nim):
        def step(self, state: Any, action: Any, key: Any = None) -> Any:
            legal = state.legal_action_mask[action]
            return Nim.step(self, state, jnp.where(legal, action, 20))

    env = from_pgx(Watched())
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    for n in range(60):
        out = step(jax.random.key(n), state, jnp.int32(0))
        assert int(out.state.left) >= 0
        state = env.reset(jax.random.key(n))[0] if out.terminated else out.state


# ---- jumanji


@dataclasses.dataclass
class DiscreteArray:
    num_values: int

    def generate_value(self) -> Any: ...


@dataclasses.dataclass
class Array:
    shape: tuple[int, ...]
    dtype: Any

    def generate_value(self) -> Any: ...


@dataclasses.dataclass
class BoundedArray(Array):
    minimum: Any
    maximum: Any


class Spec:
    def __init__(self, **parts: Any) -> None:
        self.name = "parts"
        vars(self).update(parts)


class View(NamedTuple):
    place: Any
    action_mask: Any


class TimeStep(NamedTuple):
    step_type: Any
    reward: Any
    discount: Any
    observation: Any


class Walk:
    """jumanji's interface: walk from 3 to 0 (a goal) or 7 (an edge, where the walk is cut)."""

    observation_spec = Spec(place=Array((1,), jnp.float32), action_mask=BoundedArray((2,), jnp.bool_, False, True))
    action_spec = DiscreteArray(2)
    reward_shape: tuple[int, ...] = ()

    @property
    def unwrapped(self) -> Walk:
        return self

    def reset(self, key: Any) -> Any:
        at = jnp.int32(3)
        return {"at": at, "key": key}, self.time_step(at, 0, 1.0)

    def step(self, state: Any, action: Any) -> Any:
        at = state["at"] + 2 * action - 1
        return {"at": at, "key": state["key"]}, self.time_step(
            at, jnp.where((at == 0) | (at == 7), 2, 1), jnp.where(at == 0, 0.0, 1.0)
        )

    def time_step(self, at: Any, kind: Any, discount: Any) -> TimeStep:
        view = View(at[None].astype(jnp.float32), jnp.array([True, True]))
        reward = jnp.full(self.reward_shape, at == 0, jnp.int32)
        return TimeStep(jnp.int8(kind), reward, jnp.asarray(discount, jnp.float32), view)


def test_jumanji():
    env = from_jumanji(Walk())
    assert env.name == "jumanji/Walk"
    out = play(env, 120)
    place = np.asarray(out.final_obs["place"])[..., 0]
    assert np.array_equal(np.asarray(out.terminateds), place == 0)
    assert np.array_equal(np.asarray(out.truncateds), place == 7)
    assert np.array_equal(np.asarray(out.rewards), np.float32(place == 0))
    assert out.terminateds.any() and out.truncateds.any()
    assert out.obs["action_mask"].dtype == jnp.bool_

    class Several(Walk):
        reward_shape = (3,)

    with pytest.raises(UnsupportedSpaceError, match="MultiToSingleWrapper"):
        from_jumanji(Several())
