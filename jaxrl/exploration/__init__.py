"""Exploration: pure functions from an action distribution to actions."""

from jaxrl.exploration.catalog import make_exploration
from jaxrl.exploration.exploration import Exploration
from jaxrl.exploration.random import random_actions
from jaxrl.exploration.stochastic_sampling import stochastic_sampling

__all__ = ["Exploration", "make_exploration", "random_actions", "stochastic_sampling"]
