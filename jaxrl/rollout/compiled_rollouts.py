"""Rollouts as a pure function: acting, stepping and postprocessing of a fragment within one compiled program.

What `VectorSampler` does with an environment on the host, for environments that are pure functions themselves
(`jaxrl.envs.jax_native`): the same act calls, the same columns, the same postprocessing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import trees
from jaxrl.data import SampleBatch
from jaxrl.envs import empty_rows
from jaxrl.envs.jax_native import JaxEnv, draw_resets, time_limit, vector_step
from jaxrl.policies import Policy
from jaxrl.rollout.actions import action_transform, clip_rewards, reward_rule
from jaxrl.types import FINAL_PAD, ActInputs, Array, CannotCompileError, PyTree, Weights

# Resets of a whole fragment are drawn in one call, unless they would take more memory than this.
MAX_DRAWN_BYTES = 64 * 2**20


class RolloutState(NamedTuple):
    """Where the environments of a compiled rollout stand.

    Attributes:
        env: their states `[B, ...]`.
        obs: what the next actions are taken on `[B, ...]`.
        carry: the policy's (model state, exploration state).
        start: bool `[B]`, an episode begins with `obs`.
        t: int32 `[B]`, steps of the episode so far, where the policy reads them; else `()`, as the next two.
        episode: int32 `[B]`, the episode's number.
        previous: actions and rewards of the row before.
    """

    env: PyTree
    obs: PyTree
    carry: PyTree
    start: Array
    t: PyTree
    episode: PyTree
    previous: PyTree


class Played(NamedTuple):
    """What happened in a fragment, for the statistics of episodes: raw rewards and ends, `[T, B]`."""

    rewards: Any
    ended: Any


class CompiledRollouts(NamedTuple):
    """Rollouts as pure functions.

    Attributes:
        init: `(key) -> RolloutState`: fresh episodes.
        sample: `(weights, state, key, step) -> (state, fragment, played)`; `key` is for this fragment alone, `step` is
            the number of its first vector step, int32. The fragment is postprocessed.
        length: vector steps of a fragment, T.
        width: environments, B.
    """

    init: Callable[[Array], RolloutState]
    sample: Callable[[Weights, RolloutState, Array, Array], tuple[RolloutState, SampleBatch, Played]]
    length: int
    width: int


def compiled_rollouts(env: JaxEnv, policy: Policy, config: Any) -> CompiledRollouts:
    """Rollouts of `config.num_envs_per_worker` environments, `config.rollout_fragment_length` steps each.

    Args:
        env: the environment.
        policy: the policy.
        config: a RolloutConfig.

    Raises:
        CannotCompileError: an option of sampling that a compiled program cannot honour, by name.
    """
    check_rollout_options(policy, config)
    if config.horizon is not None:
        env = time_limit(env, config.horizon)
    steps, width = int(config.rollout_fragment_length), config.num_envs_per_worker
    spec = policy.spec
    reads = spec.reads | spec.act_reads | (spec.model.reads if spec.recurrent else frozenset())
    reads_previous = bool(reads & {"prev_actions", "prev_rewards"})
    reads_t = spec.recurrent or "t" in reads
    # What was acted on need not be computed again, unless it was noisy, or is stepped through for its states anyway.
    asked = reads & {"action_dist_inputs", "action_logp", "action_prob"}
    keeps_inputs = bool(asked) and not spec.recurrent and "key" not in spec.model.reads
    to_env = action_transform(env.action_space, normalize=config.normalize_actions, clip=config.clip_actions)
    rule = reward_rule(config)
    fresh_bytes = trees.size_bytes(jax.eval_shape(lambda key: draw_resets(env, key, (steps, width)), jax.random.key(0)))
    drawn_at_once = fresh_bytes <= MAX_DRAWN_BYTES

    def init(key: Array) -> RolloutState:
        states, obs = draw_resets(env, key, (width,))
        previous: PyTree = ()
        if reads_previous:
            empty = jax.tree.map(jnp.asarray, empty_rows(spec.action_space, width))
            previous = (empty, jnp.zeros(width, jnp.float32))
        return RolloutState(
            states,
            obs,
            jax.tree.map(jnp.asarray, policy.initial_carry(width)),
            jnp.ones(width, bool),
            jnp.zeros(width, jnp.int32) if reads_t else (),
            jnp.arange(width, dtype=jnp.int32) if "eps_id" in reads else (),
            previous,
        )

    def sample(
        weights: Weights, state: RolloutState, key: Array, step: Array
    ) -> tuple[RolloutState, SampleBatch, Played]:
        act_key, reset_key, env_key, fill_key = jax.random.split(key, 4)
        drawn = draw_resets(env, reset_key, (steps, width)) if drawn_at_once else None

        numbers = step + jnp.arange(steps, dtype=jnp.int32)
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))

        def one_step(state: RolloutState, xs: tuple[Array, Array, Array, Any]) -> tuple[RolloutState, dict[str, Any]]:
            i, step_act_key, step_env_key, fresh = xs
            if fresh is None:
                fresh = draw_resets(env, jax.random.fold_in(reset_key, i), (width,))
            prev_actions, prev_rewards = state.previous or (None, None)
            inputs = ActInputs(
                state.obs,
                i,
                prev_actions if "prev_actions" in spec.act_reads else None,
                prev_rewards if "prev_rewards" in spec.act_reads else None,
                state.start if spec.recurrent else None,
                step_key=step_act_key,
            )
            out = policy.act(weights, inputs, state.carry, act_key, config.explore)
            actions = out.actions if to_env is None else to_env(out.actions)
            stepped = vector_step(env, step_env_key, state.env, actions, fresh)
            ended = stepped.terminateds | stepped.truncateds
            row = {
                "obs": state.obs,
                "actions": out.actions,
                "rewards": stepped.rewards,
                "terminateds": stepped.terminateds,
                "truncateds": stepped.truncateds,
                "final_obs": stepped.final_obs,
            }
            t, episode = state.t, state.episode
            if reads_t:
                row["t"], t = t, jnp.where(ended, 0, t + 1)
            if "eps_id" in reads:
                row["eps_id"], episode = episode, jnp.where(ended, episode + width, episode)
            if out.logp is not None:
                row["action_logp"] = out.logp
            if keeps_inputs:
                row["action_dist_inputs"] = out.dist_inputs
            previous = state.previous
            if reads_previous:
                row["prev_actions"], row["prev_rewards"] = previous
                zeroed = jax.tree.map(lambda a: jnp.where(_rows(ended, a), jnp.zeros_like(a), a), out.actions)
                learned = clip_rewards(stepped.rewards, rule)
                previous = (zeroed, jnp.where(ended, 0.0, learned))
            return RolloutState(stepped.states, stepped.obs, out.carry, ended, t, episode, previous), row

        # Keys of all steps in one call: within the loop a fold costs as much as a layer of the network.
        xs = (numbers, fold(act_key, numbers), fold(env_key, numbers), drawn)
        after, rows = jax.lax.scan(one_step, state, xs)
        played = Played(rows["rewards"], rows["terminateds"] | rows["truncateds"])
        columns = _columns(env, rows, after.obs, reads)
        columns["rewards"] = clip_rewards(columns["rewards"], rule)
        if "unroll_id" in reads:
            columns["unroll_id"] = jnp.full((steps, width), step // steps, jnp.int32)
        if spec.recurrent:
            columns["state_in"] = state.carry[0]
        fragment = SampleBatch._make(columns, time_major=True)
        return after, policy.postprocess(weights, fragment, None, fill_key), played

    # Jitted for its trace alone, which finding out shapes and compiling then share.
    return CompiledRollouts(init, jax.jit(sample), steps, width)


def _columns(env: JaxEnv, rows: dict[str, Any], last_obs: PyTree, reads: frozenset[str]) -> dict[str, Any]:
    """The columns of a fragment: final observations in their slots, or as `new_obs` where that is read."""
    columns = {name: rows[name] for name in rows if name != "final_obs"}
    steps, width = rows["rewards"].shape
    columns["last_obs"] = last_obs
    if "agent_index" in reads:
        columns["agent_index"] = jnp.zeros((steps, width), jnp.int32)
    if "new_obs" in reads:
        columns["new_obs"] = _settled(rows["final_obs"], rows["terminateds"])
    # Only a row that was truncated is ever bootstrapped from its final observation. With a time limit an environment
    # has so many of them in a fragment at most; without, each row may be one.
    cut = rows["truncateds"]
    slots = steps if env.max_episode_steps is None else min(steps, -(-steps // env.max_episode_steps))
    first = jnp.argmax(cut, axis=0)[None] if slots == 1 else jnp.argsort(~cut, axis=0, stable=True)[:slots]
    column = jnp.broadcast_to(jnp.arange(width), first.shape)
    is_cut = cut[first, column]
    index = jnp.stack([jnp.where(is_cut, first, FINAL_PAD), column], axis=-1).reshape(-1, 2).astype(jnp.int32)
    columns["final_index"] = index
    finals = jax.tree.map(lambda x: x[first, column], rows["final_obs"])
    finals = _settled(finals, rows["terminateds"][first, column])
    columns["final_obs"] = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), finals)
    return columns


def _settled(obs: PyTree, terminated: Array) -> PyTree:
    """What follows a terminal state counts for nothing, and need not be finite (`jaxrl.envs.check_finals`)."""

    def zeroed(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(_rows(terminated, x) & ~jnp.isfinite(x), jnp.zeros((), x.dtype), x)

    return jax.tree.map(zeroed, obs)


def check_rollout_options(policy: Policy, config: Any) -> None:
    """Checks that a compiled program can sample as the config says.

    Raises:
        CannotCompileError: it cannot; names the option.
    """
    hooks = config.callbacks
    used = [] if hooks is None else [name for name in hooks._fields if getattr(hooks, name) is not None]
    per_step = [name for name in used if name != "on_train_result"]
    length = config.rollout_fragment_length
    # Option: whether it cannot be held, why, and what could be.
    reasons = {
        "num_workers": (config.num_workers > 0, "samples on Ray actors", "Set it to 0"),
        "model": (
            policy.spec.recurrent and length % min(config.model.max_seq_len, length) != 0,
            "has a state (use_lstm, use_gru or a custom recurrent one), and sequences of "
            f"max_seq_len={config.model.max_seq_len} rows do not fill fragments of rollout_fragment_length={length}",
            "Set max_seq_len to a divisor of rollout_fragment_length",
        ),
        "batch_mode": (
            config.batch_mode != "truncate_episodes",
            "gathers fragments of any length",
            "Set 'truncate_episodes'",
        ),
        "soft_horizon": (
            config.soft_horizon,
            "has no meaning for environments that reset themselves",
            "Set it to False",
        ),
        "observation_filter": (
            config.observation_filter != "NoFilter",
            "keeps its statistics in float64 on the host",
            "Set 'NoFilter'",
        ),
        "callbacks": (bool(per_step), f"{', '.join(per_step)} run on the host at each step or fragment", "Drop them"),
        "exploration_config": (
            policy.spec.exploration.perturbs,
            "is parameter noise, which is measured on the host",
            "Choose another exploration",
        ),
        "env_stepping": (config.env_stepping != "auto", "steps environments on the host", "Set 'auto'"),
        "restart_failed_sub_environments": (
            config.restart_failed_sub_environments,
            "is about environments that raise, which pure functions do not",
            "Set it to False",
        ),
    }
    for name, (unfit, reason, instead) in reasons.items():
        if unfit:
            shown = name if name in ("model", "callbacks") else f"{name}={getattr(config, name)!r}"
            raise CannotCompileError.of(f"{shown} {reason}", instead)


def _rows(flags: Array, like: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))
