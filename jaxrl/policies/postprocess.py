"""Postprocessing of a fragment: one batched forward pass, then whatever columns the loss reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.data.columns import successors
from jaxrl.losses import discounted_returns, gae
from jaxrl.types import Array, ModelInputs, ModelOutput, Params, PyTree

# What postprocessing knows how to make, and what each needs of the forward pass.
PRODUCED = frozenset({"action_dist_inputs", "action_logp", "action_prob", "vf_preds", "advantages", "value_targets"})
_NEEDS_FORWARD = frozenset({"action_dist_inputs", "action_logp", "action_prob", "vf_preds"})


class FragmentOutput(NamedTuple):
    """The model over a fragment.

    Attributes:
        dist_inputs: `[T, B, D]`.
        values: `[T, B]`.
        next_values: values of the rows' true successors `[T, B]`.
        states: the state before every row `[T, B, ...]`; `()` for feed-forward models.
    """

    dist_inputs: Array
    values: Array
    next_values: Array
    states: PyTree


def forward_fragment(model: Any, params: Params, batch: SampleBatch, mask_logits: Any) -> FragmentOutput:
    """Runs the model over every row of a fragment and over its bootstrap observations, in one batched pass.

    Args:
        model: the Model.
        params: its parameters.
        batch: a time-major fragment `[T, B]` with `last_obs`, `final_obs`, `final_index`.
        mask_logits: `(dist_inputs, obs) -> dist_inputs`, applies the observation's action mask.
    """
    run = _forward_recurrent if jax.tree.leaves(model.initial_state(1)) else _forward_rows
    rows, last, final, states = run(model, params, batch)
    columns = {"obs": rows.value, "last_obs": last.value, "final_obs": final.value, "final_index": batch["final_index"]}
    if "mask" in batch:
        columns["mask"] = batch["mask"]
    next_values = successors(columns)
    return FragmentOutput(mask_logits(rows.dist_inputs, batch["obs"]), rows.value, next_values, states)


def _bootstrap_inputs(batch: SampleBatch, reads: frozenset[str]) -> tuple[ModelInputs, ModelInputs, ModelInputs]:
    """Model inputs of the rows `[T, B]`, of the observations after the last row `[B]` and of final ones `[K]`."""
    final_t, final_b = jnp.moveaxis(jnp.minimum(batch["final_index"], batch.T - 1), 1, 0)
    last_t = jnp.full((batch.B,), batch.T - 1)
    if "mask" in batch:  # what an agent did last stands in its last row that is there
        last_t -= jnp.argmax(jnp.asarray(batch["mask"])[::-1], axis=0)

    def previous(name: str, of: str) -> tuple[PyTree, PyTree, PyTree]:
        if name not in reads:
            return None, None, None
        column = batch[of]
        return (
            batch[name],
            jax.tree.map(lambda x: x[last_t, jnp.arange(batch.B)], column),
            jax.tree.map(lambda x: x[final_t, final_b], column),
        )

    actions, rewards = previous("prev_actions", "actions"), previous("prev_rewards", "rewards")
    observations = (batch["obs"], batch["last_obs"], batch["final_obs"])
    rows, last, final = (
        ModelInputs(obs=o, prev_actions=a, prev_rewards=r)
        for o, a, r in zip(observations, actions, rewards, strict=True)
    )
    return rows, last, final


def _forward_rows(
    model: Any, params: Params, batch: SampleBatch
) -> tuple[ModelOutput, ModelOutput, ModelOutput, PyTree]:
    rows, last, final = _bootstrap_inputs(batch, model.reads)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), flat, last, final)
    out = model.apply(params, joined, ())
    n, b = batch.T * batch.B, batch.B

    def part(start: int, stop: int | None, shape: tuple[int, ...]) -> ModelOutput:
        return ModelOutput(out.dist_inputs[start:stop].reshape(*shape, -1), out.value[start:stop].reshape(shape), ())

    k = batch["final_index"].shape[0]
    return part(0, n, (batch.T, b)), part(n, n + b, (b,)), part(n + b, None, (k,)), ()


def _forward_recurrent(
    model: Any, params: Params, batch: SampleBatch
) -> tuple[ModelOutput, ModelOutput, ModelOutput, PyTree]:
    # Step by step, since the states between rows are wanted: at the cuts, and where an episode was truncated.
    rows, last, final = _bootstrap_inputs(batch, model.reads)
    rows = rows._replace(reset=batch["t"] == 0, mask=batch.get("mask"))

    def step(state: PyTree, inputs: ModelInputs) -> tuple[PyTree, tuple[ModelOutput, PyTree]]:
        out = model.apply(params, _one_step(inputs), state)
        return out.state, (ModelOutput(out.dist_inputs[0], out.value[0], out.state), state)

    state, (out, states) = jax.lax.scan(step, batch["state_in"], rows)
    final_t, final_b = jnp.moveaxis(jnp.minimum(batch["final_index"], batch.T - 1), 1, 0)
    after = jax.tree.map(lambda x: x[final_t, final_b], out.state)

    def bootstrap(inputs: ModelInputs, state: PyTree, n: int) -> ModelOutput:
        inputs = inputs._replace(reset=jnp.zeros((n,), bool))
        out = model.apply(params, _one_step(inputs), state)
        return ModelOutput(out.dist_inputs[0], out.value[0], out.state)

    last_out = bootstrap(last, state, batch.B)
    final_out = bootstrap(final, after, batch["final_index"].shape[0])
    return out, last_out, final_out, states


def _one_step(inputs: ModelInputs) -> ModelInputs:
    return jax.tree.map(lambda x: x[None], inputs)


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
    if missing & {"action_logp", "action_prob"}:
        logp = batch.get("action_logp")  # what another exploration than the policy's own has put there
        if logp is None:
            assert out is not None
            logp = dist_class(out.dist_inputs).log_prob(batch["actions"])
        made["action_logp"], made["action_prob"] = logp, jnp.exp(logp)
    if out is not None:
        made["action_dist_inputs"], made["vf_preds"] = out.dist_inputs, out.values
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
