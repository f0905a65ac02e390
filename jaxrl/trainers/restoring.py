"""What becomes of a checkpoint's state under options that have changed since: options given now count.

Parameters always go on. A coeff (lr, clip_param, kl_coeff, epsilon, ...) goes on where its option is what it was when
the checkpoint was written, so that what adapts by itself, or was set by `set_coeffs`, is kept; where the option has
changed, its new value or schedule counts. A parameter that an option says the beginning of (`initial_alpha`) is treated
alike. The optimiser's moments go on where they fit the optimiser of now.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from jaxrl import config as config_lib
from jaxrl import trees
from jaxrl.execution.compiled_engine import CompiledEngine
from jaxrl.execution.compiled_rounds import COMPILED_ROUNDS, world_fits
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner import Learner
from jaxrl.policies import TrainState
from jaxrl.schedules import as_plain, make_schedule

logger = logging.getLogger("jaxrl")

_MOMENTS = "opt_state/"


def learner_options(learner: Learner) -> dict[str, Any]:
    """The options that a learner's state is made of, as plain data: a checkpoint holds them."""
    spec = learner.policy.spec
    config, schedules = spec.config, {name: as_plain(schedule) for name, schedule in spec.schedules.items()}
    optimizer = {"optimizer": config.optimizer, "grad_clip": config.grad_clip}
    begun = [field for field in dataclasses.fields(config) if field.metadata.get("begins")]
    return {
        "coeffs": {**spec.coeffs, **schedules},
        "optimizer": json.dumps(config_lib.to_json(optimizer), sort_keys=True),
        "params": {field.metadata["begins"]: getattr(config, field.name) for field in begun},
    }


def learner_state(
    learner: Learner, saved: Mapping[str, Any], options: Mapping[str, Any] | None, where: str
) -> TrainState:
    """A learner's state from a checkpoint, under the learner's own options.

    Args:
        learner: whose options count.
        saved: the state's leaves by path.
        options: what `learner_options` gave when it was saved; None: it is not known, so they are taken as unchanged.
        where: for messages.

    Raises:
        CheckpointError: arrays are missing, left over, or of another shape or dtype.
    """
    state, own = learner.state, learner_options(learner)
    if options is not None and options != own:
        saved = _with_coeffs(state, saved, options["coeffs"], own["coeffs"])
        if options["optimizer"] != own["optimizer"]:
            saved = _with_moments(learner, saved, where)
        if options["params"] != own["params"]:
            begun = [f"params/{name}" for name, value in own["params"].items() if options["params"].get(name) != value]
            fresh = trees.flatten_with_paths(learner.policy.init(state.key))
            saved = {**saved, **{path: fresh[path] for path in begun if path in fresh}}
    return trees.restore_like(state, saved, where)


def _with_coeffs(
    state: TrainState, saved: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    own = {name: trees.flatten_with_paths({"coeffs": {name: x}}) for name, x in state.coeffs.items()}
    known = {path for name in before for path in trees.flatten_with_paths({"coeffs": {name: 0.0}})}
    kept = {path: x for path, x in saved.items() if path not in known}
    for name, paths in own.items():
        ((path, value),) = paths.items()
        if name not in before or before[name] != now[name]:
            kept[path] = value.dtype.type(make_schedule(now[name])(0))
        elif path in saved:
            kept[path] = saved[path]
    return kept


def _with_moments(learner: Learner, saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`saved` with the optimiser's state under the paths of the learner's own optimiser, or with a fresh one."""
    own = {p: x for p, x in trees.flatten_with_paths(learner.state).items() if p.startswith(_MOMENTS)}
    theirs = {p: x for p, x in saved.items() if p.startswith(_MOMENTS)}
    rest = {p: x for p, x in saved.items() if not p.startswith(_MOMENTS)}

    def kinds(leaves: Mapping[str, Any]) -> list[Any]:
        return [(path.rpartition("/")[2], x.shape, x.dtype) for path, x in leaves.items()]

    if kinds(own) == kinds(theirs):  # clipping, say, shifts the places alone
        return {**rest, **dict(zip(own, theirs.values(), strict=True))}
    logger.warning("%s: it was trained with another optimiser, so the state of the new one begins anew", where)
    fresh = learner.policy.init(learner.state.key)
    return {**rest, **{p: x for p, x in trees.flatten_with_paths(fresh).items() if p.startswith(_MOMENTS)}}


def plan_state(plan: LocalIterator, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state for `plan` of one that other options made: nodes of one name and kind go on, others begin anew.

    Names are compared without what is in brackets, which tells sizes.
    """
    found: dict[tuple[str, str], list[Any]] = {}
    for node in saved["nodes"]:
        found.setdefault(_identity(node["name"], node["kind"]), []).append(node)
    nodes = []
    for node in plan.nodes():
        known = found.get(_identity(node.name, node.kind))
        fresh = {"kind": node.kind, "in": 0, "out": 0, "state": None}
        nodes.append({**(known.pop(0) if known else fresh), "name": node.name})
    return {"nodes": nodes}


def results_alone(plan: LocalIterator, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state for `plan` of one that another engine ran: what makes results goes on, what samples begins anew."""
    kept = {node.name for node in plan.nodes() if getattr(getattr(node, "operator", None), "between_rounds", False)}
    known = plan_state(plan, saved)["nodes"]
    fresh = {"in": 0, "out": 0, "state": None}
    return {"nodes": [node if node["name"] in kept else {**node, **fresh} for node in known]}


def without_items_of_shards(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's state without what waits in shards, which belongs to workers that are no more."""
    nodes = [{**node, "state": None} if node["kind"].startswith("gather") else node for node in saved["nodes"]]
    return {**saved, "nodes": nodes}


def with_world_that_fits(saved: Mapping[str, Any], engine: CompiledEngine, *, anew: bool) -> dict[str, Any]:
    """A compiled plan's state, whose environments begin anew where they are others now (their number, say).

    Args:
        saved: the plan's state.
        engine: the compiled engine.
        anew: they begin anew even where they fit: the seed is another.
    """

    def fitted(node: Mapping[str, Any]) -> Mapping[str, Any]:
        if not node["name"].startswith(COMPILED_ROUNDS) or node["state"] is None:
            return node
        rounds = node["state"]["op"]
        if not rounds["world"] or (world_fits(rounds["world"], engine) and not anew):
            return node
        return {**node, "state": {"op": {**rounds, "world": []}}}

    return {**saved, "nodes": [fitted(node) for node in saved["nodes"]]}


def _identity(name: str, kind: str) -> tuple[str, str]:
    return name.partition("(")[0], kind
