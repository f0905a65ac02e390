"""Random permutations without a sort: of a train batch's rows, for each epoch's minibatches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.types import Array

_ROUNDS = 8
# Of fewer rows a sort costs little, and draws every permutation alike.
_MIN_ROWS = 256


def random_permutations(key: Array, count: int, n: int) -> Array:
    """Random permutations of `range(n)`.

    From 256 rows on each is a keyed bijection, evaluated elementwise: a Feistel network of 8 rounds over the next power
    of two, whose values beyond `n` are sent through it again until they fall below (Mitchell et al. 2021,
    "Bandwidth-optimal random shuffling for GPUs", https://arxiv.org/abs/2106.06161, section 4). On a CPU that takes a
    hundredth of the time of a sort: 5 us against 500 for 4 x 1024. Fewer are sorted by random numbers.

    Args:
        key: PRNG key.
        count: permutations.
        n: length, at most 2^31.

    Returns:
        int32 `[count, n]`.
    """
    if n < _MIN_ROWS:
        position = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (count, n))
        return jax.lax.sort((jax.random.bits(key, (count, n)), position), dimension=1, num_keys=1)[1]
    bits = (n - 1).bit_length()
    keys = jax.random.bits(key, (_ROUNDS, count, 1))
    start = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint32), (count, n))
    permuted = _feistel(keys, start, bits)
    if n != 1 << bits:
        permuted = jax.lax.while_loop(
            lambda x: (x >= n).any(), lambda x: jnp.where(x >= n, _feistel(keys, x, bits), x), permuted
        )
    return permuted.astype(jnp.int32)


def _feistel(keys: Array, x: Array, bits: int) -> Array:
    """A bijection of `[0, 2^bits)`, keyed by `keys [rounds, ...]`, of each of `x` (uint32)."""
    # The halves differ by a bit where `bits` is odd, and change places with every round.
    low_bits, high_bits = bits // 2, bits - bits // 2
    low, high = x & jnp.uint32((1 << low_bits) - 1), x >> low_bits
    for round_key in keys:
        mixed = (low ^ round_key) * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
        mixed = mixed ^ (mixed >> 13)
        low, high = high ^ (mixed & jnp.uint32((1 << high_bits) - 1)), low
        low_bits, high_bits = high_bits, low_bits
    return (high << low_bits) | low
