"""From the parts of a recipe to the pure functions of a policy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.data import SampleBatch
from jaxrl.distributions import get_dist_class
from jaxrl.exploration import make_exploration
from jaxrl.losses import needs_sequences
from jaxrl.models import Model, make_model
from jaxrl.policies.coeffs import initial_coeffs
from jaxrl.policies.context import LossContext
from jaxrl.policies.fragments import forward_fragment, successor_values
from jaxrl.policies.gradients import check_groups, make_gradients, trained_groups
from jaxrl.policies.learning import Average, make_learn
from jaxrl.policies.optimizers import apply_optimizer, default_optimizer, init_optimizer
from jaxrl.policies.policy import Policy, PolicySpec, TrainState
from jaxrl.policies.postprocess import PRODUCED, needs_forward, produce
from jaxrl.policies.requirements import REPLAYED, example, example_batch, hook_columns, loss_columns
from jaxrl.policies.targets import followed
from jaxrl.types import (
    ActInputs,
    ActOutput,
    Array,
    ConfigError,
    ForwardOutput,
    LossError,
    ModelInputs,
    Params,
    PyTree,
    Weights,
)


class PolicyBuilder:
    """Closes the pure functions of a policy over its spaces and static config."""

    def __init__(self, factory: Any, obs_space: Any, action_space: Any, config: Any):
        self.factory, self.config = factory, config
        self.obs_space, self.action_space = obs_space, action_space
        dist_fn = factory.dist_fn or _default_dist
        self.dist_class = dist_fn(action_space, config)
        build_model = factory.make_model or _default_model
        self.model = build_model(obs_space, action_space, self.dist_class.input_size, config)
        make_explore = factory.exploration_fn or (
            lambda space, config: make_exploration(config.exploration_config, space)
        )
        self.exploration = make_explore(action_space, config)
        self.recurrent = self.model.recurrent
        losses = factory.loss_fn.values() if isinstance(factory.loss_fn, Mapping) else [factory.loss_fn]
        self.by_columns = self.recurrent or any(needs_sequences(loss, config) for loss in losses)
        self.gives_logp = True
        self.coeffs, self.schedules = initial_coeffs(factory, self.exploration, config)
        self.masks_actions = (
            "action_mask" in getattr(obs_space, "spaces", {}) and self.dist_class.mask_inputs is not None
        )

    # ---- forward passes

    def mask_logits(self, dist_inputs: Array, obs: PyTree) -> Array:
        if not self.masks_actions:
            return dist_inputs
        return self.dist_class.mask_inputs(dist_inputs, obs["action_mask"])

    def model_inputs(self, batch: SampleBatch, key: Array | None = None) -> ModelInputs:
        reads = self.model.reads
        return ModelInputs(
            obs=batch["obs"],
            prev_actions=batch["prev_actions"] if "prev_actions" in reads else None,
            prev_rewards=batch["prev_rewards"] if "prev_rewards" in reads else None,
            reset=batch["t"] == 0 if self.recurrent else None,
            mask=batch["mask"] if self.recurrent and "mask" in batch else None,
            key=key if "key" in reads else None,
        )

    def forward(self, params: Params, batch: SampleBatch, key: Array | None = None) -> ForwardOutput:
        state: PyTree = ()
        if self.recurrent:
            state = batch["state_in"] if "state_in" in batch else self.model.initial_state(batch.B)
        out = self.model.apply(params, self.model_inputs(batch, key), state)
        dist_inputs = self.mask_logits(out.dist_inputs, batch["obs"])
        return ForwardOutput(self.dist_class(dist_inputs), out.value, dist_inputs, out.state, out.extras)

    def next_values(self, params: Params, batch: SampleBatch, out: ForwardOutput, key: Array | None = None) -> Array:
        return successor_values(self.model, params, batch, out, key)

    def make_context(self, train_state: TrainState, key: Any) -> LossContext:
        return LossContext(
            target_params=train_state.target_params,
            coeffs=train_state.coeffs,
            key=key,
            model=self.model,
            dist_class=self.dist_class,
            config=self.config,
            forward_fn=self.forward,
            next_values_fn=self.next_values,
        )

    def optimizer(self, coeffs: Mapping[str, Array]) -> Any:
        make = self.factory.optimizer_fn or default_optimizer
        optimizer = make(self.config, coeffs)
        if isinstance(self.factory.loss_fn, Mapping) and not isinstance(optimizer, Mapping):
            return dict.fromkeys(trained_groups(self.factory.loss_fn), optimizer)
        return optimizer

    # ---- the policy's functions

    def init(self, key: Array) -> TrainState:
        model_key, state_key = jax.random.split(key)
        params = self.model.init(model_key)
        coeffs = {name: jnp.asarray(value, jnp.float32) for name, value in self.coeffs.items()}
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            target_params=None,
            opt_state=init_optimizer(self.optimizer(coeffs), params),
            coeffs=coeffs,
            key=state_key,
        )
        if self.factory.target_fn is None:
            return state
        # What the hook makes of targets of everything tells which groups have one.
        kept = jax.eval_shape(
            lambda state: self.factory.target_fn(state, self.config), state.replace(target_params=params)
        )
        return state.replace(target_params=jax.tree.map(jnp.copy, followed(params, kept)))

    def initial_carry(self, batch_size: int, worker_index: int = 0, num_workers: int = 0) -> PyTree:
        exploration_state = self.exploration.init(batch_size, worker_index, num_workers)
        return self.model.initial_state(batch_size), exploration_state

    def act(self, weights: Weights, inputs: ActInputs, carry: PyTree, key: Array, explore: bool) -> ActOutput:
        params, coeffs = weights
        state, exploration_state = carry
        step_key = jax.random.fold_in(key, inputs.t) if inputs.step_key is None else inputs.step_key
        reads = self.model.reads
        model_inputs = ModelInputs(
            obs=inputs.obs,
            prev_actions=inputs.prev_actions if "prev_actions" in reads else None,
            prev_rewards=inputs.prev_rewards if "prev_rewards" in reads else None,
            reset=inputs.reset,
            mask=inputs.mask,
            key=jax.random.fold_in(step_key, 1) if explore and "key" in reads else None,
        )
        dist_inputs, value, state = self.one_step(params, model_inputs, state)
        dist_inputs = self.mask_logits(dist_inputs, inputs.obs)
        dist = self.dist_class(dist_inputs)
        actions, logp, exploration_state = self.exploration.sample(
            dist, exploration_state, step_key, inputs.t, coeffs, explore
        )
        return ActOutput(actions, (state, exploration_state), logp if self.gives_logp else None, dist_inputs, value)

    def one_step(self, params: Params, inputs: ModelInputs, state: PyTree) -> tuple[Array, Array, PyTree]:
        if not self.recurrent:
            out = self.model.apply(params, inputs._replace(reset=None, mask=None), state)
            return out.dist_inputs, out.value, ()
        key, inputs = inputs.key, inputs._replace(key=None)
        rows = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
        out = self.model.apply(params, rows._replace(key=key), state)
        return out.dist_inputs[0], out.value[0], out.state

    def value(self, weights: Weights, obs: PyTree, state: PyTree = ()) -> Array:
        return self.one_step(weights[0], ModelInputs(obs=obs), state)[1]

    def postprocesses(self, reads: frozenset[str]) -> bool:
        return self.recurrent or self.factory.postprocess_fn is not None or bool(reads & PRODUCED)

    def keeps_outputs(self, reads: frozenset[str]) -> bool:
        # What a stochastic or perturbed model acted on is not what the policy is.
        wanted = reads & PRODUCED
        plain = "key" not in self.model.reads and not self.exploration.perturbs
        return self.model.keep_outputs and plain and needs_forward(wanted, wanted, self.config)

    def make_postprocess(self, reads: frozenset[str]) -> Callable[..., SampleBatch]:
        hook, config = self.factory.postprocess_fn, self.config

        @jax.jit
        def fill(weights: Weights, batch: SampleBatch, others: Mapping[str, SampleBatch], key: Array) -> SampleBatch:
            """The columns that postprocessing adds or changes; all of them, where sequences are cut."""
            params, coeffs = weights
            full = batch
            if hook is not None:
                state = TrainState(jnp.zeros((), jnp.int32), params, None, (), coeffs, key)
                full = self.run_hook(state, batch, others)
            wanted = reads & PRODUCED
            missing = wanted - set(full)
            out = None
            if self.recurrent or needs_forward(missing, wanted, config):
                out = forward_fragment(self.model, params, full, self.mask_logits)
            full = full.with_columns(**produce(missing, wanted, full, out, self.dist_class, config))
            if self.recurrent:
                assert out is not None
                return full.cut(min(config.model.max_seq_len, full.T), states=out.states)
            return full.select([name for name in full if name not in batch or full[name] is not batch[name]])

        def postprocess(
            weights: Weights, batch: SampleBatch, others: Mapping[str, SampleBatch] | None = None, key: Any = None
        ) -> SampleBatch:
            if not self.postprocesses(reads):
                return batch
            key = jax.random.key(0) if key is None else key
            filled = fill(weights, batch, others or {}, key)
            return filled if self.recurrent else batch.with_columns(**dict(filled))

        return postprocess

    def make_prepare(self, reads: frozenset[str]) -> Callable[[SampleBatch], SampleBatch]:
        keep = reads - {"new_obs", "dones"}

        def prepare(batch: SampleBatch) -> SampleBatch:
            absent = sorted(name for name in keep.intersection(REPLAYED) if name not in batch)
            if absent:
                raise LossError(
                    f"policy {self.factory.name!r}: its loss reads {absent}, which replay buffers make; learn from "
                    "batches of the operator Replay, or leave these columns out of the loss."
                )
            derived = {name: batch[name] for name in ("new_obs", "dones") if name in reads}
            stored = [
                name for name in batch if name in keep or name == "mask" or (name == "state_in" and self.recurrent)
            ]
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

    def requirements(self) -> tuple[frozenset[str], frozenset[str]]:
        """Columns that the loss reads, and those that the postprocess hook reads."""
        factory, config = self.factory, self.config
        if isinstance(factory.loss_fn, Mapping):  # before an optimiser is made for each group
            params = jax.eval_shape(self.model.init, jax.random.key(0))
            check_groups(factory.loss_fn, params, f"policy {factory.name!r}")
        abstract = jax.eval_shape(self.init, jax.random.key(0))
        losses = factory.loss_fn.values() if isinstance(factory.loss_fn, Mapping) else [factory.loss_fn]
        state = jax.eval_shape(lambda: self.model.initial_state(2))
        time_major = self.by_columns or config.sgd_minibatch_size == 0

        def batch_of(*, time_major: bool, produced: bool) -> SampleBatch:
            size = self.dist_class.input_size
            return example_batch(
                self.obs_space, self.action_space, state, size, time_major=time_major, produced=produced
            )

        batch = batch_of(time_major=time_major, produced=True)
        hook_reads: frozenset[str] = frozenset()
        if factory.postprocess_fn is not None:
            fragment = batch_of(time_major=True, produced=False)
            where = f"policy {factory.name!r}"
            added, hook_reads = hook_columns(self.run_hook, abstract, fragment, time_major=time_major, where=where)
            batch = batch.with_columns({name: added[name] for name in added if name not in batch})
        reads = loss_columns(losses, abstract, batch, self.make_context)
        if reads & {"action_logp", "action_prob"}:
            self.check_logp(abstract)
        return reads, hook_reads

    def run_hook(
        self, state: TrainState, batch: SampleBatch, others: Mapping[str, SampleBatch] | None = None
    ) -> SampleBatch:
        """The postprocess hook on a fragment."""
        hook = self.factory.postprocess_fn
        return hook(state.params, batch, self.make_context(state, state.key), others or {})

    def check_logp(self, state: TrainState) -> None:
        """Refuses an exploration whose actions' log-probability nobody would know."""
        if self.exploration.samples_policy:
            return
        inputs = jax.eval_shape(lambda: self.example_inputs(2))
        carry = jax.eval_shape(lambda: self.initial_carry(2))
        act = functools.partial(self.act, explore=True)
        out = jax.eval_shape(act, state.weights, inputs, carry, state.key)
        if out.logp is None:
            made_by = self.factory.exploration_fn
            kind = self.config.exploration_config.get("type") if made_by is None else made_by.__name__
            raise ConfigError(
                f"policy {self.factory.name!r}: its loss reads action_logp, but the exploration {kind!r} does not draw "
                "from the policy's distribution and returns no log-probability; use StochasticSampling, or return it "
                "from sample."
            )

    def example_inputs(self, batch_size: int) -> ActInputs:
        """Inputs of `act`, zeros, for shapes."""
        lead = (batch_size,)
        obs, action = (jax.tree.map(_zeros, example(space, lead)) for space in (self.obs_space, self.action_space))
        flags = jnp.zeros(lead, bool)
        return ActInputs(obs, jnp.zeros((), jnp.int32), action, jnp.zeros(lead), flags, flags)

    def policy(self) -> Policy:
        reads, hook_reads = self.requirements()
        self.gives_logp = bool((reads | hook_reads) & {"action_logp", "action_prob"})
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
            reads=reads | hook_reads,
            act_reads=frozenset(act_reads | ({"reset", "mask"} if self.recurrent else set())),
            coeffs=self.coeffs,
            schedules=self.schedules,
            recurrent=self.recurrent,
            postprocesses=self.postprocesses(reads),
            keep_outputs=self.keeps_outputs(reads),
        )
        gradients = make_gradients(factory.loss_fn, self.make_context)
        prepare = self.make_prepare(reads)

        def make(config: Any, average: Average | None = None) -> Any:
            parts = gradients, self.apply_gradients, prepare, factory.update_fn, config
            return jax.jit(make_learn(*parts, by_columns=self.by_columns, average=average))

        learn = make(config)
        one_pass = learn if config.num_sgd_iter == 1 else make(dataclasses.replace(config, num_sgd_iter=1))
        return Policy(
            spec=spec,
            init=jax.jit(self.init),
            initial_carry=self.initial_carry,
            act=jax.jit(self.act, static_argnums=4),
            value=jax.jit(self.value),
            postprocess=self.make_postprocess(reads),
            gradients=jax.jit(lambda state, batch: gradients(state, prepare(batch))),
            apply_gradients=jax.jit(self.apply_gradients),
            learn=learn,
            learn_one_pass=one_pass,
            learn_averaged=functools.partial(make, config),
            context=lambda state: self.make_context(state, jax.random.fold_in(state.key, state.step)),
            loss_fn=factory.loss_fn,
        )


def _default_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    return make_model(obs_space, action_space, num_outputs, config.model)


def _default_dist(action_space: Any, config: Any) -> Any:
    return get_dist_class(action_space, dist_type=config.model.custom_action_dist)


def _zeros(x: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros(x.shape, x.dtype)
