"""The ring: sums that are equal to the bit, neighbours that are lost or late, strangers."""

import functools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.execution import all_reduce
from jaxrl.execution.all_reduce import Ring, RingError, listen, mean_by

SECRET = b"s" * 32


def in_threads(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the functions return, or raise, run at the same time."""
    results: list[Any] = [None] * len(functions)

    def run(number, function):
        try:
            results[number] = function()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


OPEN: list[Any] = []


@pytest.fixture(autouse=True)
def close_everything():
    yield
    while OPEN:
        OPEN.pop().close()


def make_rings(size, timeout_s=30.0, secrets=None, meddle=None):
    servers = [listen("127.0.0.1") for _ in range(size)]
    addresses = [server.getsockname()[:2] for server in servers]
    if meddle:
        OPEN.extend(meddle(addresses))
    secrets = secrets or [SECRET] * size
    rings = in_threads(
        [functools.partial(Ring.join, i, servers[i], addresses, secrets[i], timeout_s) for i in range(size)]
    )
    OPEN.extend(ring for ring in rings if isinstance(ring, Ring))
    return rings


def vectors(size, length, dtype=np.float32):
    return [np.random.default_rng(rank).normal(size=length).astype(dtype) for rank in range(size)]


@pytest.mark.parametrize("length", [1, 2, 7, 9_200, 1_000_003])  # the last one is larger than the system's buffers
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sums_are_equal_to_the_bit_and_right(size, length):
    rings, own = make_rings(size), vectors(size, length)
    before = [vector.copy() for vector in own]
    sums = in_threads([functools.partial(ring.sum, vector) for ring, vector in zip(rings, own, strict=True)])
    for total in sums:
        np.testing.assert_array_equal(total, sums[0])
    np.testing.assert_allclose(sums[0], np.sum(own, axis=0, dtype=np.float64), atol=1e-5)
    np.testing.assert_array_equal(own, before)


def test_gather_gives_everyone_all_numbers():
    rings = make_rings(3)
    tables = in_threads([functools.partial(ring.gather, [ring.rank, 2**40]) for ring in rings])
    for table in tables:
        assert table.tolist() == [[0, 2**40], [1, 2**40], [2, 2**40]]


def test_a_neighbour_that_goes_is_noticed_at_once_by_all():
    rings = make_rings(3)

    def give_up(ring):
        try:
            ring.sum(np.ones(10, np.float32))
        finally:
            ring.close()  # as GroupLearner does, and so the error goes round

    started = time.monotonic()
    rings[1].close()
    errors = in_threads([functools.partial(give_up, rings[rank]) for rank in (0, 2)])
    assert time.monotonic() - started < 5
    assert all(isinstance(error, RingError) for error in errors)
    with pytest.raises(RingError, match="closed"):
        rings[1].sum(np.ones(2))


def test_a_neighbour_that_is_late_is_named():
    rings = make_rings(3, timeout_s=0.3)
    (error,) = in_threads([functools.partial(rings[0].sum, np.ones(10, np.float32))])
    assert isinstance(error, RingError)
    assert str(error) == "member 0 of 3 has waited 0.3 s for member 2"


def test_strangers_are_turned_away(monkeypatch):
    monkeypatch.setattr(all_reduce, "HANDSHAKE_TIMEOUT_S", 0.3)

    def meddle(addresses):
        silent, gone, liar = (
            socket.create_connection(address) for address in (addresses[0], addresses[1], addresses[2])
        )
        gone.close()
        liar.sendall(b"x" * 32)
        return silent, liar

    rings = make_rings(3, meddle=meddle)
    sums = in_threads([functools.partial(ring.sum, np.full(4, 1.0 + ring.rank)) for ring in rings])
    for total in sums:
        np.testing.assert_array_equal(total, np.full(4, 6.0))


def test_who_does_not_know_the_secret_is_not_let_in(monkeypatch):
    monkeypatch.setattr(all_reduce, "JOIN_TIMEOUT_S", 1.0)
    results = make_rings(2, secrets=[SECRET, b"t" * 32])
    assert any(isinstance(result, RingError) for result in results)
    assert not all(isinstance(result, Ring) for result in results)


def test_a_member_that_never_comes_is_an_error(monkeypatch):
    monkeypatch.setattr(all_reduce, "JOIN_TIMEOUT_S", 0.5)
    servers = [listen("127.0.0.1") for _ in range(2)]
    OPEN.extend(servers)
    addresses = [server.getsockname()[:2] for server in servers]
    started = time.monotonic()
    with pytest.raises(RingError, match="member 0 of 2 could not join"):
        Ring.join(0, servers[0], addresses, SECRET)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # how the host is called differs
def test_means_weighted_by_rows_inside_a_compiled_scan(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rings = make_rings(2)
    trees = [
        {"w": jnp.array([[1.0, 2.0]]), "b": jnp.bfloat16(4.0)},
        {"w": jnp.array([[5.0, 10.0]]), "b": jnp.bfloat16(8.0)},
    ]

    def run(ring, tree, rows):
        average = mean_by(lambda vector: ring.sum(np.asarray(vector)))
        scan = jax.jit(lambda tree, rows: jax.lax.scan(lambda c, _: (average(c, rows), None), tree, length=3)[0])
        return scan(tree, jnp.float32(rows))

    means = in_threads([functools.partial(run, *parts) for parts in zip(rings, trees, (3, 1), strict=True)])
    for mean in means:
        np.testing.assert_allclose(mean["w"], [[2.0, 4.0]])
        assert mean["b"] == 5
        assert mean["b"].dtype == jnp.bfloat16


def test_a_mean_of_no_rows_is_zero():
    average = mean_by(lambda vector: np.asarray(vector))
    np.testing.assert_array_equal(jax.jit(average)(jnp.zeros(2), jnp.float32(0)), [0.0, 0.0])
