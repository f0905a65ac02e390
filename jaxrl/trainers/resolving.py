"""From what a user gives a trainer to its complete, checked options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrl import config as config_lib
from jaxrl.trainers import evaluation, policy_options, setup
from jaxrl.types import ConfigError


def split_given(name: str, config: Any, second: Any, env: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tune's own entries of a config, and the others: never copied deeply, since they may hold environments.

    Args:
        name: of the trainer, for messages.
        config: as given.
        second: the argument after it, which other libraries take the environment for.
        env: in place of its environment, or None.

    Raises:
        ConfigError: the config is no mapping.
    """
    if config is not None and not isinstance(config, Mapping):
        example = f"{name}({{'env': {second if isinstance(second, str) else 'CartPole-v1'!r}}})"
        raise ConfigError(
            f"{name}: config: expected a dict of options, got {config!r} ({type(config).__name__}); write {example}; "
            f"networks are options too ('model'). {name}.config_help() lists them all."
        )
    given = dict(config or {})
    tunes = {key: given.pop(key) for key in list(given) if key.startswith("__") and key.endswith("__")}
    if env is not None:
        given["env"] = env
    return tunes, given


def parse(cls: Any, config: Mapping[str, Any]) -> Any:
    """See `Trainer.parse_config`."""
    options = config_lib.parse(cls.config_class, config, where=f"{cls.__name__} config")
    if options.env is None:
        raise ConfigError(f'{cls.__name__} config: no environment; set "env", e.g. {{"env": "CartPole-v1"}}.')
    return setup.with_seed(options)


def resolve(cls: Any, options: Any) -> Any:
    """Parsed options, complete and checked: 'auto' is a number.

    Args:
        cls: the Trainer class.
        options: what `parse` gave.

    Raises:
        ConfigError: they do not fit together.
    """
    policy_options.check_meaning(options)
    options = setup.with_fragment_length(options)
    changed = cls.validate_config(options)
    options = options if changed is None else changed
    evaluation.evaluation_options(options)
    return options
