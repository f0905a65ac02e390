"""Environments stepped in processes of their own, for slow ones; same rows, errors and resume as in this process."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Collection
from multiprocessing.connection import Connection
from types import CodeType
from typing import Any

import cloudpickle
import numpy as np

from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.creation import EnvCreator
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.restarting import logger
from jaxrl.envs.resume import warn_fresh
from jaxrl.envs.reviving import Revival
from jaxrl.envs.rows import copy_rows, empty_rows, leaves, take_row
from jaxrl.envs.vector_env import RESET_FAILED, STEP_FAILED, Ended, VectorEnv
from jaxrl.types import ConfigError, EnvError, UnsupportedSpaceError

_ERRORS = {"ConfigError": ConfigError, "UnsupportedSpaceError": UnsupportedSpaceError}
_REDUCERS: Any = cloudpickle.CloudPickler.dispatch_table
_START = "from jaxrl.envs.env_process import main; main()"


class ProcessVectorEnv(VectorEnv):
    """Steps environments in processes of their own, each with an equal share of them.

    They are started afresh, not forked, so that JAX may run already. The processes do not import the main script
    again, so a script needs no `if __name__ == "__main__"`. They end when they are closed, when this object is
    collected, or when this process dies.

    Args:
        creator: creates one environment; sent by value (cloudpickle).
        num_envs: B.
        context: context of the worker.
        num_processes: how many processes; default one per environment, at most one per CPU core.
        checks: see `ListVectorEnv`.
        restart: an environment that fails is created anew in its process, and all of a process that dies in another
            one; what happened is logged in this one.

    Raises:
        EnvError: an environment could not be created; carries the traceback of its process.
    """

    def __init__(
        self,
        creator: EnvCreator,
        num_envs: int,
        context: EnvContext,
        *,
        num_processes: int | None = None,
        checks: bool = True,
        restart: bool = False,
    ) -> None:
        self.num_envs = num_envs
        self.place = EnvPlace(creator.name, context.worker_index)
        self.filler_rows = False
        self.filler_mask = np.zeros(num_envs, np.bool_)
        self.can_skip = True
        self.infos = [{} for _ in range(num_envs)]
        self.reset_infos = [{} for _ in range(num_envs)]
        self.envs = None
        self.num_restarts = 0
        count = max(1, min(num_envs, num_processes or os.cpu_count() or 1))
        edges = [num_envs * i // count for i in range(count + 1)]
        self._shares = [slice(low, high) for low, high in itertools.pairwise(edges)]
        self._restarts = [0] * count
        self._revival = Revival(count, num_envs) if restart else None
        started = [_start() for _ in self._shares]
        self._processes = [process for process, _ in started]
        self._connections = [connection for _, connection in started]
        self._finalizer = weakref.finalize(self, _stop, self._processes, self._connections)
        try:
            self._creations = [
                _by_value(("start", (creator, context, share.start, share.stop - share.start, checks, restart)))
                for share in self._shares
            ]
            for connection, creation in zip(self._connections, self._creations, strict=True):
                connection.send_bytes(creation)
            spaces = [self._unwrap(reply) for reply in self._receive("creation")]
        except BaseException:
            self.close()
            raise
        self.observation_space, self.action_space = spaces[0]
        self._rows = empty_rows(self.observation_space, num_envs)

    def reset(self, seeds: list[int] | None = None) -> Any:
        """See `VectorEnv.reset`."""
        rows = empty_rows(self.observation_space, self.num_envs)
        numbers: list[int | None] = [None] * self.num_envs if seeds is None else [int(seed) for seed in seeds]
        if self._revival is not None and seeds is not None:
            self._revival.seeds = numbers
        replies = self._call("reset", [(None if seeds is None else numbers[share],) for share in self._shares])
        for i, share in enumerate(self._shares):
            obs, infos = self._unwrap(replies[i]) if not self._is_to_revive(replies[i]) else self._revive(i, "reset")
            self._put(rows, share, obs)
            self.reset_infos[share] = infos
        self._rows = rows
        return rows

    def step(
        self,
        actions: Any,
        obs_out: Any,
        rewards_out: np.ndarray,
        terminateds_out: np.ndarray,
        truncateds_out: np.ndarray,
        active: np.ndarray | None = None,
    ) -> Ended:
        """See `VectorEnv.step`."""
        columns = [np.asarray(leaf) for leaf in leaves(self.action_space, actions)]
        requests = [([leaf[s] for leaf in columns], None if active is None else active[s]) for s in self._shares]
        ended: Ended = []
        for i, reply in enumerate(self._call("step", requests)):
            share = self._shares[i]
            values = self._failed_step(i, active) if self._is_to_revive(reply) else self._unwrap(reply)
            obs, rewards_out[share], terminateds_out[share], truncateds_out[share], over, infos, resets = values
            self._put(obs_out, share, obs)
            self.infos[share] = infos or [{} for _ in range(share.start, share.stop)]
            for b, final in over:
                ended.append((share.start + b, final))
                self.reset_infos[share.start + b] = resets[b]
        self._rows = obs_out
        return ended

    def truncate(self, b: int, obs_out: Any) -> Any:
        """See `VectorEnv.truncate`."""
        i, local = self._locate(b)
        reply = self._call_one(i, "truncate", (local,))
        if self._is_to_revive(reply):
            final = take_row(self.observation_space, self._rows, b)
            columns, infos = self._revive(i, "truncate", told=False)
            first, self.reset_infos[b] = [column[local] for column in columns], infos[local]
        else:
            final, first, self.reset_infos[b] = self._unwrap(reply)
        for rows in (obs_out, self._rows):
            for column, leaf in zip(leaves(self.observation_space, rows), first, strict=True):
                column[b] = leaf
        return final

    def observations(self) -> Any:
        """See `VectorEnv.observations`."""
        rows = empty_rows(self.observation_space, self.num_envs)
        copy_rows(self.observation_space, rows, self._rows)
        return rows

    def end_fragment(self) -> None:
        """See `VectorEnv.end_fragment`."""
        self._rows = self.observations()
        for i, reply in enumerate(self._call("end_fragment", [()] * len(self._shares))):
            if self._is_to_revive(reply):
                self._revive(i, "end_fragment", told=False)
            else:
                self._unwrap(reply)

    def get_state(self) -> dict[str, Any]:
        """See `VectorEnv.get_state`; the same form as `ListVectorEnv`'s, so that either restores the other's."""
        states = [self._unwrap(reply) for reply in self._call("get_state", [()] * len(self._shares))]
        self._rows = self.observations()
        return {"kind": "list", "envs": [entry for state in states for entry in state["envs"]]}

    def set_state(self, state: dict[str, Any]) -> list[bool]:
        """See `VectorEnv.set_state`."""
        entries = state["envs"] if state.get("kind") == "list" else []
        replies = self._call("restore", [({"kind": "list", "envs": entries[share]},) for share in self._shares])
        rows = empty_rows(self.observation_space, self.num_envs)
        reasons: dict[int, str] = {}
        for share, (why, obs) in zip(self._shares, map(self._unwrap, replies), strict=True):
            self._put(rows, share, obs)
            reasons |= {share.start + b: reason for b, reason in why.items()}
        self._rows = rows
        warn_fresh(reasons, self.num_envs, self.place)
        return [b not in reasons for b in range(self.num_envs)]

    def render(self, b: int = 0) -> Any:
        """See `VectorEnv.render`."""
        i, local = self._locate(b)
        return self._unwrap(self._call_one(i, "render", (local,)))

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._finalizer()

    def _put(self, rows: Any, share: slice, values: list[np.ndarray]) -> None:
        for column, leaf in zip(leaves(self.observation_space, rows), values, strict=True):
            column[share] = leaf

    def _locate(self, b: int) -> tuple[int, int]:
        i = next(i for i, share in enumerate(self._shares) if b < share.stop)
        return i, b - self._shares[i].start

    def _call(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """The replies of all processes; of one that died since its last step, that it has."""
        waiting = set() if self._revival is None else set(self._revival.untold)
        for i, given in enumerate(arguments):
            if method != "step" or i not in waiting:
                self._send(i, method, given)
        return self._receive(method, waiting if method == "step" else set())

    def _call_one(self, i: int, method: str, arguments: tuple[Any, ...]) -> Any:
        self._send(i, method, arguments)
        return self._receive_one(i, method)

    def _send(self, i: int, method: str, arguments: tuple[Any, ...]) -> None:
        # To a process that died it cannot be sent; its reply tells.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connections[i].send((method, arguments))

    def _receive(self, method: str, dead: Collection[int] = ()) -> list[Any]:
        # Every reply is taken before an error is raised, else the next call would read a stale one.
        return [
            (False, ("dead", "", "")) if i in dead else self._receive_one(i, method) for i in range(len(self._shares))
        ]

    def _receive_one(self, i: int, method: str) -> tuple[bool, Any]:
        try:
            good, value, news = self._connections[i].recv()
        except (EOFError, OSError):
            return False, ("dead", str(self._dead(i, method)), "")
        if news is not None:
            reports, self._restarts[i] = news
            for report in reports:
                logger.warning(report)
            self._count_restarts()
        if good and method == "step" and self._revival is not None:
            self._revival.in_a_row[i] = 0
        return good, value

    def _count_restarts(self) -> None:
        self.num_restarts = sum(self._restarts) + (0 if self._revival is None else self._revival.count)

    def _is_to_revive(self, reply: tuple[bool, Any]) -> bool:
        return self._revival is not None and not reply[0] and reply[1][0] == "dead"

    def _revive(self, i: int, method: str, *, told: bool = True) -> tuple[list[np.ndarray], list[Any]]:
        """Starts another process for a share; returns the first observations' leaves and the infos there.

        Args:
            i: number of the share.
            method: in which its process died.
            told: the caller tells of the ends of episodes; else the next step does.
        """
        assert self._revival is not None
        share = self._shares[i]
        while True:
            error = self._dead(i, method)
            self._revival.note_death(i, share, self._restarts[i], error)
            self._restarts[i] = 0
            logger.warning("%s; its environments are created anew", error)
            self._connections[i].close()
            self._processes[i], self._connections[i] = _start()
            self._connections[i].send_bytes(self._creations[i])
            self._unwrap(self._receive_one(i, "creation"))
            self._count_restarts()
            method = "reset"
            reply = self._call_one(i, method, (self._revival.next_seeds(i, share),))
            if self._is_to_revive(reply):
                continue
            obs, infos = self._unwrap(reply)
            fresh = obs, [{**info, RESET_FAILED: True} for info in infos]
            if not told:
                self._revival.untold[i] = fresh
            return fresh

    def _failed_step(self, i: int, active: np.ndarray | None) -> tuple[Any, ...]:
        """The step's result where a process died: its episodes are truncated and begin anew in another process."""
        assert self._revival is not None
        share = self._shares[i]
        columns, infos = self._revival.untold.pop(i, None) or self._revive(i, "step")
        count = share.stop - share.start
        stepped = np.ones(count, np.bool_) if active is None else np.asarray(active[share], np.bool_)
        over = [
            (int(b), take_row(self.observation_space, self._rows, share.start + int(b))) for b in stepped.nonzero()[0]
        ]
        told = [{STEP_FAILED: True} if one else {} for one in stepped]
        resets = {b: {key: value for key, value in infos[b].items() if key != RESET_FAILED} for b, _ in over}
        return columns, np.zeros(count), np.zeros(count, np.bool_), stepped, over, told, resets

    def _unwrap(self, reply: tuple[bool, Any]) -> Any:
        good, value = reply
        if good:
            return value
        kind, text, trace = value
        error = _ERRORS.get(kind, EnvError)(text)
        if trace:
            error.add_note(f"In the environment's process:\n{trace}")
        raise error

    def _dead(self, i: int, method: str) -> EnvError:
        share, process = self._shares[i], self._processes[i]
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return EnvError(
            f"{self.place.describe(share.start)}: {method}: the process of envs {share.start} to {share.stop - 1} is "
            f"gone ({how}); what it wrote, if anything, is on stderr. env_stepping='sync' shows an error in place"
        )


def _by_value(value: Any) -> bytes:
    """The value as cloudpickle sends it; code keeps the name of its file, which a traceback from the process shows."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    create, arguments, *_ = _REDUCERS[CodeType](code)
    return _with_filename, (code.co_filename, create, *arguments)


def _with_filename(filename: str, create: Any, *arguments: Any) -> CodeType:
    return create(*arguments).replace(co_filename=filename)


class _Pickler(cloudpickle.CloudPickler):
    dispatch_table = _REDUCERS.new_child({CodeType: _reduce_code})


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            stdin=subprocess.DEVNULL,
        )
    return process, Connection(ours.detach())


def _stop(processes: list[subprocess.Popen[bytes]], connections: list[Connection]) -> None:
    for connection in connections:
        try:
            connection.send(("close", ()))
        except (OSError, ValueError):
            continue
    for process, connection in zip(processes, connections, strict=True):
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        connection.close()
