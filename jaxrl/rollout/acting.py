"""LeanAct: a policy's `act`, handed only the parameters that acting reads.

Every array that a jitted call is given costs about half a microsecond, and every named tuple one or two, where a step
of eight CartPoles takes fifty. A separate value network and most coeffs are of no use to `act`: which leaves it reads
is found once, by tracing. What goes in and out are plain tuples, without what is not there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Var

from jaxrl.policies import Policy
from jaxrl.types import ActInputs, ActOutput, PyTree, Weights

# By the policy's jitted act, so that all samplers of a process share what has been compiled.
_lean: weakref.WeakKeyDictionary[Any, dict[bool, _Lean]] = weakref.WeakKeyDictionary()


class _Lean(NamedTuple):
    """What `act` reads of the weights, whether it has a carry, and the jitted function."""

    reads: list[bool]
    stateful: bool
    call: Callable[..., tuple[PyTree, PyTree, Any, Any]]


# Compiled: taken apart in Python it would cost ten times as much.
fold_in = jax.jit(jax.random.fold_in)


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

    def __call__(
        self, weights: Weights, inputs: tuple, carry: PyTree, key: Any, explore: bool
    ) -> tuple[PyTree, PyTree, Any, Any]:
        """`(actions, carry, logp, kept)`, as `Policy.act` gives them.

        `kept` is `(dist_inputs, value)` where the policy keeps them, else `()`.

        Args:
            weights, carry, key, explore: as of `Policy.act`.
            inputs: `(obs, t)` where the policy reads no more, else ActInputs.
        """
        last, last_explore, leaves = self._picked
        if last is not weights or last_explore is not explore:
            if explore not in self._cache:
                self._cache[explore] = _trace(self._policy, weights, inputs, carry, key, explore)
            reads = self._cache[explore].reads
            leaves = [leaf for leaf, read in zip(jax.tree.leaves(weights), reads, strict=True) if read]
            self._picked = weights, explore, leaves
        if self._key[0] is not key:
            # A typed key is taken apart in Python at every call; its data is an array like any other.
            self._key = key, jax.random.key_data(key)
        lean = self._cache[explore]
        if lean.stateful:
            return lean.call(leaves, self._key[1], inputs, carry)
        actions, _, logp, kept = lean.call(leaves, self._key[1], inputs, ())
        return actions, carry, logp, kept


def _trace(policy: Policy, weights: Weights, inputs: tuple, carry: PyTree, key: Any, explore: bool) -> _Lean:
    """Finds what `act` reads, and jits `(those leaves, key data, inputs, carry) -> (actions, carry, logp, kept)`."""
    act: Any = policy.act
    pure, implementation, keep = act.__wrapped__, jax.random.key_impl(key), policy.spec.keep_outputs

    def told(*args: Any) -> Any:
        out: ActOutput = pure(*args, explore)
        return out.actions, out.carry, out.logp, (out.dist_inputs, out.value) if keep else ()

    jaxpr = jax.make_jaxpr(told)(weights, ActInputs(*inputs), carry, key).jaxpr
    leaves, structure = jax.tree.flatten(weights)
    reads = _live_inputs(jaxpr)[: len(leaves)]

    def lean(read: list[Any], key_data: Any, inputs: tuple, state: PyTree) -> tuple[PyTree, PyTree, Any, Any]:
        given, key = iter(read), jax.random.wrap_key_data(key_data, impl=implementation)
        # What is not read may be anything: zeros of the same shape keep the trace whole, and vanish from the program.
        full = [
            next(given) if used else jax.numpy.zeros(shape, dtype)
            for used, (shape, dtype) in zip(reads, kinds, strict=True)
        ]
        own = state if stateful else empty_carry
        actions, carry, logp, kept = told(jax.tree.unflatten(structure, full), ActInputs(*inputs), own, key)
        return actions, carry if stateful else (), logp, kept

    kinds = [(leaf.shape, leaf.dtype) for leaf in leaves]
    stateful = bool(jax.tree.leaves(carry))
    empty_carry = None if stateful else carry
    return _Lean(reads, stateful, jax.jit(lean))


def _live_inputs(jaxpr: Any) -> list[bool]:
    """For each input, whether an output (or an effect) depends on it."""
    live = {var for var in jaxpr.outvars if isinstance(var, Var)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(var in live for var in eqn.outvars):
            live.update(var for var in eqn.invars if isinstance(var, Var))
    return [var in live for var in jaxpr.invars]
