"""JAX-native environments: pure functions that compile with the policy, and the classic tasks written so."""

from jaxrl.envs.jax_native.acrobot_env import AcrobotState, acrobot
from jaxrl.envs.jax_native.auto_reset import VectorStep, draw_resets, select_rows, vector_step
from jaxrl.envs.jax_native.brax_env import from_brax
from jaxrl.envs.jax_native.cart_pole_env import cart_pole, stateless_cart_pole
from jaxrl.envs.jax_native.conformance import check_jax_env
from jaxrl.envs.jax_native.env import JaxEnv, JaxStep, TimeLimitState, time_limit
from jaxrl.envs.jax_native.gymnax_env import from_gymnax
from jaxrl.envs.jax_native.jumanji_env import from_jumanji
from jaxrl.envs.jax_native.memory import RepeatAfterMeState, repeat_after_me
from jaxrl.envs.jax_native.mountain_car_env import mountain_car, mountain_car_continuous
from jaxrl.envs.jax_native.pendulum_env import PendulumState, pendulum
from jaxrl.envs.jax_native.pgx_env import from_pgx
from jaxrl.envs.jax_native.probes import (
    ProbeState,
    action_probe,
    discount_probe,
    observation_action_probe,
    observation_probe,
    value_probe,
)

__all__ = [
    "AcrobotState",
    "JaxEnv",
    "JaxStep",
    "PendulumState",
    "ProbeState",
    "RepeatAfterMeState",
    "TimeLimitState",
    "VectorStep",
    "acrobot",
    "action_probe",
    "cart_pole",
    "check_jax_env",
    "discount_probe",
    "draw_resets",
    "from_brax",
    "from_gymnax",
    "from_jumanji",
    "from_pgx",
    "mountain_car",
    "mountain_car_continuous",
    "observation_action_probe",
    "observation_probe",
    "pendulum",
    "repeat_after_me",
    "select_rows",
    "stateless_cart_pole",
    "time_limit",
    "value_probe",
    "vector_step",
]
