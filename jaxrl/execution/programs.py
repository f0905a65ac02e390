"""Compiling a program by hand: what it costs is known, and it can be done while something else is traced."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxrl.execution.device_memory import check_memory


class ProgramCost(NamedTuple):
    """What a compiled program costs: seconds to trace and to compile, bytes on the device while it runs."""

    trace_s: float
    compile_s: float
    memory_bytes: int


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Tracing makes millions of objects that stay, and garbage collection looks at all of them again and again.

    It took 0.15 of the 0.55 s that PPO's program on CartPole takes to trace.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Building:
    """A program on its way: traced at once, compiled when asked to, in any thread.

    Args:
        name: for messages.
        jitted: what `jax.jit` gave.
        arguments: arrays, or their shapes.
        runs_once: compile it fast, however slow it may be itself.
    """

    def __init__(self, name: str, jitted: Any, *arguments: Any, runs_once: bool = False):
        began = time.perf_counter()
        self.name = name
        with without_collection():
            self._lowered = jitted.lower(*arguments)
        self._trace_s = time.perf_counter() - began
        # For what PPO on CartPole begins with: 0.38 in place of 0.63 s, the same numbers bit for bit.
        self._options = {"xla_backend_optimization_level": 0} if runs_once else None
        self._program: Any = None
        self._compile_s = 0.0

    def compile(self) -> None:
        """Compiles it."""
        began = time.perf_counter()
        self._program = self._lowered.compile(compiler_options=self._options)
        self._compile_s = time.perf_counter() - began

    def done(self) -> tuple[Any, ProgramCost]:
        """The program and what it costs.

        Raises:
            ConfigError: it needs more memory than there is, with both sums; nothing has run.
        """
        if self._program is None:
            self.compile()
        program: Any = self._program
        used, total, beside = program.memory_analysis(), 0, 0
        if used is not None:
            # What it is given is there already.
            beside = int(used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes)
            total = int(used.argument_size_in_bytes) + beside
        check_memory(beside, f"the program {self.name!r}, beside what it is given,")
        return program, ProgramCost(self._trace_s, self._compile_s, total)
