"""Kills `jaxrl train` at random moments while it saves, and resumes it: every file has each iteration once."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxrl.cli.runs import checkpoints_below
from jaxrl.trainers.checkpoint import read_metadata
from jaxrl.trainers.history import History

ITERATIONS = 10_000
COMMAND = [sys.executable, "-m", "jaxrl", "train", "--storage-path"]
FIRST = [
    *("--run", "PG", "--env", "CartPole-v1", "--stop", f"training_iteration={ITERATIONS}", "--checkpoint-freq", "1"),
    *("--set", "train_batch_size=16", "--set", "rollout_fragment_length=16", "--set", "model.fcnet_hiddens=[4]"),
    *("--set", "batch_mode=truncate_episodes", "--seed", "1", "--keep-checkpoints-num", "2"),
]


def one_kill(place: pathlib.Path, rng: random.Random) -> int:
    """Starts or resumes the run, kills it a moment after its first new result; returns the last whole iteration."""
    runs = list(place.glob("default/*/result.json"))
    before = runs[0].stat().st_size if runs else 0
    words = ["--resume"] if runs else FIRST
    with open(place / "output.txt", "ab") as output:
        process = subprocess.Popen([*COMMAND, str(place), *words], stdout=output, stderr=output)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        runs = list(place.glob("default/*/result.json"))
        if runs and runs[0].stat().st_size != before and checkpoints_below(runs[0].parent):
            time.sleep(rng.uniform(0.0, 0.4))
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (place / "output.txt").read_text()[-2000:]
    (run,) = place.glob("default/*")
    newest = checkpoints_below(run)[-1]
    return read_metadata(newest, "PG")["training_iteration"]


def check_files(run: pathlib.Path) -> list[int]:
    found = [json.loads(line)["training_iteration"] for line in (run / "result.json").read_text().splitlines()]
    assert found == list(range(1, len(found) + 1))
    with open(run / "progress.csv", newline="") as file:
        assert [int(row["training_iteration"]) for row in csv.DictReader(file)] == found
    assert [result["training_iteration"] for result in History.load(run)] == found
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_goes_on_with_each_iteration_once(tmp_path):
    kill_and_resume(tmp_path, kills=3)


def kill_and_resume(place: pathlib.Path, kills: int, seed: int = 0) -> list[int]:
    """Kills a run so many times, then lets it end; returns the iterations of the checkpoints that were found."""
    rng = random.Random(seed)
    found = [one_kill(place, rng) for _ in range(kills)]
    assert found == sorted(found)
    (run,) = place.glob("default/*")
    stop = f"training_iteration={found[-1] + 3}"
    done = subprocess.run(
        [*COMMAND, str(place), "--resume", "--stop", stop], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert check_files(run)[-1] == found[-1] + 3
    assert not [path for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    return found


if __name__ == "__main__":  # python tests/cli/test_kills.py DIRECTORY KILLS
    print(kill_and_resume(pathlib.Path(sys.argv[1]), int(sys.argv[2])))
