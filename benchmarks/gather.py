"""Items per second from 2 Ray actors: `gather_async` against Ray's own parallel iterators, small and large items."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

from measuring import Options, Row, alternate, median_ratio, medians, rounded

# (bytes of an item, how often as fast as Ray's)
TARGETS = {1_000: 3.0, 1_000_000: 1.5}


class Items:
    """The same array over and over."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self) -> Iterator[Any]:
        import numpy as np

        while True:
            yield np.zeros(self.size, np.uint8)


def rate(iterator: Any, seconds: float) -> float:
    for _ in range(20):
        next(iterator)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(iterator)
        count += 1
    return count / (time.perf_counter() - began)


def measure(options: Options) -> Row:
    import ray

    from jaxrl.execution.parallel import from_iterators

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.util.iter as rays
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    seconds = 0.5 if options.quick else 2.5
    figures: dict[int, dict[str, list[float]]] = {}
    try:
        for size in TARGETS:

            def ours(size: int = size) -> float:
                iterator = from_iterators([Items(size)] * 2, remote=True).gather_async(num_async=2)
                speed = rate(iterator, seconds)
                iterator.close()
                return speed

            def theirs(size: int = size) -> float:
                sources: Any = [Items(size)] * 2
                return rate(rays.from_iterators(sources, repeat=False).gather_async(num_async=2), seconds)

            figures[size] = alternate({"jaxrl": ours, "ray.util.iter": theirs}, options.choose(5, 2))
    finally:
        ray.shutdown()
    ratios = {size: median_ratio(each["jaxrl"], each["ray.util.iter"]) for size, each in figures.items()}
    told = [
        f"{size / 1000:,.0f} kB: {medians(each)['jaxrl']:,.0f} = {ratios[size]:.2f} x "
        f"({medians(each)['ray.util.iter']:,.0f})"
        for size, each in figures.items()
    ]
    return Row(
        work="gather_async from 2 actors, 2 requests in flight each, items/s",
        target="; ".join(f">= {target:g} x ray.util.iter at {size / 1000:,.0f} kB" for size, target in TARGETS.items()),
        measured="; ".join(told),
        met=all(ratios[size] >= target for size, target in TARGETS.items()),
        figures={str(size): {who: rounded(v, 0) for who, v in each.items()} for size, each in figures.items()},
    )
