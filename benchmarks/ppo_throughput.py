"""Row 1: env steps per second of PPO, in-process, in steady state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

TARGET = 4.0


def measure(options: Options) -> Row:
    commands: dict[str, Any] = {
        "jaxrl": (script("contestant_jaxrl.py", "throughput"), {}),
        "plain loop": (script("plain_ppo.py"), {}),
    }
    notes = []
    qualifying: dict[str, list[float]] = {}
    if has_peer("stable_baselines3"):
        sb3 = peer_script("contestant_sb3.py", "throughput", "--library", "sb3")
        variants = {"stable-baselines3": (sb3, {}), "stable-baselines3, 1 thread": ([*sb3, "--threads", "1"], {})}
        qualifying = speeds_of(variants, warmup=3, iterations=3 if options.quick else 10, rounds=2)
        better = best(qualifying, list(qualifying))
        commands |= {name: command for name, command in variants.items() if name == better}
    else:
        notes.append(missing_note("stable_baselines3"))
    if has_peer("sbx"):
        commands["sbx"] = (peer_script("contestant_sb3.py", "throughput", "--library", "sbx"), {})
    else:
        notes.append(missing_note("sbx"))
    results = speeds_of(
        commands,
        warmup=3 if options.quick else 20,
        iterations=4 if options.quick else 40,
        rounds=options.choose(9, 2),
    )
    peer = best(results, ["stable-baselines3", "stable-baselines3, 1 thread", "sbx"])
    share = median_ratio(results["jaxrl"], results["plain loop"])
    ratio = median_ratio(results["jaxrl"], results[peer]) if peer else None
    speeds = medians(results)
    against = f"{ratio:.2f} x {peer} ({speeds[peer]:,.0f}); " if peer and ratio else ""
    return Row(
        work="PPO, CartPole-v1, 8 envs x 128 steps, 4 x 4 minibatches, in-process, env steps/s",
        target=f">= {TARGET:g} x the better of stable-baselines3 and sbx",
        measured=f"{speeds['jaxrl']:,.0f}; {against}{share:.0%} of the plain loop ({speeds['plain loop']:,.0f})",
        met=None if ratio is None else ratio >= TARGET,
        figures={
            "ratio": ratio,
            "share_of_plain_loop": share,
            "better_peer": peer,
            "env_steps_per_s": {name: rounded(values, 0) for name, values in results.items()},
            "qualifying_env_steps_per_s": {name: rounded(values, 0) for name, values in qualifying.items()},
        },
        notes=notes,
    )


def speeds_of(
    commands: Mapping[str, tuple[Sequence[Any], Mapping[str, str]]], *, warmup: int, iterations: int, rounds: int
) -> dict[str, list[float]]:
    """Env steps per second of each contestant, round by round, in turns of `iterations` train batches."""
    return alternate_children(
        commands,
        warmup={"iterations": warmup},
        request={"iterations": iterations},
        rounds=rounds,
        figure=lambda report: report["steps_per_s"],
    )
