"""The configuration that an environment creator receives, with the place of the environment in the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EnvContext(dict[str, Any]):
    """`env_config` plus where the environment lives; read like a dict.

    Args:
        env_config: the user's `env_config`; copied.
        worker_index: number of the rollout worker, 0 for the local one.
        num_workers: number of remote rollout workers.
        vector_index: number of the environment within its worker.
        remote: True when the environment lives in a process of its own.

    Example:
        >>> context = EnvContext({"length": 5}, worker_index=2)
        >>> context["length"], context.worker_index
        (5, 2)
    """

    def __init__(
        self,
        env_config: Mapping[str, Any] | None = None,
        worker_index: int = 0,
        num_workers: int = 0,
        vector_index: int = 0,
        remote: bool = False,
    ) -> None:
        dict.__init__(self, env_config or {})
        self.worker_index = worker_index
        self.num_workers = num_workers
        self.vector_index = vector_index
        self.remote = remote

    def copy_with_overrides(
        self,
        env_config: Mapping[str, Any] | None = None,
        worker_index: int | None = None,
        num_workers: int | None = None,
        vector_index: int | None = None,
        remote: bool | None = None,
    ) -> EnvContext:
        """Returns a copy with the given fields replaced.

        Args:
            env_config: replaces the whole dict where given.
            worker_index, num_workers, vector_index, remote: replace the attribute where given.

        Returns:
            A new EnvContext; this one is untouched.
        """
        return EnvContext(
            dict(self) if env_config is None else env_config,
            self.worker_index if worker_index is None else worker_index,
            self.num_workers if num_workers is None else num_workers,
            self.vector_index if vector_index is None else vector_index,
            self.remote if remote is None else remote,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles content and attributes (a plain dict subclass would lose the constructor's arguments)."""
        return (EnvContext, (dict(self), self.worker_index, self.num_workers, self.vector_index, self.remote))

    def __repr__(self) -> str:
        return f"EnvContext({dict(self)!r}, worker_index={self.worker_index}, vector_index={self.vector_index})"
