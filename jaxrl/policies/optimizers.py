"""Optimisers by name, clipping, delayed groups: optax transforms built inside the trace from the current coeffs."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.types import Array, ConfigError, Params


class Delayed(NamedTuple):
    """A transform that acts on every n-th step only; in between, parameters and its own state stay as they are."""

    transform: optax.GradientTransformation
    every: int


def every(n: int, transform: optax.GradientTransformation) -> Delayed:
    """Applies `transform` on every `n`-th gradient step only (TD3's delayed actor).

    Args:
        n: steps, at least 1.
        transform: an optax transform.

    Returns:
        What `optimizer_fn` may give in place of the transform.

    Raises:
        ConfigError: if `n` is below 1.

    Example:
        >>> optimizer_fn = lambda config, coeffs: {
        ...     "critic": optax.adam(coeffs["lr"]), "actor": every(2, optax.adam(coeffs["lr"]))}
    """
    if n < 1:
        raise ConfigError(f"every: expected a number of steps >= 1, got {n}.")
    return Delayed(transform, n)


def default_optimizer(config: Any, coeffs: Mapping[str, Array], lr: str = "lr") -> optax.GradientTransformation:
    """The optimiser that `config.optimizer` names, at learning rate `coeffs[lr]`, after clipping the gradients.

    It is built anew inside each trace: optax treats a traced learning rate like any number, so that no schedule or
    change of it ever recompiles. Optimisers that treat every number alike see the parameters as one vector
    (`optax.flatten`), which changes nothing but the cost: for two networks of three layers, Adam's 36 small kernels
    become 15, faster to compile and to run.

    Args:
        config: a PolicyConfig; `optimizer` is a name of optax's or `{"type": name, **arguments}`, and `grad_clip` a
            norm or None.
        coeffs: the current coeffs.
        lr: which of them is the learning rate.

    Raises:
        ConfigError: optax has no such optimiser, or it refuses the arguments.
    """
    spec: Any = config.optimizer
    arguments = {} if isinstance(spec, str) else dict(spec)
    name = spec if isinstance(spec, str) else str(arguments.pop("type", "adam"))
    factory: Any = _optimizers().get(name)
    if factory is None:
        near = difflib.get_close_matches(name, _COMMON_OPTIMIZERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"optimizer: optax has no {name!r}{hint} Common ones: {', '.join(_COMMON_OPTIMIZERS)}.")
    try:
        transform: Any = factory(learning_rate=coeffs[lr], **arguments)
    except TypeError as error:
        raise ConfigError(
            f"optimizer: optax.{name} refused learning_rate and the arguments {arguments}: {error}. Common ones: "
            f"{', '.join(_COMMON_OPTIMIZERS)}."
        ) from error
    if config.grad_clip is not None:
        transform = optax.chain(optax.clip_by_global_norm(config.grad_clip), transform)
    return optax.flatten(transform) if name in _ELEMENTWISE and "mask" not in arguments else transform


@functools.cache
def _optimizers() -> dict[str, Any]:
    """Optax's optimisers by name: its functions that take a learning rate."""
    kinds = (types.FunctionType, functools.partial)
    found = {name: value for name, value in vars(optax).items() if isinstance(value, kinds)}
    return {name: value for name, value in found.items() if "learning_rate" in inspect.signature(value).parameters}


_ELEMENTWISE = frozenset({"adam", "adamw", "sgd", "rmsprop", "lion", "radam", "adagrad", "adamax", "nadam", "yogi"})
_COMMON_OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "lion", "lamb", "radam", "adagrad", "adamax", "nadam", "yogi")

Optimizer = optax.GradientTransformation | Delayed


def init_optimizer(optimizer: Optimizer | Mapping[str, Optimizer], params: Params) -> Any:
    """Optimiser state for `params`; a mapping of optimisers has one state per group of top-level params.

    Raises:
        ConfigError: the mapping names a group that `params` does not have.
    """
    if isinstance(optimizer, Mapping):
        unknown = [group for group in optimizer if group not in params]
        if unknown:
            raise ConfigError(
                f"optimizer_fn: it returns an optimiser for {unknown[0]!r}, but the model's groups are "
                f"{sorted(params)}; name those, one entry for each."
            )
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
