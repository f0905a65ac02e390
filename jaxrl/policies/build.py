"""build_policy: a policy from a loss function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import config as config_lib
from jaxrl.data import SampleBatch
from jaxrl.distributions import get_dist_class
from jaxrl.exploration import make_exploration
from jaxrl.models import make_model as make_catalog_model
from jaxrl.policies.coeffs import coeff_fields, initial_coeffs, loss_coeffs
from jaxrl.policies.config import PolicyConfig
from jaxrl.policies.context import LossContext
from jaxrl.policies.learning import group_names, make_gradients, make_learn
from jaxrl.policies.optimizers import apply_optimizer, default_optimizer, init_optimizer
from jaxrl.policies.policy import Policy, PolicySpec, TrainState
from jaxrl.policies.postprocess import PRODUCED, forward_fragment, needs_forward, produce
from jaxrl.policies.requirements import call_loss, columns_read, example_batch
from jaxrl.types import ActInputs, ActOutput, Array, ForwardOutput, LossError, ModelInputs, Params, PyTree, Weights


def build_policy(
    name: str,
    *,
    loss_fn: Any,
    make_model: Callable[..., Any] | None = None,
    dist_fn: Callable[..., Any] | None = None,
    exploration_fn: Callable[..., Any] | None = None,
    postprocess_fn: Callable[..., Any] | None = None,
    optimizer_fn: Callable[..., Any] | None = None,
    target_fn: Callable[..., Any] | None = None,
    coeffs_fn: Callable[..., Mapping[str, Any]] | None = None,
    update_fn: Callable[..., Mapping[str, Any]] | None = None,
    default_config: type[PolicyConfig] | Mapping[str, Any] | None = None,
) -> PolicyFactory:
    """Builds a policy from a loss function; every other part has a default and can be replaced by a pure function.

    Args:
        name: the policy's name.
        loss_fn: `(params, batch, ctx) -> scalar` or `(scalar, LearnOutput)`; or a mapping of groups of top-level params to
            such functions (a key may be a tuple of groups; None freezes a group).
        make_model: `(obs_space, action_space, num_outputs, model_config) -> Model`; default: the catalog.
        dist_fn: `(action_space, config) -> DistClass`; default: by action space.
        exploration_fn: `(action_space, config) -> Exploration`; default: `config.exploration_config`.
        postprocess_fn: `(params, batch, ctx, others) -> batch` on a time-major fragment, before the standard columns are
            filled; `others` are the other agents' aligned batches by policy.
        optimizer_fn: `(config, coeffs) -> optax transform`, or a mapping of one per group of params, built inside the trace
            from the current coeffs; default: `config.optimizer` at `coeffs["lr"]`.
        target_fn: `(train_state, config) -> target_params` after each gradient step; without it there are none.
        coeffs_fn: `(config) -> {name: number or schedule}`, more coeffs than the loss terms' own and lr.
        update_fn: `(coeffs, metrics, config) -> coeffs` after each train batch (adaptive KL).
        default_config: a PolicyConfig subclass, or a mapping of defaults that differ from PolicyConfig's.

    Returns:
        A PolicyFactory: `(obs_space, action_space, config=None) -> Policy`, with `.with_updates(**overrides)`.

    Example:
        >>> def policy_gradient_loss(params, batch, ctx):
        ...     out = ctx.forward(params, batch)
        ...     return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])
        >>> MyPolicy = build_policy("MyPolicy", loss_fn=policy_gradient_loss)
        >>> policy = MyPolicy(env.observation_space, env.action_space)
    """
    return PolicyFactory(
        name=name,
        loss_fn=loss_fn,
        make_model=make_model,
        dist_fn=dist_fn,
        exploration_fn=exploration_fn,
        postprocess_fn=postprocess_fn,
        optimizer_fn=optimizer_fn,
        target_fn=target_fn,
        coeffs_fn=coeffs_fn,
        update_fn=update_fn,
        default_config=default_config,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PolicyFactory:
    """The recipe of a policy: call it with spaces and a config to get the `Policy`. Made by `build_policy`, which documents the
    fields."""

    name: str
    loss_fn: Any
    make_model: Callable[..., Any] | None = None
    dist_fn: Callable[..., Any] | None = None
    exploration_fn: Callable[..., Any] | None = None
    postprocess_fn: Callable[..., Any] | None = None
    optimizer_fn: Callable[..., Any] | None = None
    target_fn: Callable[..., Any] | None = None
    coeffs_fn: Callable[..., Mapping[str, Any]] | None = None
    update_fn: Callable[..., Mapping[str, Any]] | None = None
    default_config: type[PolicyConfig] | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss_fn, Mapping) and not callable(self.loss_fn):
            raise LossError(
                f"build_policy({self.name!r}): loss_fn should be a function (params, batch, ctx) or a mapping of groups to "
                f"such functions, got {type(self.loss_fn).__name__}."
            )

    def with_updates(self, **overrides: Any) -> PolicyFactory:
        """The same recipe with some parts replaced; keywords as of `build_policy`."""
        return dataclasses.replace(self, **overrides)

    @property
    def coeffs(self) -> dict[str, float]:
        """Default coeffs of the loss's terms, by name."""
        return loss_coeffs(self.loss_fn)

    def config_class(self, base: type | None = None) -> type:
        """`base` (default: the policy's own config class) with a field for each coeff of the loss, and the policy's defaults."""
        defaults: Mapping[str, Any] = {}
        if base is None and isinstance(self.default_config, type):
            base = self.default_config
        elif isinstance(self.default_config, Mapping):
            defaults = self.default_config
        return coeff_fields(base or PolicyConfig, self.coeffs, defaults, self.name)

    def __call__(self, obs_space: Any, action_space: Any, config: Any = None) -> Policy:
        """Builds the policy for these spaces.

        Args:
            obs_space, action_space: Gymnasium spaces.
            config: a mapping of options, a PolicyConfig, or None for the defaults.

        Raises:
            ConfigError: an unknown or mistyped option, or a space that a part cannot serve.
            LossError: the loss reads a column or coeff that does not exist, or returns no scalar.
        """
        if config is None or isinstance(config, Mapping):
            config = config_lib.parse(self.config_class(), config or {}, where=f"policy {self.name!r}")
        return _Builder(self, obs_space, action_space, config).policy()


class _Builder:
    """Closes the pure functions of a policy over its spaces and static config."""

    def __init__(self, factory: PolicyFactory, obs_space: Any, action_space: Any, config: Any):
        self.factory, self.config = factory, config
        self.obs_space, self.action_space = obs_space, action_space
        dist_fn = factory.dist_fn or _default_dist
        self.dist_class = dist_fn(action_space, config)
        make_model = factory.make_model or make_catalog_model
        self.model = make_model(obs_space, action_space, self.dist_class.input_size, config.model)
        make_explore = factory.exploration_fn or (lambda space, config: make_exploration(config.exploration_config, space))
        self.exploration = make_explore(action_space, config)
        self.recurrent = self.model.recurrent
        self.coeffs, self.schedules = initial_coeffs(factory, self.exploration, config)
        self.masks_actions = "action_mask" in getattr(obs_space, "spaces", {}) and self.dist_class.mask_inputs is not None

    # ---- forward passes

    def mask_logits(self, dist_inputs: Array, obs: PyTree) -> Array:
        if not self.masks_actions:
            return dist_inputs
        return self.dist_class.mask_inputs(dist_inputs, obs["action_mask"])

    def model_inputs(self, batch: SampleBatch) -> ModelInputs:
        reads = self.model.reads
        return ModelInputs(
            obs=batch["obs"],
            prev_actions=batch["prev_actions"] if "prev_actions" in reads else None,
            prev_rewards=batch["prev_rewards"] if "prev_rewards" in reads else None,
            reset=batch["t"] == 0 if self.recurrent else None,
            mask=batch["mask"] if self.recurrent and "mask" in batch else None,
        )

    def forward(self, params: Params, batch: SampleBatch) -> ForwardOutput:
        state: PyTree = ()
        if self.recurrent:
            state = batch["state_in"] if "state_in" in batch else self.model.initial_state(batch.B)
        out = self.model.apply(params, self.model_inputs(batch), state)
        dist_inputs = self.mask_logits(out.dist_inputs, batch["obs"])
        return ForwardOutput(self.dist_class(dist_inputs), out.value, dist_inputs, out.state)

    def make_context(self, train_state: TrainState, key: Any) -> LossContext:
        return LossContext(
            target_params=train_state.target_params,
            coeffs=train_state.coeffs,
            key=key,
            model=self.model,
            dist_class=self.dist_class,
            config=self.config,
            forward_fn=self.forward,
        )

    def optimizer(self, coeffs: Mapping[str, Array]) -> Any:
        make = self.factory.optimizer_fn or default_optimizer
        optimizer = make(self.config, coeffs)
        if isinstance(self.factory.loss_fn, Mapping) and not isinstance(optimizer, Mapping):
            trained = [g for group, fn in self.factory.loss_fn.items() if fn is not None for g in group_names(group)]
            return dict.fromkeys(trained, optimizer)
        return optimizer

    # ---- the policy's functions

    def init(self, key: Array) -> TrainState:
        model_key, state_key = jax.random.split(key)
        params = self.model.init(model_key)
        coeffs = {name: jnp.asarray(value, jnp.float32) for name, value in self.coeffs.items()}
        target = jax.tree.map(jnp.copy, params) if self.factory.target_fn is not None else None
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            target_params=target,
            opt_state=init_optimizer(self.optimizer(coeffs), params),
            coeffs=coeffs,
            key=state_key,
        )

    def initial_carry(self, batch_size: int) -> PyTree:
        return self.model.initial_state(batch_size), self.exploration.init(batch_size)

    def act(self, weights: Weights, inputs: ActInputs, carry: PyTree, key: Array, explore: bool) -> ActOutput:
        params, coeffs = weights
        state, exploration_state = carry
        params = self.exploration.perturb(params, exploration_state)
        reads = self.model.reads
        model_inputs = ModelInputs(
            obs=inputs.obs,
            prev_actions=inputs.prev_actions if "prev_actions" in reads else None,
            prev_rewards=inputs.prev_rewards if "prev_rewards" in reads else None,
            reset=inputs.reset,
            mask=inputs.mask,
        )
        dist_inputs, _, state = self.one_step(params, model_inputs, state)
        dist = self.dist_class(self.mask_logits(dist_inputs, inputs.obs))
        step_key = jax.random.fold_in(key, inputs.t)
        actions, logp, exploration_state = self.exploration.sample(
            dist, exploration_state, step_key, inputs.t, coeffs, explore
        )
        return ActOutput(actions, (state, exploration_state), logp)

    def one_step(self, params: Params, inputs: ModelInputs, state: PyTree) -> tuple[Array, Array, PyTree]:
        if not self.recurrent:
            out = self.model.apply(params, inputs._replace(reset=None, mask=None), state)
            return out.dist_inputs, out.value, ()
        out = self.model.apply(params, jax.tree.map(lambda x: jnp.asarray(x)[None], inputs), state)
        return out.dist_inputs[0], out.value[0], out.state

    def value(self, weights: Weights, obs: PyTree, state: PyTree = ()) -> Array:
        return self.one_step(weights[0], ModelInputs(obs=obs), state)[1]

    def make_postprocess(self, reads: frozenset[str]) -> Callable[..., SampleBatch]:
        hook, config = self.factory.postprocess_fn, self.config

        @jax.jit
        def fill(weights: Weights, batch: SampleBatch, others: Mapping[str, SampleBatch], key: Array) -> SampleBatch:
            """The columns that postprocessing adds or changes; all of them, where sequences are cut."""
            params, coeffs = weights
            full = batch
            if hook is not None:
                state = TrainState(step=0, params=params, target_params=None, opt_state=(), coeffs=coeffs, key=key)
                full = hook(params, batch, self.make_context(state, key), others)
            missing = frozenset((reads & PRODUCED) - set(full))
            out = None
            if self.recurrent or needs_forward(missing, config):
                out = forward_fragment(self.model, params, full, self.mask_logits)
            full = full.with_columns(**produce(missing, full, out, self, config))
            if self.recurrent:
                assert out is not None
                return full.cut(min(config.model.max_seq_len, full.T), states=out.states)
            return full.select([name for name in full if name not in batch or full[name] is not batch[name]])

        def postprocess(
            weights: Weights, batch: SampleBatch, others: Mapping[str, SampleBatch] | None = None, key: Any = None
        ) -> SampleBatch:
            if not (self.recurrent or hook is not None or reads & PRODUCED):
                return batch
            key = jax.random.key(0) if key is None else key
            filled = fill(weights, batch, others or {}, key)
            return filled if self.recurrent else batch.with_columns(**dict(filled))

        return postprocess

    def make_prepare(self, reads: frozenset[str]) -> Callable[[SampleBatch], SampleBatch]:
        keep = reads - {"new_obs", "dones"}

        def prepare(batch: SampleBatch) -> SampleBatch:
            derived = {name: batch[name] for name in ("new_obs", "dones") if name in reads}
            stored = [name for name in batch if name in keep or name == "mask" or (name == "state_in" and self.recurrent)]
            return batch.select(stored).with_columns(**derived)

        return prepare

    def apply_gradients(self, train_state: TrainState, grads: Params) -> TrainState:
        optimizer = self.optimizer(train_state.coeffs)
        params, opt_state = apply_optimizer(
            optimizer, grads, train_state.opt_state, train_state.params, train_state.step
        )
        state = train_state.replace(step=train_state.step + 1, params=params, opt_state=opt_state)
        if self.factory.target_fn is not None:
            state = state.replace(target_params=self.factory.target_fn(state, self.config))
        return state

    # ---- what the loss reads

    def requirements(self) -> frozenset[str]:
        """Columns that the loss reads, found by tracing it abstractly on a batch with every column there is."""
        factory, config = self.factory, self.config
        abstract = jax.eval_shape(self.init, jax.random.key(0))
        _check_groups(factory, abstract.params)
        state = jax.eval_shape(lambda: self.model.initial_state(2))
        time_major = self.recurrent or config.sgd_minibatch_size == 0
        size = self.dist_class.input_size
        batch = example_batch(self.obs_space, self.action_space, state, size, time_major=time_major, produced=True)
        if factory.postprocess_fn is not None:
            batch = batch.with_columns(**self.hook_columns(abstract, state, batch))
        losses = factory.loss_fn.values() if isinstance(factory.loss_fn, Mapping) else [factory.loss_fn]
        reads: frozenset[str] = frozenset()
        for loss_fn in losses:
            if loss_fn is None:
                continue

            def trace(params: Params, batch: SampleBatch, loss_fn: Any = loss_fn) -> Any:
                coeffs = {name: jnp.zeros(()) for name in self.coeffs}
                state = TrainState(0, params, params if factory.target_fn else None, (), coeffs, jax.random.key(0))
                return call_loss(loss_fn, params, batch, self.make_context(state, state.key))

            reads |= columns_read(trace, batch, abstract.params)
        return reads

    def hook_columns(self, abstract: TrainState, state: PyTree, batch: SampleBatch) -> dict[str, Any]:
        """Columns that the postprocess hook adds, as abstract values in the layout of `batch`."""
        hook = self.factory.postprocess_fn
        assert hook is not None
        size = self.dist_class.input_size
        fragment = example_batch(self.obs_space, self.action_space, state, size, time_major=True, produced=False)

        def run(params: Params, fragment: SampleBatch) -> SampleBatch:
            coeffs = {name: jnp.zeros(()) for name in self.coeffs}
            train_state = TrainState(0, params, None, (), coeffs, jax.random.key(0))
            return hook(params, fragment, self.make_context(train_state, train_state.key), {})

        filled = jax.eval_shape(run, abstract.params, fragment)
        if not isinstance(filled, SampleBatch):
            raise LossError(
                f"policy {self.factory.name!r}: postprocess_fn should return a SampleBatch, got {type(filled).__name__}."
            )
        rows = filled if batch.time_major else jax.eval_shape(lambda b: b.flatten(), filled)
        return {name: rows[name] for name in rows if name not in batch}

    def policy(self) -> Policy:
        reads = self.requirements()
        factory, config = self.factory, self.config
        act_reads = {name for name in ("prev_actions", "prev_rewards") if name in self.model.reads}
        spec = PolicySpec(
            name=factory.name,
            obs_space=self.obs_space,
            action_space=self.action_space,
            config=config,
            model=self.model,
            dist_class=self.dist_class,
            exploration=self.exploration,
            reads=reads,
            act_reads=frozenset(act_reads | ({"reset", "mask"} if self.recurrent else set())),
            coeffs=self.coeffs,
            schedules=self.schedules,
            recurrent=self.recurrent,
        )
        gradients = make_gradients(factory.loss_fn, self.make_context)
        prepare = self.make_prepare(reads)
        learn = make_learn(
            gradients, self.apply_gradients, prepare, factory.update_fn, config, by_columns=self.recurrent
        )
        return Policy(
            spec=spec,
            init=jax.jit(self.init),
            initial_carry=self.initial_carry,
            act=jax.jit(self.act, static_argnums=4),
            value=jax.jit(self.value),
            postprocess=self.make_postprocess(reads),
            gradients=jax.jit(lambda state, batch: gradients(state, prepare(batch))),
            apply_gradients=jax.jit(self.apply_gradients),
            learn=jax.jit(learn),
            context=lambda state: self.make_context(state, jax.random.fold_in(state.key, state.step)),
            loss_fn=factory.loss_fn,
        )


def _default_dist(action_space: Any, config: Any) -> Any:
    return get_dist_class(action_space, dist_type=config.model.custom_action_dist)


def _check_groups(factory: PolicyFactory, params: Params) -> None:
    if not isinstance(factory.loss_fn, Mapping):
        return
    named = [name for group in factory.loss_fn for name in group_names(group)]
    for name in named:
        if name not in params:
            raise LossError(
                f"policy {factory.name!r}: loss_fn names the group {name!r}, but the model's groups are {sorted(params)}."
            )
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise LossError(f"policy {factory.name!r}: the groups {twice} have two losses each; give each group one.")
    without = sorted(set(params) - set(named))
    if without:
        raise LossError(
            f"policy {factory.name!r}: the groups {without} have no loss; add one, or map them to None to freeze them."
        )
