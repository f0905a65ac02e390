"""Resident memory over time: PPO in-process and with 2 Ray workers; `memory_async` does the same with IMPALA."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
from measuring import HERE, Child, ChildError, Options, Row, load, script

INTERVAL = 5.0
WARMUP = 0.25  # share of the run that is left out of the slope, 5 minutes at most
FLAT = 10.0  # MiB an hour that count as flat
MIB = 2**20
SETTINGS = {"in-process": ("PPO", 0), "2 workers": ("PPO", 2)}


def measure(options: Options) -> Row:
    seconds = 40.0 if options.quick else 60.0 * options.minutes
    interval = 1.0 if options.quick else INTERVAL
    with concurrent.futures.ThreadPoolExecutor() as pool:  # both at once: it is not speed that is measured
        watches = {name: pool.submit(watch, *chosen, seconds, interval) for name, chosen in SETTINGS.items()}
        series = {name: one.result() for name, one in watches.items()}
    if not options.quick:
        save(series, HERE / "memory.json")
        plot(series, HERE / "memory.png", "PPO on CartPole-v1, 8 environments")
    return row(series, "memory of PPO over time, in-process and with 2 workers", "flat after warm-up, 30 minutes each")


def row(series: dict[str, dict[str, Any]], work: str, target: str, stem: str = "memory") -> Row:
    """The line of the table."""
    slopes = {
        f"{name}, {process}": slope(one["seconds"], rss)
        for name, one in series.items()
        for process, rss in one["rss_mib"].items()
    }
    texts = []
    for name, one in series.items():
        minutes = one["seconds"][-1] / 60
        spilled = f", {one['spilled']} files spilled" if "object store" in one["rss_mib"] else ""
        parts = ", ".join(
            f"{process} {rss[-1]:.0f} MiB ({slopes[f'{name}, {process}']:+.1f} MiB/h)"
            for process, rss in one["rss_mib"].items()
        )
        texts.append(f"{name}, {minutes:.0f} min, {one['steps'] / 1e6:.1f} M env steps: {parts}{spilled}")
    return Row(
        work=work,
        target=target,
        measured="; ".join(texts),
        met=all(value <= FLAT for value in slopes.values()) and not any(one["spilled"] for one in series.values()),
        figures={"mib_per_hour": slopes, "file": f"{stem}.json", "picture": f"{stem}.png"},
        notes=[
            f"resident memory every {INTERVAL:g} s; slope: least squares after the first quarter (5 minutes at most); "
            f"up to {FLAT:g} MiB an hour counts as flat"
        ],
    )


def watch(algorithm: str, workers: int, seconds: float, interval: float) -> dict[str, Any]:
    """Runs an algorithm for `seconds` and samples the resident memory of its processes, Ray's object store included."""
    with tempfile.TemporaryDirectory() as scratch:
        env = {"JAXRL_RESULTS_DIR": scratch, "RAY_ADDRESS": "local"}
        command = script("contestant_jaxrl.py", "memory", "--algorithm", algorithm)
        with Child([*command, "--workers", workers, "--seconds", seconds], env) as child:
            child.report()
            trainer = psutil.Process(child.process.pid)
            actors = [p for p in trainer.children(recursive=True) if _name(p).startswith("ray::RolloutActor")]
            if len(actors) != workers:
                raise ChildError(f"expected {workers} rollout actors, found {[_name(p) for p in actors]}")
            processes = {"trainer": trainer, **{f"worker {i}": p for i, p in enumerate(actors, 1)}}
            stores = [p for p in trainer.children(recursive=True) if p.name() == "raylet"]
            if workers and stores:
                processes["object store"] = stores[0]
            times: list[float] = []
            rss: dict[str, list[float]] = {name: [] for name in processes}
            started = time.monotonic()
            while time.monotonic() - started < seconds - interval:
                times.append(round(time.monotonic() - started, 1))
                for name, process in processes.items():
                    rss[name].append(round(process.memory_info().rss / MIB, 2))
                time.sleep(interval)
            report = child.report()
    return {"seconds": times, "rss_mib": rss, "load": load(), **report}


def slope(seconds: Sequence[float], rss: Sequence[float]) -> float:
    """MiB an hour, by least squares after warm-up."""
    after = min(300.0, WARMUP * seconds[-1])
    points = [(t / 3600, y) for t, y in zip(seconds, rss, strict=True) if t >= after]
    return float(np.polyfit([t for t, _ in points], [y for _, y in points], 1)[0])


def save(series: dict[str, Any], path: pathlib.Path) -> None:
    path.write_text(json.dumps(series) + "\n", encoding="utf-8")


def plot(series: dict[str, dict[str, Any]], path: pathlib.Path, title: str) -> None:
    """Resident memory over minutes, a curve for each process."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for name, one in series.items():
        for process, rss in one["rss_mib"].items():
            axes.plot([t / 60 for t in one["seconds"]], rss, label=f"{name}: {process}")
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
