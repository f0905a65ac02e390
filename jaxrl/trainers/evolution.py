"""Population-based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846): exploit and explore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxrl.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class PopulationBasedTraining:
    """How a population goes on from its best members (algorithm 1; truncation selection and perturbation, section 4.1).

    After each `interval` iterations the members in the lowest `quantile` take parameters, optimiser state and coeffs of
    members drawn from the highest one, and multiply each coeff in `bounds` by one of `factors`, drawn at random.

    Args:
        bounds: lowest and highest value of each coeff that is explored.
        interval: iterations between generations.
        quantile: share of members replaced, above 0 and at most one half.
        factors: a perturbation is by one of these.
        seed: of the draws.

    Raises:
        ConfigError: a number out of range.

    Example:
        >>> evolve = PopulationBasedTraining(bounds={"lr": (1e-5, 1e-2)}, interval=5)
        >>> trainer.fit(50, seeds=16, evolve=evolve)             # doctest: +SKIP
    """

    bounds: Mapping[str, tuple[float, float]]
    interval: int = 5
    quantile: float = 0.25
    factors: tuple[float, ...] = (0.8, 1.2)
    seed: int = 0
    _generator: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_generator", np.random.default_rng(self.seed))
        if self.interval < 1:
            raise ConfigError(f"PopulationBasedTraining: interval should be at least 1, got {self.interval}.")
        if not 0.0 < self.quantile <= 0.5:
            raise ConfigError(f"PopulationBasedTraining: quantile should be in (0, 0.5], got {self.quantile}.")
        if not self.factors or min(self.factors) <= 0:
            raise ConfigError(f"PopulationBasedTraining: factors should be positive, got {self.factors}.")
        for name, (low, high) in self.bounds.items():
            if not low <= high:
                raise ConfigError(
                    f"PopulationBasedTraining: bounds[{name!r}] should be (low, high), got {(low, high)}."
                )

    def next_generation(
        self, rewards: np.ndarray, coeffs: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Who goes on from whom, and with which coeffs.

        Args:
            rewards: of each member `[M]`; NaN counts as the lowest.
            coeffs: current values by name `[M]`.

        Returns:
            `(parents [M], coeffs by name [M])`; those who stay have themselves as parents and coeffs unchanged.

        Raises:
            ConfigError: `bounds` names a coeff that there is not.
        """
        unknown = sorted(set(self.bounds) - set(coeffs))
        if unknown:
            raise ConfigError(f"PopulationBasedTraining: no coeffs {unknown}; there are {sorted(coeffs)}.")
        size = len(rewards)
        order = np.argsort(np.where(np.isnan(rewards), -np.inf, rewards), kind="stable")
        count = int(size * self.quantile)
        lowest, highest = order[:count], order[size - count :]
        parents = np.arange(size)
        if count:
            parents[lowest] = self._generator.choice(highest, count)
        new = {name: np.array(values)[parents] for name, values in coeffs.items()}
        for name, (low, high) in self.bounds.items():
            factors = self._generator.choice(self.factors, count)
            new[name][lowest] = np.clip(new[name][lowest] * factors, low, high)
        return parents, new
