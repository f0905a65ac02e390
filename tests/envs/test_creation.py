"""Everything that `env` may be, and the errors of what it may not be."""

import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from jaxrl import registry
from jaxrl.envs import ENVS, EnvContext, MultiAgentEnv, make_env_creator, make_vector_env
from jaxrl.envs.examples.simple import SimpleCorridor
from jaxrl.envs.quick_discrete import QuickDiscrete
from jaxrl.types import ConfigError, EnvError


def test_env_context_is_a_dict_with_a_place_and_pickles():
    context = EnvContext({"length": 5}, worker_index=2, num_workers=3, vector_index=1, remote=True)
    again = pickle.loads(pickle.dumps(context))
    for c in (context, again, cloudpickle.loads(cloudpickle.dumps(context))):
        assert dict(c) == {"length": 5}
        assert (c.worker_index, c.num_workers, c.vector_index, c.remote) == (2, 3, 1, True)
    other = context.copy_with_overrides({"x": 1}, vector_index=4)
    assert dict(other) == {"x": 1}
    assert (other.worker_index, other.num_workers, other.vector_index, other.remote) == (2, 3, 4, True)
    other["x"] = 2
    assert context.copy_with_overrides(worker_index=0).worker_index == 0
    assert "worker_index=2" in repr(context)


def test_gymnasium_ids_take_env_config_as_arguments():
    creator = make_env_creator("Pendulum-v1")
    assert creator.gym_id == "Pendulum-v1"
    env = creator(EnvContext({"g": 3.0, "render_mode": "rgb_array"}))
    assert env.unwrapped.g == 3.0
    assert env.render_mode == "rgb_array"
    assert make_env_creator(gym.spec("CartPole-v1"))({}).spec.id == "CartPole-v1"
    with pytest.raises(
        EnvError, match=r"Pendulum-v1 \(worker 0, env 0\): creation with env_config {'gravity': 1} raised"
    ):
        creator({"gravity": 1})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CartPole-v9", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPol-v1", "CartPole-v1"),
        ("RepeatAfterM", "RepeatAfterMe"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"env: unknown environment '{name}'.*{near}"):
        make_env_creator(name)


def test_module_references():
    env = make_env_creator("jaxrl.envs.examples.simple:SimpleCorridor")({"corridor_length": 7})
    assert isinstance(env, SimpleCorridor) and env.end_pos == 7
    with pytest.raises(ConfigError, match="cannot import module 'jaxrl.no_such'"):
        make_env_creator("jaxrl.no_such:Env")
    with pytest.raises(ConfigError, match="unknown environment"):
        make_env_creator("jaxrl.envs:NoSuch")


def test_registered_names(monkeypatch):
    monkeypatch.setattr(registry, "_tables", {kind: dict(table) for kind, table in registry._tables.items()})
    registry.register_env("corridor", lambda context: SimpleCorridor({"corridor_length": context.worker_index}))
    assert make_env_creator("corridor")(EnvContext(worker_index=4)).end_pos == 4
    registry.register_env("pole", "gymnasium.envs.classic_control.cartpole:CartPoleEnv")
    creator = make_env_creator("pole")
    assert creator.name == "pole"
    assert creator({"sutton_barto_reward": True}).action_space.n == 2
    registry.register_env("RandomEnv", SimpleCorridor)
    from jaxrl.envs import register_built_in

    register_built_in()  # the user's name stays the user's
    assert isinstance(make_env_creator("RandomEnv")({}), SimpleCorridor)


def test_built_in_names_are_listed_and_resolve():
    assert set(ENVS) <= set(registry.names("env"))
    for name in ENVS:
        env = make_env_creator(name)({"num_agents": 2} if name.startswith("MultiAgent") else {})
        assert isinstance(env, gym.Env | MultiAgentEnv)
        env.close()


def test_how_classes_and_creators_are_called():
    class Base(gym.Env):
        def __init__(self, *args, **kwargs):
            self.args, self.kwargs = args, kwargs

        def reset(self, *, seed=None, options=None):
            raise AssertionError

        def step(self, action):
            raise AssertionError

    class Config(Base):
        def __init__(self, config=None):
            Base.__init__(self, config)

    class Annotated(Base):
        def __init__(self, where: EnvContext):
            Base.__init__(self, where)

    class OnePositional(Base):
        def __init__(self, anything, size=3):
            Base.__init__(self, anything)

    class Short(Base):
        def __init__(self, cfg=None):
            Base.__init__(self, cfg)

    class AnyName(Base):
        def __init__(self, settings=None):
            Base.__init__(self, settings)

    class Keywords(Base):
        def __init__(self, size=3, render_mode=None):
            Base.__init__(self, size=size, render_mode=render_mode)

    class Required(Base):
        def __init__(self, size):
            Base.__init__(self, size=size)

    context = EnvContext({"size": 9}, worker_index=6)
    for cls in (
        Config,
        Short,
        AnyName,
        Annotated,
        OnePositional,
        lambda c: Base(c),
        lambda env_config: Base(env_config),
    ):
        env = make_env_creator(cls)(context)
        assert env.args[0] is context
    assert make_env_creator(Keywords)(context).kwargs == {"size": 9, "render_mode": None}
    assert make_env_creator(Required)(context).kwargs == {"size": 9}
    assert make_env_creator(lambda: Base())(EnvContext()).args == ()
    creator = make_env_creator(Config)
    assert make_env_creator(creator) is creator
    assert repr(creator) == "EnvCreator('Config')"


def test_what_is_no_environment():
    with pytest.raises(
        ConfigError, match="expected the creator to return an environment with reset and step, got NoneType"
    ):
        make_env_creator(lambda context: None)({})
    with pytest.raises(ConfigError, match="env: expected a gymnasium id, .*got int 3"):
        make_env_creator(3)
    with pytest.raises(ConfigError, match="got an empty list"):
        make_env_creator([])
    with pytest.raises(ConfigError, match="got the multi-agent TwoStepGame; configure `multiagent`"):
        make_vector_env("TwoStepGame", 1)


def test_instances():
    envs = [SimpleCorridor({"corridor_length": 3}) for _ in range(2)]
    vector = make_vector_env(envs, 2)
    assert vector.envs == envs
    assert vector.place.env_id == "SimpleCorridor"
    with pytest.raises(ConfigError, match=r"expected 1 environments \(num_envs_per_worker\), got a list of 2"):
        make_vector_env(envs, 1)
    with pytest.raises(ConfigError, match="expected 3 environments"):
        make_vector_env(envs, 3)
    with pytest.raises(ConfigError, match="expected a list of at least 3 environments"):
        make_env_creator(envs)(EnvContext(vector_index=2))
    one = make_vector_env(gym.make("CartPole-v1"), 1)
    assert one.place.env_id == "CartPole-v1"


def test_vector_index_and_render():
    seen = []

    def create(context):
        seen.append((context.worker_index, context.vector_index, dict(context)))
        return gym.make("CartPole-v1", render_mode="rgb_array")

    vector = make_vector_env(create, 2, EnvContext({"a": 1}, worker_index=3))
    assert seen == [(3, 0, {"a": 1}), (3, 1, {"a": 1})]
    vector.reset([0, 1])
    assert np.shape(vector.render(1)) == (400, 600, 3)
    vector.close()


def test_discrete_actions_are_checked_as_gymnasium_checks_them_but_quickly():
    env = make_env_creator("CartPole-v1")({})
    plain = gym.make("CartPole-v1").action_space
    assert env.action_space == plain
    assert plain == env.action_space
    assert repr(env.action_space) == repr(plain)
    for x in (0, 1, 2, -1, True, 0.0, "a", np.int64(1), np.int32(2), np.array(1), np.array([1])):
        assert env.action_space.contains(x) == plain.contains(x), x
    shifted = QuickDiscrete(3, start=-1)
    assert [shifted.contains(x) for x in (-2, -1, 1, 2)] == [False, True, True, False]
    env.reset(seed=0)
    with pytest.raises(AssertionError):
        env.step(2)


@pytest.mark.parametrize(
    ("unknown", "newest"), [("Taxi-v2", "Taxi-v"), ("CartPole-v99", "CartPole-v"), ("cartpole-v1", "CartPole-v1")]
)
def test_the_newest_version_of_an_unknown_one_comes_first(unknown, newest):
    versions = [key for key in gym.registry if key.rpartition("-v")[0] == newest.rpartition("-v")[0]]
    first = max(versions, key=lambda key: int(key.rpartition("-v")[2]))
    with pytest.raises(ConfigError, match=f"unknown environment '{unknown}'.*; the nearest are {first}[,.]"):
        make_env_creator(unknown)


@pytest.mark.parametrize(
    ("entry", "extra"),
    [
        ("gymnasium.envs.mujoco:Ant", "mujoco"),
        ("gymnasium.envs.box2d:Lander", "box2d"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, entry, extra):
    def missing(*args, **kwargs):
        raise gym.error.DependencyNotInstalled("no such package")

    spec = EnvSpec("Missing-v0", entry_point=entry)
    monkeypatch.setitem(gym.registry, "Missing-v0", spec)
    monkeypatch.setattr(gym, "make", missing)
    with pytest.raises(ConfigError, match=rf"Missing-v0.*pip install 'jaxrl\[{extra}\]' \(no such package\)"):
        make_env_creator("Missing-v0")()


def test_a_module_that_raises_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "raises_at_once.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"importing module 'raises_at_once' raised ZeroDivisionError: .*raises_at_once.py:2"
    ):
        make_env_creator("raises_at_once:Env")


def test_a_module_without_the_class_says_so():
    with pytest.raises(ConfigError, match="module jaxrl.envs has no EnvContex; did you mean 'EnvContext'"):
        make_env_creator("jaxrl.envs:EnvContex")
