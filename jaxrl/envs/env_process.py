"""The process that steps a share of the environments for `ProcessVectorEnv`; run with the number of an open socket."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np

from jaxrl.envs.checks import EnvPlace
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.list_vector_env import ListVectorEnv
from jaxrl.envs.restarting import Restarter
from jaxrl.envs.rows import empty_rows, leaves, take_row, unflatten
from jaxrl.tracebacks import raised
from jaxrl.types import JaxrlError


class Host:
    """Answers the parent's requests with a ListVectorEnv; each public method is a request.

    Args:
        creator: creates one environment from an EnvContext.
        context: context of the worker's first environment.
        first: number of the first environment of this share.
        count: how many environments this process holds.
        checks: see `ListVectorEnv`.
        restart: whether an environment that fails is created anew.
    """

    def __init__(self, creator: Any, context: EnvContext, first: int, count: int, checks: bool, restart: bool) -> None:
        def create(b: int) -> Any:
            return creator(context.copy_with_overrides(vector_index=first + b, remote=True))

        place = EnvPlace(creator.name, context.worker_index, first)
        self._reports: list[str] = []
        envs, restarters = [create(b) for b in range(count)], None
        if restart:
            restarters = [Restarter(functools.partial(create, b), self._reports.append) for b in range(count)]
        self._vector = ListVectorEnv(envs, place, checks=checks, restarters=restarters)
        self._obs_space = self._vector.observation_space
        self._action_space = self._vector.action_space
        self._rows: Any = None

    def news(self) -> tuple[list[str], int]:
        """Returns what was reported since the last call, and how often an environment was created anew so far."""
        reports = self._reports.copy()
        self._reports.clear()
        return reports, self._vector.num_restarts

    def spaces(self) -> tuple[Any, Any]:
        """Returns the spaces of one environment."""
        return self._obs_space, self._action_space

    def reset(self, seeds: list[int] | None) -> tuple[Any, Any]:
        """Returns the first observations' leaves and the infos."""
        self._rows = self._vector.reset(seeds)
        return leaves(self._obs_space, self._rows), self._vector.reset_infos

    def step(self, action_leaves: list[np.ndarray], active: np.ndarray | None) -> tuple[Any, ...]:
        """Returns observation leaves, rewards, flags, ended environments, infos (None: all empty), infos of resets."""
        vector, count = self._vector, self._vector.num_envs
        rows = empty_rows(self._obs_space, count)
        rewards, terminateds, truncateds = np.zeros(count), np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        actions = unflatten(self._action_space, action_leaves)
        ended = vector.step(actions, rows, rewards, terminateds, truncateds, active)
        self._rows = rows
        infos = vector.infos if any(vector.infos) else None
        resets = {b: vector.reset_infos[b] for b, _ in ended}
        return leaves(self._obs_space, rows), rewards, terminateds, truncateds, ended, infos, resets

    def truncate(self, b: int) -> tuple[Any, Any, Any]:
        """Returns the final observation, the leaves of the next episode's first one, and its info."""
        final = self._vector.truncate(b, self._rows)
        return final, leaves(self._obs_space, take_row(self._obs_space, self._rows, b)), self._vector.reset_infos[b]

    def end_fragment(self) -> None:
        """Compacts the resume log."""
        self._vector.end_fragment()

    def get_state(self) -> dict[str, Any]:
        """Returns this share's states."""
        return self._vector.get_state()

    def restore(self, state: dict[str, Any]) -> tuple[dict[int, str], Any]:
        """Returns why environments did not come back, and the current observations' leaves."""
        reasons = self._vector.restore(state)
        self._rows = self._vector.observations()
        return reasons, leaves(self._obs_space, self._rows)

    def render(self, b: int) -> Any:
        """Renders environment b of this share."""
        return self._vector.render(b)

    def close(self) -> None:
        """Closes the environments."""
        self._vector.close()


def main() -> None:
    """Serves requests until the parent closes the socket or asks to close."""
    # Ctrl-C reaches the whole process group; the parent decides, and its end of the socket tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    host: Host | None = None
    while True:
        try:
            method, arguments = cloudpickle.loads(connection.recv_bytes()) if host is None else connection.recv()
        except (EOFError, ConnectionError):
            break
        try:
            if host is None:
                host = Host(*arguments)
                _send(connection, (True, host.spaces(), None))
            else:
                result = getattr(host, method)(*arguments)
                _send(connection, (True, result, host.news()))
        except Exception as error:
            kind = type(error).__name__ if isinstance(error, JaxrlError) else ""
            text = str(error) if kind else raised(error)
            news = None if host is None else host.news()
            connection.send((False, (kind, text, traceback.format_exc()), news))
        if method == "close":
            break
    connection.close()


def _send(connection: Connection, reply: tuple[bool, Any, Any]) -> None:
    try:
        connection.send(reply)
    except Exception:
        # Values of classes that came by value (the user's __main__) need cloudpickle, which is slower.
        connection.send_bytes(cloudpickle.dumps(reply))
