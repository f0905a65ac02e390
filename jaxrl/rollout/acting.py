"""LeanAct: a policy's `act`, handed only the parameters that acting reads.

Every array that a jitted call is given costs about half a microsecond, and a step of eight CartPoles takes sixty. A
separate value network and most coeffs are of no use to `act`: which leaves it reads is found once, by tracing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Var

from jaxrl.policies import Policy
from jaxrl.types import ActInputs, ActOutput, PyTree, Weights

# By the policy's jitted act, so that all samplers of a process share what has been compiled.
_lean: weakref.WeakKeyDictionary[Any, dict[bool, tuple[list[bool], Callable[..., ActOutput]]]] = (
    weakref.WeakKeyDictionary()
)


class LeanAct:
    """Calls a policy's `act` with what it reads.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: Policy):
        self._policy = policy
        self._cache = _lean.setdefault(policy.act, {})
        self._picked: tuple[Weights | None, bool, list[Any]] = (None, True, [])
        self._key: tuple[Any, Any] = (None, None)

    def __call__(self, weights: Weights, inputs: ActInputs, carry: PyTree, key: Any, explore: bool) -> ActOutput:
        """As `Policy.act`."""
        last, last_explore, leaves = self._picked
        if last is not weights or last_explore is not explore:
            if explore not in self._cache:
                self._cache[explore] = _trace(self._policy.act, weights, inputs, carry, key, explore)
            reads, _ = self._cache[explore]
            leaves = [leaf for leaf, read in zip(jax.tree.leaves(weights), reads, strict=True) if read]
            self._picked = weights, explore, leaves
        if self._key[0] is not key:
            # A typed key is taken apart in Python at every call; its data is an array like any other.
            self._key = key, jax.random.key_data(key)
        return self._cache[explore][1](leaves, inputs, carry, self._key[1])


def _trace(
    act: Any, weights: Weights, inputs: ActInputs, carry: PyTree, key: Any, explore: bool
) -> tuple[list[bool], Callable[..., ActOutput]]:
    """Which leaves of `weights` are read, and `(those leaves, inputs, carry, key data) -> ActOutput`, jitted."""
    pure, implementation = act.__wrapped__, jax.random.key_impl(key)
    jaxpr = jax.make_jaxpr(lambda *args: pure(*args, explore))(weights, inputs, carry, key).jaxpr
    leaves, structure = jax.tree.flatten(weights)
    reads = _live_inputs(jaxpr)[: len(leaves)]

    def lean(read: list[Any], inputs: ActInputs, carry: PyTree, key_data: Any) -> ActOutput:
        given, key = iter(read), jax.random.wrap_key_data(key_data, impl=implementation)
        # What is not read may be anything: zeros of the same shape keep the trace whole, and vanish from the program.
        full = [
            next(given) if used else jax.numpy.zeros(shape, dtype)
            for used, (shape, dtype) in zip(reads, kinds, strict=True)
        ]
        return pure(jax.tree.unflatten(structure, full), inputs, carry, key, explore)

    kinds = [(leaf.shape, leaf.dtype) for leaf in leaves]
    return reads, jax.jit(lean)


def _live_inputs(jaxpr: Any) -> list[bool]:
    """For each input, whether an output (or an effect) depends on it."""
    live = {var for var in jaxpr.outvars if isinstance(var, Var)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(var in live for var in eqn.outvars):
            live.update(var for var in eqn.invars if isinstance(var, Var))
    return [var in live for var in jaxpr.invars]
