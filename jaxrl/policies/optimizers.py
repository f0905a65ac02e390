"""Optimisers by name, gradient clipping, delayed groups: optax transforms built inside the trace from the current coeffs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.types import Array, ConfigError, Params


class Delayed(NamedTuple):
    """A transform that acts on every n-th step only, and leaves parameters and its own state alone in between (TD3's actor)."""

    transform: optax.GradientTransformation
    every: int


def every(n: int, transform: optax.GradientTransformation) -> Delayed:
    """Apply `transform` on every `n`-th gradient step only.

    Example:
        >>> optimizer_fn = lambda config, coeffs: {
        ...     "critic": optax.adam(coeffs["lr"]), "actor": every(2, optax.adam(coeffs["lr"]))}
    """
    if n < 1:
        raise ConfigError(f"every: expected a number of steps >= 1, got {n}.")
    return Delayed(transform, n)


def default_optimizer(config: Any, coeffs: Mapping[str, Array]) -> optax.GradientTransformation:
    """The optimiser that `config.optimizer` names, at learning rate `coeffs["lr"]`, after clipping to `config.grad_clip`.

    It is built anew inside each trace: optax treats a traced learning rate like any number, so that no schedule or change of
    it ever recompiles.
    """
    spec = config.optimizer
    name, arguments = (spec, {}) if isinstance(spec, str) else (spec.get("type", "adam"), dict(spec))
    arguments = {k: v for k, v in arguments.items() if k != "type"}
    factory = getattr(optax, str(name), None)
    if not callable(factory):
        near = difflib.get_close_matches(str(name), _COMMON_OPTIMIZERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"optimizer: optax has no {name!r}{hint} Common ones: {', '.join(_COMMON_OPTIMIZERS)}.")
    try:
        transform = factory(learning_rate=coeffs["lr"], **arguments)
    except TypeError as error:
        raise ConfigError(f"optimizer: optax.{name} refused the arguments {arguments}: {error}.") from error
    if config.grad_clip is None:
        return transform
    return optax.chain(optax.clip_by_global_norm(config.grad_clip), transform)


_COMMON_OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "lion", "lamb", "radam", "adagrad", "adamax", "nadam", "yogi")

Optimizer = optax.GradientTransformation | Delayed


def init_optimizer(optimizer: Optimizer | Mapping[str, Optimizer], params: Params) -> Any:
    """Optimiser state for `params`; a mapping of optimisers has one state per group of top-level params."""
    if isinstance(optimizer, Mapping):
        return {group: _transform(o).init(params[group]) for group, o in optimizer.items()}
    return _transform(optimizer).init(params)


def apply_optimizer(
    optimizer: Optimizer | Mapping[str, Optimizer], grads: Params, opt_state: Any, params: Params, step: Array
) -> tuple[Params, Any]:
    """One optimiser step: `(params, opt_state)` after `grads`; groups without an optimiser stay as they are."""
    if isinstance(optimizer, Mapping):
        new_params, new_state = dict(params), {}
        for group, o in optimizer.items():
            new_params[group], new_state[group] = _apply(o, grads[group], opt_state[group], params[group], step)
        return new_params, new_state
    return _apply(optimizer, grads, opt_state, params, step)


def _transform(optimizer: Optimizer) -> optax.GradientTransformation:
    return optimizer.transform if isinstance(optimizer, Delayed) else optimizer


def _apply(optimizer: Optimizer, grads: Params, opt_state: Any, params: Params, step: Array) -> tuple[Params, Any]:
    updates, new_state = _transform(optimizer).update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    if not isinstance(optimizer, Delayed):
        return new_params, new_state
    due = (step + 1) % optimizer.every == 0

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(due, n, o), new, old)

    return keep(new_params, params), keep(new_state, opt_state)
