"""Loss terms, their algebra, and the returns, advantages, targets and errors that losses are made of."""

from jaxrl.losses.algebra import Term, coeff, coeffs_of, split_output, term, weighted_sum
from jaxrl.losses.deterministic import clipped_double_q, deterministic_policy_loss, smoothed_actions
from jaxrl.losses.distributional import (
    atoms_of_actions,
    categorical_td_target,
    cross_entropy,
    expected_values,
    project_distribution,
    quantile_huber,
    quantile_midpoints,
    quantile_td_errors,
    quantiles_of_actions,
    value_support,
)
from jaxrl.losses.policy_gradient import (
    advantage_policy_gradient,
    clipped_surrogate,
    entropy_bonus,
    kl_penalty,
    reinforce,
)
from jaxrl.losses.returns import GAEOutput, discounted_returns, gae, lambda_returns, n_step_returns
from jaxrl.losses.soft import (
    default_target_entropy,
    soft_policy_loss,
    soft_policy_loss_discrete,
    soft_values,
    soft_values_discrete,
    temperature_loss,
)
from jaxrl.losses.statistics import explained_variance, standardize
from jaxrl.losses.td import (
    double_q_values,
    huber,
    q_of_actions,
    rescale_values,
    td_error,
    td_target,
    unscale_values,
)
from jaxrl.losses.value import clipped_value_error, value_error
from jaxrl.losses.vtrace import VTraceOutput, vtrace

__all__ = [
    "GAEOutput",
    "Term",
    "VTraceOutput",
    "advantage_policy_gradient",
    "atoms_of_actions",
    "categorical_td_target",
    "clipped_double_q",
    "clipped_surrogate",
    "clipped_value_error",
    "coeff",
    "coeffs_of",
    "cross_entropy",
    "default_target_entropy",
    "deterministic_policy_loss",
    "discounted_returns",
    "double_q_values",
    "entropy_bonus",
    "expected_values",
    "explained_variance",
    "gae",
    "huber",
    "kl_penalty",
    "lambda_returns",
    "n_step_returns",
    "project_distribution",
    "q_of_actions",
    "quantile_huber",
    "quantile_midpoints",
    "quantile_td_errors",
    "quantiles_of_actions",
    "reinforce",
    "rescale_values",
    "smoothed_actions",
    "soft_policy_loss",
    "soft_policy_loss_discrete",
    "soft_values",
    "soft_values_discrete",
    "split_output",
    "standardize",
    "td_error",
    "td_target",
    "temperature_loss",
    "term",
    "unscale_values",
    "value_error",
    "value_support",
    "vtrace",
    "weighted_sum",
]
