"""Env steps per second of PPO on CartPole as one compiled program: 8 and 2048 environments, 64 seeds at once."""

from __future__ import annotations

from typing import Any

from measuring import (
    Options,
    Row,
    alternate_children,
    best,
    has_peer,
    median_ratio,
    medians,
    missing_note,
    peer_script,
    rounded,
    script,
)

TARGET = 1.2
PEERS = ("plain", "rejax")
NAMES = {"plain": "the plain program (PureJaxRL's manner)", "rejax": "rejax"}
# What runs, environments, members, updates of a program, rounds.
CASES = {"8 envs": (8, 1, 100, 9), "2048 envs": (2048, 1, 2, 5), "64 seeds of 8 envs": (8, 64, 4, 5)}


def measure(options: Options) -> Row:
    peers = [name for name in PEERS if has_peer("rejax" if name == "rejax" else "gymnax")]
    notes = [missing_note("rejax" if name == "rejax" else "gymnax") for name in PEERS if name not in peers]
    figures: dict[str, Any] = {}
    told, met = [], None
    for case, (envs, members, updates, rounds) in CASES.items():
        shape = ["--envs", envs, "--members", members, "--updates", 1 if options.quick else updates]
        commands = {
            "jaxrl": (script("contestant_compiled.py", "population" if members > 1 else "throughput", *shape), {})
        }
        if "plain" in peers:
            commands["plain"] = (peer_script("contestant_plain_compiled.py", "throughput", *shape), {})
        if "rejax" in peers:
            commands["rejax"] = (peer_script("contestant_rejax.py", *shape), {})
        speeds = alternate_children(
            commands,
            warmup={},
            request={},
            rounds=options.choose(rounds, 2),
            figure=lambda report: report["steps_per_s"],
        )
        middle = medians(speeds)
        text = f"{case} {middle['jaxrl']:,.0f}"
        ratios = {name: median_ratio(speeds["jaxrl"], speeds[name]) for name in peers}
        better = best(speeds, peers)
        if better is not None:
            reached = ratios[better] >= TARGET
            met = reached if met is None else met and reached
            others = ", ".join(f"{ratios[name]:.2f} x {NAMES[name]} ({middle[name]:,.0f})" for name in peers)
            text += f" = {others}"
        told.append(text)
        figures[case] = {"ratios": ratios, "steps_per_s": {name: rounded(v, 0) for name, v in speeds.items()}}
    return Row(
        work="PPO on CartPole compiled whole, fragments of 128, 4 epochs x 4 minibatches, nets of 64x64, env steps/s",
        target=f">= {TARGET:g} x the better of PureJaxRL's design and rejax",
        measured="; ".join(told),
        met=met,
        figures=figures,
        notes=notes,
    )
