"""Who uses an environment object: one user at a time, who resets, steps and closes it.

A user's environments are its own until it closes them, or is gone.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

from jaxrl.envs.checks import EnvPlace
from jaxrl.types import ConfigError

# By the id of the environment without wrappers, which its user keeps alive.
_users: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def claim(envs: Sequence[Any], user: Any, place: EnvPlace, *, instead_of: Sequence[Any] = ()) -> None:
    """Makes `user` the user of environments.

    Args:
        envs: the environments, different objects.
        user: what will step them, and `release` them when it closes them.
        place: names them in the error.
        instead_of: environments of this user that they take the place of.

    Raises:
        ConfigError: one of them has a user already, or comes twice.
    """
    release(instead_of, user)
    keys = [_key(env) for env in envs]
    if any(_users.get(key) not in (None, user) for key in keys):
        gc.collect()  # a trainer that was dropped without `stop()`
    for b, key in enumerate(keys):
        if _users.get(key) not in (None, user) or key in keys[:b]:
            raise ConfigError(
                f"{place.describe(b)}: this {type(envs[b]).__name__} object is in use already. Training, evaluation, "
                "playing and each of num_envs_per_worker step environments of their own; give what makes a new one "
                "each time as env: a class, a registered name, or a function such as lambda env_config: MyEnv(). "
                "evaluation_config={'env': ...} gives evaluation and playing another one."
            )
    _users.update(dict.fromkeys(keys, user))


def release(envs: Sequence[Any], user: Any) -> None:
    """Ends what `claim` began; environments of another user stay with it."""
    for env in envs:
        if _users.get(_key(env)) is user:
            del _users[_key(env)]


def _key(env: Any) -> int:
    return id(getattr(env, "unwrapped", env))
