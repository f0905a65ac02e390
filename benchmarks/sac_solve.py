"""Seconds of training until the last 20 episodes of Pendulum-v1 average -200 with SAC: tuned against tuned."""

from __future__ import annotations

from measuring import Options, Row
from off_policy import SB3, SB3_ONE_THREAD, peers, solve_row

TARGET = 0.5


def measure(options: Options) -> Row:
    notes: list[str] = []
    found = peers("sac", "solve", notes)
    commands = {name: command for name, (command, _) in found.items() if name not in (SB3, SB3_ONE_THREAD)}
    return solve_row(
        options,
        algorithm="sac",
        peers=commands,
        notes=[note for note in notes if "stable_baselines3" not in note],
        goal={"episodes": 20, "reward": -200.0},
        caps={"seconds": 90.0, "steps": 20_000},
        target=TARGET,
        texts=(
            "SAC: seconds of training, compilation included, until the last 20 episodes average -200 on Pendulum-v1",
            f"<= {TARGET:g} x sbx's tuned SAC",
        ),
    )
