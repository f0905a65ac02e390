"""build_trainer: a trainer class from a policy, a config and an execution plan."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts
from jaxrl.execution.train_ops import TrainOneStep
from jaxrl.policies import PolicyFactory
from jaxrl.trainers.config import CommonConfig
from jaxrl.trainers.setup import check_batch_sizes
from jaxrl.trainers.trainer import Trainer

# What progress lines show of a trainer that does not say.
DEFAULT_PROGRESS: Mapping[str, str] = {"loss": "info/learner/*/total_loss"}


def default_execution_plan(ctx: PlanContext) -> LocalIterator:
    """Synchronous sampling: rollouts, train batches, one learning step each."""
    rollouts = ParallelRollouts(ctx, mode="bulk_sync")
    batches = rollouts.combine(ConcatBatches(ctx.config.train_batch_size))
    return StandardMetricsReporting(ctx, batches.for_each(TrainOneStep(ctx)))


def build_trainer(
    name: str,
    *,
    default_policy: PolicyFactory,
    default_config: type[CommonConfig] | Mapping[str, Any] | None = None,
    execution_plan: Callable[[PlanContext], LocalIterator] | None = None,
    validate_config: Callable[[Any], Any] | None = None,
    progress: Mapping[str, str] = DEFAULT_PROGRESS,
) -> type[Trainer]:
    """Builds a trainer class.

    Args:
        name: the class's name.
        default_policy: made by `build_policy`; multi-agent configs may name others.
        default_config: a CommonConfig subclass, or a mapping of defaults that differ from CommonConfig's.
        execution_plan: `(ctx) -> LocalIterator` of results; default: synchronous sampling and one learning step per
            train batch.
        validate_config: `(config) -> config or None`, raises ConfigError or returns a changed config.
        progress: numbers that progress lines show beside rewards, by title: keys of results joined by `/`, with `*` for
            the first policy: `{"kl": "info/learner/*/kl"}`.

    Returns:
        A Trainer class, which is a Tune trainable, with `.with_updates(**overrides)`.

    Example:
        >>> MyTrainer = build_trainer("MyTrainer", default_policy=MyPolicy)
        >>> trainer = MyTrainer(config={"env": "CartPole-v1"})
        >>> trainer.train()["episode_reward_mean"]
    """
    parts = {
        "name": name,
        "default_policy": default_policy,
        "default_config": default_config,
        "execution_plan": execution_plan,
        "validate_config": validate_config,
        "coeffs": {},
        "progress": progress,
    }
    return _make_class(parts, sys._getframe(1).f_globals.get("__name__", __name__))


def _make_class(parts: Mapping[str, Any], module: str) -> type[Trainer]:
    name, factory, default_config = parts["name"], parts["default_policy"], parts["default_config"]
    base, defaults = CommonConfig, dict(default_config or {}) if not isinstance(default_config, type) else {}
    if isinstance(default_config, type):
        base = default_config
    if isinstance(factory.default_config, Mapping):
        defaults = {**factory.default_config, **defaults}
    known = {field.name for field in dataclasses.fields(base)}
    defaults = {**{key: value for key, value in parts["coeffs"].items() if key in known}, **defaults}

    def with_updates(**overrides: Any) -> type[Trainer]:
        """The same trainer with some parts replaced; keywords as of `build_trainer`.

        Another loss brings its own numbers: they are the defaults of the options that they are called like, where no
        `default_config` comes with it.
        """
        other = overrides.get("default_policy")
        if other is not None and other.loss_fn is not factory.loss_fn:
            overrides["coeffs"] = {} if "default_config" in overrides else other.coeffs
        return _make_class({**parts, **overrides}, sys._getframe(1).f_globals.get("__name__", __name__))

    plan = parts["execution_plan"]
    attributes = {
        "__module__": module,
        "__doc__": f"{name}: trains {factory.name}. `{name}.config_help()` lists its options.",
        "config_class": factory.with_updates(default_config=defaults).config_class(base),
        "policy_factory": factory,
        "execution_plan": staticmethod(plan or default_execution_plan),
        "validate_config": staticmethod(parts["validate_config"] or (check_batch_sizes if plan is None else _no_check)),
        "progress_keys": parts["progress"],
        "with_updates": staticmethod(with_updates),
    }
    return type(name, (Trainer,), attributes)


def _no_check(config: Any) -> None:
    del config
