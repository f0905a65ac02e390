"""The share of the physical limit: stepping, acting and learning, each alone as one jitted program, against all."""

from __future__ import annotations

import statistics
from typing import Any

from measuring import Child, Options, Row, rounded, script

TARGET = 0.9
CASES = {"8 envs": (8, 50), "2048 envs": (2048, 2)}


def measure(options: Options) -> Row:
    figures: dict[str, Any] = {}
    told, met = [], True
    for case, (envs, updates) in CASES.items():
        command = script(
            "contestant_compiled.py", "limit", "--envs", envs, "--updates", 1 if options.quick else updates
        )
        with Child(command) as child:
            child.report()
            child.ask()
            reports = [child.ask() for _ in range(options.choose(9, 2))]
        parts = {name: [report["parts"][name] for report in reports] for name in reports[0]["parts"]}
        shares = [sum(report["parts"].values()) / report["whole"] for report in reports]
        share = statistics.median(shares)
        met = met and share >= TARGET
        middle = {name: statistics.median(values) * 1e3 for name, values in parts.items()}
        text = " + ".join(f"{name} {value:.3g}" for name, value in middle.items())
        whole = statistics.median(report["whole"] for report in reports) * 1e3
        told.append(f"{case}: {share:.0%} ({text} of {whole:.3g} ms an update)")
        figures[case] = {"shares": rounded(shares), "ms": {k: rounded([x * 1e3 for x in v]) for k, v in parts.items()}}
    return Row(
        work="PPO compiled: the share of the limit (env step + act + learn, each alone as one jitted program)",
        target=f">= {TARGET:.0%}",
        measured="; ".join(told),
        met=met,
        figures=figures,
    )
