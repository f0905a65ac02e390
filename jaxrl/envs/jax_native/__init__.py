"""JAX-native environments: pure functions that compile with the policy, and the classic tasks written so."""

from jaxrl.envs.jax_native.auto_reset import VectorStep, draw_resets, select_rows, vector_step
from jaxrl.envs.jax_native.cart_pole import CartPoleState, cart_pole, stateless_cart_pole
from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, TimeLimitState, time_limit

__all__ = [
    "CartPoleState",
    "JaxEnv",
    "JaxStep",
    "TimeLimitState",
    "VectorStep",
    "cart_pole",
    "draw_resets",
    "select_rows",
    "stateless_cart_pole",
    "time_limit",
    "vector_step",
]
