"""Loss terms, their algebra, and the returns and advantages that they read."""

from jaxrl.losses.algebra import Term, coeff, coeffs_of, split_output, term, weighted_sum
from jaxrl.losses.policy_gradient import (
    advantage_policy_gradient,
    clipped_surrogate,
    entropy_bonus,
    kl_penalty,
    reinforce,
)
from jaxrl.losses.returns import GAEOutput, discounted_returns, gae, lambda_returns, n_step_returns
from jaxrl.losses.statistics import explained_variance, standardize
from jaxrl.losses.value import clipped_value_error, value_error

__all__ = [
    "GAEOutput",
    "Term",
    "advantage_policy_gradient",
    "clipped_surrogate",
    "clipped_value_error",
    "coeff",
    "coeffs_of",
    "discounted_returns",
    "entropy_bonus",
    "explained_variance",
    "gae",
    "kl_penalty",
    "lambda_returns",
    "n_step_returns",
    "reinforce",
    "split_output",
    "standardize",
    "term",
    "value_error",
    "weighted_sum",
]
