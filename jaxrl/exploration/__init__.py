"""Exploration: pure functions from an action distribution to actions."""

from jaxrl.exploration.action_noise import (
    gaussian_noise,
    ornstein_uhlenbeck_noise,
    per_worker_gaussian_noise,
    per_worker_ornstein_uhlenbeck_noise,
)
from jaxrl.exploration.catalog import make_exploration
from jaxrl.exploration.epsilon_greedy import epsilon_greedy, per_worker_epsilon_greedy
from jaxrl.exploration.exploration import Exploration
from jaxrl.exploration.parameter_noise import parameter_noise
from jaxrl.exploration.per_worker import per_worker, worker_info, worker_value
from jaxrl.exploration.random import random_actions
from jaxrl.exploration.random_start import random_start
from jaxrl.exploration.soft_q import soft_q
from jaxrl.exploration.stochastic_sampling import stochastic_sampling

__all__ = [
    "Exploration",
    "epsilon_greedy",
    "gaussian_noise",
    "make_exploration",
    "ornstein_uhlenbeck_noise",
    "parameter_noise",
    "per_worker",
    "per_worker_epsilon_greedy",
    "per_worker_gaussian_noise",
    "per_worker_ornstein_uhlenbeck_noise",
    "random_actions",
    "random_start",
    "soft_q",
    "stochastic_sampling",
    "worker_info",
    "worker_value",
]
