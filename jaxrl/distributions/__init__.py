"""Action distributions: frozen pytree values, and the class of them that serves each action space."""

from jaxrl.distributions.beta import Beta
from jaxrl.distributions.bounds import inner_bounds, middle_and_half
from jaxrl.distributions.catalog import get_dist_class
from jaxrl.distributions.deterministic import Deterministic
from jaxrl.distributions.dirichlet import Dirichlet
from jaxrl.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from jaxrl.distributions.distribution import MASK_VALUE, DistClass, Distribution
from jaxrl.distributions.gaussian import DiagGaussian, SquashedGaussian
from jaxrl.distributions.joint import Joint
from jaxrl.distributions.simplex import Simplex

__all__ = [
    "MASK_VALUE",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Deterministic",
    "DiagGaussian",
    "Dirichlet",
    "DistClass",
    "Distribution",
    "Joint",
    "MultiCategorical",
    "Simplex",
    "SquashedGaussian",
    "get_dist_class",
    "inner_bounds",
    "middle_and_half",
]
