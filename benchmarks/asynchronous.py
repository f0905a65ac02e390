"""Env steps per second of IMPALA and APPO on CartPole with 2 Ray workers of 5 environments each, against RLlib's."""

from __future__ import annotations

from measuring import (
    Options,
    Row,
    alternate_children,
    has_peer,
    median_ratio,
    medians,
    missing_note,
    peer_script,
    rounded,
    script,
)

TARGET = 5.0
ALGORITHMS = ("IMPALA", "APPO")


def measure(options: Options) -> Row:
    commands = {}
    notes = []
    peer = has_peer("ray.rllib")
    if not peer:
        notes.append(missing_note("ray.rllib"))
    speeds: dict[str, dict[str, list[float]]] = {}
    for algorithm in ALGORITHMS:
        own = script("contestant_jaxrl.py", "asynchronous", "--algorithm", algorithm)
        commands = {"jaxrl": (own, {"RAY_ADDRESS": "local"})}
        if peer:
            commands["RLlib"] = (peer_script("contestant_rllib.py", algorithm.lower()), {})
        speeds[algorithm] = alternate_children(
            commands,
            warmup={"iterations": 2 if options.quick else 10},
            request={"iterations": 2 if options.quick else 15},
            rounds=options.choose(7, 2),
            figure=lambda report: report["steps_per_s"],
        )
    ratios = {name: median_ratio(each["jaxrl"], each["RLlib"]) for name, each in speeds.items() if "RLlib" in each}
    told = []
    for name, each in speeds.items():
        middle = medians(each)
        against = f" = {ratios[name]:.2f} x RLlib ({middle['RLlib']:,.0f})" if name in ratios else ""
        told.append(f"{name} {middle['jaxrl']:,.0f}{against}")
    return Row(
        work="IMPALA and APPO on CartPole, 2 Ray workers of 5 envs, fragments of 50, batches of 500, env steps/s",
        target=f">= {TARGET:g} x RLlib's",
        measured="; ".join(told),
        met=None if not ratios else all(ratio >= TARGET for ratio in ratios.values()),
        figures={
            "ratios": ratios,
            "env_steps_per_s": {
                name: {who: rounded(values, 0) for who, values in each.items()} for name, each in speeds.items()
            },
        },
        notes=notes,
    )
