"""Postprocessing of a fragment: one batched forward pass, then whatever columns the loss reads."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.losses import discounted_returns, gae
from jaxrl.policies.fragments import FragmentOutput
from jaxrl.types import Array

# What postprocessing knows how to make, and what each needs of the forward pass.
PRODUCED = frozenset({"action_dist_inputs", "action_logp", "action_prob", "vf_preds", "advantages", "value_targets"})
_NEEDS_FORWARD = frozenset({"action_dist_inputs", "action_logp", "action_prob", "vf_preds"})


def produce(
    missing: frozenset[str],
    wanted: frozenset[str],
    batch: SampleBatch,
    out: FragmentOutput | None,
    dist_class: Any,
    config: Any,
) -> dict[str, Array]:
    """The columns `missing` of a fragment `[T, B]`.

    `advantages` is the discounted return of the fragment where nothing reads `value_targets`; else generalised
    advantage estimation (https://arxiv.org/abs/1506.02438, eq. 16) with `value_targets` = advantages + values; without
    a critic (`use_critic=False`) both are the discounted return.

    Args:
        missing: names of columns to make.
        wanted: names of columns that the loss reads, those included that are there already.
        batch: the fragment.
        out: the model's outputs over it; None when nothing asked for them.
        dist_class: the action distribution.
        config: the PolicyConfig.

    Returns:
        The columns by name, `[T, B, ...]`.
    """
    made: dict[str, Array] = {}
    # A compiled rollout has kept what it acted on, which spares a pass through the policy.
    dist_inputs = batch.get("action_dist_inputs")
    if dist_inputs is None and out is not None:
        dist_inputs = out.dist_inputs
    if missing & {"action_logp", "action_prob"}:
        logp = batch.get("action_logp")  # what another exploration than the policy's own has put there
        if logp is None:
            assert dist_inputs is not None
            logp = dist_class(dist_inputs).log_prob(batch["actions"])
        made["action_logp"], made["action_prob"] = logp, jnp.exp(logp)
    if out is not None and dist_inputs is not None:
        made["action_dist_inputs"], made["vf_preds"] = dist_inputs, out.values
    if missing & {"advantages", "value_targets"}:
        rewards, terminateds, ended = batch["rewards"], batch["terminateds"], batch["dones"]
        mask = batch.get("mask")
        if _uses_values(missing, wanted, config):
            assert out is not None
            lambda_ = config.lambda_ if config.use_gae else 1.0
            estimate = gae(rewards, out.values, out.next_values, terminateds, ended, config.gamma, lambda_, mask=mask)
            made["advantages"], made["value_targets"] = estimate
        else:
            returns = discounted_returns(rewards, terminateds, ended, config.gamma, mask=mask)
            made["advantages"], made["value_targets"] = returns, returns
    return {name: made[name] for name in missing}


def needs_forward(missing: frozenset[str], wanted: frozenset[str], config: Any) -> bool:
    """Whether making the columns `missing`, of those `wanted`, takes a forward pass."""
    return bool(missing & _NEEDS_FORWARD) or _uses_values(missing, wanted, config)


def _uses_values(missing: frozenset[str], wanted: frozenset[str], config: Any) -> bool:
    # Which estimate the advantages are follows from what the loss reads, not from who fills it.
    return config.use_critic and "value_targets" in wanted and bool(missing & {"advantages", "value_targets"})
