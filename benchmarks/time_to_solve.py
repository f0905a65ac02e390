"""Row 3: seconds of training, compilation included, until the last 100 episodes of CartPole-v1 average 475."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from measuring import Child, Options, Row, best, has_peer, missing_note, peer_script, rounded, script, timed

TARGET = 0.4
SEEDS = 5
MAX_STEPS = 100_000


def measure(options: Options) -> Row:
    commands: dict[str, Sequence[Any]] = {"jaxrl": script("contestant_jaxrl.py", "solve")}
    notes = ["a run that does not get there within 100,000 env steps counts as infinitely long in the medians"]
    if has_peer("stable_baselines3"):
        sb3 = peer_script("contestant_sb3.py", "solve", "--library", "sb3")
        commands |= {"stable-baselines3": sb3, "stable-baselines3, 1 thread": [*sb3, "--threads", "1"]}
    else:
        notes.append(missing_note("stable_baselines3"))
    if has_peer("sbx"):
        commands["sbx"] = peer_script("contestant_sb3.py", "solve", "--library", "sbx")
    else:
        notes.append(missing_note("sbx"))

    seeds = range(options.choose(SEEDS, 1))
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as scratch:
                for cache in ("cold", "warm") if name in ("jaxrl", "sbx") else ("",):
                    run = solve([*command, "--seed", seed, *short(options)], name, scratch)
                    runs.setdefault(f"{name}, {cache} cache" if cache else name, []).append(run)
        if seed == 0 and len(both := [name for name in runs if name.startswith("stable-baselines3")]) == 2:
            slower = max(both, key=lambda name: runs[name][0]["seconds"])
            first = runs.pop(slower)[0]["seconds"]
            commands.pop(slower)
            notes.append(f"{slower}: {first:.1f} s for the first seed, the slower of the two: not run further")

    training = {name: [r["seconds"] if r["solved"] else math.inf for r in own] for name, own in runs.items()}
    process = {name: [r["process_s"] if r["solved"] else math.inf for r in own] for name, own in runs.items()}
    peer = best(training, ["stable-baselines3", "stable-baselines3, 1 thread", "sbx, cold cache"], lowest=True)
    warm_peer = best(training, [*([peer] if peer else []), "sbx, warm cache"], lowest=True)
    figures: dict[str, Any] = {"better_peer": peer, "runs": runs}
    texts, met = [], None
    for cache, rival in (("cold", peer), ("warm", warm_peer)):
        own = f"jaxrl, {cache} cache"
        ours, whole = statistics.median(training[own]), statistics.median(process[own])
        text = f"{cache} cache {ours:.1f} s"
        if rival:
            theirs = statistics.median(training[rival])
            figures[f"ratio_{cache}"] = ratio = ours / theirs
            figures[f"process_ratio_{cache}"] = whole / statistics.median(process[rival])
            text += f" = {ratio:.2f} x {rival} ({theirs:.1f} s)"
            met = ratio <= TARGET if met is None else met and ratio <= TARGET
        text += f", whole process {whole:.1f} s"
        if rival:
            text += f" ({statistics.median(process[rival]):.1f} s)"
        texts.append(text)
    figures["seconds"] = {name: rounded(values, 2) for name, values in training.items()}
    unsolved = {name: sum(not r["solved"] for r in own) for name, own in runs.items()}
    notes += [f"{name}: {n} of {len(seeds)} runs not solved" for name, n in unsolved.items() if n]
    return Row(
        work="seconds of training, compilation included, until the last 100 episodes average 475 on CartPole-v1",
        target=f"<= {TARGET:g} x stable-baselines3's and sbx's tuned PPO",
        measured="; ".join(texts),
        met=met,
        figures=_finite(figures),
        notes=notes,
    )


def short(options: Options) -> list[Any]:
    return ["--max-steps", 5000 if options.quick else MAX_STEPS]


def solve(command: Sequence[Any], name: str, scratch: str) -> dict[str, Any]:
    """One run in a fresh process; compile caches lie in `scratch`, so that the first run there is cold."""
    env = {"JAXRL_RESULTS_DIR": f"{scratch}/results"}
    if name == "jaxrl":
        env["XDG_CACHE_HOME"] = scratch  # jaxrl turns JAX's persistent cache on by itself, there
    elif name == "sbx":
        env |= {
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    report: dict[str, Any] = {}

    def run() -> None:
        with Child(command, env) as child:
            report.update(child.report())

    return {"process_s": timed(run), **report}


def _finite(tree: Any) -> Any:
    """JSON has no infinity: None stands for a run that did not get there."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
