"""Policy: a NamedTuple of pure functions beside its TrainState."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct

from jaxrl.exploration import Exploration
from jaxrl.models import Model
from jaxrl.policies.context import LossContext
from jaxrl.schedules import Schedule
from jaxrl.types import ActInputs, ActOutput, Array, LearnOutput, Params, PyTree, Weights


@flax.struct.dataclass
class TrainState:
    """All that learning changes.

    Attributes:
        step: gradient steps taken, int32.
        params: the model's parameters.
        target_params: parameters of the target network, of all groups or some; None without one.
        opt_state: the optimiser's state.
        coeffs: numbers that training, schedules or Tune change (lr, clip_param, kl_coeff, ...), float32 scalars by
            name.
        key: PRNG key of the run; each step folds its number in, the key itself never changes.
    """

    step: Array
    params: Params
    target_params: Params
    opt_state: Any
    coeffs: Mapping[str, Array]
    key: Array

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> TrainState:
            """The state with some fields changed (made by flax.struct)."""
            ...

    @property
    def weights(self) -> Weights:
        """What samplers need: `(params, coeffs)`."""
        return Weights(self.params, self.coeffs)


class PolicySpec(NamedTuple):
    """What a policy is made of, all static.

    Attributes:
        name: the policy's name.
        obs_space, action_space: Gymnasium spaces.
        config: its PolicyConfig (or a subclass).
        model, dist_class, exploration: its parts.
        reads: columns that the loss, or the postprocess hook, reads.
        act_reads: fields of ActInputs that `act` reads beside `obs` and `t`.
        coeffs: default of each coeff by name.
        schedules: schedules of coeffs over env steps, evaluated on the host.
        recurrent: whether the model carries a state.
        postprocesses: whether `postprocess` does anything; else it gives its batch back.
        keep_outputs: samplers keep the distribution inputs and values that acting computed, as columns
            `action_dist_inputs` and `vf_preds`, and postprocessing passes no row through the model again.
    """

    name: str
    obs_space: Any
    action_space: Any
    config: Any
    model: Model
    dist_class: Any
    exploration: Exploration
    reads: frozenset[str]
    act_reads: frozenset[str]
    coeffs: Mapping[str, float]
    schedules: Mapping[str, Schedule]
    recurrent: bool
    postprocesses: bool
    keep_outputs: bool = False


class Policy(NamedTuple):
    """A policy as pure functions, each jitted once; they compose under `jit`, `vmap` and `scan`.

    Attributes:
        spec: the static parts.
        init: `(key) -> TrainState`.
        initial_carry: `(batch_size, worker_index=0, num_workers=0) -> carry`, the pair (model state, exploration
            state).
        act: `(weights, ActInputs, carry, key, explore) -> ActOutput`; `explore` is a Python bool.
        value: `(weights, obs, state) -> values [B]` with the model's state (`()` for feed-forward models).
        postprocess: `(weights, batch, others, key) -> batch` with all columns that the loss reads.
        gradients: `(train_state, batch) -> (grads, LearnOutput)`.
        apply_gradients: `(train_state, grads) -> train_state`.
        learn: `(train_state, batch) -> (train_state, LearnOutput)`: every epoch and minibatch in one program.
        learn_one_pass: as `learn`, one epoch whatever `num_sgd_iter` says.
        learn_averaged: `(average) -> learn` whose gradients and metrics of each minibatch are averaged with those of
            others that learn at the same time (see `learning.make_learn`).
        context: `(train_state) -> LossContext`, for use of the loss outside jaxrl.
        loss_fn: the loss function, or the mapping of groups to loss functions, that the policy was built from.
    """

    spec: PolicySpec
    init: Callable[[Any], TrainState]
    initial_carry: Callable[..., PyTree]
    act: Callable[[Weights, ActInputs, PyTree, Any, bool], ActOutput]
    value: Callable[[Weights, PyTree, PyTree], Array]
    postprocess: Callable[..., Any]
    gradients: Callable[[TrainState, Any], tuple[Params, LearnOutput]]
    apply_gradients: Callable[[TrainState, Params], TrainState]
    learn: Callable[[TrainState, Any], tuple[TrainState, LearnOutput]]
    learn_one_pass: Callable[[TrainState, Any], tuple[TrainState, LearnOutput]]
    learn_averaged: Callable[[Callable[[Any, Array], Any]], Callable[..., tuple[TrainState, LearnOutput]]]
    context: Callable[[TrainState], LossContext]
    loss_fn: Any
