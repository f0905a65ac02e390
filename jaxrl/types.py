"""Names and small value types that every floor shares: ids, model and policy inputs and outputs, protocols, errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jaxrl.terminal import printable

if TYPE_CHECKING:
    import jax

    Array = jax.Array
else:
    Array = Any

AgentID = Any
PolicyID = str
Params = Any
PyTree = Any

DEFAULT_POLICY_ID: PolicyID = "default_policy"

# Unused slots of a fragment's `final_obs` carry this row number, which every scatter drops.
FINAL_PAD = 2**30

COLUMNS: Mapping[str, str] = {
    "obs": "observation the action was taken on",
    "new_obs": "true successor observation (derived; never the reset observation)",
    "actions": "action taken, before clipping",
    "rewards": "reward of the step, float32",
    "terminateds": "the episode ended in a terminal state",
    "truncateds": "the episode was cut (time limit, horizon)",
    "dones": "terminateds or truncateds (derived)",
    "prev_actions": "action of the previous row, zeros at an episode's start",
    "prev_rewards": "reward of the previous row, zero at an episode's start",
    "eps_id": "number of the episode, int32",
    "t": "step within the episode, int32; -1 where the mask is False because nothing was stepped; where a recurrent "
    "model's state goes on over a soft horizon, so does t",
    "agent_index": "slot of the agent within its environment, int32",
    "unroll_id": "number of the fragment, int32",
    "weights_version": "number of the weights that the worker acted with, int32",
    "mask": "False where a row is padding or the agent is absent",
    "state_in": "model state at the first row, [B, ...]",
    "last_obs": "observation after the last row, [B, ...]",
    "final_obs": "final observation of each row that ended, [K, ...]",
    "final_index": "(t, b) of each of final_obs, int32 [K, 2]; t is FINAL_PAD in unused slots",
    "action_dist_inputs": "inputs of the action distribution under the behaviour policy",
    "action_logp": "log-probability of the action under the behaviour policy",
    "action_prob": "probability of the action under the behaviour policy",
    "vf_preds": "value prediction under the behaviour policy",
    "advantages": "advantage estimate (discounted return if nothing reads value_targets, else GAE)",
    "value_targets": "target of the value function",
    "discounts": "factor of a replayed row's bootstrap value: gamma^n (1 - terminated), n steps summed in rewards",
    "weights": "importance weight of a replayed row, 1 where sampling is uniform",
    "batch_indexes": "where a replayed row is stored, int32",
}


class JaxrlError(Exception):
    """Base of the errors that jaxrl raises on purpose; a message may quote names from a file: it is `printable`."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in parts))


class ConfigError(JaxrlError, ValueError):
    """A configuration key, type or combination that cannot work; raised before any actor starts."""


class CannotCompileError(ConfigError):
    """What no compiled program can hold, found before anything runs; `engine="auto"` then takes workers."""

    @classmethod
    def of(cls, what: str, instead: str) -> CannotCompileError:
        """The error for an option, operator or part, and why it is one; `instead` says what would compile."""
        return cls(
            f"engine='compiled': {what}. {instead}, or set engine='workers', which runs the same environment step by "
            "step."
        )


class UnsupportedSpaceError(ConfigError):
    """An observation or action space that the algorithm, model or distribution cannot serve."""


class EnvError(JaxrlError, RuntimeError):
    """An environment broke its contract: wrong shape, dtype, bounds, arity or a non-finite value."""


class CallbackError(JaxrlError, RuntimeError):
    """A hook of the user's raised, or wrote what cannot be reported; the message names it, and the line."""


class LossError(JaxrlError, ValueError):
    """A loss function broke its contract: unknown column or coeff, non-scalar result, clash of names."""


class NonFiniteError(JaxrlError, ArithmeticError):
    """A metric, gradient, observation or reward is NaN or infinite; the message names the first one."""


class CheckpointError(JaxrlError, ValueError):
    """A checkpoint that is damaged, of another format, algorithm or shape, or not a checkpoint."""


class StorageError(JaxrlError, OSError):
    """A file or directory that cannot be written or read now: disk full, read-only, moved away; the message says."""


class WorkerError(JaxrlError, RuntimeError):
    """A rollout worker failed; the message names the worker and carries the original error."""


class ModelInputs(NamedTuple):
    """What a model sees.

    Leading axes are `[T, B]` for recurrent models and any for feed-forward ones. Fields that the model does not read
    are None.

    Attributes:
        obs: observation pytree.
        prev_actions: action of the previous row (raw action pytree).
        prev_rewards: reward of the previous row.
        reset: bool, True where the model state is reset to its initial value before the row.
        mask: bool, False where the row is absent: the state is held over it.
        key: PRNG key of a stochastic model (noisy layers, quantile fractions); None: its mean.
    """

    obs: PyTree
    prev_actions: PyTree = None
    prev_rewards: Array | None = None
    reset: Array | None = None
    mask: Array | None = None
    key: Array | None = None


class ModelOutput(NamedTuple):
    """What a model returns.

    Attributes:
        dist_inputs: inputs of the action distribution `[..., D]`.
        value: `[...]`.
        state: `[B, ...]`, `()` if feed-forward.
        extras: further outputs by name, rows leading (`q_logits [..., A, atoms]`).
    """

    dist_inputs: Array
    value: Array
    state: PyTree = ()
    extras: Mapping[str, Array] = {}


class ForwardOutput(NamedTuple):
    """What `ctx.forward(params, batch)` returns: the distribution, and the model's output with actions masked."""

    dist: Any
    value: Array
    dist_inputs: Array
    state: PyTree = ()
    extras: Mapping[str, Array] = {}


class ActInputs(NamedTuple):
    """Inputs of one act call over `B` environments; fields that the policy does not read are None.

    Attributes:
        obs: observation pytree `[B, ...]`.
        t: number of the vector step, int32 scalar; folded into the key.
        prev_actions: previous actions `[B, ...]`.
        prev_rewards: previous rewards `[B]`.
        reset: bool `[B]`, True where an episode starts with this observation.
        mask: bool `[B]`, False where the slot holds no agent.
        step_key: the key with `t` folded in already, from a caller that folds for many steps at once; None: `act` does.
    """

    obs: PyTree
    t: Any = 0
    prev_actions: PyTree = None
    prev_rewards: Any = None
    reset: Any = None
    mask: Any = None
    step_key: Any = None


class ActOutput(NamedTuple):
    """Actions `[B, ...]`, the next carry `(model state, exploration state)`, and a log-probability.

    `logp [B]` comes only from explorations that do not draw from the policy's own distribution. `dist_inputs [B, D]`
    are those of the policy's distribution, and `value [B]` is the model's; a sampler on the host fetches them only
    where computing them again would cost more (`Model.keep_outputs`).
    """

    actions: PyTree
    carry: PyTree
    logp: Array | None = None
    dist_inputs: Array | None = None
    value: Array | None = None


class Weights(NamedTuple):
    """What is broadcast to samplers: parameters and coeffs, changed only between fragments."""

    params: Params
    coeffs: Mapping[str, Any]


class LearnOutput(NamedTuple):
    """Metrics (scalars by name) and rows (one value per row of the batch, by name)."""

    metrics: Mapping[str, Any] = {}
    rows: Mapping[str, Any] = {}


class LossContext(Protocol):
    """What a loss function gets beside params and batch (see `jaxrl.policies.context.LossContext`)."""

    @property
    def model(self) -> Any: ...
    @property
    def dist_class(self) -> Any: ...
    @property
    def config(self) -> Any: ...
    @property
    def target_params(self) -> Params: ...
    @property
    def coeffs(self) -> Mapping[str, Array]: ...
    @property
    def key(self) -> Any: ...
    def forward(self, params: Params, batch: Any, key: Any = None) -> ForwardOutput: ...
    def next_values(self, params: Params, batch: Any, key: Any = None) -> Array: ...
    def once(self, fn: Callable[[Params, Any, Any], Any], params: Params, batch: Any) -> Any: ...


LossFn = Callable[[Params, Any, LossContext], Any]
