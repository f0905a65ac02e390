"""Exploration: pure functions from an action distribution to actions."""

from jaxrl.exploration.catalog import make_exploration as make_exploration
from jaxrl.exploration.exploration import Exploration as Exploration
from jaxrl.exploration.random import random_actions as random_actions
from jaxrl.exploration.stochastic_sampling import stochastic_sampling as stochastic_sampling
