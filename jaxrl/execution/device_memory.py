"""What a compiled program needs of the device's memory, against what there is."""

from __future__ import annotations

import os
from typing import Any

import jax

from jaxrl import trees
from jaxrl.types import ConfigError


def available_bytes() -> int:
    """Bytes that the default device has left; of a CPU, what the system could give without swapping."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: Any, what: str) -> None:
    """Refuses what does not fit.

    Args:
        needed: bytes, or a pytree of arrays or shapes.
        what: whose they are, for the message.

    Raises:
        ConfigError: with both sums.
    """
    needed = needed if isinstance(needed, int) else trees.size_bytes(needed)
    left = available_bytes()
    if needed > left:
        raise ConfigError(
            f"engine='compiled': {what} needs {gib(needed)}, and {jax.devices()[0].device_kind} has {gib(left)} left; "
            "lower num_envs_per_worker, rollout_fragment_length, buffer_size or the number of members."
        )


def gib(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
