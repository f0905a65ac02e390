"""Names: registering, resolving lazily, suggestions, and other processes of a Ray job."""

import re
import sys

import pytest

import jaxrl
from jaxrl import registry
from jaxrl.types import ConfigError


@pytest.fixture(autouse=True)
def clean_tables(monkeypatch):
    monkeypatch.setattr(registry, "_tables", {kind: dict(table) for kind, table in registry._tables.items()})


def creator(context):
    return ("env", context)


def test_objects_and_references_resolve():
    registry.register_env("mine", creator)
    assert registry.resolve("env", "mine") is creator
    registry.register("function", "join", "os.path:join")
    assert registry.resolve("function", "join") is __import__("os").path.join
    assert registry.name_of("env", creator) == "mine"
    assert registry.name_of("env", len) is None


def test_a_reference_is_imported_when_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "lazy_module.py").write_text("def make(context):\n    return context\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.register("function", "lazy", "lazy_module:make")
    assert "lazy_module" not in sys.modules
    made = registry.resolve("function", "lazy")
    assert made(3) == 3
    assert registry.name_of("function", made) == "lazy"


def test_registering_again_replaces():
    registry.register("function", "f", len)
    registry.register("function", "f", max)
    assert registry.resolve("function", "f") is max


def test_unknown_names_give_the_nearest_and_the_list():
    with pytest.raises(ConfigError, match=r"unknown algorithm 'PP0'; did you mean 'PPO'\?.*A2C, A3C, .*DQN, .*PPO"):
        registry.resolve("algorithm", "PP0")
    with pytest.raises(ConfigError, match="did you mean 'PPO'"):
        registry.resolve("algorithm", "ppo")
    with pytest.raises(ConfigError, match="unknown kind 'envs'; did you mean 'env'"):
        registry.register("envs", "x", creator)
    assert registry.lookup("function", "absent", default=3) == 3


@pytest.mark.parametrize("ref", ["os", "os:", ":x", "os:pa th", "../x:y", "os:__import__('x')"])
def test_strings_that_are_no_reference_are_refused(ref):
    with pytest.raises(ConfigError, match="expected 'module:attr'"):
        registry.register("function", "f", ref)


def test_bad_names_and_missing_modules():
    with pytest.raises(ConfigError, match="non-empty name"):
        registry.register("function", "", creator)
    with pytest.raises(ConfigError, match="got None"):
        registry.register("function", "f", None)
    registry.register("function", "f", "no_such_package.inner:x")
    with pytest.raises(ConfigError, match="no module 'no_such_package'"):
        registry.resolve("function", "f")
    registry.register("function", "g", "os:no_such_attr")
    with pytest.raises(ConfigError, match="has no attribute 'no_such_attr'"):
        registry.resolve("function", "g")


def test_a_module_that_lacks_an_import_of_its_own_says_so(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.register("function", "f", "needs_more:x")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        registry.resolve("function", "f")


def test_names_never_import_what_was_not_registered():
    with pytest.raises(ConfigError, match="unknown function 'os:getcwd'"):
        registry.resolve("function", "os:getcwd")


def test_references_of_objects():
    assert registry.ref_of(creator) == f"{__name__}:creator"
    assert registry.ref_of(lambda: 1) is None
    assert registry.ref_of(3) is None
    assert registry.import_ref("collections.abc:Mapping.get") is __import__("collections.abc").abc.Mapping.get


def test_snapshot_holds_what_the_user_registered():
    registry.register_env("mine", creator)
    taken = registry.snapshot()
    assert taken["env"]["mine"] is creator
    assert taken["algorithm"] == {}
    registry._tables["env"].pop("mine")
    registry.install(taken)
    assert registry.resolve("env", "mine") is creator


def test_publishing_needs_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not initialised"):
        registry.publish_to_ray()


@pytest.mark.ray
def test_names_reach_other_processes_of_a_ray_job():
    import ray
    from ray.tune.registry import register_env

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        registry.register_env("sent", lambda context: ("sent", context))
        registry.register_model("sent", lambda: "model")
        registry.publish_to_ray()
        register_env("theirs", lambda context: ("theirs", context))

        @ray.remote
        def resolve(kind, name, args):
            return registry.resolve(kind, name)(*args)

        assert ray.get(resolve.remote("env", "sent", (1,))) == ("sent", 1)
        assert ray.get(resolve.remote("model", "sent", ())) == "model"
        assert ray.get(resolve.remote("env", "theirs", (2,))) == ("theirs", 2)
        with pytest.raises(ConfigError, match="unknown env 'unsent'"):
            ray.get(resolve.remote("env", "unsent", ()))
        lock = __import__("threading").Lock()
        registry.register_model("stuck", lambda: lock)
        with pytest.raises(ConfigError, match="model 'stuck'.*cannot be sent"):
            registry.publish_to_ray()
    finally:
        ray.shutdown()


def test_the_functions_that_options_name_exist():
    named = {
        name
        for algorithm in registry.ALGORITHMS
        for name in re.findall(r"register_\w+", repr(registry.resolve("algorithm", algorithm).config_help()))
    }
    assert "register_distribution" in named
    assert named <= set(dir(jaxrl))
