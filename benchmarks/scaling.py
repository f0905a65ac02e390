"""How far one learner goes: a scaling model of IMPALA, from what a step costs workers, plan and learner.

`python benchmarks/scaling.py` runs IMPALA with 1 to 4 workers and measures, in CPU seconds per env step, the workers'
sampling, the plan's gathering and the learner's thread. With a core for each process, n workers sample

    rate(n) = min(n / worker, 1 / plan, 1 / learner)

env steps a second; on c cores no more than `c / (worker + plan + learner)`. The measured rates stand beside the second
in `scaling.png`; the first says how many workers one learner can take, and what it is that saturates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from typing import Any

from measuring import HERE, Child, script

WORKERS = (1, 2, 3, 4)


def contestant(workers: int, seconds: float) -> None:
    """Trains for a while and reports what each part cost."""
    from child import Reports

    reports = Reports()
    import psutil
    from contestant_jaxrl import ASYNCHRONOUS

    from jaxrl.algorithms.impala import IMPALATrainer

    share = math.floor(200 / workers) / 100 if workers > 2 else 1
    with IMPALATrainer(config={**ASYNCHRONOUS, "num_workers": workers, "num_cpus_per_worker": share}) as trainer:
        for _ in range(5):
            trainer.train()
        me = psutil.Process()
        actors = [p for p in me.children(recursive=True) if "RolloutActor" in " ".join(p.cmdline()[:1])]

        def snapshot() -> dict[str, float]:
            threads = {thread.id: thread.user_time + thread.system_time for thread in me.threads()}
            main = threading.main_thread().native_id
            assert main is not None
            return {
                "steps": trainer.context.counters["num_steps_trained"],
                "wall": time.perf_counter(),
                "worker": sum(sum(p.cpu_times()[:2]) for p in actors),
                "plan": threads[main],
                "process": sum(me.cpu_times()[:2]),
                "busy": trainer.context.timers["learn"].total,
            }

        before = snapshot()
        while time.perf_counter() - before["wall"] < seconds:
            trainer.train()
        after = snapshot()
        cost = {name: after[name] - before[name] for name in before}
        steps = cost["steps"]
        reports.send(
            rate=steps / cost["wall"],
            worker=cost["worker"] / steps,
            plan=cost["plan"] / steps,
            learner=(cost["process"] - cost["plan"]) / steps,
            utilisation=cost["busy"] / cost["wall"],
        )


def model(costs: dict[str, float], workers: int, cores: int | None = None) -> float:
    """Env steps per second of n workers, with a core for each process or on a number of cores."""
    rate = min(workers / costs["worker"], 1 / costs["plan"], 1 / costs["learner"])
    return rate if cores is None else min(rate, cores / (costs["worker"] + costs["plan"] + costs["learner"]))


def main(seconds: float) -> None:
    reports: dict[int, dict[str, Any]] = {}
    for workers in WORKERS:
        env = {"RAY_ADDRESS": "local"}
        with Child(script("scaling.py", "--workers", workers, "--seconds", seconds), env) as child:
            reports[workers] = child.report()
        print(workers, {name: round(value, 7) for name, value in reports[workers].items()}, flush=True)
    costs = {name: min(r[name] for r in reports.values()) for name in ("worker", "plan", "learner")}
    slowest = max("plan", "learner", key=lambda name: costs[name])
    saturates = math.ceil(costs["worker"] / costs[slowest])
    cores = os.cpu_count() or 1
    found = {
        "seconds_per_env_step": costs,
        "saturates_at_workers": saturates,
        "saturated_by": slowest,
        "saturated_env_steps_per_s": 1 / costs[slowest],
        "measured": reports,
        "cores": cores,
    }
    (HERE / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot(found)
    print(f"one learner takes {saturates} workers: {1 / costs[slowest]:,.0f} env steps/s, then the {slowest} saturates")


def plot(found: dict[str, Any]) -> None:
    """Measured rates on this machine, and what the model says of it and of one with a core for each process."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    costs, measured, cores = found["seconds_per_env_step"], found["measured"], found["cores"]
    most = max(found["saturates_at_workers"] + 4, max(measured))
    numbers = list(range(1, most + 1))
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(numbers, [model(costs, n) for n in numbers], label="model: a core for each process")
    axes.plot(numbers, [model(costs, n, cores) for n in numbers], "--", label=f"model: {cores} cores")
    axes.plot(list(measured), [r["rate"] for r in measured.values()], "o", label=f"measured on {cores} cores")
    axes.axvline(found["saturates_at_workers"], color="grey", linewidth=0.8)
    axes.set(xlabel="workers", ylabel="env steps/s", title="IMPALA on CartPole: where one learner saturates")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(HERE / "scaling.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    arguments = parser.parse_args()
    if arguments.workers:
        contestant(arguments.workers, arguments.seconds)
        sys.exit()
    main(arguments.seconds)
