"""From what a user writes as `env` to a function that creates the environment."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from jaxrl import registry
from jaxrl.envs.atari import AtariCreator, AtariOptions, atari_id, is_preprocessed
from jaxrl.envs.checks import env_failure
from jaxrl.envs.env_context import EnvContext
from jaxrl.envs.quick_discrete import check_actions_quickly
from jaxrl.tracebacks import raised
from jaxrl.types import ConfigError, JaxrlError

if TYPE_CHECKING:
    from jaxrl.envs.jax_native.env import JaxEnv

_CONTEXT_NAMES = {"config", "cfg", "conf", "env_config", "env_cfg", "env_context", "context", "ctx"}


class EnvCreator:
    """Creates one environment from an EnvContext; picklable where what it holds is.

    Args:
        target: a gymnasium EnvSpec, a class, a creator function, a JaxEnv, or a list of environments.
        name: what errors call the environment.

    Attributes:
        gym_id: the gymnasium id where the target is a registered one, else None.
        instances: the environments where the target is a list of them, else None.
    """

    def __init__(self, target: Any, name: str, gym_id: str | None = None) -> None:
        self.target = target
        self.name = name
        self.gym_id = gym_id
        self.instances: list[Any] | None = target if isinstance(target, list) else None

    def __call__(self, context: EnvContext | Mapping[str, Any] | None = None) -> Any:
        """Creates the environment.

        Args:
            context: env_config with worker and vector index.

        Returns:
            A gymnasium Env, a MultiAgentEnv or a gymnasium VectorEnv.

        Raises:
            EnvError: the constructor raised; chained, with worker and environment index.
            ConfigError: `env_config` does not fit the constructor.
        """
        if not isinstance(context, EnvContext):
            context = EnvContext(context)
        where = f"{self.name} (worker {context.worker_index}, env {context.vector_index})"
        try:
            env = self._create(context)
        except JaxrlError:
            raise
        except Exception as error:
            raise env_failure(where, f"creation with env_config {dict(context)!r}", error) from error
        if not callable(getattr(env, "reset", None)) or not callable(getattr(env, "step", None)):
            raise ConfigError(
                f"{where}: expected the creator to return an environment with reset and step, "
                f"got {type(env).__name__}; does the creator function lack a return?"
            )
        return env

    def jax_env(self, env_config: Mapping[str, Any] | None = None) -> JaxEnv | None:
        """Returns the environment as pure functions where the target is one or a function that says so.

        A function says so by its return annotation: `def my_env(env_config) -> JaxEnv`.

        Args:
            env_config: goes to the function.

        Raises:
            ConfigError: `env_config` does not fit; options for an environment that exists already.
            EnvError: the function raised.
        """
        context = env_config if isinstance(env_config, EnvContext) else EnvContext(env_config)
        if is_jax_env(self.target):
            unused = [key for key in context if key != "render_mode"]
            if unused:
                raise ConfigError(
                    f"env_config: expected no options for {self.name}, which is a JaxEnv that exists already, got "
                    f"{unused}; give its maker as env, or make it with them"
                )
            return self.target
        if not _says_jax_env(self.target):
            return None
        try:
            return self.target(context) if _takes_context(self.target, context) else self.target(**context)
        except JaxrlError:
            raise
        except Exception as error:
            raise env_failure(self.name, f"creation with env_config {dict(context)!r}", error) from error

    def __repr__(self) -> str:
        return f"EnvCreator({self.name!r})"

    def _create(self, context: EnvContext) -> Any:
        jax_env = self.jax_env(context)
        if jax_env is not None:
            return _gym_form(jax_env, context)
        if self.instances is not None:
            if context.num_workers > 0:
                raise ConfigError(
                    f"env {self.name}: expected what makes environments, since each of num_workers="
                    f"{context.num_workers} rollout workers has its own, got environments that exist already; give "
                    "the class, a registered name, or a function such as lambda env_config: MyEnv()"
                )
            if context.vector_index >= len(self.instances):
                raise ConfigError(
                    f"env: expected a list of at least {context.vector_index + 1} environments (num_envs_per_worker), "
                    f"got {len(self.instances)}"
                )
            return self.instances[context.vector_index]
        if self.gym_id is not None:
            # jaxrl's own checks say more than gymnasium's and cost less, and its samplers reset before they step.
            spec = copy.deepcopy(gym.spec(self.gym_id))
            spec.order_enforce = False
            try:
                env = gym.make(spec, **{"disable_env_checker": True, **context})
            except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
                raise ConfigError(_missing(self.name, spec, error)) from error
            check_actions_quickly(env)
            return env
        created = self.target(context) if _takes_context(self.target, context) else self.target(**context)
        return _gym_form(created, context) if is_jax_env(created) else created


def make_env_creator(env: Any) -> EnvCreator:
    """Turns the `env` of a configuration into a creator.

    Args:
        env: one of
            - a gymnasium id: `env_config` goes to `gymnasium.make` as keyword arguments (`render_mode` too);
            - an Atari id of ale-py: the same, after the options of the preprocessing (`jaxrl.envs.AtariOptions`);
            - a registered name (`jaxrl.registry.register_env`), the built-in environments included;
            - `"pkg.mod:Class"`, a class, or a creator function: called with an EnvContext where its first parameter is
              for it (called `config`, `cfg`, `env_config`, ..., the only one without a default, or the only one at
              all), else with `env_config` as keyword arguments;
            - a JaxEnv (`jaxrl.envs.jax_native`), or a function annotated to return one; the built-in ones have names
              like `jax/CartPole-v1`;
            - an environment, or a list of them (one per `num_envs_per_worker`): for one user in this process, so that
              evaluation and playing need another one.

    Returns:
        `creator(env_context) -> env`.

    Raises:
        ConfigError: an unknown name; the message gives the nearest ones.

    Example:
        >>> make_env_creator("CartPole-v1")({"render_mode": "rgb_array"}).render_mode
        'rgb_array'
    """
    if isinstance(env, EnvCreator):
        return env
    if isinstance(env, str):
        return _from_name(env)
    if isinstance(env, EnvSpec):
        if atari_id(env.id) is not None:
            return _from_name(env.id)
        return EnvCreator(None, env.id, gym_id=env.id) if env.id in gym.registry else EnvCreator(env.make, env.id)
    if inspect.isclass(env):
        return EnvCreator(env, env.__name__)
    if is_jax_env(env):
        return EnvCreator(env, env.name)
    if isinstance(env, Sequence):
        if not env:
            raise ConfigError("env: expected at least one environment in the list, got an empty list")
        return EnvCreator(list(env), _name_of(env[0]))
    if callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None)):
        return EnvCreator([env], _name_of(env))
    if callable(env):
        return EnvCreator(env, getattr(env, "__name__", type(env).__name__))
    raise ConfigError(
        "env: expected a gymnasium id, a registered name, 'pkg.mod:Class', a class, a creator function or a list of "
        f"environments, got {type(env).__name__} {env!r}"
    )


def find_jax_env(env: Any, env_config: Mapping[str, Any] | None = None) -> JaxEnv | None:
    """Returns the environment of a configuration as pure functions, or None where it is not JAX-native.

    Args:
        env: as `make_env_creator` takes it.
        env_config: its options.

    Raises:
        ConfigError: an unknown name, or `env_config` does not fit.

    Example:
        >>> find_jax_env("jax/CartPole-v1", {"max_episode_steps": 200}).max_episode_steps
        200
        >>> find_jax_env("CartPole-v1") is None
        True
    """
    return make_env_creator(env).jax_env(env_config)


def env_name(env: Any) -> str:
    """What a run is called after: the name that stands for an environment, or that of the object."""
    if isinstance(env, str):
        return env
    return env.name if is_jax_env(env) else getattr(env, "__name__", type(env).__name__)


def is_jax_env(value: Any) -> bool:
    """Whether `value` is a JaxEnv."""
    if not isinstance(value, tuple):
        return False
    from jaxrl.envs.jax_native.env import JaxEnv

    return isinstance(value, JaxEnv)


def gets_sign_rewards(env: Any, env_config: Mapping[str, Any]) -> bool:
    """Whether learning sees the sign of rewards where the configuration does not say: for preprocessed Atari ids.

    Args:
        env: as `make_env_creator` takes it.
        env_config: its options.
    """
    if not isinstance(env, str | EnvSpec | EnvCreator):
        return False
    return isinstance(make_env_creator(env).target, AtariCreator) and is_preprocessed(env_config)


def stacked_frames(env: Any, env_config: Mapping[str, Any]) -> int:
    """Frames that observations stack on their last axis, where that is known: of preprocessed Atari ids; else 0."""
    if not gets_sign_rewards(env, env_config):
        return 0
    return env_config.get("frame_stack", AtariOptions.frame_stack)


def _from_name(name: str) -> EnvCreator:
    found = registry.lookup("env", name)
    if found is not None:
        creator = make_env_creator(found)
        return EnvCreator(creator.target, name, creator.gym_id)
    game = atari_id(name)
    if game is not None:
        return EnvCreator(AtariCreator(game), name)
    if name in gym.registry:
        return EnvCreator(None, name, gym_id=name)
    module, _, attribute = name.partition(":")
    if attribute:
        return _from_module(name, module, attribute)
    try:
        gym.spec(name)
    except gym.error.Error as error:
        raise ConfigError(_unknown(name, error)) from error
    return EnvCreator(None, name, gym_id=name)


def _from_module(name: str, module: str, attribute: str) -> EnvCreator:
    """The creator of `"pkg.mod:Class"`, or of gymnasium's `"module:id"`, whose import registers the id."""
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"env {name!r}: cannot import module {module!r}: {raised(error)}") from error
    except Exception as error:
        raise ConfigError(f"env {name!r}: importing module {module!r} raised {raised(error)}") from error
    found: Any = loaded
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found is None and attribute in gym.registry:
        return EnvCreator(None, name, gym_id=name)
    if found is None:
        there = [key for key, value in vars(loaded).items() if inspect.isclass(value) or inspect.isfunction(value)]
        near = registry.did_you_mean(attribute, there)
        raise ConfigError(f"env: unknown environment {name!r}: module {module} has no {attribute}{near}")
    creator = make_env_creator(found)
    return EnvCreator(creator.target, name, creator.gym_id)


def _unknown(name: str, error: Exception) -> str:
    known = [*gym.registry, *registry.names("env")]
    folded = {key.casefold(): key for key in known}
    base = name.rpartition("-v")[0] or name
    # The versions that there are of it come first, the newest before the others: gymnasium suggests that one too.
    mine = {key: _version(key) for key in known if key.rpartition("-v")[0].casefold() == base.casefold()}
    near = sorted(mine, key=lambda key: -mine[key])
    near += [folded[key] for key in difflib.get_close_matches(name.casefold(), folded, n=4, cutoff=0.5)]
    near = list(dict.fromkeys(key for key in near if key != name))
    hint = f"; the nearest are {', '.join(near[:4])}" if near else ""
    return (
        f"env: unknown environment {name!r} ({error}){hint}. "
        "Expected a gymnasium id, 'pkg.mod:Class', or a name registered with jaxrl.registry.register_env (from the "
        "shell: --import the module that registers it, or give --env pkg.mod:Class)"
    )


def _version(gym_id: str) -> int:
    number = gym_id.rpartition("-v")[2]
    return int(number) if number.isdigit() else -1


# The parts of gymnasium's entry points that an extra of jaxrl installs what is missing for.
_EXTRAS = {"mujoco": "mujoco", "box2d": "box2d"}


def _missing(name: str, spec: EnvSpec, error: Exception) -> str:
    """Says which extra an environment lacks."""
    extra = next((extra for part, extra in _EXTRAS.items() if part in str(spec.entry_point)), None)
    remedy = f"pip install 'jaxrl[{extra}]'" if extra else "install what it needs"
    return f"env {name!r}: a package is missing: {remedy} ({error})"


def _says_jax_env(target: Any) -> bool:
    """True for a function whose return annotation is JaxEnv."""
    if not inspect.isfunction(target):
        return False
    annotation = target.__annotations__.get("return")
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.rpartition(".")[2] == "JaxEnv"


def _gym_form(jax_env: Any, context: EnvContext) -> Any:
    # JAX is imported only where such an environment is created: processes that step others start without it.
    from jaxrl.envs.jax_native.gym_env import JaxGymEnv

    return JaxGymEnv(jax_env, render_mode=context.get("render_mode"))


def _takes_context(target: Callable[..., Any], context: EnvContext) -> bool:
    """True where the first parameter of a class or creator is meant for the EnvContext."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if not positional:
        return False
    first = positional[0]
    if first.kind == first.VAR_POSITIONAL:
        return not any(p.kind == p.VAR_KEYWORD for p in parameters)
    if first.name in context:
        return False
    annotation = first.annotation if isinstance(first.annotation, str) else getattr(first.annotation, "__name__", "")
    required = [p for p in positional if p.default is p.empty and p.kind != p.VAR_POSITIONAL]
    if first.name in _CONTEXT_NAMES or "EnvContext" in annotation or required == [first]:
        return True
    # Whatever it is called: the only parameter, None by default, where no option has a parameter of its own.
    alone = len(parameters) == 1 and first.default is None and first.name != "render_mode"
    return alone and bool(context)


def _name_of(env: Any) -> str:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(getattr(env, "unwrapped", env)).__name__
