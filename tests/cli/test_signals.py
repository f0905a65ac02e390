"""Signals to `jaxrl train` at any moment: the right exit code soon, a checkpoint where one is due, no process left."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import random
import secrets
import select
import signal
import subprocess
import sys
import termios
import time
from typing import NamedTuple

import pytest

from jaxrl.cli.runs import checkpoints_below
from jaxrl.cli.signals import processes_below

MARK = "JAXRL_PROCESSES_OF"
WITHIN_S = 10.0


def command(place: pathlib.Path, workers: int, iterations: int) -> list[str]:
    words = ["--run", "PG", "--env", "CartPole-v1", "--stop", f"training_iteration={iterations}"]
    words += ["--set", "batch_mode=truncate_episodes", "--set", "model.fcnet_hiddens=[4]", "--seed", "1"]
    words += ["--set", "train_batch_size=64", "--set", f"rollout_fragment_length={64 // max(1, workers)}"]
    words += ["--set", "num_cpus_per_worker=0.1", "--num-workers", str(workers), "--storage-path", str(place)]
    return [sys.executable, "-m", "jaxrl", "train", *words]


class Outcome(NamedTuple):
    """What became of a run that got a signal; `wrong` says in words what should not be."""

    moment: float
    code: int
    seconds: float
    wrong: list[str]


def start(place: pathlib.Path, workers: int, iterations: int) -> tuple[subprocess.Popen[bytes], str]:
    token = secrets.token_hex(8)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "output.txt", "wb") as output:
        process = subprocess.Popen(
            command(place, workers, iterations),
            env={**os.environ, MARK: token},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=heed_signals,
        )
    return process, token


def heed_signals() -> None:
    """A process in a shell's background, whose children inherit it, ignores Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def marked(token: str) -> list[str]:
    """The processes that run with the token in their environment."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={token}".encode() in file.read_bytes():
                found.append((file.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80])
        except OSError:
            continue
    return found


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """As a terminal sends Ctrl-C, to all of its processes; others to the one."""
    try:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        pass


def after(process: subprocess.Popen[bytes], token: str, place: pathlib.Path, number: int, moment: float) -> Outcome:
    """Waits for the end of a process that got a signal and looks at what it leaves."""
    sent = time.monotonic()
    wrong = []
    try:
        code = process.wait(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        wrong.append(f"it runs on after {WITHIN_S:g} s")
        process.kill()
        code = process.wait()
    seconds = time.monotonic() - sent
    # A shell sees 128 + n too where the interpreter had not begun, or had ended already.
    if code not in (0, 128 + number, -number):
        wrong.append(f"exit code {code}")
    left = marked(token)
    if left:
        wrong.append(f"left: {left}")
    said = (place / "output.txt").read_text(errors="replace")
    if "Traceback" in said or "Error" in said or "***" in said:
        wrong.append(said[-1500:])
    lines = [line for file in place.glob("default/*/result.json") for line in file.read_text().splitlines()]
    saved = [path for run in place.glob("default/*") for path in checkpoints_below(run)]
    if lines and not saved:
        wrong.append(f"{len(lines)} iterations and no checkpoint")
    if lines and json.loads(lines[-1])["training_iteration"] != len(lines):
        wrong.append("an iteration twice")
    return Outcome(moment, code, seconds, wrong)


def signal_at(place: pathlib.Path, number: int, workers: int, moment: float, iterations: int) -> Outcome:
    """Sends a signal so many seconds after the start."""
    process, token = start(place, workers, iterations)
    time.sleep(moment)
    send(process, number)
    return after(process, token, place, number, moment)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, 0.4), (signal.SIGINT, 1.5), (signal.SIGHUP, 4.0)])
def test_a_signal_before_the_first_iteration_ends_all_processes_at_once(tmp_path, number, moment):
    outcome = signal_at(tmp_path, number, 1, moment, 10_000)
    assert not outcome.wrong and outcome.code == 128 + number


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_run_that_loses_ray_says_so_in_one_line(tmp_path, part):
    process, token = start(tmp_path, 1, 100_000)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("default/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in processes_below(process.pid):
        if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == part:
            os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=WITHIN_S) == 1
    # Ray itself ends a process whose raylet has died, often before anything can be said; its agents notice later.
    deadline = time.monotonic() + WITHIN_S
    while marked(token) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(token) == []
    said = [line for line in (tmp_path / "output.txt").read_text().splitlines() if not line.startswith("iter ")]
    told = [line for line in said if not line.startswith("Compiling")]
    assert len(told) == 1 or (part == "raylet" and not told)
    assert all(line.startswith(f"Error: Ray's {part} ended unexpectedly, and the run with it.") for line in told)


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_a_run_with_a_checkpoint(tmp_path):
    def in_a_terminal():
        heed_signals()
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command(tmp_path, 0, 100_000), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=in_a_terminal
    )
    os.close(theirs)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("default/*/result.json")) and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.05)[0]:
            os.read(ours, 65536)
    time.sleep(0.5)
    os.close(ours)
    assert process.wait(timeout=WITHIN_S) == 128 + signal.SIGHUP
    (run,) = tmp_path.glob("default/*")
    last = (run / "result.json").read_text().splitlines()[-1]
    assert checkpoints_below(run)[-1].name == f"checkpoint_{json.loads(last)['training_iteration']:06d}"


# A process that ignores signals, in a session of its own, whose parent ends.
IGNORES = (
    "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; print(1, flush=True); time.sleep(60)"
)
LEAVES_ONE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {IGNORES!r}], start_new_session=True)"


def test_every_process_below_is_ended_those_that_were_left_alone_too():
    code = (
        "import os, subprocess, sys, time\n"
        "from jaxrl.cli import signals\n"
        "signals.take_over()\n"
        f"subprocess.run([sys.executable, '-c', {LEAVES_ONE!r}], check=True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    token = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: token}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {b"1\n", b"ready\n"}
    assert len(marked(token)) == 2
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, marked(token)) == (143, [])
    assert said == b"\nInterrupted.\n"


def test_a_signal_is_acted_on_while_the_main_thread_does_not_get_to_it():
    code = (
        "import ctypes\n"
        "from jaxrl.cli import signals\n"
        "signals._HANDLED_WITHIN_S = 0.2\n"
        "signals.take_over()\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock\n"
        "mutex = (ctypes.c_byte * 256)()\n"
        "print('ready', flush=True)\n"
        "lock(mutex), lock(mutex)\n"  # waits for itself for ever, and no signal ends that
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143
    process.stdout.close()


def main() -> None:
    """python tests/cli/test_signals.py DIRECTORY COUNT WORKERS NUMBER: at random moments from start to end."""
    place, count, workers, number = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5])
    rng = random.Random(number + workers)
    iterations = 40
    begun = time.monotonic()
    process, _ = start(place / "whole", workers, iterations)
    assert process.wait() == 0, (place / "whole" / "output.txt").read_text()
    length = time.monotonic() - begun
    print(f"{length:.1f} s from start to end", flush=True)
    outcomes = []
    for i in range(count):
        outcome = signal_at(place / str(i), number, workers, rng.uniform(0.0, length * 1.02), iterations)
        outcomes.append(outcome)
        print(
            f"{outcome.moment:6.2f} s: code {outcome.code}, {outcome.seconds:.2f} s {outcome.wrong or ''}", flush=True
        )
    codes = {code: sum(one.code == code for one in outcomes) for code in sorted({one.code for one in outcomes})}
    wrong = sum(bool(one.wrong) for one in outcomes)
    print(f"{count} of signal {number}, {workers} workers: {wrong} wrong; codes {codes}", flush=True)


if __name__ == "__main__":
    main()
