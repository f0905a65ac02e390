"""R2D2: recurrent DQN on replayed sequences (Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX).

Sequences of `max_seq_len` rows are stored with the model state before their first row (section 3, "stored state"). Both
networks run over the first `burn_in` rows without gradient, to refresh that state, and are learned on the others:

    loss = E[w Huber(h(r_n + gamma^n h^-1(Q_target(s_{t+n}, argmax_a Q(s_{t+n}, a)))) - Q(s_t, a_t))]

with returns of n steps, double Q-learning, and h, which squashes values (https://arxiv.org/abs/1805.11593). A
sequence's priority is `eta max_t |td_t| + (1 - eta) mean_t |td_t|` (section 2.3). `train_batch_size` counts rows: it is
`train_batch_size / max_seq_len` sequences.

Departures: sequences do not overlap, and may span episodes (the state begins anew within them); rows that a time limit
cuts off within their n steps are left out of the loss, since the state after them is not stored; near a sequence's end
returns are of fewer steps. The values that the policy gives are squashed ones.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import losses
from jaxrl.algorithms.simple_q import SimpleQPolicyConfig, q_metrics
from jaxrl.config import option
from jaxrl.data import SampleBatch
from jaxrl.data.columns import backend
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.models import Model, ModelConfig, make_q_model
from jaxrl.policies import build_policy, target_update
from jaxrl.replay import ReplayBuffer, sequence_priorities, sequence_replay
from jaxrl.rollout import AutoFragment
from jaxrl.trainers import build_trainer, off_policy
from jaxrl.trainers.support import Support
from jaxrl.types import Array, ConfigError, LearnOutput, LossContext, Params, PyTree


@dataclass(frozen=True, kw_only=True, eq=False)
class R2D2PolicyConfig(SimpleQPolicyConfig):
    """Options of R2D2's policy."""

    gamma: float = option(0.997, "Discount factor.", low=0, high=1)
    n_step: int = option(1, "Steps that a row's return sums, at most to its episode's or sequence's end.", low=1)
    burn_in: int = option(0, "First rows of a sequence, which only refresh the stored state.", low=0)
    zero_init_states: bool = option(False, "Sequences begin with the initial state instead of the stored one.")
    use_h_function: bool = option(True, "Learn squashed values: h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x.")
    h_function_epsilon: float = option(1e-3, "The slope eps of h.", low=0)
    hiddens: tuple[int, ...] = option((256,), "Hidden layers of the value streams, after the model's own.")
    dueling: bool = option(True, "Separate streams for the state's value and the actions' advantages.")
    double_q: bool = option(True, "The network that learns chooses the successor's action, the target values it.")
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(use_lstm=True), metadata={"help": "Options of the model: a recurrent one."}
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class R2D2Config(R2D2PolicyConfig, off_policy.OffPolicyConfig):
    """Options of R2D2."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(40, None)

    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': 40."
    )
    train_batch_size: int = option(640, "Rows of a batch, a multiple of max_seq_len: one gradient step.", low=1)
    prioritized_replay: bool = option(True, "Draw sequences by priority, the size of their TD errors, not evenly.")
    priority_eta: float = option(
        0.9, "Share of the largest TD error in a sequence's priority.", low=0, high=1, of_policy=True
    )


def make_model(obs_space: Any, action_space: Any, num_outputs: int, config: Any) -> Model:
    """A recurrent Q-network.

    Raises:
        ConfigError: the options ask for one that has no state.
    """
    model = make_q_model(
        obs_space,
        action_space,
        config.model,
        hiddens=config.hiddens,
        dueling=config.dueling,
        layer_norm=off_policy.perturbs(config),
    )
    if not model.recurrent:
        raise ConfigError("R2D2: the model has no state; set model.use_lstm or model.use_gru, or use DQN.")
    return model


class Returns(NamedTuple):
    """What the rows `[T, B]` of sequences are learned towards.

    Attributes:
        rewards: discounted sum of up to n rewards.
        discounts: factor of the bootstrap value.
        successor: int, the row of the bootstrap value; T is the observation after the sequence.
        known: whether the row is there and its successor's value can be had.
    """

    rewards: Any
    discounts: Any
    successor: Any
    known: Any


def n_step_returns(batch: Any, n: int, gamma: float) -> Returns:
    """Returns of up to `n` steps within sequences, whose valid rows come first; NumPy or JAX, as the batch.

    A row's sum stops at the end of its episode and at that of its sequence.
    """
    xp = backend(batch["rewards"])
    rewards, mask, terminated = batch["rewards"], batch.valid(), batch["terminateds"]
    ended, steps = terminated | batch["truncateds"], rewards.shape[0]
    at = xp.broadcast_to(xp.arange(steps)[:, None], rewards.shape)
    pick = functools.partial(xp.take_along_axis, axis=0)
    total, last = rewards, at
    for k in range(1, n):
        following = xp.minimum(last + 1, steps - 1)
        goes = (last == at + k - 1) & (last + 1 < steps) & ~pick(ended, last) & pick(mask, following)
        total = total + gamma**k * xp.where(goes, pick(rewards, following), 0.0)
        last = xp.where(goes, following, last)
    over = pick(terminated, last)
    following = xp.minimum(last + 1, steps - 1)
    successor = xp.where((last + 1 < steps) & pick(mask, following), last + 1, steps)
    discounts = xp.where(over, 0.0, gamma ** (last - at + 1))
    return Returns(total, discounts, successor, mask & (over | ~pick(ended, last)))


def learned_rows(known: Any, burn_in: int) -> Any:
    """The rows `[T, B]` that the loss is over."""
    return known & (backend(known).arange(known.shape[0])[:, None] >= burn_in)


def unroll(params: Params, batch: Any, ctx: LossContext) -> Array:
    """Action values of a sequence's rows and of the observation after it, `[T + 1, B, A]`; zeros in the burn-in."""
    config, mask = ctx.config, batch.valid()
    steps, width = mask.shape
    last = jnp.maximum(mask.sum(axis=0) - 1, 0), jnp.arange(width)

    def joined(rows: PyTree, after: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), rows, after)

    columns = {
        "obs": joined(batch["obs"], batch["last_obs"]),
        "t": joined(batch["t"], jnp.ones((width,), jnp.int32)),
        "mask": joined(mask, jnp.ones((width,), bool)),
    }
    for name, of in (("prev_actions", "actions"), ("prev_rewards", "rewards")):
        if name in ctx.model.reads:
            columns[name] = joined(batch[name], jax.tree.map(lambda x: x[last], batch[of]))
    state = ctx.model.initial_state(width) if config.zero_init_states else batch["state_in"]

    def run(start: int, stop: int, state: PyTree) -> Any:
        rows = jax.tree.map(lambda x: x[start:stop], columns)
        return ctx.forward(params, SampleBatch({**rows, "state_in": state}))

    burn_in = min(config.burn_in, steps)
    if not burn_in:
        return run(0, steps + 1, state).dist_inputs
    burned = run(0, burn_in, state)
    q = run(burn_in, steps + 1, jax.lax.stop_gradient(burned.state)).dist_inputs
    return jnp.concatenate([jnp.zeros_like(burned.dist_inputs), q])


def r2d2_loss(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
    """Huber loss of the TD errors within sequences, after their burn-in."""
    config = ctx.config
    q, q_target = unroll(params, batch, ctx), unroll(ctx.target_params, batch, ctx)
    returns = n_step_returns(batch, config.n_step, config.gamma)
    following = losses.double_q_values(q_target, q if config.double_q else q_target)
    following = jnp.take_along_axis(following, returns.successor, axis=0)
    if config.use_h_function:
        following = losses.unscale_values(following, config.h_function_epsilon)
    target = losses.td_target(returns.rewards, returns.discounts, following)
    if config.use_h_function:
        target = losses.rescale_values(target, config.h_function_epsilon)
    values = losses.q_of_actions(q[:-1], batch["actions"], ctx.dist_class(q).start)
    learned = learned_rows(returns.known, config.burn_in)
    td_error = jnp.where(learned, losses.td_error(values, jax.lax.stop_gradient(target)), 0.0)
    rows = batch.with_columns(mask=learned)
    loss = rows.mean(batch["weights"] * losses.huber(td_error))
    metrics = q_metrics(rows, jnp.where(learned, values, rows.mean(values)), td_error)
    return loss, LearnOutput(metrics, {"td_error": td_error})


R2D2Policy = build_policy(
    "R2D2Policy", loss_fn=r2d2_loss, make_model=make_model, target_fn=target_update, default_config=R2D2PolicyConfig
)


def make_buffer(config: Any) -> ReplayBuffer:
    """The replay buffer of sequences that a policy's options ask for."""
    return sequence_replay(
        config.buffer_size, alpha=config.prioritized_replay_alpha if config.prioritized_replay else 0.0
    )


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """The plan of DQN, on sequences."""
    config = ctx.config

    def priorities(batch: SampleBatch, td_error: np.ndarray, own: Any) -> np.ndarray:
        learned = learned_rows(n_step_returns(batch, own.n_step, own.gamma).known, own.burn_in)
        return sequence_priorities(td_error, learned, own.priority_eta)

    return off_policy.replay_plan(
        ctx,
        make_buffer,
        batch_items=config.train_batch_size // _sequence_length(config),
        priorities=priorities,
    )


def _sequence_length(config: Any) -> int:
    length = config.model.max_seq_len
    return length if config.batch_mode == "complete_episodes" else min(length, config.rollout_fragment_length)


def validate_config(config: Any) -> Any:
    """Checks that sequences fit their burn-in, fragments and batches.

    Raises:
        ConfigError: sizes that cannot work together, or an option that has no meaning here.
    """
    length, fragment = _sequence_length(config), config.rollout_fragment_length
    where = f"(the lesser of model.max_seq_len={config.model.max_seq_len} and rollout_fragment_length={fragment})"
    if config.burn_in >= length:
        raise ConfigError(
            f"config: burn_in={config.burn_in} leaves nothing to learn of sequences of {length} rows {where}; lower "
            "it, or make them longer."
        )
    rows = length - config.burn_in
    if config.n_step > rows:
        raise ConfigError(
            f"config: n_step={config.n_step} is more than the {rows} rows that a sequence of {length} {where} has "
            "after its burn-in; lower it, or make sequences longer."
        )
    if config.train_batch_size % length:
        below = config.train_batch_size // length * length
        raise ConfigError(
            f"config: train_batch_size={config.train_batch_size} rows are no whole sequences of {length} {where}; use "
            f"{f'{below} or ' if below else ''}{below + length}."
        )
    if config.replay_frame_stack not in (0, "auto"):
        raise ConfigError("config: replay_frame_stack has no meaning for replayed sequences; set it to 0.")
    return off_policy.validate_config(config)


R2D2Trainer = build_trainer(
    "R2D2Trainer",
    default_policy=R2D2Policy,
    default_config=R2D2Config,
    execution_plan=execution_plan,
    validate_config=validate_config,
    progress={
        "epsilon": "info/learner/*/cur_epsilon",
        "mean q": "info/learner/*/mean_q",
        "buffer": "info/replay_buffer/*/size",
    },
)

SUPPORT = Support(
    "recurrent deep Q-learning on replayed sequences",
    "https://openreview.net/forum?id=r1lyTjAqYX",
    discrete=True,
    continuous=False,
    multi_agent=True,
    recurrent=True,
)
