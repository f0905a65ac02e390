"""Coeffs: the numbers of a policy that may change without recompiling, and their schedules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from jaxrl.config import option
from jaxrl.schedules import Coeff, ConstantSchedule, Schedule, make_schedule
from jaxrl.types import LossError


def loss_coeffs(loss_fn: Any) -> dict[str, float]:
    """Default coeffs of a loss function's terms; of all the losses where it is a mapping of groups.

    Raises:
        LossError: two groups' losses give one coeff different defaults.
    """
    losses = loss_fn.values() if isinstance(loss_fn, Mapping) else [loss_fn]
    coeffs: dict[str, float] = {}
    for loss in losses:
        for name, value in getattr(loss, "coeffs", {}).items():
            if coeffs.setdefault(name, value) != value:
                raise LossError(
                    f"coeff {name!r} has two defaults, {coeffs[name]} and {value}; give both losses the same."
                )
    return coeffs


def initial_coeffs(factory: Any, exploration: Any, config: Any) -> tuple[dict[str, float], dict[str, Schedule]]:
    """The coeffs at step 0 and the schedules of those that have one.

    Defaults come from the loss's terms, the exploration and `coeffs_fn`; an option of the same name in the config wins
    over a loss's, and an option `<name>_schedule` that is set wins over both.

    Args:
        factory: the PolicyFactory.
        exploration: the policy's Exploration.
        config: the policy's config.

    Returns:
        `(coeffs, schedules)` by name.
    """
    specs: dict[str, Any] = {"lr": None, **factory.coeffs}
    for name in specs:
        specs[name] = getattr(config, name, specs[name])
    # An exploration has options of its own: one of the config that is called like a coeff of it means something else.
    specs.update({**exploration.coeffs, **exploration.schedules})
    if factory.coeffs_fn is not None:
        specs.update(factory.coeffs_fn(config))
    for name in specs:
        schedule = getattr(config, f"{name}_schedule", None)
        specs[name] = specs[name] if schedule is None else schedule
    made = {name: make_schedule(spec) for name, spec in specs.items()}
    schedules: dict[str, Schedule] = {name: s for name, s in made.items() if not isinstance(s, ConstantSchedule)}
    return {name: float(s(0)) for name, s in made.items()}, schedules


def learning_rates(config: Any, *names: str) -> dict[str, Any]:
    """Learning rates of groups of parameters, for a `coeffs_fn`: options that are None stand for `lr`.

    Args:
        config: the policy's config.
        names: options, for example "actor_lr" and "critic_lr".
    """
    shared = config.lr if config.lr_schedule is None else config.lr_schedule
    return {name: shared if getattr(config, name) is None else getattr(config, name) for name in names}


def coeff_fields(base: type, coeffs: Mapping[str, float], defaults: Mapping[str, Any], name: str) -> type:
    """`base` with one traced option for each coeff that it lacks, and with `defaults` in place of its own."""
    known = {f.name: f for f in dataclasses.fields(base)}
    missing = tuple((c, v) for c, v in sorted(coeffs.items()) if c not in known)
    replaced = tuple(sorted(defaults.items(), key=lambda item: item[0]))
    if not missing and not replaced:
        return base
    return _extended(base, missing, _Identity(replaced), name)


class _Identity(tuple):
    """A tuple hashed by its items' names: defaults may hold unhashable values."""

    def __hash__(self) -> int:
        return hash(tuple(k for k, _ in self))


@functools.lru_cache(maxsize=256)
def _extended(base: type, missing: tuple, replaced: _Identity, name: str) -> type:
    known = {f.name: f for f in dataclasses.fields(base)}
    fields: list[Any] = [
        (coeff, Coeff, option(value, f"Coefficient {coeff} of {name}'s loss, or a schedule.", traced=True))
        for coeff, value in missing
    ]
    for key, value in replaced:
        field = known.get(key) or known.get(f"{key}_")
        if field is None:
            fields.append((key, Any, option(value, f"Option of {name}.")))
        else:
            fields.append((field.name, field.type, option(_merged(field, value), **field.metadata)))
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, kw_only=True, eq=False)


def _merged(field: Any, value: Any) -> Any:
    """The default of a section (a nested dataclass) with a mapping's options replaced; other values as they are."""
    section = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if dataclasses.is_dataclass(section) and not isinstance(section, type) and isinstance(value, Mapping):
        return dataclasses.replace(section, **value)
    return value
