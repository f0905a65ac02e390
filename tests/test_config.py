"""Configuration: keys, types, suggestions, retired keys, JSON with references and holes, dotted assignments."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from jaxrl import registry
from jaxrl.callbacks import Callbacks
from jaxrl.config import (
    RETIRED,
    FieldSpec,
    deep_update,
    describe,
    fill_holes,
    from_json,
    load_yaml,
    option,
    parse,
    parse_dotted,
    to_dict,
    to_json,
)
from jaxrl.schedules import Coeff, LinearSchedule
from jaxrl.types import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    fcnet_hiddens: tuple[int, ...] = option((256, 256), "units of the hidden layers")
    conv_filters: tuple[tuple[int, tuple[int, int], int], ...] | None = option(None, "filters")
    use_lstm: bool = option(False, "recurrent")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    lr: Coeff = option(1e-3, "learning rate", traced=True)
    lambda_: float = option(1.0, "GAE's lambda", low=0, high=1)
    train_batch_size: int = option(4000, "rows of a train batch", low=1)
    grad_clip: float | None = option(None, "clip the global norm")
    clip_rewards: bool | float | tuple[float, float] | None = option(None, "reward clipping")
    batch_mode: Literal["truncate_episodes", "complete_episodes"] = option("truncate_episodes", "where batches end")
    framework_name: str = option("jax", "text")
    observation_filter: str = option("NoFilter", "filter", choices=["NoFilter", "MeanStdFilter"])
    model: Section = option(Section(use_lstm=True), "model")
    exploration_config: Mapping[str, Any] = option({"type": "StochasticSampling"}, "exploration")
    policies: dict[str, tuple[Any, ...]] = option({}, "policies")
    fn: Callable[..., Any] | None = option(None, "function")
    anything: Any = option(None, "anything")
    names: Sequence[str] = option((), "names")
    number: float | int = option(0, "either")
    callbacks: Callbacks = option(Callbacks(), "callbacks")
    optional_section: Section | None = option(None, "section or nothing")
    extras: Mapping[str, Any] = option({}, "extras")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    env: str
    workers: int = 0


def module_level_function() -> int:
    return 7


def error(mapping: Mapping[str, Any], **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as info:
        parse(Config, mapping, **kwargs)
    return str(info.value)


def test_defaults_and_border_names():
    config = parse(Config, {"lambda": 0.5})
    assert config.lambda_ == 0.5
    assert config.model.use_lstm
    assert to_dict(config)["lambda"] == 0.5


def test_the_callers_mapping_is_not_changed_or_shared():
    given_ = {"exploration_config": {"type": "EpsilonGreedy"}, "model": {"fcnet_hiddens": [3]}}
    config = parse(Config, given_)
    assert given_ == {"exploration_config": {"type": "EpsilonGreedy"}, "model": {"fcnet_hiddens": [3]}}
    assert config.exploration_config is not given_["exploration_config"]
    assert parse(Config, {}).exploration_config is not parse(Config, {}).exploration_config


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"lambda": 1}, ("lambda_", 1.0, float)),
        ({"lambda": np.float32(0.5)}, ("lambda_", 0.5, float)),
        ({"train_batch_size": np.int64(5)}, ("train_batch_size", 5, int)),
        ({"grad_clip": 40}, ("grad_clip", 40.0, float)),
        ({"grad_clip": None}, ("grad_clip", None, type(None))),
        ({"clip_rewards": True}, ("clip_rewards", True, bool)),
        ({"clip_rewards": 2}, ("clip_rewards", 2.0, float)),
        ({"clip_rewards": [-1, 1]}, ("clip_rewards", (-1.0, 1.0), tuple)),
        ({"names": ["a"]}, ("names", ("a",), tuple)),
        ({"number": 3}, ("number", 3, int)),
        ({"policies": {"p": [None, 1]}}, ("policies", {"p": (None, 1)}, dict)),
        ({"fn": module_level_function}, ("fn", module_level_function, type(module_level_function))),
        ({"lr": [[0, 1], [10, 0.5]]}, ("lr", ((0.0, 1.0), (10.0, 0.5)), tuple)),
        ({"batch_mode": "complete_episodes"}, ("batch_mode", "complete_episodes", str)),
        ({"optional_section": {"use_lstm": True}}, ("optional_section", Section(use_lstm=True), Section)),
        ({"grad_clip": math.inf}, ("grad_clip", math.inf, float)),
    ],
)
def test_values_become_what_the_annotation_says(mapping, expected):
    name, value, kind = expected
    got = getattr(parse(Config, mapping), name)
    assert got == value
    assert type(got) is kind


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"traing_batch_size": 3}, "config: unknown key 'traing_batch_size'; did you mean 'train_batch_size'?"),
        ({"lambda_": 1.0}, "unknown key 'lambda_'; did you mean 'lambda'?"),
        ({"LR": 1.0}, "did you mean 'lr'?"),
        ({"zzzzzzz": 1.0}, "Keys: "),
        ({"extras": {}}, "unknown key 'extras'"),
        ({3: 1}, "unknown key 3"),
        ({"train_batch_size": 1.5}, "key 'train_batch_size': expected int, got 1.5 (float)"),
        ({"train_batch_size": 4000.0}, "got 4000.0 (float); write 4000"),
        ({"train_batch_size": True}, "expected int, got True (bool)"),
        ({"train_batch_size": "4000"}, "write the number without quotes"),
        ({"train_batch_size": 0}, "expected int >= 1, got 0"),
        ({"lambda": 1.5}, "expected float >= 0 and <= 1, got 1.5"),
        ({"lambda": math.nan}, "got NaN"),
        ({"lambda": "1e-3"}, "YAML 1.1 reads 1e-3 as text"),
        ({"grad_clip": "big"}, "expected float | None, got 'big' (str)"),
        ({"clip_rewards": [1, 2, 3]}, "expected bool | float | tuple[float, float] | None, got [1, 2, 3] (list)"),
        ({"batch_mode": "truncate_episode"}, "did you mean 'truncate_episodes'?"),
        ({"observation_filter": "MeanStd"}, "did you mean 'MeanStdFilter'?"),
        ({"framework_name": None}, "expected str, got None (NoneType)"),
        ({"model": {"fcnet_hidden": [3]}}, "key 'model': unknown key 'fcnet_hidden'; did you mean 'fcnet_hiddens'?"),
        ({"model": {"fcnet_hiddens": [64, "a"]}}, "key 'model.fcnet_hiddens[1]': expected int, got 'a' (str)"),
        ({"model": {"conv_filters": [[16, [8], 4]]}}, "key 'model.conv_filters[0][1]': expected tuple[int, int]"),
        ({"model": 3}, "key 'model': expected dict, got 3 (int)"),
        ({"optional_section": {"use_lstm": 1}}, "key 'optional_section.use_lstm': expected bool, got 1 (int)"),
        ({"exploration_config": "EpsilonGreedy"}, "expected dict[str, any], got 'EpsilonGreedy' (str)"),
        ({"policies": {"p": 3}}, "key 'policies.p': expected tuple[any, ...], got 3 (int)"),
        ({"fn": 3}, "expected function | None, got 3 (int)"),
        ({"fn": "no_such_function"}, "unknown function 'no_such_function'"),
        ({"names": "abc"}, "expected Sequence[str], got 'abc' (str)"),
        ({"callbacks": {"on_episode_ends": None}}, "unknown key 'on_episode_ends'; did you mean 'on_episode_end'?"),
        ({"lr": "fast"}, "key 'lr': expected number or schedule, got 'fast' (str)"),
        ({"lr": [[5, 1], [0, 1]]}, "sorted"),
        ({"lr": {"grid_search": [1, 2]}}, "grid_search is Tune's"),
        ({"train_batch_size": {"grid_search": [1, 2]}}, "grid_search is Tune's"),
    ],
)
def test_bad_values_name_key_expected_and_got(mapping, message):
    assert message in error(mapping)


def test_retired_keys_say_why_and_what_instead():
    text = error({"framework": "torch"})
    assert "key 'framework' of RLlib is retired" in text
    assert "one framework, JAX" in text
    assert "rollout_fragment_length" in error({"sample_batch_size": 10})
    for reason, replacement in RETIRED.values():
        assert reason
        assert not reason.endswith(".")
        assert replacement.endswith(".")


def test_no_option_is_retired():
    from jaxrl.trainers.config import CommonConfig

    assert not set(RETIRED) & {doc.key.split(".")[0] for doc in describe(CommonConfig)}


def test_a_retired_key_that_a_config_declares_is_an_option_again():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class WithMemory:
        memory: int = option(0, "bytes")

    assert parse(WithMemory, {"memory": 3}).memory == 3


def test_not_a_mapping_and_missing_values():
    with pytest.raises(ConfigError, match="expected a dict, got 3"):
        parse(Config, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="needs a value for env"):
        parse(Needs, {"workers": 1})
    assert parse(Needs, {"env": "CartPole-v1"}).env == "CartPole-v1"


def test_sections_merge_over_their_default_and_base():
    config = parse(Config, {"model": {"fcnet_hiddens": [8]}})
    assert config.model == Section(fcnet_hiddens=(8,), use_lstm=True)
    again = parse(Config, {"model": {"use_lstm": False}}, base=config)
    assert again.model == Section(fcnet_hiddens=(8,), use_lstm=False)
    assert parse(Config, {"exploration_config": {"stddev": 1}}).exploration_config == {
        "type": "StochasticSampling",
        "stddev": 1,
    }


def test_extra_options_land_in_extras_and_join_the_suggestions():
    extra = {"clip_param": FieldSpec(float, 0.2, "clip", low=0), "kl_coeff": FieldSpec(float, 0.1, "KL")}
    config = parse(Config, {"clip_param": 1}, extra=extra)
    assert config.extras == {"clip_param": 1.0, "kl_coeff": 0.1}
    assert to_dict(config)["clip_param"] == 1.0
    assert parse(Config, to_dict(config), extra=extra) == config
    assert "did you mean 'clip_param'?" in error({"clip_parm": 1}, extra=extra)
    assert "key 'clip_param': expected float >= 0, got -1.0" in error({"clip_param": -1}, extra=extra)
    assert "clash" in error({}, extra={"lr": FieldSpec(float, 0.2, "")})


def test_make_dataclass_of_another_module_resolves_annotations():
    # Annotations stay text under `from __future__ import annotations`, in a class whose module is then `types`.
    made = dataclasses.make_dataclass(
        "Made", [("gamma", "float", option(0.9, "g"))], bases=(Section,), frozen=True, kw_only=True
    )
    assert parse(made, {"gamma": 1, "fcnet_hiddens": [1]}).fcnet_hiddens == (1,)  # pyright: ignore[reportAttributeAccessIssue]
    text = dataclasses.make_dataclass(
        "Text", [("cb", "Callbacks | None", option(None, "c"))], bases=(Config,), frozen=True, kw_only=True
    )
    assert to_dict(parse(text, {}))["cb"] is None


def test_deep_update_replaces_whole_where_the_type_changes():
    base = {"a": {"b": 1, "c": 2}, "e": {"type": "X", "x": 1}}
    assert deep_update(base, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}, "e": {"type": "X", "x": 1}}
    assert deep_update(base, {"e": {"type": "Y", "y": 1}})["e"] == {"type": "Y", "y": 1}
    assert deep_update(base, {"e": {"type": "X", "y": 1}})["e"] == {"type": "X", "x": 1, "y": 1}
    assert base == {"a": {"b": 1, "c": 2}, "e": {"type": "X", "x": 1}}


def test_json_round_trip_through_text():
    config = parse(
        Config,
        {
            "fn": registry.nearest,
            "grad_clip": math.inf,
            "lr": {"type": "LinearSchedule", "schedule_timesteps": 10, "final_p": 0.0},
            "anything": {"deep": [np.float32(0.5), np.arange(2)]},
            "policies": {"p": (None, 1)},
        },
    )
    text = json.dumps(to_json(config), allow_nan=False)
    again = from_json(Config, json.loads(text), trust_imports=True)
    assert again == dataclasses.replace(config, anything={"deep": [0.5, [0, 1]]})


def test_schedule_objects_are_stored_as_plain_data():
    config = parse(Config, {"lr": LinearSchedule(10, 0.0)})
    assert config.lr == {"type": "LinearSchedule", "schedule_timesteps": 10, "final_p": 0.0, "initial_p": 1.0}
    assert parse(Config, {"lr": {"type": "ConstantSchedule", "value": 1}}).lr == {
        "type": "ConstantSchedule",
        "value": 1.0,
    }


def test_functions_as_names_references_and_holes():
    registry.register("function", "seven", module_level_function)
    named = to_json({"fn": module_level_function})
    assert named == {"fn": {"$registered": "function:seven"}}
    assert fill_holes(named) == {"fn": module_level_function}
    assert parse(Config, {"fn": "seven"}).fn is module_level_function

    hole = to_json({"a": {"b": [1, lambda: 3]}})
    assert hole == {"a": {"b": [1, {"$hole": "a.b[1]"}]}}
    with pytest.raises(ConfigError, match=r"key 'a.b\[1\]' held an object without a name.*config={'a': {'b': ...}}"):
        fill_holes(hole)
    assert fill_holes(hole, {"a": {"b": [4]}}) == {"a": {"b": [4]}}


def test_a_reference_is_imported_only_when_trusted_or_given():
    data = {"fn": {"$ref": "os:getcwd"}, "rest": 1}
    with pytest.raises(ConfigError, match="key 'fn' refers to 'os:getcwd'.*trust_imports=True"):
        fill_holes(data)
    assert fill_holes(data, trust_imports=True)["fn"] is not None
    assert fill_holes(data, {"fn": module_level_function}) == {"fn": module_level_function, "rest": 1}


def test_nothing_foreign_comes_in_through_a_component_module(tmp_path, monkeypatch):
    own = {"fn": {"$ref": "jaxrl.schedules:make_schedule"}}
    assert callable(fill_holes(own)["fn"])
    with pytest.raises(ConfigError, match="not defined there"):
        fill_holes({"fn": {"$ref": "jaxrl.schedules:dataclasses.dataclass"}})
    with pytest.raises(ConfigError, match="importing that would run"):
        fill_holes({"fn": {"$ref": "jaxrl.registry:import_ref"}})
    (tmp_path / "canary_module.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for value in ({"$ref": "canary_module:x"}, {"$ref": "canary_module:X", "$fields": {}}):
        with pytest.raises(ConfigError, match="importing that would run"):
            fill_holes({"fn": value})


@pytest.mark.parametrize(
    "value", [{"$ref": 3}, {"$what": 1}, {"$float": "1e400x"}, {"$ref": "a:b", "extra": 1}, {"$registered": ["env"]}]
)
def test_malformed_json_values_are_refused(value):
    with pytest.raises(ConfigError, match="key 'a': expected a configuration value"):
        fill_holes({"a": value})


def test_keys_that_look_like_tags_never_become_tags():
    assert to_json({"a": {"$ref": "os:getcwd"}}) == {"a": {"$hole": "a"}}


def test_spaces_survive_json():
    data = {"policies": {"p": (None, spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), {})}}
    text = json.dumps(to_json(data), allow_nan=False)
    assert fill_holes(json.loads(text)) == {"policies": {"p": [None, *data["policies"]["p"][1:]]}}
    assert to_json({"space": spaces.Text(5)}) == {"space": {"$hole": "space"}}


def test_named_tuples_keep_their_type():
    data = to_json({"callbacks": Callbacks()})
    assert fill_holes(json.loads(json.dumps(data))) == {"callbacks": Callbacks()}
    data = to_json({"callbacks": Callbacks(on_train_result=lambda *, trainer, result: None)})
    with pytest.raises(ConfigError, match="config={'callbacks': ...}"):
        fill_holes(data)
    assert fill_holes(data, {"callbacks": Callbacks()}) == {"callbacks": Callbacks()}


def test_describe_lists_every_option_once():
    docs = {doc.key: doc for doc in describe(Config)}
    assert docs["lr"].type == "number or schedule"
    assert docs["lr"].traced
    assert docs["model.fcnet_hiddens"].default == (256, 256)
    assert docs["model.fcnet_hiddens"].type == "tuple[int, ...]"
    assert docs["observation_filter"].choices == ("NoFilter", "MeanStdFilter")
    assert docs["batch_mode"].type == "'truncate_episodes' | 'complete_episodes'"
    assert docs["lambda"].help == "GAE's lambda"
    assert "extras" not in docs
    assert {doc.key: doc for doc in describe(Needs)}["env"].default == "required"


def test_dotted_assignments():
    parsed = parse_dotted(
        ["model.fcnet_hiddens=[64,64]", "lr=1e-3", "a=-2E5", "env=CartPole-v1", "b=true", "c=", "d={x: 1e2}", "e=a=b"]
    )
    assert parsed == {
        "model": {"fcnet_hiddens": [64, 64]},
        "lr": 0.001,
        "a": -2e5,
        "env": "CartPole-v1",
        "b": True,
        "c": None,
        "d": {"x": 100.0},
        "e": "a=b",
    }
    for bad in (["lr"], ["=3"], ["a..b=3"], ["a=1", "a.b=2"], ["a.b=1", "a=2"], ["a=[1"]):
        with pytest.raises(ConfigError):
            parse_dotted(bad)


def test_yaml_reads_plain_data_only():
    assert load_yaml("lr: 1e-3\nn: 1000\ns: 1e3x\n") == {"lr": 0.001, "n": 1000, "s": "1e3x"}
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_yaml("!!python/object/apply:os.getcwd []")


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="$"), max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_plain_data_survives_json(data):
    assert fill_holes(json.loads(json.dumps(to_json(data), allow_nan=False)), trust_imports=True) == data
