"""The persistent compile cache, and how long compiling took."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

MAX_CACHE_BYTES = 512 * 2**20

_COMPILING = "/jax/core/compile/backend_compile_duration"
# A program that compiles for less is not worth a line.
LONG_S = 1.0

_seconds = 0.0
_lock = threading.Lock()
_listening = False


def enable_compile_cache(setting: bool | str) -> None:
    """Turns JAX's persistent compile cache on, in a directory that only the user can write (its files are native code).

    Does nothing where the user has configured JAX's cache already (`jax_compilation_cache_dir`,
    JAX_COMPILATION_CACHE_DIR), or where JAXRL_COMPILE_CACHE=0.

    Args:
        setting: True: `~/.cache/jaxrl/compiled`; a path; False: leave JAX's setting alone.
    """
    if (
        not setting
        or os.environ.get("JAXRL_COMPILE_CACHE") == "0"
        or getattr(jax.config, "jax_compilation_cache_dir", None)
    ):
        return
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    directory = base / "jaxrl" / "compiled" if setting is True else pathlib.Path(setting).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = directory.stat()
    except OSError:
        return  # a read-only home costs the cache, not the run
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        return  # somebody else could put native code there
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
    # RL's programs are small: each is worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def compile_seconds() -> float:
    """Seconds that this process has spent tracing and compiling since the first call of this function."""
    global _listening
    with _lock:
        if not _listening:
            _listening = True
            jax.monitoring.register_event_duration_secs_listener(_on_event)
        return _seconds


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    global _seconds
    if event.startswith("/jax/core/compile/") and event.endswith("_duration"):
        with _lock:
            _seconds += duration_secs


@contextlib.contextmanager
def watched(tell: Callable[[str], None]) -> Iterator[None]:
    """Tells of each program that has been compiling for a second: its name.

    Args:
        tell: called from another thread.
    """
    timers: dict[str, threading.Timer] = {}

    def begins(event: str, value: float, **about: Any) -> None:
        name = str(about.get("fun_name"))
        if event == _COMPILING:
            timers[name] = timer = threading.Timer(LONG_S, tell, (name.removeprefix("jit(").rstrip(")"),))
            timer.daemon = True
            timer.start()

    def ends(event: str, duration_secs: float, **about: Any) -> None:
        name = str(about.get("fun_name"))
        if event == _COMPILING and name in timers:
            timers.pop(name).cancel()

    jax.monitoring.register_scalar_listener(begins)
    jax.monitoring.register_event_duration_secs_listener(ends)
    try:
        yield
    finally:
        jax.monitoring.unregister_scalar_listener(begins)
        jax.monitoring.unregister_event_duration_listener(ends)
        for timer in timers.values():
            timer.cancel()
