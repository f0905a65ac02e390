"""Seconds of training until the last 100 episodes of CartPole-v1 average 475 with DQN: tuned against tuned."""

from __future__ import annotations

from measuring import Options, Row, has_peer, missing_note, peer_script
from off_policy import peers, solve_row

TARGET = 0.5


def measure(options: Options) -> Row:
    notes: list[str] = []
    commands = {name: command for name, (command, _) in peers("dqn", "solve", notes).items()}
    if has_peer("cleanrl"):
        commands["CleanRL's JAX DQN"] = peer_script("contestant_cleanrl.py", "solve")
    else:
        notes.append(missing_note("cleanrl"))
    return solve_row(
        options,
        algorithm="dqn",
        peers=commands,
        notes=notes,
        goal={"episodes": 100, "reward": 475.0},
        caps={"seconds": 60.0, "steps": 150_000},
        target=TARGET,
        texts=(
            "DQN: seconds of training, compilation included, until the last 100 episodes average 475 on CartPole-v1",
            f"<= {TARGET:g} x the best of stable-baselines3's and sbx's tuned DQN and CleanRL's",
        ),
    )
