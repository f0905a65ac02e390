"""Environments that fail are created anew: what `restart_failed_sub_environments` does for each of a worker's."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl.envs.checks import env_failure
from jaxrl.types import EnvError

logger = logging.getLogger("jaxrl.workers")

# So many failures of one environment, without a step between them that went well, are an error.
MAX_IN_A_ROW = 5


class Restarter:
    """Takes care of one environment: counts and reports its failures, and creates it anew.

    An environment that was created anew is seeded with what follows from its first seed and the number of its failures
    since, so that a run repeats itself, failures and all. Whoever steps the environment sets `in_a_row` to 0 after each
    step that went well.

    Args:
        create: creates the environment.
        report: called with a sentence about each failure that is got over; default: a warning of the logger
            "jaxrl.workers".

    Attributes:
        count: how often the environment was created anew.
        in_a_row: failures since the last step that went well.
    """

    def __init__(self, create: Callable[[], Any], report: Callable[[str], Any] = logger.warning) -> None:
        self.count = self.in_a_row = 0
        self._create, self._report = create, report
        self._first_seed: int | None = None
        self._failures = 0
        self._broken = False

    def step_failed(self, where: str, error: Exception) -> None:
        """The environment's step raised; the next `reset` creates it anew.

        Args:
            where: describes environment and step.
            error: what was raised.

        Raises:
            EnvError: it fails time and again (`MAX_IN_A_ROW`).
        """
        self._note(where, "step", error)

    def reset(
        self, env: Any, seed: int | None, where: str, before: Callable[[Any, int | None], None]
    ) -> tuple[Any, Any, bool]:
        """Resets the environment, created anew first if it has failed, and as often as its reset raises.

        Args:
            env: the environment.
            seed: as its reset takes it; where given, later seeds follow from it.
            where: describes the environment.
            before: called before each reset with the environment that is reset, and its seed.

        Returns:
            The environment, what its reset returned, and whether a reset has raised.

        Raises:
            EnvError: it fails time and again (`MAX_IN_A_ROW`), in its constructor too.
        """
        if seed is not None:
            self._first_seed, self._failures = seed, 0
        if self._broken:
            env = self._anew(env, where)
            seed = self._next_seed() if seed is None else seed
        failed = False
        while True:
            before(env, seed)
            try:
                result = env.reset() if seed is None else env.reset(seed=seed)
            except Exception as error:
                self._note(where, "reset", error)
                env, failed = self._anew(env, where), True
                seed = self._next_seed()
                continue
            self._broken = False
            return env, result, failed

    def get_state(self) -> dict[str, Any]:
        """What the next seed follows from, for a checkpoint."""
        return {"seed": self._first_seed, "failures": self._failures}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Takes a saved state back; None, of a run without restarts, changes nothing."""
        if state is not None:
            self._first_seed, self._failures = state["seed"], int(state["failures"])

    def _note(self, where: str, method: str, error: BaseException) -> None:
        self._broken = True
        self._failures += 1
        self.in_a_row += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            raise EnvError(
                f"{env_failure(where, method, error)} It was created anew (restart_failed_sub_environments), and "
                f"failed {self.in_a_row} times without a step between that went well."
            ) from error
        self._report(f"{where}: {method} raised {type(error).__name__}: {error}{_origin(error)}; it is created anew")

    def _anew(self, env: Any, where: str) -> Any:
        # What has failed may well fail to close; that it is let go of is all that matters.
        try:
            env.close()
        except Exception as error:
            logger.debug("%s: close raised %s: %s", where, type(error).__name__, error)
        while True:
            try:
                env = self._create()
            except EnvError as error:
                self._note(where, "creation", error.__cause__ or error)
                continue
            self.count += 1
            return env

    def _next_seed(self) -> int | None:
        if self._first_seed is None:
            return None
        return int(np.random.SeedSequence([self._first_seed, self._failures]).generate_state(1)[0])


def _origin(error: BaseException) -> str:
    """Where an error was raised, e.g. ` (engine.py, line 7)`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
