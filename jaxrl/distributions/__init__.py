"""Action distributions: frozen pytree values, and the class of them that serves each action space."""

from jaxrl.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from jaxrl.distributions.distribution import MASK_VALUE, DistClass, Distribution
from jaxrl.distributions.gaussian import DiagGaussian, SquashedGaussian

__all__ = [
    "MASK_VALUE",
    "Bernoulli",
    "Categorical",
    "DiagGaussian",
    "DistClass",
    "Distribution",
    "MultiCategorical",
    "SquashedGaussian",
]
