"""Actions outside sampling: one observation or several, filtered in and made fit for the environment."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrl.envs import empty_rows
from jaxrl.rollout.actions import action_transform
from jaxrl.types import ActInputs, PolicyID, PyTree


class ActionComputer:
    """Computes actions with a trainer's current weights and filters.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.calls = 0

    @functools.cached_property
    def _key(self) -> Any:
        return jax.random.fold_in(jax.random.key(self._trainer.options.seed), 2**21)

    def initial_state(self, policy_id: PolicyID) -> PyTree:
        """The model state before an episode's first step, `()` for feed-forward models."""
        state = self._trainer.get_policy(policy_id).initial_carry(1)[0]
        return jax.tree.map(lambda x: np.asarray(x)[0], state)

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

        def lift(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda x: np.asarray(x)[None], tree)

        actions, states = self._act(
            lift(observation),
            None if state is None else lift(state),
            None if prev_action is None else lift(prev_action),
            None if prev_reward is None else np.asarray([prev_reward], np.float32),
            policy_id,
            explore,
        )
        action = _item(jax.tree.map(lambda x: x[0], actions))
        return action if state is None else (action, jax.tree.map(lambda x: np.asarray(x)[0], states))

    def many(self, observations: Mapping[Any, Any], policy_id: PolicyID, explore: bool | None) -> dict[Any, Any]:
        """See `Trainer.compute_actions`."""
        if not observations:
            return {}
        stacked = jax.tree.map(lambda *x: np.stack(x), *observations.values())
        actions, _ = self._act(stacked, None, None, None, policy_id, explore)
        return {name: _item(jax.tree.map(lambda x, i=i: x[i], actions)) for i, name in enumerate(observations)}

    def _act(
        self, obs: PyTree, state: Any, prev_actions: Any, prev_rewards: Any, policy_id: PolicyID, explore: bool | None
    ) -> tuple[PyTree, PyTree]:
        trainer = self._trainer
        policy = trainer.get_policy(policy_id)
        spec = policy.spec
        n = len(jax.tree.leaves(obs)[0])
        rows = empty_rows(spec.obs_space, n)  # the dtypes that training uses
        obs = jax.tree.map(lambda row, x: np.asarray(x, row.dtype).reshape(row.shape), rows, obs)
        obs = trainer.workers.filters[policy_id].apply(trainer.workers.get_filters()[policy_id], obs)
        fresh_state, exploration_state = policy.initial_carry(n)
        if prev_actions is None:
            prev_actions = empty_rows(spec.action_space, n)
        inputs = ActInputs(
            obs,
            self.calls,
            prev_actions if "prev_actions" in spec.act_reads else None,
            (np.zeros(n, np.float32) if prev_rewards is None else prev_rewards)
            if "prev_rewards" in spec.act_reads
            else None,
            np.zeros(n, bool) if spec.recurrent else None,
        )
        self.calls += 1
        explore = trainer.options.explore if explore is None else explore
        cpu = jax.local_devices(backend="cpu")[0]
        weights, key = jax.device_put((trainer.learners[policy_id].weights, self._key), cpu)
        carry = (fresh_state if state is None else state, exploration_state)
        out = policy.act(weights, inputs, carry, key, explore)
        actions = jax.tree.map(np.asarray, out.actions)
        space = trainer.recipes[policy_id].env_action_space
        transform = action_transform(
            space, normalize=trainer.options.normalize_actions, clip=trainer.options.clip_actions
        )
        return actions if transform is None else transform(actions), out.carry[0]


def _item(action: PyTree) -> PyTree:
    """Integers for discrete actions: what environments and users expect."""
    return (
        int(action)
        if isinstance(action, np.ndarray | np.generic) and action.shape == () and action.dtype.kind in "iu"
        else action
    )
