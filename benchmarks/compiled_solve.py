"""Seconds of compiling, and until the last 100 episodes of CartPole average 475, of PPO as one compiled program."""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from measuring import Child, Options, Row, has_peer, missing_note, peer_script, script

COLD, WARM = 0.7, 0.3
SEEDS = 5
UPDATES = 10


def measure(options: Options) -> Row:
    seeds = range(options.choose(SEEDS, 1))
    commands = {"jaxrl": script("contestant_compiled.py", "solve", "--updates", UPDATES)}
    peer = has_peer("gymnax")
    notes = [] if peer else [missing_note("gymnax")]
    if peer:
        commands["plain"] = peer_script("contestant_plain_compiled.py", "solve", "--updates", UPDATES)
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as scratch:
                for cache in ("cold", "warm"):
                    if name == "plain" and cache == "warm":
                        continue  # as it comes it keeps no cache
                    with Child([*command, "--seed", seed], {"XDG_CACHE_HOME": scratch}) as child:
                        runs.setdefault(f"{name}, {cache}", []).append(child.report())
    seconds = {name: statistics.median(run["seconds"] for run in own) for name, own in runs.items()}
    compiling = {
        name: statistics.median(
            sum(
                sum(cost[key] for key in ("init_s", "trace_s", "compile_s") if key in cost)
                for cost in run["programs"].values()
            )
            for run in own
        )
        for name, own in runs.items()
    }
    unsolved = {name: sum(not run["solved"] for run in own) for name, own in runs.items()}
    notes += [
        f"{name}: {n} of {len(seeds)} runs not solved within a million steps" for name, n in unsolved.items() if n
    ]
    ours, own_compiling = seconds["jaxrl, cold"], compiling["jaxrl, cold"]
    measured = f"cold {ours:.2f} s, compiling {own_compiling:.2f} s; warm {seconds['jaxrl, warm']:.2f} s"
    met = None
    figures: dict[str, Any] = {"seconds": seconds, "compiling_s": compiling, "runs": runs}
    if peer:
        theirs, their_compiling = seconds["plain, cold"], compiling["plain, cold"]
        ratios = {cache: seconds[f"jaxrl, {cache}"] / theirs for cache in ("cold", "warm")}
        figures["ratios"] = ratios
        measured = (
            f"cold {ours:.2f} s = {ratios['cold']:.2f} x the plain program's {theirs:.2f} s; with a warm compile cache "
            f"{seconds['jaxrl, warm']:.2f} s = {ratios['warm']:.2f} x; tracing and compiling {own_compiling:.2f} s "
            f"against {their_compiling:.2f} s"
        )
        met = ratios["cold"] <= COLD and ratios["warm"] <= WARM and own_compiling <= their_compiling
    return Row(
        work="PPO on CartPole compiled whole: seconds until the last 100 episodes average 475, imports left out",
        target=f"compiling <= theirs; <= {COLD:g} x from a cold start, <= {WARM:g} x with a warm compile cache",
        measured=measured,
        met=met,
        figures=figures,
        notes=notes,
    )
