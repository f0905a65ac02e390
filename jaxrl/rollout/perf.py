"""SamplerPerf: where the time of sampling goes, per vector step."""

from __future__ import annotations

from collections.abc import Sequence


class SamplerPerf:
    """Sums of seconds over vector steps, since the last `pop`."""

    def __init__(self) -> None:
        self._sums = (0, 0.0, 0.0, 0.0)

    def add(self, steps: int, env_wait: float, inference: float, total: float) -> None:
        """Adds a fragment.

        Args:
            steps: vector steps.
            env_wait: seconds in the environments' steps.
            inference: seconds of acting.
            total: seconds in all.
        """
        n, env, act, all_ = self._sums
        self._sums = n + steps, env + env_wait, act + inference, all_ + total

    def pop(self) -> tuple[int, float, float, float]:
        """The sums, which begin at 0 again: steps, and seconds of environments, of acting, in all."""
        sums, self._sums = self._sums, (0, 0.0, 0.0, 0.0)
        return sums


def sampler_perf(parts: Sequence[tuple[int, float, float, float]]) -> dict[str, float]:
    """RLlib's `sampler_perf`: mean milliseconds of a vector step in the environments, in acting and in all the rest.

    Args:
        parts: what `SamplerPerf.pop` gave, worker by worker.
    """
    steps = sum(part[0] for part in parts)
    if steps == 0:
        return {}
    env, act, total = (1e3 * sum(part[i] for part in parts) / steps for i in (1, 2, 3))
    return {"mean_env_wait_ms": env, "mean_inference_ms": act, "mean_processing_ms": total - env - act}
