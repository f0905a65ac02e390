"""No option escapes: each is in a table of what it changes, is refused by name, or names the test that shows it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import option_rows as options
import pytest

from jaxrl import registry
from jaxrl.coercion import specs_of
from jaxrl.trainers.policy_options import declared, options_of_policies
from jaxrl.types import CannotCompileError, ConfigError

ROOT = pathlib.Path(__file__).parents[2]


def config_class(name: str) -> Any:
    return registry.resolve("algorithm", name).config_class


def traced(cls: Any) -> set[str]:
    return {key for key, spec in specs_of(cls).items() if spec.traced}


def tabled(name: str) -> set[str]:
    cls = config_class(name)
    tables = (options.STATIC, options.REPLAY, options.SAMPLING, options.PLANS, options.ELSEWHERE, options.CALLS)
    return {key for table in tables for key in table} | traced(cls) | set(declared(cls, "without_meaning"))


def test_every_option_of_every_algorithm_is_in_a_table(record_property: Any) -> None:
    missing = {name: sorted(set(specs_of(config_class(name))) - tabled(name)) for name in options.ALGORITHMS}
    assert not {name: keys for name, keys in missing.items() if keys}
    names = {key for name in options.ALGORITHMS for key in specs_of(config_class(name))}
    total = sum(len(specs_of(config_class(name))) for name in options.ALGORITHMS)
    record_property("options", total)
    print(f"{len(names)} options, {total} of all {len(options.ALGORITHMS)} algorithms together")


def test_tables_hold_nothing_that_is_no_option() -> None:
    known = {key for name in options.ALGORITHMS for key in specs_of(config_class(name))}
    tables = (options.STATIC, options.REPLAY, options.SAMPLING, options.PLANS, options.ELSEWHERE, options.BESIDE)
    assert not {key for table in tables for key in table} - known


@pytest.mark.parametrize("key", options.ELSEWHERE)
def test_a_test_elsewhere_names_the_option(key: str) -> None:
    assert f"{key}" in (ROOT / options.ELSEWHERE[key]).read_text(encoding="utf-8")


def changed(spec: Any) -> Any:
    """A value other than an option's default, which its type takes; None where there is none to be made."""
    value = spec.default
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 + 0.125 if isinstance(value, float) else None


@pytest.mark.parametrize("name", options.ALGORITHMS)
def test_what_has_no_meaning_is_refused_by_name(name: str) -> None:
    trainer = registry.resolve("algorithm", name)
    for key in declared(trainer.config_class, "without_meaning"):
        value = changed(specs_of(trainer.config_class)[key])
        with pytest.raises(ConfigError, match=f"{key}=.* has no meaning"):
            trainer.resolve_config({"env": "CartPole-v1", key: value})


@pytest.mark.parametrize("name", options.ALGORITHMS)
def test_options_of_single_policies_act_or_are_refused_by_name(name: str) -> None:
    trainer = registry.resolve("algorithm", name)
    asked = trainer.parse_config({"env": "CartPole-v1", "seed": 1})
    own = options_of_policies(trainer.config_class)
    for key, spec in specs_of(trainer.config_class).items():
        if key not in own:
            with pytest.raises(ConfigError, match=rf"multiagent.policies\['a'\]: '{key}' cannot differ"):
                trainer.policy_options(asked, "a", {key: spec.default}, None)
        else:
            value = spec.default if spec.default is not dataclasses.MISSING else None
            trainer.policy_options(asked, "a", {key: value}, None)  # it may be given


COMPILED: dict[str, dict[str, Any]] = {
    "num_workers": {"num_workers": 1},
    "model": {"model": {"use_lstm": True, "max_seq_len": 3}},
    "batch_mode": {"batch_mode": "complete_episodes"},
    "soft_horizon": {"soft_horizon": True, "horizon": 3},
    "observation_filter": {"observation_filter": "MeanStdFilter"},
    "exploration_config": {"exploration_config": {"type": "ParameterNoise"}},
    "env_stepping": {"env_stepping": "async"},
    "restart_failed_sub_environments": {"restart_failed_sub_environments": True},
    "APEX": {},
    "R2D2": {"train_batch_size": 10, "rollout_fragment_length": 5, "model": {"max_seq_len": 5}},
    "IMPALA": {"num_workers": 0, "train_batch_size": 10},
    "A3C": {"num_workers": 0},
    "PG": {},
}


@pytest.mark.parametrize("key", COMPILED)
def test_what_cannot_compile_is_refused_before_anything_runs(key: str) -> None:
    """By one class of error, which names the option or operator, and the engine that can."""
    name = key if key in options.ALGORITHMS else "PPO"
    small = {"rollout_fragment_length": 5, "train_batch_size": 10, "sgd_minibatch_size": 0} if name == "PPO" else {}
    config = {"env": "jax/StatelessCartPole", "engine": "compiled", "num_envs_per_worker": 2, **small, **COMPILED[key]}
    with pytest.raises(CannotCompileError, match=r"engine='compiled': .*set engine='workers'") as caught:
        registry.resolve("algorithm", name)(config=config)
    if name == "PPO":
        assert key in str(caught.value)


def test_auto_falls_back_on_that_refusal_alone() -> None:
    trainer = registry.resolve("algorithm", "PPO")
    small = {"env": "jax/StatelessCartPole", "train_batch_size": 10, "sgd_minibatch_size": 0}
    model = {"use_lstm": True, "lstm_cell_size": 4, "fcnet_hiddens": [4], "max_seq_len": 3}
    with trainer(config={**small, "model": model}) as made:
        assert made.compiled is None
    with pytest.raises(ConfigError, match="optax has no 'adm'"):
        trainer(config={**small, "optimizer": "adm"})
