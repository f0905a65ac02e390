"""Options of single policies (`multiagent.policies`): which act for one policy alone, and why the others cannot."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from jaxrl import config as config_lib
from jaxrl.policies import PolicyConfig, PolicyFactory
from jaxrl.registry import did_you_mean
from jaxrl.rollout import RolloutConfig
from jaxrl.types import ConfigError, PolicyID

_SAMPLING = "workers step the environments of all policies together"
_RUN = "the run has one plan, one engine and one set of resources for all policies"


@functools.cache
def options_of_policies(cls: type) -> frozenset[str]:
    """Options of a config class that a single policy may have a value of its own of, by key.

    They are those that a policy's class of options declares, coeffs and their schedules, and fields marked
    `option(of_policy=True)`, but for those that `of_run` of a class takes out, with the reason.
    """
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(cls)}
    own = {name.rstrip("_") for base in cls.__mro__ if _is_policys(base) for name in inspect.get_annotations(base)}
    coeffs = {key for key, field in fields.items() if field.metadata.get("traced")}
    schedules = {f"{key}_schedule" for key in coeffs}
    marked = {
        field.name.rstrip("_")
        for base in cls.__mro__
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
        if field.metadata.get("of_policy")
    }
    taken = {*declared(cls, "of_run"), *declared(cls, "without_meaning")}
    return frozenset((own | coeffs | schedules | marked) & set(fields)) - taken


def declared(cls: type, name: str) -> Mapping[str, str]:
    """What the classes of options say in their class attribute `name`, joined: reasons by key."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base).get(name, {}))
    return found


def check_meaning(options: Any) -> None:
    """Refuses options that have no meaning in an algorithm, where they have another value than their default.

    Raises:
        ConfigError: one has; with the reason.
    """
    cls = type(options)
    for key, reason in declared(cls, "without_meaning").items():
        spec, value = config_lib.spec_of(cls, key), config_lib.to_dict(options)[key]
        if value != spec.default:
            raise ConfigError(f"config: {key}={value!r} has no meaning here: {reason}; leave it out.")


def _is_policys(base: type) -> bool:
    return issubclass(base, PolicyConfig) and not issubclass(base, RolloutConfig)


def policy_options(
    trainer: Any, pid: PolicyID, given: Mapping[str, Any], asked: Any, chosen: PolicyFactory | None
) -> Any:
    """The options of one policy: the trainer's, with what it was given of its own, made complete as these are.

    Args:
        trainer: the Trainer class.
        pid: the policy.
        given: its own options.
        asked: the trainer's options as they were asked for.
        chosen: the policy in place of the trainer's, or None.

    Raises:
        ConfigError: an option that no single policy can have, by name, with the reason; or one that is wrong.
    """
    cls, where = type(asked), f"multiagent.policies[{pid!r}]"
    known, allowed = [field.name.rstrip("_") for field in dataclasses.fields(cls)], options_of_policies(cls)
    for key in given:
        if key in known and key not in allowed:
            sampling = key in {field.name.rstrip("_") for field in dataclasses.fields(RolloutConfig)}
            told = {**declared(cls, "of_run"), **declared(cls, "without_meaning")}
            reason = told.get(key, _SAMPLING if sampling else _RUN)
            hint = did_you_mean(key, sorted(allowed)) or ""
            raise ConfigError(
                f"{where}: {key!r} cannot differ between policies: {reason}. Set it beside multiagent, for all "
                f"policies{hint or '.'} A policy may have its own {', '.join(sorted(allowed))}."
            )
    brought = {} if chosen is None else numbers_of_its_loss(chosen, trainer.policy_factory, asked)
    return trainer.complete(config_lib.parse(cls, {**brought, **given}, base=asked, where=where))


def numbers_of_its_loss(chosen: PolicyFactory, default: PolicyFactory, asked: Any) -> dict[str, float]:
    """The coeffs that another loss than an algorithm's own brings, where the user gave the options no value.

    Args:
        chosen: the policy with the loss.
        default: the algorithm's own.
        asked: the options.
    """
    if chosen.loss_fn is default.loss_fn:
        return {}
    plain = {spec.key: spec.default for spec in config_lib.describe(type(asked))}
    return {
        name: value for name, value in chosen.coeffs.items() if name in plain and getattr(asked, name) == plain[name]
    }
