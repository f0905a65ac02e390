"""The parts of a run: policies, workers or a compiled program, learners, plan; built once by the trainer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from jaxrl.envs.jax_native import JaxEnv
from jaxrl.execution.compiled_engine import CompiledEngine, learner_key
from jaxrl.execution.compiled_rounds import compiled_engine
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner import Learner
from jaxrl.execution.programs import without_collection
from jaxrl.policies import Policy
from jaxrl.rollout import PolicyRecipe, WorkerSet, is_multi_agent
from jaxrl.rollout.compiled_rollouts import check_rollout_options
from jaxrl.rollout.compiled_workers import CompiledWorkers
from jaxrl.trainers import engines, resources, setup
from jaxrl.types import CannotCompileError, PolicyID


class Parts(NamedTuple):
    """What a trainer is made of.

    Attributes:
        options: the options, with resources filled in.
        recipes, policies: by policy.
        multi_agent: whether the environment has several agents.
        context: workers, learners and counters of the plan.
        plan: the execution plan.
        compiled: the engine, where the plan is a compiled program; else None.
        started_ray: whether Ray was started for it.
    """

    options: Any
    recipes: Mapping[PolicyID, PolicyRecipe]
    policies: Mapping[PolicyID, Policy]
    multi_agent: bool
    context: PlanContext
    plan: LocalIterator
    compiled: CompiledEngine | None
    started_ray: bool


CheckPolicies = Callable[[Mapping[PolicyID, Policy]], None]


def build_parts(
    cls: Any, asked: Any, options: Any, undo: contextlib.ExitStack, check: CheckPolicies = lambda _: None
) -> Parts:
    """Builds all of a run.

    Args:
        cls: the Trainer class.
        asked: the options as they were asked for.
        options: resolved.
        undo: what a failure has to end is put there.
        check: is given the policies before memory is taken for what they learn; it may raise.

    Raises:
        ConfigError: options that cannot work together.
    """
    jax_env = engines.env_to_compile(options)
    if jax_env is not None:
        try:
            with without_collection():
                return _compiled_parts(cls, options, jax_env, undo, check)
        except CannotCompileError as error:
            engines.settle_for_workers(options, error)
    env = setup.probe_env(options)
    opened = undo.enter_context(contextlib.ExitStack())
    opened.callback(setup.close_env, env)
    recipes = setup.make_recipes(options, cls.policy_factory, env, functools.partial(cls.policy_options, asked))
    policies = {pid: recipe.build() for pid, recipe in recipes.items()}
    check(policies)
    multi_agent = is_multi_agent(env)
    if options.num_workers > 0:
        opened.close()
        env = None
    started_ray = False
    if options.num_workers > 0 or options.evaluation_num_workers > 0:
        options, started_ray = _with_ray(options, undo)
    workers = WorkerSet(options, policies, recipes, env=env)
    opened.pop_all()
    undo.callback(workers.stop)
    context = PlanContext(options, workers, _learners(options, policies))
    context.sync_weights()
    return Parts(options, recipes, policies, multi_agent, context, cls.execution_plan(context), None, started_ray)


def _compiled_parts(cls: Any, options: Any, env: JaxEnv, undo: contextlib.ExitStack, check: CheckPolicies) -> Parts:
    recipes = setup.make_recipes(options, cls.policy_factory, env)
    policies = {pid: recipe.build() for pid, recipe in recipes.items()}
    check(policies)
    for policy in policies.values():  # before the plan, which may ask for actors
        check_rollout_options(policy, options)
    workers = CompiledWorkers(options, policies)
    context = PlanContext(options, cast("Any", workers), _learners(options, policies))
    plan = cls.execution_plan(context)
    try:
        engine = compiled_engine(context, plan, env, workers)
    except Exception:
        context.stop()
        raise
    started_ray = False
    if options.evaluation_num_workers > 0:
        options, started_ray = _with_ray(options, undo)
    return Parts(options, recipes, policies, False, context, plan, engine, started_ray)


def _with_ray(options: Any, undo: contextlib.ExitStack) -> tuple[Any, bool]:
    started = resources.ensure_ray()
    if started:
        undo.callback(resources.shutdown_ray)
    return resources.with_worker_cpus(options), started


def _learners(options: Any, policies: Mapping[PolicyID, Policy]) -> dict[PolicyID, Learner]:
    return {
        pid: Learner(
            policy,
            functools.partial(learner_key, options.seed, i),
            policy_id=pid,
            num_devices=options.num_learner_devices,
        )
        for i, (pid, policy) in enumerate(policies.items())
    }
