"""What algorithms that learn from replayed experience share: options, plan, checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxrl.config import option
from jaxrl.envs import stacked_frames
from jaxrl.execution.concurrency_ops import Concurrently
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.replay_memory import ReplayMemory
from jaxrl.execution.replay_ops import (
    Replay,
    StoreToReplayBuffer,
    UpdatePriorities,
    UpdateTargetNetwork,
    updates_in_turn,
)
from jaxrl.execution.rollout_ops import ParallelRollouts
from jaxrl.execution.train_ops import TrainOneStep
from jaxrl.policies import PolicyConfig
from jaxrl.replay import ReplayBuffer, ReplaySpec, prioritized_replay, uniform_replay
from jaxrl.rollout import AutoFragment
from jaxrl.schedules import Coeff, LinearSchedule
from jaxrl.trainers.config import CommonConfig
from jaxrl.types import ConfigError, PolicyID

_ONE_STEP = "each batch of train_batch_size rows is one gradient step"


@dataclass(frozen=True, kw_only=True, eq=False)
class OffPolicyConfig(CommonConfig):
    """Options of algorithms that learn from replayed experience."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(4, None)
    of_run: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("num_sgd_iter", "sgd_minibatch_size", "shuffle_sequences"), _ONE_STEP),
        "target_network_update_freq": "the plan updates the target networks of all policies together",
    }
    without_meaning: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("lambda", "use_gae", "use_critic"), "targets are of replayed rows, without GAE"),
        "shuffle_sequences": "rows are drawn from the replay memory at random",
    }

    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': 4."
    )
    train_batch_size: int = option(32, "Rows of a batch drawn from the replay memory: one gradient step.", low=1)
    timesteps_per_iteration: int = option(1000, "Env steps of an iteration at least; 0: one round of learning.", low=0)
    training_intensity: float | None = option(
        None,
        "Rows trained on for each env step sampled: train_batch_size is one gradient step per env step; None: one "
        "gradient step for each round of rollouts.",
    )
    buffer_size: int = option(50_000, "Rows that the replay memory of each policy holds.", low=1, of_policy=True)
    learning_starts: int = option(1000, "Rows of each policy before learning begins.", low=0)
    n_step: int = option(
        1, "Steps that a replayed row's reward sums, at most to its episode's end.", low=1, of_policy=True
    )
    prioritized_replay: bool = option(False, "Draw rows by priority, the size of their TD error, instead of evenly.")
    prioritized_replay_alpha: float = option(0.6, "Exponent of priorities; 0: none.", low=0, of_policy=True)
    prioritized_replay_beta: float = option(0.4, "Exponent of the importance weights at the beginning.", low=0, high=1)
    final_prioritized_replay_beta: float = option(0.4, "Exponent of the importance weights at last.", low=0, high=1)
    prioritized_replay_beta_annealing_timesteps: int = option(
        20_000, "Env steps over which the exponent of the importance weights goes to its last value.", low=1
    )
    prioritized_replay_eps: float = option(1e-6, "Added to priorities, so that every row can be drawn.", low=0)
    target_network_update_freq: int = option(
        500, "Env steps between updates of the target network; 0: after every gradient step.", low=0
    )
    tau: float = option(1.0, "An update of the target network: tau * params + (1 - tau) * target.", low=0, high=1)
    replay_mode: Literal["independent", "lockstep"] = option(
        "independent", "Policies draw rows of their own, or (lockstep) all of the same time steps."
    )
    replay_frame_stack: int | Literal["auto"] = option(
        "auto",
        "Frames stacked on the last axis of observations, of which the memory stores the newest; 0: as they are; "
        "'auto': those of an Atari id's preprocessing.",
    )
    store_buffer_in_checkpoints: bool = option(
        False, "Checkpoints hold the replay memory; else a restored run gathers learning_starts rows anew."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ActorCriticPolicyConfig(PolicyConfig):
    """Options of the policies of off-policy actor-critics."""

    actor_lr: Coeff | None = option(None, "Learning rate of the actor, or a schedule; None: lr.", traced=True)
    critic_lr: Coeff | None = option(None, "Learning rate of the critics, or a schedule; None: lr.", traced=True)
    grad_clip: float | None = option(
        None, "Clip the norm of each group's gradients (actor, critics, ...) to this; None: no clipping.", low=0
    )
    actor_hiddens: tuple[int, ...] = option((256, 256), "Hidden layers of the actor.")
    critic_hiddens: tuple[int, ...] = option((256, 256), "Hidden layers of each critic.")
    actor_hidden_activation: str = option("relu", "Activation of the actor's hidden layers.")
    critic_hidden_activation: str = option("relu", "Activation of the critics' hidden layers.")
    use_state_preprocessor: bool = option(False, "The model's own layers come before actor and critics.")


@dataclass(frozen=True, kw_only=True, eq=False)
class ActorCriticConfig(OffPolicyConfig):
    """Options of off-policy actor-critics."""

    auto_fragment: ClassVar[AutoFragment] = AutoFragment(8, None)

    normalize_actions: bool = option(True, "Policies act in [-1, 1], mapped to the bounds of the Box action space.")
    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': 8."
    )
    train_batch_size: int = option(256, "Rows of a batch drawn from the replay memory: one gradient step.", low=1)
    training_intensity: float | None = option(
        None, "Rows trained on for each env step sampled; None: train_batch_size, one gradient step per env step."
    )
    learning_starts: int = option(1500, "Rows of each policy before learning begins.", low=0)


def make_buffer(config: Any) -> ReplayBuffer:
    """The replay buffer of rows that the options ask for."""
    frames = config.replay_frame_stack
    if frames == "auto":
        frames = stacked_frames(config.env, config.env_config) if config.observation_filter == "NoFilter" else 0
    options = {"n_step": config.n_step, "gamma": config.gamma, "frame_stack": frames}
    if config.prioritized_replay:
        return prioritized_replay(config.buffer_size, alpha=config.prioritized_replay_alpha, **options)
    return uniform_replay(config.buffer_size, **options)


def make_memory(ctx: PlanContext, make_buffer: Callable[[Any], ReplayBuffer]) -> ReplayMemory:
    """The replay memory of a plan, known to its context: results show its size, and checkpoints may hold it."""
    config = ctx.config
    ctx.memory = ReplayMemory(
        policy_buffers(ctx, make_buffer),
        ctx.policies_to_train,
        learning_starts=config.learning_starts,
        lockstep=config.replay_mode == "lockstep",
        store_in_checkpoints=config.store_buffer_in_checkpoints,
    )
    return ctx.memory


def execution_plan(ctx: PlanContext) -> LocalIterator:
    """Two plans in turn: rollouts into the replay memory; batches from it to the learner."""
    return replay_plan(ctx, make_buffer)


def policy_buffers(ctx: PlanContext, make_buffer: Callable[[Any], ReplayBuffer]) -> dict[PolicyID, ReplayBuffer]:
    """The replay buffer of each policy that learns, by its own options.

    Raises:
        ConfigError: a policy's model has a state, and the buffer holds single rows.
    """
    specs = {pid: ctx.learners[pid].policy.spec for pid in ctx.policies_to_train}
    buffers = {pid: make_buffer(spec.config) for pid, spec in specs.items()}
    for pid, spec in specs.items():
        if spec.recurrent and isinstance(buffers[pid].spec, ReplaySpec):
            raise ConfigError(
                f"policy {pid!r}: its model has a state (use_lstm, use_gru or a custom one), and single rows drawn "
                "from a replay memory have none; take a model without one, or R2D2, which replays sequences."
            )
    return buffers


def replay_plan(
    ctx: PlanContext,
    make_buffer: Callable[[Any], ReplayBuffer],
    *,
    batch_items: int | None = None,
    priorities: Callable[..., Any] | None = None,
) -> LocalIterator:
    """The plan of `execution_plan` with other replay buffers.

    Args:
        ctx: the plan's context.
        make_buffer: function of a policy's options, of rows or of sequences.
        batch_items: rows, or sequences, of a train batch; None: `train_batch_size`.
        priorities: see `UpdatePriorities`.
    """
    config = ctx.config
    memory = make_memory(ctx, make_buffer)
    num_batches, weights = updates_in_turn(updates_per_round(config))
    beta = LinearSchedule(
        config.prioritized_replay_beta_annealing_timesteps,
        config.final_prioritized_replay_beta,
        config.prioritized_replay_beta,
    )
    store = ParallelRollouts(ctx, mode="bulk_sync").for_each(StoreToReplayBuffer(ctx, memory))
    batches = Replay(ctx, memory, batch_items or config.train_batch_size, num_batches=num_batches, beta=beta)
    learn = batches.for_each(TrainOneStep(ctx))
    if config.prioritized_replay:
        options = {} if priorities is None else {"priorities": priorities}
        learn = learn.for_each(UpdatePriorities(ctx, memory, eps=config.prioritized_replay_eps, **options))
    if config.target_network_update_freq:
        learn = learn.for_each(UpdateTargetNetwork(ctx, config.target_network_update_freq, tau=None))
    both = Concurrently([store, learn], output_indexes=[1], round_robin_weights=weights, seed=config.seed)
    return StandardMetricsReporting(ctx, both)


def perturbs(config: Any) -> bool:
    """Whether exploration is by parameter noise, for which networks normalise their layers."""
    return config.exploration_config.get("type") == "ParameterNoise"


def updates_per_round(config: Any) -> float:
    """Gradient steps for each round of rollouts."""
    if config.training_intensity is None:
        return 1
    rows = config.rollout_fragment_length * config.num_envs_per_worker * max(1, config.num_workers)
    return config.training_intensity * rows / config.train_batch_size


def validate_actor_critic(config: Any) -> Any:
    """As `validate_config`; without a `training_intensity` there is one gradient step for each env step.

    Raises:
        ConfigError: see `validate_config`.
    """
    if config.training_intensity is None:
        config = dataclasses.replace(config, training_intensity=config.train_batch_size)
    return validate_config(config)


def validate_config(config: Any) -> Any:
    """Checks the sizes of the replay memory; each batch drawn from it is one gradient step.

    Raises:
        ConfigError: sizes that cannot work together, or an option that has no meaning here.
    """
    if config.buffer_size < config.train_batch_size:
        raise ConfigError(
            f"config: buffer_size={config.buffer_size} is smaller than train_batch_size={config.train_batch_size}; "
            "make the buffer larger, or the batch smaller."
        )
    if config.learning_starts > config.buffer_size:
        raise ConfigError(
            f"config: learning_starts={config.learning_starts} is beyond buffer_size={config.buffer_size}, so learning "
            "would never start; lower it, or make the buffer larger."
        )
    if config.training_intensity is not None and config.training_intensity <= 0:
        raise ConfigError(f"config: training_intensity should be positive or None, got {config.training_intensity}.")
    if perturbs(config) and config.batch_mode != "complete_episodes":
        raise ConfigError(
            "config: ParameterNoise keeps its noise for whole episodes; set batch_mode='complete_episodes', got "
            f"{config.batch_mode!r}."
        )
    if config.num_sgd_iter != 1 or config.sgd_minibatch_size not in (0, config.train_batch_size):
        raise ConfigError(
            f"config: num_sgd_iter={config.num_sgd_iter} and sgd_minibatch_size={config.sgd_minibatch_size} have no "
            "meaning with replay: each batch of train_batch_size rows is one gradient step. Set train_batch_size and "
            "training_intensity."
        )
    # Batches drawn together are joined: the learner takes them apart again, in order.
    return dataclasses.replace(config, sgd_minibatch_size=config.train_batch_size, shuffle_sequences=False)
