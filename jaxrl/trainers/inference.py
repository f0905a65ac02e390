"""Actions outside sampling, by the same steps as within it: filter, act, unsquash, previous action and reward, clip."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.envs import empty_rows
from jaxrl.envs.checks import check_observation, check_reward
from jaxrl.envs.leaves import leaves
from jaxrl.envs.rows import action_splitter, row_writer
from jaxrl.rollout.acting import LeanAct
from jaxrl.rollout.actions import (
    action_transform,
    clip_rewards,
    inverse_transform,
    make_mask_check,
    reward_rule,
    without_bounds,
)
from jaxrl.types import DEFAULT_POLICY_ID, ActInputs, ConfigError, PolicyID, PyTree


class AgentState(NamedTuple):
    """The state of `Trainer.compute_action` where the policy reads its previous action.

    Attributes:
        model: the model's state, `()` where it has none.
        action: the last action as the policy gave it, before it was mapped or clipped; zeros at an episode's start.
    """

    model: PyTree
    action: PyTree


class Memory(NamedTuple):
    """What agents take from one step of an episode to the next; each array `[B, ...]`.

    Attributes:
        carry: the policy's (model state, exploration state).
        actions: the last actions, as the policy gave them.
    """

    carry: PyTree
    actions: PyTree


class Actor:
    """Acts with the current weights and filter of one of a trainer's policies.

    Args:
        trainer: the trainer.
        policy_id: of the policy.
        options: how to act: `clip_rewards`, `clip_actions`, `explore`...
        computer: counts the calls.
    """

    def __init__(self, trainer: Any, policy_id: PolicyID, options: Any, computer: ActionComputer):
        self._trainer, self._policy_id, self._options, self._computer = trainer, policy_id, options, computer
        self.policy = trainer.get_policy(policy_id)
        self.spec = self.policy.spec
        self.env_action_space = trainer.recipes[policy_id].env_action_space
        normalize, clip = options.normalize_actions, options.clip_actions
        self.to_env = action_transform(self.env_action_space, normalize=normalize, clip=clip)
        self.to_policy = inverse_transform(self.env_action_space, normalize=normalize)
        self._split = action_splitter(self.env_action_space)
        # Whether a float is beyond its bounds, samplers and players check; a user may ask what would be done there.
        self._checked_space = without_bounds(self.spec.obs_space)
        self._write = row_writer(self.spec.obs_space)
        self._lean_act, self._check_masks = LeanAct(self.policy), make_mask_check(self.spec)
        self._reward_rule = reward_rule(options)
        self._cpu = jax.local_devices(backend="cpu")[0]

    def begin(self, size: int = 1) -> Memory:
        """The memory of `size` agents before their episodes' first step."""
        with jax.default_device(self._cpu):
            return Memory(self.policy.initial_carry(size), empty_rows(self.spec.action_space, size))

    def act(
        self,
        observations: Sequence[Any],
        memory: Memory,
        rewards: Sequence[float],
        explore: bool | None = None,
        where: str = "compute_action",
    ) -> tuple[list[Any], Memory]:
        """One action for each observation, as the environment takes it.

        Args:
            observations: as the environment gives them.
            memory: `begin()` at first, then what the last call returned.
            rewards: what each agent got since its last action, as the environment gave it; 0 at first.
            explore: sample (True) or take the mode (False); None: as the options say.
            where: the caller, for messages.

        Returns:
            `(actions, memory)`.

        Raises:
            EnvError: an observation that does not fit its space.
        """
        spec, reads, trainer = self.spec, self.spec.act_reads, self._trainer
        rows = empty_rows(spec.obs_space, len(observations))
        for b, observation in enumerate(observations):
            check_observation(self._checked_space, observation, where)
            self._write(rows, b, observation)
        self._check_masks(rows, None, lambda b: where)
        obs = trainer.workers.filters[self._policy_id].apply(trainer.workers.get_filters()[self._policy_id], rows)
        step = self._computer.calls
        inputs: tuple = (obs, step)
        if reads:
            inputs = ActInputs(
                obs,
                step,
                memory.actions if "prev_actions" in reads else None,
                clip_rewards(np.asarray(rewards, np.float64), self._reward_rule) if "prev_rewards" in reads else None,
                np.zeros(len(observations), bool) if spec.recurrent else None,
            )
        self._computer.calls += 1
        explore = bool(self._options.explore if explore is None else explore)
        with jax.default_device(self._cpu):
            weights, key = jax.device_put((trainer.learners[self._policy_id].weights, self._computer.key), self._cpu)
            actions, carry, _, _ = self._lean_act(weights, inputs, memory.carry, key, explore)
        actions = jax.tree.map(np.asarray, actions)
        return self._split(actions if self.to_env is None else self.to_env(actions)), Memory(carry, actions)


class ActionComputer:
    """Computes actions with a trainer's current weights and filters.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._actors: dict[PolicyID, Actor] = {}
        self.calls = 0

    @functools.cached_property
    def key(self) -> Any:
        """PRNG key; each call folds its number in."""
        return jax.random.fold_in(jax.random.key(self._trainer.options.seed), 2**21)

    def actor(self, policy_id: PolicyID, options: Any = None) -> Actor:
        """What acts by a policy; `options` are the trainer's where they are None.

        Raises:
            ConfigError: there is no such policy.
        """
        if options is not None:
            return Actor(self._trainer, policy_id, options, self)
        self._trainer.get_policy(policy_id)
        if policy_id not in self._actors:
            self._actors[policy_id] = Actor(self._trainer, policy_id, self._trainer.options, self)
        return self._actors[policy_id]

    def initial_state(self, policy_id: PolicyID) -> PyTree:
        """See `Trainer.get_initial_state`."""
        actor = self.actor(policy_id)
        return _state_of(actor, actor.begin(), 0)

    def one(
        self,
        observation: Any,
        state: Any,
        prev_action: Any,
        prev_reward: Any,
        policy_id: PolicyID,
        explore: bool | None,
    ) -> Any:
        """See `Trainer.compute_action`."""
        states, actions, rewards = (None if x is None else {None: x} for x in (state, prev_action, prev_reward))
        where = f"compute_action(policy_id={policy_id!r})"
        out = self._act(where, {None: observation}, states, actions, rewards, policy_id, explore)
        return out[None] if state is None else (out[0][None], out[1][None])

    def many(
        self,
        observations: Mapping[Any, Any],
        states: Mapping[Any, Any] | None,
        prev_actions: Mapping[Any, Any] | None,
        prev_rewards: Mapping[Any, Any] | None,
        policy_id: PolicyID = DEFAULT_POLICY_ID,
        explore: bool | None = None,
    ) -> Any:
        """See `Trainer.compute_actions`."""
        where = f"compute_actions(policy_id={policy_id!r})"
        return self._act(where, observations, states, prev_actions, prev_rewards, policy_id, explore)

    def _act(
        self,
        where: str,
        observations: Mapping[Any, Any],
        states: Mapping[Any, Any] | None,
        prev_actions: Mapping[Any, Any] | None,
        prev_rewards: Mapping[Any, Any] | None,
        policy_id: PolicyID,
        explore: bool | None,
    ) -> Any:
        actor, size = self.actor(policy_id), len(observations)
        for name, mapping in (("state", states), ("prev_action", prev_actions), ("prev_reward", prev_rewards)):
            if mapping is not None and mapping.keys() != observations.keys():
                raise ConfigError(f"{where}: {name}: expected the keys {list(observations)}, got {list(mapping)}")
        if not observations:
            return {} if states is None else ({}, {})
        memory, rewards = actor.begin(size), [0.0] * size
        if states is not None:
            memory = _with_states(actor, memory, [states[name] for name in observations], where)
        if prev_actions is not None:
            given = [prev_actions[name] for name in observations]
            memory = memory._replace(actions=_previous(actor, memory.actions, given, where))
        if prev_rewards is not None:
            rewards = [prev_rewards[name] for name in observations]
            for reward in rewards:
                check_reward(reward, f"{where}: prev_reward")
        actions, memory = actor.act(list(observations.values()), memory, rewards, explore, where)
        named = dict(zip(observations, actions, strict=True))
        if states is None:
            return named
        return named, {name: _state_of(actor, memory, b) for b, name in enumerate(observations)}


def _state_of(actor: Actor, memory: Memory, b: int) -> PyTree:
    """The state of one agent, as `compute_action` returns it."""
    model, action = jax.tree.map(lambda x: np.asarray(x)[b], (memory.carry[0], memory.actions))
    return AgentState(model, action) if "prev_actions" in actor.spec.act_reads else model


def _with_states(actor: Actor, memory: Memory, states: Sequence[PyTree], where: str) -> Memory:
    want = _state_of(actor, memory, 0)
    shapes = jax.tree.map(np.shape, want)
    for state in states:
        if jax.tree.structure(state) != jax.tree.structure(want) or jax.tree.map(np.shape, state) != shapes:
            raise ConfigError(
                f"{where}: state: expected what get_initial_state or the last call returned for this policy, arrays of "
                f"shapes {shapes}, got shapes {jax.tree.map(np.shape, state)}"
            )
    joined = jax.tree.map(lambda like, *x: np.stack(x).astype(like.dtype), want, *states)
    model, actions = joined if isinstance(want, AgentState) else (joined, memory.actions)
    return Memory((model, memory.carry[1]), actions)


def _previous(actor: Actor, remembered: PyTree, given: Sequence[Any], where: str) -> PyTree:
    """The actions `[B, ...]` that the policy gave where the environments were given `given`.

    Clipping and rounding cannot be undone: those that the remembered actions became stand for these.
    """
    space = actor.env_action_space
    rows = empty_rows(space, len(given))
    for b, action in enumerate(given):
        check_observation(without_bounds(space), action, where, "prev_action")
        row_writer(space)(rows, b, action)
    became = remembered if actor.to_env is None else actor.to_env(remembered)
    inverted = rows if actor.to_policy is None else actor.to_policy(rows)
    same = np.ones(len(given), bool)
    for a, b in zip(leaves(space, became), leaves(space, rows), strict=True):
        same &= (np.asarray(a, b.dtype) == b).reshape(len(given), -1).all(axis=1)
    return jax.tree.map(
        lambda old, new: np.where(same.reshape(-1, *[1] * (old.ndim - 1)), old, new), remembered, inverted
    )
