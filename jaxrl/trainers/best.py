"""keep_best: whether a result is the best so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrl.trainers.history import value_at
from jaxrl.trainers.stopping import check_keys, check_keys_early


class Best:
    """The highest value of a number of results.

    Args:
        key: the number, nested keys joined by `/`; None: nothing is the best.
        trainer_cls, options: what makes the results.

    Attributes:
        value: the highest so far, or None.

    Raises:
        ConfigError: it is known already that results will not have the number.
    """

    def __init__(self, key: str | None, trainer_cls: type, options: Any) -> None:
        self._key = key
        self.value: float | None = None
        if key is not None:
            check_keys_early({key: 0.0}, trainer_cls, options, "keep_best")

    def improves(self, result: Mapping[str, Any]) -> bool:
        """Takes a result in, and says whether it is the best so far.

        Raises:
            ConfigError: a complete result has no such number.
        """
        if self._key is None:
            return False
        if "training_iteration" in result:
            check_keys({self._key: 0.0}, result, "keep_best")
        value = value_at(result, self._key)
        if value != value or (self.value is not None and value <= self.value):
            return False
        self.value = value
        return True
