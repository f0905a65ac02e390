"""The model over fragments: rows, the observations that their values are bootstrapped from, states between rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.data.columns import successors
from jaxrl.types import FINAL_PAD, Array, ForwardOutput, ModelInputs, ModelOutput, Params, PyTree


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


def successor_values(model: Any, params: Params, batch: SampleBatch, out: ForwardOutput, key: Any = None) -> Array:
    """Values of the rows' true successors, without gradient, beside a forward pass over the rows.

    The rows' own values are not computed again: only the observations after the last rows and the final ones are.
    Recurrent models need the state at each row that was truncated, which their forward pass does not give: a batch with
    such rows, and only such a one, is stepped through once more, without gradient.

    Args:
        model: the Model.
        params: its parameters.
        batch: `[T, B]` with `last_obs` and, where episodes end within it, `final_obs`, `final_index`.
        out: the forward pass over its rows.
        key: of a stochastic model.

    Returns:
        `[T, B]`; rows that terminated hold the value of their final observation, or anything (recurrent models).
    """
    params, value, after = jax.lax.stop_gradient((params, out.value, out.state))
    if "final_index" not in batch:
        no_slot = jnp.full((1, 2), FINAL_PAD, jnp.int32)
        final_obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch["last_obs"])
        batch = batch.with_columns(final_obs=final_obs, final_index=no_slot)
    _, last, final = bootstrap_inputs(batch, model.reads)
    slots = batch["final_index"].shape[0]
    if jax.tree.leaves(after):
        last_value = _bootstrap(model, params, last, after, batch.B).value
        truncated = (batch["truncateds"] & ~batch["terminateds"] & batch.valid()).any()

        def stepped() -> Array:
            return _forward_recurrent(model, params, batch)[2].value

        final_value = jax.lax.cond(truncated, stepped, lambda: jnp.zeros((slots,), last_value.dtype))
    else:
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), last, final)
        values = model.apply(params, joined._replace(key=key if "key" in model.reads else None), ()).value
        last_value, final_value = values[: batch.B], values[batch.B :]
    columns = {"obs": value, "last_obs": last_value, "final_obs": final_value, "final_index": batch["final_index"]}
    if "mask" in batch:
        columns["mask"] = batch["mask"]
    return successors(columns)


def bootstrap_inputs(batch: SampleBatch, reads: frozenset[str]) -> tuple[ModelInputs, ModelInputs, ModelInputs]:
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
    rows, last, final = bootstrap_inputs(batch, model.reads)
    if "vf_preds" in batch and "action_dist_inputs" in batch:  # acting has passed the rows through the model already
        out = model.apply(params, jax.tree.map(lambda *x: jnp.concatenate(x), last, final), ())
        known = ModelOutput(batch["action_dist_inputs"], batch["vf_preds"], ())
        after, ended = (
            ModelOutput(out.dist_inputs[i], out.value[i], ()) for i in (slice(batch.B), slice(batch.B, None))
        )
        return known, after, ended, ()
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
    rows, last, final = bootstrap_inputs(batch, model.reads)
    rows = rows._replace(reset=batch["t"] == 0, mask=batch.get("mask"))

    def step(state: PyTree, inputs: ModelInputs) -> tuple[PyTree, tuple[ModelOutput, PyTree]]:
        out = model.apply(params, _one_step(inputs), state)
        return out.state, (ModelOutput(out.dist_inputs[0], out.value[0], out.state), state)

    state, (out, states) = jax.lax.scan(step, batch["state_in"], rows)
    final_t, final_b = jnp.moveaxis(jnp.minimum(batch["final_index"], batch.T - 1), 1, 0)
    after = jax.tree.map(lambda x: x[final_t, final_b], out.state)

    last_out = _bootstrap(model, params, last, state, batch.B)
    final_out = _bootstrap(model, params, final, after, batch["final_index"].shape[0])
    return out, last_out, final_out, states


def _bootstrap(model: Any, params: Params, inputs: ModelInputs, state: PyTree, n: int) -> ModelOutput:
    inputs = inputs._replace(reset=jnp.zeros((n,), bool))
    out = model.apply(params, _one_step(inputs), state)
    return ModelOutput(out.dist_inputs[0], out.value[0], out.state)


def _one_step(inputs: ModelInputs) -> ModelInputs:
    return jax.tree.map(lambda x: x[None], inputs)
