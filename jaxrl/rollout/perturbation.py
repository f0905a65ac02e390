"""Acting with perturbed parameters: what a sampler does for explorations such as parameter noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.policies import Policy, TrainState
from jaxrl.types import Array, PyTree, Weights


class Perturbation:
    """Perturbs a policy's parameters for a fragment, and tells the exploration what that changed.

    Args:
        policy: a policy whose exploration perturbs.
    """

    def __init__(self, policy: Policy):
        exploration = policy.spec.exploration

        def perturb(weights: Weights, carry: PyTree, key: Array) -> Weights:
            return weights._replace(params=exploration.perturb(weights.params, carry[1], key))

        def update(weights: Weights, acting: Weights, fragment: SampleBatch, carry: PyTree) -> PyTree:
            params, coeffs = weights
            state = TrainState(jnp.zeros((), jnp.int32), params, None, (), coeffs, jax.random.key(0))
            ctx = policy.context(state)
            dist, dist_clean = ctx.forward(acting.params, fragment).dist, ctx.forward(params, fragment).dist
            return carry[0], exploration.update(carry[1], fragment, dist, dist_clean, coeffs)

        self._perturb, self._update = jax.jit(perturb), jax.jit(update)

    def perturb(self, weights: Weights, carry: PyTree, key: Array) -> Weights:
        """The weights to act with in the next fragment; `key` is for it alone."""
        return self._perturb(weights, carry, key)

    def update(self, weights: Weights, acting: Weights, fragment: SampleBatch, carry: PyTree) -> PyTree:
        """The carry after a fragment that was acted in with `acting` in place of `weights`."""
        return self._update(weights, acting, fragment, carry)


def make_perturbation(policy: Policy) -> Perturbation | None:
    """What perturbs a policy's parameters, None where its exploration does not."""
    return Perturbation(policy) if policy.spec.exploration.perturbs else None
