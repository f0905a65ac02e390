"""Names for environments, models, distributions, explorations, algorithms, callbacks and functions.

A name stands for an object or for `"module:attr"`, which is imported when it is first asked for. Names are what
configurations, YAML files and checkpoints hold instead of objects.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl.types import ConfigError

KINDS = ("env", "model", "distribution", "exploration", "algorithm", "callbacks", "function")

ALGORITHMS: Mapping[str, str] = {
    "PG": "jaxrl.algorithms.pg:PGTrainer",
    "A2C": "jaxrl.algorithms.a2c:A2CTrainer",
    "A3C": "jaxrl.algorithms.a3c:A3CTrainer",
    "IMPALA": "jaxrl.algorithms.impala:IMPALATrainer",
    "PPO": "jaxrl.algorithms.ppo:PPOTrainer",
    "APPO": "jaxrl.algorithms.appo:APPOTrainer",
    "DDPPO": "jaxrl.algorithms.ddppo:DDPPOTrainer",
    "DQN": "jaxrl.algorithms.dqn:DQNTrainer",
    "APEX": "jaxrl.algorithms.apex_dqn:ApexDQNTrainer",
    "SimpleQ": "jaxrl.algorithms.simple_q:SimpleQTrainer",
    "IQN": "jaxrl.algorithms.iqn:IQNTrainer",
    "R2D2": "jaxrl.algorithms.r2d2:R2D2Trainer",
    "DDPG": "jaxrl.algorithms.ddpg:DDPGTrainer",
    "APEX_DDPG": "jaxrl.algorithms.apex_ddpg:ApexDDPGTrainer",
    "TD3": "jaxrl.algorithms.td3:TD3Trainer",
    "SAC": "jaxrl.algorithms.sac:SACTrainer",
}

# A name that is not in the table yet may be registered by the package that holds the built-in ones: it is imported on a
# miss.
PROVIDERS: Mapping[str, str] = {
    "env": "jaxrl.envs",
    "model": "jaxrl.models",
    "distribution": "jaxrl.distributions",
    "exploration": "jaxrl.exploration",
}

_MISSING: Any = object()
_tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_tables["algorithm"].update(ALGORITHMS)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the one of `known` that `name` most likely meant, or None."""
    options = list(known)
    matches = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if matches:
        return matches[0]
    folded = {option.casefold(): option for option in options}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"`, or an empty string where nothing is near."""
    match = nearest(name, known)
    return f"; did you mean {match!r}?" if match else ""


def register(kind: str, name: str, obj: Any) -> None:
    """Gives `obj` the name `name`; a name that exists already is replaced (a notebook cell runs twice).

    Args:
        kind: one of `KINDS`.
        name: what a configuration will call it.
        obj: the object, or `"module:attr"`, imported when the name is first resolved.

    Raises:
        ConfigError: unknown kind, empty name, or a string that is not `"module:attr"`.
    """
    table = _table(kind)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"register({kind!r}): expected a non-empty name, got {name!r}")
    if isinstance(obj, str):
        _split_ref(obj)
    elif obj is None:
        raise ConfigError(f"register({kind!r}, {name!r}): expected an object or 'module:attr', got None")
    table[name] = obj


def register_env(name: str, creator: Any) -> None:
    """Registers an environment: a class, a function `creator(env_context) -> env`, a JaxEnv, or `"module:attr"`.

    Example:
        >>> register_env("my-cartpole", lambda context: gymnasium.make("CartPole-v1", **context))  # doctest: +SKIP
    """
    register("env", name, creator)


def register_model(name: str, model: Any) -> None:
    """Registers a model for the `custom_model` key of the model configuration."""
    register("model", name, model)


def register_distribution(name: str, dist_class: Any) -> None:
    """Registers an action distribution for the `custom_action_dist` key of the model configuration."""
    register("distribution", name, dist_class)


def register_exploration(name: str, exploration: Any) -> None:
    """Registers an exploration for the `type` key of `exploration_config`."""
    register("exploration", name, exploration)


def register_algorithm(name: str, trainer_cls: Any) -> None:
    """Registers a trainer class, so that `jaxrl train --run NAME` finds it."""
    register("algorithm", name, trainer_cls)


def lookup(kind: str, name: str, default: Any = None) -> Any:
    """Returns what `name` stands for, or `default`: see `resolve` for where it looks."""
    table = _table(kind)
    if name not in table and kind in PROVIDERS:
        importlib.import_module(PROVIDERS[kind])
    if name not in table:
        found = _from_ray(kind, name)
        if found is _MISSING:
            return default
        table[name] = found
    entry = table[name]
    return import_ref(entry) if isinstance(entry, str) else entry


def resolve(kind: str, name: str) -> Any:
    """Returns what `name` stands for: from this process's table, the built-in package, or the Ray job's registrations.

    A name is never taken for a module path: only what was registered is imported, so a name read from a file is safe.

    Raises:
        ConfigError: nothing has that name; the message gives the nearest one and the list.
    """
    found = lookup(kind, name, _MISSING)
    if found is _MISSING:
        known = names(kind)
        raise ConfigError(
            f"unknown {kind} {name!r}{did_you_mean(name, known) or '.'} Registered: {', '.join(known) or 'none'}. "
            f"Register yours with jaxrl.registry.register({kind!r}, {name!r}, obj)"
        )
    return found


def names(kind: str) -> list[str]:
    """Returns the registered names of a kind, sorted."""
    table = _table(kind)
    if kind in PROVIDERS:
        importlib.import_module(PROVIDERS[kind])
    return sorted(table)


def name_of(kind: str, obj: Any) -> str | None:
    """Returns the name that `obj` was registered under, or None."""
    ref = ref_of(obj)
    for name, entry in _table(kind).items():
        if entry is obj or (ref is not None and isinstance(entry, str) and entry == ref):
            return name
    return None


def import_ref(ref: str) -> Any:
    """Imports `"module:attr"` (`attr` may have dots). It runs the module's code: only for references that are trusted.

    Raises:
        ConfigError: not of that form, no such module, or no such attribute.
    """
    module_name, attr = _split_ref(ref)
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists, but misses one of its own imports, is another fault: let it speak for itself.
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(f"{ref!r}: there is no module {error.name!r}; is its package installed?") from error
        raise
    for part in attr.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise ConfigError(f"{ref!r}: {module_name!r} has no attribute {attr!r}") from error
    return value


def ref_of(obj: Any) -> str | None:
    """Returns `"module:attr"` if importing that gives `obj` back, else None (a lambda, local function, `__main__`)."""
    module_name, qualname = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        return None
    if module_name == "__main__" or "<" in qualname:
        return None
    value: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        value = getattr(value, part, None)
    return f"{module_name}:{qualname}" if value is obj else None


def snapshot() -> dict[str, dict[str, Any]]:
    """Returns what this process registered beyond the built-in names, to be sent to another process: see `install`."""
    return {
        kind: {name: entry for name, entry in table.items() if not _is_builtin(entry)}
        for kind, table in _tables.items()
    }


def install(registrations: Mapping[str, Mapping[str, Any]]) -> None:
    """Registers everything that another process's `snapshot()` holds."""
    for kind, entries in registrations.items():
        for name, entry in entries.items():
            register(kind, name, entry)


def publish_to_ray() -> None:
    """Makes this process's registrations visible in every process of the Ray job (Tune trials, rollout actors).

    They go where `ray.tune.register_env` puts its own, and `resolve` looks there for names that it does not have.

    Raises:
        ConfigError: Ray is not initialised, or an object cannot be sent to another process.
    """
    store = _ray_store()
    if store is None:
        raise ConfigError("publish_to_ray: Ray is not initialised; call ray.init() first")
    for kind, entries in snapshot().items():
        for name, entry in entries.items():
            if not name.isascii():
                raise ConfigError(f"publish_to_ray: {kind} {name!r}: Ray takes ASCII names only; rename it")
            category, key = _ray_key(kind, name)
            try:
                store.register(category, key, entry)
            except TypeError as error:
                raise ConfigError(
                    f"publish_to_ray: {kind} {name!r} ({entry!r}) cannot be sent to another process: {error}. "
                    "Register a function or class of an importable module, as 'module:attr'"
                ) from error


def _table(kind: str) -> dict[str, Any]:
    if kind not in _tables:
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS) or '.'} Kinds: {', '.join(KINDS)}")
    return _tables[kind]


def _split_ref(ref: str) -> tuple[str, str]:
    module_name, _, attr = ref.partition(":")
    parts = [*module_name.split("."), *attr.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"expected 'module:attr', for example 'my_package.envs:make_env', got {ref!r}")
    return module_name, attr


def _is_builtin(entry: Any) -> bool:
    # What every process finds by itself: anything that imports from jaxrl. A user's class that jaxrl built does not.
    ref = entry if isinstance(entry, str) else ref_of(entry)
    return ref is not None and ref.startswith("jaxrl.")


def _from_ray(kind: str, name: str) -> Any:
    store = _ray_store() if name.isascii() else None
    if store is None:
        return _MISSING
    category, key = _ray_key(kind, name)
    return store.get(category, key) if store.contains(category, key) else _MISSING


def _ray_store() -> Any:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from ray.tune.registry import _Registry

    # A fresh view: Ray's own global one keeps the job id of the first ray.init() of the process, which goes stale at
    # the second.
    return _Registry(prefix=ray.get_runtime_context().get_job_id())


def _ray_key(kind: str, name: str) -> tuple[str, str]:
    from ray.tune.registry import ENV_CREATOR, RLLIB_MODEL

    # Environments share RLlib's category, so that ray.tune.register_env serves jaxrl too; the others must not clash
    # with it.
    return (ENV_CREATOR, name) if kind == "env" else (RLLIB_MODEL, f"jaxrl:{kind}:{name}")
