"""Env steps per second of PPO on Pong with the Nature CNN, in-process, on the CPU."""

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


def measure(options: Options) -> Row:
    commands: dict[str, Any] = {"jaxrl": (script("contestant_pong.py", "jaxrl"), {})}
    notes = []
    missing = [name for name in ("stable_baselines3", "ale_py", "cv2") if not has_peer(name)]
    if missing:
        notes.append(missing_note(" and ".join(missing)))
    else:
        commands["stable-baselines3"] = (peer_script("contestant_pong.py", "sb3"), {})
        commands["CleanRL"] = (peer_script("contestant_pong.py", "cleanrl"), {})
        notes.append("CleanRL is its ppo_atari.py, ported from gym to Gymnasium, without logging")
    results = alternate_children(
        commands,
        warmup={"iterations": 1 if options.quick else 2},
        request={"iterations": 1 if options.quick else 2},
        rounds=options.choose(9, 1),
        figure=lambda report: report["steps_per_s"],
    )
    peer = best(results, ["stable-baselines3", "CleanRL"])
    ratio = median_ratio(results["jaxrl"], results[peer]) if peer else None
    speeds = medians(results)
    others = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items() if name != "jaxrl")
    return Row(
        work="PPO, Pong, Nature CNN, 8 envs x 128 steps, 4 x 4 minibatches, in-process, env steps/s",
        target=f">= {TARGET:g} x the better of stable-baselines3 and CleanRL",
        measured=f"{speeds['jaxrl']:,.0f}" + (f"; {ratio:.2f} x {peer} ({others})" if ratio else ""),
        met=None if ratio is None else ratio >= TARGET,
        figures={
            "ratio": ratio,
            "better_peer": peer,
            "env_steps_per_s": {name: rounded(values, 1) for name, values in results.items()},
        },
        notes=notes,
    )
