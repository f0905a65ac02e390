"""The side of a measurement that measures: contestants as child processes, alternating rounds, medians and ratios."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

HERE = pathlib.Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: rounds of alternation; None: each benchmark's own number.
        quick: a short run that shows that everything works; its figures mean nothing.
        minutes: of each memory run.
    """

    rounds: int | None = None
    quick: bool = False
    minutes: float = 30.0

    def choose(self, rounds: int, quick: int) -> int:
        return self.rounds or (quick if self.quick else rounds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table of results; texts are for people, `figures` are everything that was measured."""

    work: str
    target: str
    measured: str
    met: bool | None
    figures: Mapping[str, Any]
    notes: Sequence[str] = ()


class ChildError(RuntimeError):
    """A contestant ended or did not answer."""


class Child:
    """A contestant: a process that reports JSON lines (see `child.py`).

    Args:
        command: what to run; its standard error goes to a temporary file, shown when it fails.
        env: environment variables beside this process's own.
        timeout: seconds to wait for a report.
    """

    def __init__(self, command: Sequence[Any], env: Mapping[str, str] | None = None, timeout: float = 900.0) -> None:
        handle, path = tempfile.mkstemp(prefix="jaxrl-benchmark-", suffix=".log")
        self._errors = pathlib.Path(path)
        self._timeout = timeout
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            cwd=HERE.parent,
        )
        os.close(handle)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its report."""
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()
        return self.report()

    def report(self) -> dict[str, Any]:
        """Waits for the next report.

        Raises:
            ChildError: it ended, or said nothing in time; with the end of what it wrote to standard error.
        """
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], self._timeout)
        line = self.process.stdout.readline() if readable else b""
        if not line:
            what = "ended" if readable else f"gave no report within {self._timeout:.0f} s"
            errors = self._errors.read_text(encoding="utf-8", errors="replace")
            raise ChildError(f"{' '.join(self.command)} {what}:\n{errors[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends it: politely, by the end of its input, then by force."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._errors.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def script(name: str, *arguments: Any) -> list[Any]:
    """The command for one of this folder's scripts in this Python."""
    return [sys.executable, HERE / name, *arguments]


def peer_script(name: str, *arguments: Any) -> list[Any]:
    """The command for one of this folder's scripts in the peers' Python."""
    return [PEERS_PYTHON, HERE / name, *arguments]


def has_peer(module: str) -> bool:
    """Whether a library is installed for comparison (`make bench-peers`)."""
    if not PEERS_PYTHON.exists():
        return False
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([PEERS_PYTHON, "-c", code], check=False).returncode == 0


def missing_note(module: str) -> str:
    return f"{module} is not installed (make bench-peers): left out"


def alternate(work: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs each piece of work once a round, the order turning from round to round; what each returned, by name."""
    names = list(work)
    results: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            results[name].append(work[name]())
    return results


def alternate_children(
    commands: Mapping[str, tuple[Sequence[Any], Mapping[str, str]]],
    *,
    warmup: Mapping[str, Any],
    request: Mapping[str, Any],
    rounds: int,
    figure: Callable[[dict[str, Any]], float],
) -> dict[str, list[float]]:
    """Starts contestants one after the other, warms each up, then alternates between them.

    Args:
        commands: command and environment of each contestant by name.
        warmup: the request that warms a contestant up.
        request: the request of a round.
        rounds: how many.
        figure: what counts in a report.
    """
    children: dict[str, Child] = {}
    try:
        for name, (command, env) in commands.items():
            child = children[name] = Child(command, env)
            child.report()
            child.ask(**warmup)

        def turn(child: Child) -> Callable[[], float]:
            return lambda: figure(child.ask(**request))

        return alternate({name: turn(child) for name, child in children.items()}, rounds)
    finally:
        for child in children.values():
            child.close()


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of `above / below`: two measurements of one round saw the machine in the same mood."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def medians(results: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in results.items()}


def best(results: Mapping[str, Sequence[float]], names: Sequence[str], *, lowest: bool = False) -> str | None:
    """The name among `names` with the best median; None where there is none."""
    present = [name for name in names if name in results]
    if not present:
        return None
    return (min if lowest else max)(present, key=lambda name: statistics.median(results[name]))


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    return [round(value, digits) for value in values]


def machine() -> str:
    """The machine in words."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} CPU cores ({model}), {gib:.0f} GiB of memory, {system}"


def load() -> float:
    """What else ran on the machine in the last minute."""
    return os.getloadavg()[0]


def versions() -> dict[str, str]:
    """Versions of the libraries that are compared; of the peers' environment those that differ."""
    code = (
        "import importlib.metadata as m, json\n"
        "names = ['jax', 'flax', 'optax', 'ray', 'gymnasium', 'numpy', 'torch', 'stable-baselines3', 'sbx-rl']\n"
        "names += ['cleanrl', 'rejax', 'gymnax']\n"
        "have = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have[n] for n in names if n in have}))"
    )

    def ask(python: str) -> dict[str, str]:
        return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)

    own, peers = ask(sys.executable), ask(str(PEERS_PYTHON)) if PEERS_PYTHON.exists() else {}
    return own | {f"{name} (peers)": version for name, version in peers.items() if own.get(name) != version}


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
