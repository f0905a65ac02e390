"""The names of `ray.util.iter`: methods and their parameters, with the semantics that these have there."""

from __future__ import annotations

import inspect
import threading
import warnings
from typing import Any

import pytest

from jaxrl.execution import parallel
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.nodes import Operator
from jaxrl.execution.parallel import ParallelIterator, from_range
from jaxrl.types import WorkerError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ray.util import iter as rays

# What a plan's context does instead, and what makes an iterator from a generator function.
OTHERWISE = {"get_metrics"}


def public(cls: type) -> list[str]:
    return [name for name, value in vars(cls).items() if callable(value) and not name.startswith("_")]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *[(getattr(rays.ParallelIterator, n), getattr(ParallelIterator, n)) for n in public(rays.ParallelIterator)],
        *[
            (getattr(rays.LocalIterator, n), getattr(LocalIterator, n, None))
            for n in public(rays.LocalIterator)
            if n not in OTHERWISE
        ],
        *[
            (getattr(rays, n), getattr(parallel, n))
            for n in ("from_items", "from_range", "from_iterators", "from_actors")
        ],
    ],
    ids=lambda fn: fn.__qualname__,
)
def test_parameters_have_the_same_names_in_the_same_places(theirs: Any, ours: Any) -> None:
    wanted = list(inspect.signature(theirs).parameters.values())
    has = list(inspect.signature(ours).parameters.values())
    assert [p.name for p in has][: len(wanted)] == [p.name for p in wanted]
    assert all(own.default is not own.empty for own, p in zip(has, wanted, strict=False) if p.default is not p.empty)


@pytest.mark.parametrize("max_concurrency", [0, 3])
def test_calls_at_a_time(max_concurrency: int) -> None:
    met = threading.Barrier(3, timeout=30)

    def twice(x: int) -> int:
        met.wait()  # passes only where three calls are under way
        return 2 * x

    assert sorted(from_range(6, 1).for_each(twice, max_concurrency=max_concurrency).gather_sync()) == list(
        range(0, 12, 2)
    )
    assert sorted(LocalIterator.from_items(range(6)).for_each(twice, max_concurrency)) == list(range(0, 12, 2))


def test_one_call_at_a_time_keeps_the_order() -> None:
    assert list(from_range(4, 1).for_each(str, max_concurrency=1, resources=None).gather_sync()) == ["0", "1", "2", "3"]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resources=\{'num_cpus': 1\} are of Ray tasks"):
        from_range(4).for_each(str, resources={"num_cpus": 1})
    with pytest.raises(ValueError, match="max_concurrency must be at least 0, got -1"):
        from_range(4).for_each(str, max_concurrency=-1)
    count = Operator("Count", lambda n, item: (n + 1, n), init=lambda: 0)
    with pytest.raises(ValueError, match="Count has a state"):
        from_range(4).for_each(count, max_concurrency=2)


def test_an_error_of_a_call_is_told() -> None:
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        list(from_range(3, 1).for_each(lambda x: 1 // x, max_concurrency=2).gather_sync())


def test_shuffling_by_rays_name() -> None:
    shuffled = list(from_range(20, 1).local_shuffle(shuffle_buffer_size=5, seed=1).gather_sync())
    assert sorted(shuffled) == list(range(20)) != shuffled
