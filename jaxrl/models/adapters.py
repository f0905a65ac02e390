"""Models from Flax Linen modules, Flax NNX modules and plain functions.

However it is written, a network is called in one of four ways, by the names of its parameters and by whether it is
given an `initial_state`:

- `net(obs)`: feed-forward. It sees observations `[N, ...]`; the adapter flattens and restores other leading axes.
- `net(obs, state)` with an initial state: one recurrent step, observations and state `[B, ...]`. The adapter runs it
  over time, resets the state where an episode starts and holds it over absent rows.
- `net(inputs)`: feed-forward, all of `ModelInputs`, the leading axes as they come.
- `net(inputs, state)` with an initial state: recurrent, all of `ModelInputs` `[T, B, ...]`; resets and absent rows are
  the network's own work (`jaxrl.models.recurrent.scan_rows` does it).

It returns a `ModelOutput`, or, shorter, `(dist_inputs, value)` or `dist_inputs` alone (the value is then 0); with a
state `(dist_inputs, value, state)`. A value `[..., 1]` is squeezed.

Example:
    >>> import flax.linen as nn, jax
    >>> from gymnasium import spaces
    >>> from jaxrl.models import ModelConfig, make_model
    >>> class Net(nn.Module):
    ...     num_outputs: int
    ...
    ...     @nn.compact
    ...     def __call__(self, obs):
    ...         x = nn.relu(nn.Dense(64)(obs))
    ...         return nn.Dense(self.num_outputs)(x), nn.Dense(1)(x)
    >>> def make_net(obs_space, action_space, num_outputs, config):
    ...     return Net(num_outputs)
    >>> config = ModelConfig(custom_model=make_net)  # or register_model("net", make_net) and custom_model="net"
    >>> model = make_model(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), 2, config)
    >>> sorted(model.init(jax.random.key(0)))
    ['Dense_0', 'Dense_1', 'Dense_2']
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp

from jaxrl.models import preprocess
from jaxrl.models.model import ALL_READS, FEED_FORWARD_READS, RECURRENT_READS, Model, no_state
from jaxrl.models.recurrent import scan_rows
from jaxrl.types import Array, ConfigError, ModelInputs, ModelOutput, Params, PyTree

if TYPE_CHECKING:
    from flax import nnx

InitialState = Callable[[int], PyTree]


def from_functions(
    init: Callable[[Array], Params],
    apply: Callable[..., Any],
    obs_space: gymnasium.Space,
    *,
    initial_state: InitialState | None = None,
) -> Model:
    """Makes a model of two functions.

    Args:
        init: `init(key) -> params`. The top-level keys of a dict are the groups that losses and optimizers can name.
        apply: `apply(params, obs)`, `apply(params, obs, state)`, `apply(params, inputs)` or
            `apply(params, inputs, state)`: see the module's docstring.
        obs_space: the observation space.
        initial_state: `initial_state(batch_size) -> state`, a pytree of `[B, ...]`; None for a feed-forward model.

    Returns:
        The model.

    Raises:
        ConfigError: where parameters and initial state do not fit each other.

    Example:
        >>> from gymnasium import spaces
        >>> init = lambda key: {"w": jnp.zeros((4, 2))}
        >>> model = from_functions(init, lambda params, obs: obs @ params["w"], spaces.Box(-1, 1, (4,)))
        >>> sorted(model.reads)
        ['obs']
    """
    parameters = list(inspect.signature(apply).parameters)[1:]
    name = getattr(apply, "__name__", "apply")
    return _model(init, apply, parameters, obs_space, initial_state, name)


def from_linen(
    module: nn.Module,
    obs_space: gymnasium.Space,
    action_space: gymnasium.Space | None = None,
    *,
    initial_state: InitialState | None = None,
) -> Model:
    """Makes a model of a Flax Linen module.

    Args:
        module: its `__call__` takes one of the forms of the module's docstring.
        obs_space: the observation space.
        action_space: needed where the module reads `inputs.prev_actions`.
        initial_state: `initial_state(batch_size) -> state`, a pytree of `[B, ...]`; None for a feed-forward model.

    Returns:
        The model; its parameters are the module's "params" collection.

    Raises:
        ConfigError: for a module with other collections (BatchNorm's statistics), when its parameters are made.
    """
    name = type(module).__name__
    parameters = list(inspect.signature(module.__call__).parameters)

    def init(key: Array) -> Params:
        args: list[Any]
        if "inputs" in parameters:
            leading = (1,) if initial_state is None else (1, 1)
            args = [example_inputs(obs_space, action_space, leading)]
        else:
            args = [preprocess.zeros(obs_space, (1,))]
        if initial_state is not None:
            args.append(initial_state(1))
        variables: Any = module.init(key, *args)
        _refuse_state(name, [collection for collection in variables if collection != "params"])
        return variables.get("params", {})

    def apply(params: Params, *args: Any) -> Any:
        return module.apply({"params": params}, *args)

    return _model(init, apply, parameters, obs_space, initial_state, name)


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    obs_space: gymnasium.Space,
    *,
    initial_state: InitialState | None = None,
) -> Model:
    """Makes a model of a Flax NNX module; it is split once, and its parameters become a plain dict.

    Args:
        module: a function `rngs -> module`, so that each key gives its own parameters; or a module, whose parameters
            are then the initial ones whatever the key: seeds differ in everything but them. Its `__call__` takes one of
            the forms of the module's docstring. It runs in evaluation mode (without dropout).
        obs_space: the observation space.
        initial_state: `initial_state(batch_size) -> state`, a pytree of `[B, ...]`; None for a feed-forward model.

    Returns:
        The model.

    Raises:
        ConfigError: for a module with variables other than `nnx.Param` (BatchNorm's statistics).
    """
    from flax import nnx  # imported by those who use it: it takes a tenth of the time that a worker takes to start

    make = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    example = nnx.clone(make(nnx.Rngs(0)))
    name = type(example).__name__
    example.eval()
    graph, template, random_state, others = nnx.split(example, nnx.Param, nnx.RngState, ...)
    _refuse_state(name, sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(others)}))

    def init(key: Array) -> Params:
        # NNX numbers the entries of its lists; checkpoints name parameters by text.
        return _text_keys(nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param)))

    def apply(params: Params, *args: Any) -> Any:
        state = nnx.clone(template)
        nnx.replace_by_pure_dict(state, params)
        net: Any = nnx.merge(graph, state, random_state)
        return net(*args)

    parameters = list(inspect.signature(type(example).__call__).parameters)[1:]
    return _model(init, apply, parameters, obs_space, initial_state, name)


def adapt(network: Any, obs_space: gymnasium.Space, action_space: gymnasium.Space, name: str) -> Model:
    """Makes a model of whatever a `custom_model` function returned.

    Args:
        network: a Model, a Linen module, an NNX module, or `(init, apply)` or `(init, apply, initial_state)`.
        obs_space: the observation space.
        action_space: the action space.
        name: the custom model's, for errors.

    Returns:
        The model.

    Raises:
        ConfigError: for anything else.
    """
    from flax import nnx

    if isinstance(network, Model):
        return network
    if isinstance(network, nn.Module):
        return from_linen(network, obs_space, action_space)
    if isinstance(network, nnx.Module):
        return from_nnx(network, obs_space)
    if isinstance(network, tuple) and len(network) in (2, 3) and all(map(callable, network)):
        init, apply, *rest = network
        return from_functions(init, apply, obs_space, initial_state=rest[0] if rest else None)
    raise ConfigError(
        f"custom_model {name}: expected it to return a Model, a Linen or NNX module, or "
        f"(init, apply[, initial_state]); got {type(network).__name__}"
    )


def checked(
    model: Model, obs_space: gymnasium.Space, action_space: gymnasium.Space, num_outputs: int, name: str
) -> Model:
    """Traces a custom model once, without computing anything, and compares what it returns with what is needed.

    Args:
        model: the model.
        obs_space: the observation space.
        action_space: the action space.
        num_outputs: inputs of the action distribution per row.
        name: the custom model's, for errors.

    Returns:
        The model, its `reads` narrowed to the inputs that its outputs are computed from.

    Raises:
        ConfigError: for a wrong shape or dtype of an output, or a state unlike the initial one.
    """
    leading = (2, 3)
    inputs = example_inputs(obs_space, action_space, leading)
    inputs = inputs._replace(**{field: None for field in inputs._fields if field not in model.reads})
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda: model.initial_state(leading[1]))
    traced, out = jax.make_jaxpr(model.apply, return_shape=True)(params, inputs, state)
    where = f"custom_model {name}"
    if out.dist_inputs.shape != (*leading, num_outputs):
        raise ConfigError(
            f"{where}: expected dist_inputs {[*leading, num_outputs]} for inputs with leading axes {list(leading)}, "
            f"got {list(out.dist_inputs.shape)}: the distribution takes num_outputs={num_outputs} numbers per row"
        )
    if out.value.shape != leading:
        raise ConfigError(
            f"{where}: expected one value per row, {list(leading)} or {[*leading, 1]}, got {list(out.value.shape)}"
        )
    for field in ("dist_inputs", "value"):
        dtype = getattr(out, field).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ConfigError(f"{where}: expected floats for {field}, got {dtype}")
    if _shapes(out.state) != _shapes(state):
        raise ConfigError(
            f"{where}: the state after a row differs from the initial state: got {_shapes(out.state)}, expected "
            f"{_shapes(state)}, as initial_state({leading[1]}) gives it"
        )
    return model._replace(reads=model.reads & (_read(traced.jaxpr, params, inputs) | {"obs"}))


def example_inputs(
    obs_space: gymnasium.Space, action_space: gymnasium.Space | None, leading: tuple[int, ...]
) -> ModelInputs:
    """Inputs of zeros with the given leading axes, every field filled (`prev_actions` None without an action space)."""
    return ModelInputs(
        obs=preprocess.zeros(obs_space, leading),
        prev_actions=None if action_space is None else preprocess.zeros(action_space, leading),
        prev_rewards=jnp.zeros(leading),
        reset=jnp.zeros(leading, bool),
        mask=jnp.ones(leading, bool),
    )


def _model(
    init: Callable[[Array], Params],
    call: Callable[..., Any],
    parameters: list[str],
    obs_space: gymnasium.Space,
    initial_state: InitialState | None,
    name: str,
) -> Model:
    if initial_state is None and "state" in parameters:
        raise ConfigError(f"model {name}: it takes a state; give initial_state=, a function of the batch size")
    if initial_state is not None and len(parameters) < 2:
        raise ConfigError(f"model {name}: it has an initial_state, but its call takes no second argument for the state")
    if "inputs" in parameters:
        if initial_state is None:
            return Model(init, _whole(call, name), no_state, ALL_READS)
        return Model(init, _whole_recurrent(call, name), initial_state, ALL_READS)
    if initial_state is None:
        return Model(init, _rows(call, obs_space, name), no_state, FEED_FORWARD_READS)
    return Model(init, _steps(call, initial_state, name), initial_state, RECURRENT_READS)


def _whole(call: Callable[..., Any], name: str) -> Callable[..., ModelOutput]:
    def apply(params: Params, inputs: ModelInputs, state: PyTree = ()) -> ModelOutput:
        del state
        return _output(call(params, inputs), name)

    return apply


def _whole_recurrent(call: Callable[..., Any], name: str) -> Callable[..., ModelOutput]:
    def apply(params: Params, inputs: ModelInputs, state: PyTree) -> ModelOutput:
        return _output_and_state(call(params, inputs, state), name)

    return apply


def _rows(call: Callable[..., Any], obs_space: gymnasium.Space, name: str) -> Callable[..., ModelOutput]:
    def apply(params: Params, inputs: ModelInputs, state: PyTree = ()) -> ModelOutput:
        del state
        leaf = preprocess.leaves(obs_space)[0]
        leading = jnp.shape(leaf.of(inputs.obs))
        leading = leading[: len(leading) - len(leaf.space.shape or ())]

        def one_axis(x: Array) -> Array:
            return jnp.reshape(x, (math.prod(leading), *jnp.shape(x)[len(leading) :]))

        out = _output(call(params, jax.tree.map(one_axis, inputs.obs)), name)
        dist_inputs = out.dist_inputs.reshape(*leading, *out.dist_inputs.shape[1:])
        return ModelOutput(dist_inputs, out.value.reshape(*leading, *out.value.shape[1:]))

    return apply


def _steps(call: Callable[..., Any], initial_state: InitialState, name: str) -> Callable[..., ModelOutput]:
    def apply(params: Params, inputs: ModelInputs, state: PyTree) -> ModelOutput:
        def step(state: PyTree, obs: PyTree) -> tuple[PyTree, tuple[Array, Array]]:
            out = _output_and_state(call(params, obs, state), name)
            return out.state, (out.dist_inputs, out.value)

        batch_size = jax.tree.leaves(inputs.obs)[0].shape[1]
        rows = (inputs.obs, inputs.reset, inputs.mask)
        state, (dist_inputs, value) = scan_rows(step, initial_state(batch_size), state, *rows)
        return ModelOutput(dist_inputs, value, state)

    return apply


def _output(out: Any, name: str) -> ModelOutput:
    if isinstance(out, ModelOutput):
        return out._replace(value=_squeeze(out.value, out.dist_inputs))
    if isinstance(out, tuple) and len(out) == 2:
        dist_inputs, value = out
        return ModelOutput(dist_inputs, _squeeze(value, dist_inputs))
    if isinstance(out, jax.Array):
        return ModelOutput(out, jnp.zeros(out.shape[:-1], out.dtype))
    raise ConfigError(
        f"model {name}: expected it to return dist_inputs, (dist_inputs, value) or a ModelOutput; got {_text(out)}"
    )


def _output_and_state(out: Any, name: str) -> ModelOutput:
    if isinstance(out, ModelOutput):
        return out._replace(value=_squeeze(out.value, out.dist_inputs))
    if isinstance(out, tuple) and len(out) == 3:
        dist_inputs, value, state = out
        return ModelOutput(dist_inputs, _squeeze(value, dist_inputs), state)
    raise ConfigError(
        f"model {name}: it has a state; expected it to return (dist_inputs, value, state) or a ModelOutput; "
        f"got {_text(out)}"
    )


def _text(out: Any) -> str:
    return f"a tuple of {len(out)}" if isinstance(out, tuple) else type(out).__name__


def _squeeze(value: Array, dist_inputs: Array) -> Array:
    return value[..., 0] if value.ndim == dist_inputs.ndim and value.shape[-1] == 1 else value


def _text_keys(tree: Any) -> Any:
    return {str(key): _text_keys(child) for key, child in tree.items()} if isinstance(tree, Mapping) else tree


def _refuse_state(name: str, kinds: Iterable[str]) -> None:
    if kinds:
        raise ConfigError(
            f"model {name}: expected parameters alone, got variables of kind {', '.join(kinds)}; a model is a pure "
            "function, so use LayerNorm or GroupNorm in place of BatchNorm, and initial_state for a recurrent state"
        )


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: f"{jnp.dtype(x.dtype).name}{list(x.shape)}", tree)


def _read(jaxpr: Any, params: PyTree, inputs: ModelInputs) -> frozenset[str]:
    used = {id(var) for eqn in jaxpr.eqns for var in eqn.invars} | {id(var) for var in jaxpr.outvars}
    start = len(jax.tree.leaves(params))
    read = set()
    for field, value in zip(inputs._fields, inputs, strict=True):
        stop = start + len(jax.tree.leaves(value))
        if any(id(var) in used for var in jaxpr.invars[start:stop]):
            read.add(field)
        start = stop
    return frozenset(read)
