"""LSTM and GRU cells over `[T, B]` rows, with resets and absent rows.

The input products of all rows are one matrix product outside the scan; the scan holds the recurrent product alone.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl.models.initializers import cell_kernel, lstm_bias
from jaxrl.types import Array, PyTree

# One step: (state [B, ...], row) -> (state [B, ...], output [B, ...]).
Step = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def scan_rows(
    step: Step, initial: PyTree, state: PyTree, rows: PyTree, reset: Array | None, mask: Array | None
) -> tuple[PyTree, PyTree]:
    """Runs a recurrent step over the rows of a time-major fragment.

    Args:
        step: `(state, row) -> (state, output)`, state, row and output being pytrees of `[B, ...]`.
        initial: the state `[B, ...]` that a reset goes back to.
        state: the state `[B, ...]` before the first row.
        rows: pytree of `[T, B, ...]`.
        reset: bool `[T, B]`, true where the state is `initial` before the row, whether or not the row is absent; None
            for nowhere.
        mask: bool `[T, B]`, false where the row is absent and leaves the state as it is; None for nowhere.

    Returns:
        The state after the last row, and the outputs `[T, B, ...]`.
    """

    def guarded(state: PyTree, row: tuple[PyTree, Array | None, Array | None]) -> tuple[PyTree, PyTree]:
        inputs, reset_t, mask_t = row
        if reset_t is not None:
            state = _where(reset_t, initial, state)
        new_state, output = step(state, inputs)
        if mask_t is not None:
            new_state = _where(mask_t, new_state, state)
        return new_state, output

    rows = (rows, reset, mask)
    if jax.tree.leaves(rows)[0].shape[0] == 1:  # acting: no loop to set up
        state, output = guarded(state, jax.tree.map(lambda x: x[0], rows))
        return state, jax.tree.map(lambda x: x[None], output)
    return jax.lax.scan(guarded, state, rows)


def _where(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    def choose(x: Array, y: Array) -> Array:
        return jnp.where(jnp.asarray(condition).reshape(condition.shape + (1,) * (jnp.ndim(x) - condition.ndim)), x, y)

    return jax.tree.map(choose, if_true, if_false)


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735).

    The maths of `flax.linen.OptimizedLSTMCell`, its gates i, f, g, o side by side in one kernel. The forget gate's bias
    starts at 1 (see `jaxrl.models.initializers`).
    """

    size: int

    @nn.compact
    def __call__(self, x: Array, state: PyTree, reset: Array | None, mask: Array | None) -> tuple[Array, PyTree]:
        """From features `[T, B, F]` and the state `{"c", "h"}: [B, H]` to outputs `[T, B, H]` and the next state."""
        w_x, w_h, bias = _cell_params(self, x.shape[-1], gates=4)

        def step(state: PyTree, x_t: Array) -> tuple[PyTree, Array]:
            i, f, g, o = jnp.split(x_t + state["h"] @ w_h, 4, axis=-1)
            c = nn.sigmoid(f) * state["c"] + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return {"c": c, "h": h}, h

        initial = self.initial_state(x.shape[1])
        state, h = scan_rows(step, initial, state, x @ w_x + bias, reset, mask)
        return h, state

    def initial_state(self, batch_size: int) -> PyTree:
        """Zeros `{"c", "h"}: [B, H]`."""
        return {"c": jnp.zeros((batch_size, self.size)), "h": jnp.zeros((batch_size, self.size))}


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078), in the form of `flax.linen.GRUCell`.

    Gates r, z, n lie side by side in one kernel; n has a second bias inside its product with r.
    """

    size: int

    @nn.compact
    def __call__(self, x: Array, state: PyTree, reset: Array | None, mask: Array | None) -> tuple[Array, PyTree]:
        """From features `[T, B, F]` and the state `{"h"}: [B, H]` to outputs `[T, B, H]` and the next state."""
        w_x, w_h, bias = _cell_params(self, x.shape[-1], gates=3)
        bias_n = self.param("recurrent_bias", nn.initializers.zeros, (self.size,))

        def step(state: PyTree, x_t: Array) -> tuple[PyTree, Array]:
            h = state["h"]
            x_rz, x_n = jnp.split(x_t, [2 * self.size], axis=-1)
            h_rz, h_n = jnp.split(h @ w_h, [2 * self.size], axis=-1)
            r, z = jnp.split(nn.sigmoid(x_rz + h_rz), 2, axis=-1)
            n = jnp.tanh(x_n + r * (h_n + bias_n))
            h = (1.0 - z) * n + z * h
            return {"h": h}, h

        initial = self.initial_state(x.shape[1])
        state, h = scan_rows(step, initial, state, x @ w_x + bias, reset, mask)
        return h, state

    def initial_state(self, batch_size: int) -> PyTree:
        """Zeros `{"h"}: [B, H]`."""
        return {"h": jnp.zeros((batch_size, self.size))}


def _cell_params(cell: LSTM | GRU, inputs: int, *, gates: int) -> tuple[Array, Array, Array]:
    """Input kernel `[F, gates * H]`, recurrent kernel `[H, gates * H]` and bias `[gates * H]`."""

    def kernel(name: str, rows: int) -> Array:
        def init(key: Array, shape: tuple[int, ...]) -> Array:
            return cell_kernel(name, jax.random.normal(key, shape), gates)

        return cell.param(name, init, (rows, gates * cell.size))

    def bias(key: Array, shape: tuple[int, ...]) -> Array:
        del key
        return lstm_bias(cell.size) if gates == 4 else jnp.zeros(shape)

    w_x, w_h = kernel("input_kernel", inputs), kernel("recurrent_kernel", cell.size)
    return w_x, w_h, cell.param("bias", bias, (gates * cell.size,))
