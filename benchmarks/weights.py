"""Sending 10 MB of weights to 8 workers: through the worker set, against a bare `ray.put` and a get on each."""

from __future__ import annotations

import logging
import time
from typing import Any

from measuring import Options, Row, alternate, median_ratio, medians, rounded

TARGET = 1.2
WORKERS, MEGABYTES = 8, 10


def measure(options: Options) -> Row:
    import numpy as np
    import ray

    from jaxrl.algorithms.ppo import PPOTrainer
    from jaxrl.types import Weights

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = {"env": "CartPole-v1", "num_workers": WORKERS, "train_batch_size": WORKERS * 8, "sgd_minibatch_size": 0}
    weights = Weights({f"layer{i}": np.ones((250_000,), np.float32) for i in range(MEGABYTES)}, {})
    puts = 0

    class Getter:
        """An actor that does nothing but take an object and look at its arrays."""

        def take(self, version: int, weights: Any) -> int:
            self.version, self.weights = version, {pid: dict(each.params) for pid, each in weights.items()}
            return version

    try:
        with PPOTrainer(config={**config, "num_cpus_per_worker": 0.5}) as trainer:
            workers = trainer.workers
            actor: Any = ray.remote(Getter)
            getters = [actor.options(num_cpus=0.1).remote() for _ in range(WORKERS)]
            put = ray.put

            def counted(value: Any) -> Any:
                nonlocal puts
                puts += 1
                return put(value)

            def ours() -> float:
                began = time.perf_counter()
                workers.sync_weights({"default_policy": weights})
                ray.get([place.weights_call for place in workers._places])
                return 1e3 * (time.perf_counter() - began)

            def bare() -> float:
                began = time.perf_counter()
                ref = put({"default_policy": weights})
                ray.get([getter.take.remote(1, ref) for getter in getters])
                return 1e3 * (time.perf_counter() - began)

            for _ in range(5):
                ours()
                bare()
            ray.put = counted
            ours()
            ray.put = put
            results = alternate({"jaxrl": ours, "bare": bare}, options.choose(41, 5))
    finally:
        ray.shutdown()
    ratio = median_ratio(results["jaxrl"], results["bare"])
    middle = medians(results)
    return Row(
        work=f"{MEGABYTES} MB of weights to {WORKERS} workers, ms until all have them",
        target=f"one put; <= {TARGET:g} x a bare ray.put and gets",
        measured=f"{middle['jaxrl']:.1f} = {ratio:.2f} x ({middle['bare']:.1f}); {puts} put",
        met=ratio <= TARGET and puts == 1,
        figures={"ratio": ratio, "puts": puts, "ms": {name: rounded(values, 2) for name, values in results.items()}},
    )
