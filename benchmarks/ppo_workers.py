"""Row 2: env steps per second of PPO with 2 Ray workers of 4 environments each."""

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


def measure(options: Options) -> Row:
    commands = {"jaxrl": (script("contestant_jaxrl.py", "throughput", "--workers", "2"), {"RAY_ADDRESS": "local"})}
    notes = []
    if has_peer("ray.rllib"):
        commands["RLlib"] = (peer_script("contestant_rllib.py", "ppo"), {})
    else:
        notes.append(missing_note("ray.rllib"))
    results = alternate_children(
        commands,
        warmup={"iterations": 3 if options.quick else 20},
        request={"iterations": 3 if options.quick else 30},
        rounds=options.choose(9, 2),
        figure=lambda report: report["steps_per_s"],
    )
    speeds = medians(results)
    ratio = median_ratio(results["jaxrl"], results["RLlib"]) if "RLlib" in results else None
    against = f"; {ratio:.2f} x RLlib ({speeds['RLlib']:,.0f})" if ratio else ""
    return Row(
        work="the same with 2 Ray workers of 4 envs, env steps/s",
        target=f">= {TARGET:g} x RLlib with 2 env runners of 4 envs",
        measured=f"{speeds['jaxrl']:,.0f}{against}",
        met=None if ratio is None else ratio >= TARGET,
        figures={"ratio": ratio, "env_steps_per_s": {name: rounded(values, 0) for name, values in results.items()}},
        notes=notes,
    )
