"""build_policy: a policy from a loss function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl import config as config_lib
from jaxrl.policies.builder import PolicyBuilder
from jaxrl.policies.coeffs import coeff_fields, loss_coeffs
from jaxrl.policies.config import PolicyConfig
from jaxrl.policies.policy import Policy
from jaxrl.types import LossError


def build_policy(
    name: str,
    *,
    loss_fn: Any,
    make_model: Callable[..., Any] | None = None,
    dist_fn: Callable[..., Any] | None = None,
    exploration_fn: Callable[..., Any] | None = None,
    postprocess_fn: Callable[..., Any] | None = None,
    optimizer_fn: Callable[..., Any] | None = None,
    target_fn: Callable[..., Any] | None = None,
    coeffs_fn: Callable[..., Mapping[str, Any]] | None = None,
    update_fn: Callable[..., Mapping[str, Any]] | None = None,
    default_config: type[PolicyConfig] | Mapping[str, Any] | None = None,
) -> PolicyFactory:
    """Builds a policy from a loss function; every other part has a default and can be replaced by a pure function.

    Args:
        name: the policy's name.
        loss_fn: `(params, batch, ctx) -> scalar` or `(scalar, LearnOutput)`; or a mapping of groups of top-level params
            to such functions (a key may be a tuple of groups; None freezes a group).
        make_model: `(obs_space, action_space, num_outputs, config) -> Model`; default: the catalog with
            `config.model`.
        dist_fn: `(action_space, config) -> DistClass`; default: by action space.
        exploration_fn: `(action_space, config) -> Exploration`; default: `config.exploration_config`.
        postprocess_fn: `(params, batch, ctx, others) -> batch` on a time-major fragment, before the standard columns
            are filled; `others` are the other agents' aligned batches by policy.
        optimizer_fn: `(config, coeffs) -> optax transform`, or a mapping of one per group of params, built inside the
            trace from the current coeffs; default: `config.optimizer` at `coeffs["lr"]`.
        target_fn: `(train_state, config) -> target_params` after each gradient step; without it there are none. It may
            return some groups of the params: then only these have targets.
        coeffs_fn: `(config) -> {name: number or schedule}`, more coeffs than the loss terms' own and lr.
        update_fn: `(coeffs, metrics, config) -> coeffs` after each train batch (adaptive KL).
        default_config: a PolicyConfig subclass, or a mapping of defaults that differ from PolicyConfig's.

    Returns:
        A PolicyFactory: `(obs_space, action_space, config=None) -> Policy`, with `.with_updates(**overrides)`.

    Example:
        >>> def policy_gradient_loss(params, batch, ctx):
        ...     out = ctx.forward(params, batch)
        ...     return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])
        >>> MyPolicy = build_policy("MyPolicy", loss_fn=policy_gradient_loss)
        >>> policy = MyPolicy(env.observation_space, env.action_space)
    """
    return PolicyFactory(
        name=name,
        loss_fn=loss_fn,
        make_model=make_model,
        dist_fn=dist_fn,
        exploration_fn=exploration_fn,
        postprocess_fn=postprocess_fn,
        optimizer_fn=optimizer_fn,
        target_fn=target_fn,
        coeffs_fn=coeffs_fn,
        update_fn=update_fn,
        default_config=default_config,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PolicyFactory:
    """The recipe of a policy, made by `build_policy`, which documents the fields: call it with spaces and a config."""

    name: str
    loss_fn: Any
    make_model: Callable[..., Any] | None = None
    dist_fn: Callable[..., Any] | None = None
    exploration_fn: Callable[..., Any] | None = None
    postprocess_fn: Callable[..., Any] | None = None
    optimizer_fn: Callable[..., Any] | None = None
    target_fn: Callable[..., Any] | None = None
    coeffs_fn: Callable[..., Mapping[str, Any]] | None = None
    update_fn: Callable[..., Mapping[str, Any]] | None = None
    default_config: type[PolicyConfig] | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss_fn, Mapping) and not callable(self.loss_fn):
            raise LossError(
                f"build_policy({self.name!r}): loss_fn should be a function (params, batch, ctx) or a mapping of "
                f"groups to such functions, got {type(self.loss_fn).__name__}."
            )

    def with_updates(self, **overrides: Any) -> PolicyFactory:
        """The same recipe with some parts replaced; keywords as of `build_policy`."""
        return dataclasses.replace(self, **overrides)

    @property
    def coeffs(self) -> dict[str, float]:
        """Default coeffs of the loss's terms, by name."""
        return loss_coeffs(self.loss_fn)

    def config_class(self, base: type | None = None) -> type:
        """`base` (default: the policy's own config class) with the loss's coeffs as fields and the policy defaults."""
        defaults: Mapping[str, Any] = {}
        if base is None and isinstance(self.default_config, type):
            base = self.default_config
        elif isinstance(self.default_config, Mapping):
            defaults = self.default_config
        return coeff_fields(base or PolicyConfig, self.coeffs, defaults, self.name)

    def __call__(self, obs_space: Any, action_space: Any, config: Any = None) -> Policy:
        """Builds the policy for these spaces.

        Args:
            obs_space, action_space: Gymnasium spaces.
            config: a mapping of options, a PolicyConfig, or None for the defaults.

        Raises:
            ConfigError: an unknown or mistyped option, or a space that a part cannot serve.
            LossError: the loss reads a column or coeff that does not exist, or returns no scalar.
        """
        if config is None or isinstance(config, Mapping):
            config = config_lib.parse(self.config_class(), config or {}, where=f"policy {self.name!r}")
        return PolicyBuilder(self, obs_space, action_space, config).policy()
