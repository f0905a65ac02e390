"""AgentRows: one policy's share of a multi-agent fragment, a column for each agent of each environment.

A row is one transition of an agent, from the observation it acted on to its next observation or end, and stands at the
environment step that completed it. Agents that act at every step fill every row; for the others the steps between are
absent (`mask` False).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.envs import EnvPlace, check_finals, check_rows, empty_rows
from jaxrl.policies import Policy
from jaxrl.rollout.acting import LeanAct, fold_in
from jaxrl.rollout.actions import clip_rewards, make_mask_check
from jaxrl.rollout.ends import final_rows
from jaxrl.rollout.filters import Filter
from jaxrl.rollout.perturbation import make_perturbation
from jaxrl.types import ActInputs, AgentID, EnvError, PyTree, Weights


class Slot(NamedTuple):
    """A column: the agent of an environment."""

    env_index: int
    agent_id: AgentID


class AgentRows:
    """The rows and the standing of one policy's agents.

    Args:
        policy: the policy.
        slots: its columns.
        filter: its observation filter.
        worker_index, num_workers: given to the exploration's state.
    """

    def __init__(
        self, policy: Policy, slots: list[Slot], filter: Filter, *, worker_index: int = 0, num_workers: int = 0
    ):
        self.policy, self.slots, self.filter = policy, slots, filter
        self._worker = worker_index, num_workers
        self.column = {slot: b for b, slot in enumerate(slots)}
        self.filter_state, self.filter_delta = filter.init(), filter.init()
        self._act, self._check_masks = LeanAct(policy), make_mask_check(policy.spec)
        self._perturbation = make_perturbation(policy)
        self._recurrent = policy.spec.recurrent
        self._final_slots = 0
        self.restart()

    def restart(self) -> None:
        """Begins anew: no agent is there."""
        b, spec = len(self.slots), self.policy.spec
        self.carry = self.policy.initial_carry(b, *self._worker)
        self._state_before = jax.tree.map(np.array, self.carry[0])
        self.active = np.zeros(b, bool)
        self.open = np.zeros(b, bool)
        self.starting = np.ones(b, bool)
        self.obs = empty_rows(spec.obs_space, b)
        self.t = np.zeros(b, np.int32)
        self.eps_id = np.zeros(b, np.int32)
        self.prev_actions = empty_rows(spec.action_space, b)
        self.prev_rewards = np.zeros(b, np.float32)
        self._pending = self._rows(b)

    def _rows(self, *leading: int) -> dict[str, Any]:
        spec = self.policy.spec
        return {
            "obs": empty_rows(spec.obs_space, *leading),
            "actions": empty_rows(spec.action_space, *leading),
            "prev_actions": empty_rows(spec.action_space, *leading),
            "rewards": np.zeros(leading, np.float64),
            "prev_rewards": np.zeros(leading, np.float32),
            "terminateds": np.zeros(leading, bool),
            "truncateds": np.zeros(leading, bool),
            "t": np.zeros(leading, np.int32),
            "eps_id": np.zeros(leading, np.int32),
            "action_logp": np.zeros(leading, np.float32),
        }

    # ---- collecting

    def begin(self, steps: int) -> None:
        """Prepares rows for a fragment of about `steps` environment steps."""
        b = len(self.slots)
        self._columns = self._rows(steps, b)
        self._mask = np.zeros((steps, b), bool)
        self._finals: list[tuple[int, int, PyTree]] = []
        self._logp_given = False
        if self._recurrent:
            # A transition that is still open was acted on before this fragment: its row comes first.
            keep = self.open
            self._state_in = jax.tree.map(
                lambda before, now: np.where(_like(keep, before), before, now), self._state_before, self._host_state()
            )

    def reserve(self, steps: int) -> None:
        """Makes room for at least `steps` rows."""
        have = len(self._mask)
        if steps <= have:
            return

        def grown(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.zeros((max(have, steps - have), *x.shape[1:]), x.dtype)])

        self._columns, self._mask = jax.tree.map(grown, (self._columns, self._mask))

    def observe(self, b: int, obs: PyTree, *, first: bool, eps_id: int) -> None:
        """The agent of column `b` has an observation, and acts next."""
        _set(self.obs, b, obs)
        self.active[b] = True
        if first:
            self.starting[b], self.eps_id[b] = True, eps_id
            self._begin(b)

    def perturbed(self, weights: Weights, key: Any, salt: Any) -> Weights:
        """The weights that the next fragment is acted in with: perturbed where the exploration does that."""
        if self._perturbation is None:
            return weights
        return self._perturbation.perturb(weights, self.carry, fold_in(key, salt))

    def end_perturbed(self, weights: Weights, acting: Weights, fragment: Any) -> None:
        """Tells the exploration what perturbing the parameters changed in a fragment."""
        if self._perturbation is not None and acting is not weights:
            self.carry = self._perturbation.update(weights, acting, fragment, self.carry)

    def act(self, weights: Weights, step: int, key: Any, explore: bool) -> PyTree:
        """Actions `[B, ...]` of all columns (an absent agent's mean nothing); opens the active ones' transitions."""
        reads = self.policy.spec.act_reads
        obs = self.obs if self.filter.identity else self.filter.apply(self.filter_state, self.obs)
        inputs = ActInputs(
            obs,
            step,
            self.prev_actions if "prev_actions" in reads else None,
            self.prev_rewards if "prev_rewards" in reads else None,
            self.starting & self.active if self._recurrent else None,
            self.active if self._recurrent else None,
        )
        if self._recurrent:
            now, on = self._host_state(), self.active
            self._state_before = jax.tree.map(
                lambda before, after: np.where(_like(on, before), after, before), self._state_before, now
            )
        actions, self.carry, logp, _ = self._act(weights, inputs, self.carry, key, explore)
        actions = jax.tree.map(np.asarray, actions)
        on, pending = self.active, self._pending
        for name, values in (("obs", self.obs), ("actions", actions), ("prev_actions", self.prev_actions)):
            jax.tree.map(lambda into, x: into.__setitem__(on, x[on]), pending[name], values)
        for name, values in (("prev_rewards", self.prev_rewards), ("t", self.t), ("eps_id", self.eps_id)):
            pending[name][on] = values[on]
        if logp is not None:
            self._logp_given = True
            pending["action_logp"][on] = np.asarray(logp)[on]
        pending["rewards"][on] = 0.0
        self.open |= on
        self.starting &= ~on
        self.t += on
        self.active = np.zeros_like(on)
        return actions

    def reward(self, b: int, reward: float) -> None:
        """A reward of the agent of column `b`; it counts towards its open transition."""
        self._pending["rewards"][b] += reward

    def complete(self, i: int, b: int, *, terminated: bool, truncated: bool, final_obs: PyTree, clip: Any) -> None:
        """Closes the open transition of column `b` at environment step `i`.

        Args:
            i: the row.
            b: the column.
            terminated, truncated: whether the agent ended.
            final_obs: its final observation if it ended, else None. Without one, a transition that was cut leads
                nowhere and is left out; one that was terminated needs none.
            clip: rule of `clip_rewards`.
        """
        if truncated and not terminated and final_obs is None:
            self.break_off(b)
            return
        pending, columns = self._pending, self._columns
        pending["terminateds"][b], pending["truncateds"][b] = terminated, truncated and not terminated
        jax.tree.map(lambda into, x: into.__setitem__((i, b), x[b]), columns, pending)
        self._mask[i, b] = True
        self.open[b] = False
        _set(self.prev_actions, b, jax.tree.map(lambda x: x[b], pending["actions"]))
        self.prev_rewards[b] = clip_rewards(pending["rewards"][b], clip)
        if terminated or truncated:
            final = jax.tree.map(lambda x: x[b].copy(), pending["obs"]) if final_obs is None else final_obs
            self._finals.append((i, b, final))

    def cut(self, b: int, eps_id: int) -> None:
        """A soft horizon cut the episode of column `b`: another one begins where the environment stands.

        A recurrent policy's state goes on, and `t` with it: `t == 0` resets the state.
        """
        self.eps_id[b] = eps_id
        if not self._recurrent:
            self._begin(b)

    def _begin(self, b: int) -> None:
        self.t[b], self.prev_rewards[b] = 0, 0.0
        _set(self.prev_actions, b, 0)

    def break_off(self, b: int) -> None:
        """The agent's open transition in column `b` is none: its environment failed, or cut it before it led anywhere.

        The row before it, where this fragment holds it, becomes a truncation, whose successor is what the agent acted
        on last.
        """
        pending, done = self._pending, np.flatnonzero(self._mask[:, b])
        if self.open[b] and len(done) and self._columns["eps_id"][done[-1], b] == pending["eps_id"][b]:
            self._columns["truncateds"][done[-1], b] = True
            self._finals.append((int(done[-1]), b, jax.tree.map(lambda x: x[b].copy(), pending["obs"])))
        self.open[b] = False

    def leave_out(self, b: int, eps_id: int) -> None:
        """The environment of column `b` failed in episode `eps_id`, whose rows are left out: only whole ones count."""
        own = self._mask[:, b] & (self._columns["eps_id"][:, b] == eps_id)
        self._mask[own, b] = False
        for name in ("rewards", "terminateds", "truncateds"):
            self._columns[name][own, b] = 0
        self._finals = [final for final in self._finals if final[1] != b or not own[final[0]]]
        self.open[b] = False

    # ---- the fragment

    def fragment(self, steps: int, unroll: int, clip: Any, place: EnvPlace, *, update_filter: bool) -> dict[str, Any]:
        """The columns of a fragment of `steps` rows, before postprocessing.

        Args:
            steps: T.
            unroll: number of the fragment.
            clip: rule of `clip_rewards`.
            place: names the environments in errors.
            update_filter: whether the filter learns from the rows.

        Raises:
            EnvError: an observation that is not finite or outside its space.
        """
        columns = jax.tree.map(lambda x: x[:steps], self._columns)
        mask = self._mask[:steps]
        raw_obs = columns["obs"]
        self._check(raw_obs, columns["rewards"], mask, place)
        last = jax.tree.map(lambda p, o: np.where(_like(self.open, p), p, o), self._pending["obs"], self.obs)
        columns["obs"], columns["last_obs"] = self._filtered(raw_obs), self._filtered(last)
        columns["final_obs"], columns["final_index"] = self._final_rows(steps, place)
        columns["rewards"] = clip_rewards(columns["rewards"], clip)
        columns["mask"] = mask
        columns["t"][~mask] = -1  # t == 0 resets a model's state, which an absent agent keeps
        columns["unroll_id"] = np.full(mask.shape, unroll, np.int32)
        agents = {agent: n for n, agent in enumerate(dict.fromkeys(slot.agent_id for slot in self.slots))}
        index = np.array([agents[slot.agent_id] for slot in self.slots], np.int32)
        columns["agent_index"] = np.broadcast_to(index, mask.shape).copy()
        reads = self.policy.spec.reads | self.policy.spec.act_reads
        for name, wanted in (
            ("action_logp", self._logp_given),
            ("prev_actions", "prev_actions" in reads),
            ("prev_rewards", "prev_rewards" in reads),
        ):
            if not wanted:
                del columns[name]
        if self._recurrent:
            columns["state_in"] = self._state_in
        if update_filter and not self.filter.identity:
            seen = jax.tree.map(lambda x: x[mask], raw_obs)
            self.filter_state = self.filter.update(self.filter_state, seen)
            self.filter_delta = self.filter.update(self.filter_delta, seen)
        return columns

    def _check(self, obs: PyTree, rewards: np.ndarray, mask: np.ndarray, place: EnvPlace) -> None:
        """Looks at all numbers of the fragment's rows at once."""
        t, b = np.nonzero(mask)

        def where(n: int) -> str:
            return self._at(int(t[n]), int(b[n]), place)

        rows = jax.tree.map(lambda x: x[mask], obs)
        check_rows(self.policy.spec.obs_space, rows, where)
        self._check_masks(rows, None, where)
        sums = rewards[mask]
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(sums.astype(np.float32)))
        if len(bad):
            raise EnvError(
                f"{where(bad[0])}: reward: expected the sum of rewards since the agent acted to be a finite number of "
                f"32 bits, got {sums[bad[0]]}"
            )

    def _at(self, t: int, b: int, place: EnvPlace) -> str:
        slot, step = self.slots[b], int(self._columns["t"][t, b])
        who = place._replace(env_id=f"{place.env_id}, agent {slot.agent_id!r}")
        return f"{who.describe(slot.env_index)}: row {t} of the fragment (the agent's step {step})"

    def _filtered(self, obs: PyTree) -> PyTree:
        return obs if self.filter.identity else self.filter.apply(self.filter_state, obs)

    def _final_rows(self, steps: int, place: EnvPlace) -> tuple[PyTree, np.ndarray]:
        space, ended = self.policy.spec.obs_space, self._finals
        terminated = np.array([self._columns["terminateds"][i, b] for i, b, _ in ended], bool)

        def where(k: int) -> str:
            return self._at(*ended[k][:2], place)

        def checked(stacked: PyTree) -> PyTree:
            return self._filtered(check_finals(space, stacked, terminated, where))

        slots = self._final_slots = final_slots(self._final_slots, len(ended), steps, len(self.slots))
        return final_rows(ended, empty_rows(space, slots), slots, checked)

    def _host_state(self) -> PyTree:
        return jax.tree.map(np.asarray, self.carry[0])

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """Where the policy's agents stand."""
        arrays = (self.carry, self._state_before, self.obs, self.prev_actions, self._pending)
        return {
            "arrays": [np.asarray(x) for x in jax.tree.leaves(arrays)],
            "flags": [self.active, self.open, self.starting, self.t, self.eps_id, self.prev_rewards],
            "final_slots": self._final_slots,
            "filter": jax.tree.leaves(self.filter_state),
            "filter_delta": jax.tree.leaves(self.filter_delta),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned."""
        arrays = (self.carry, self._state_before, self.obs, self.prev_actions, self._pending)
        restored = refill(arrays, [np.array(x) for x in state["arrays"]])
        self.carry, self._state_before, self.obs, self.prev_actions, self._pending = restored
        flags = [np.array(x) for x in state["flags"]]
        self.active, self.open, self.starting, self.t, self.eps_id, self.prev_rewards = flags
        self._final_slots = int(state["final_slots"])
        self.filter_state = refill(self.filter_state, state["filter"])
        self.filter_delta = refill(self.filter_delta, state["filter_delta"])


def final_slots(have: int, ended: int, steps: int, width: int) -> int:
    """How many final observations a fragment has room for.

    Two sizes only, and never smaller again: each new size compiles what reads it anew.

    Args:
        have: the room of the last fragment.
        ended: episodes that ended in this one.
        steps, width: T and B.
    """
    slots = max(have, min(steps * width, max(width, 16, steps * width // 16)))
    return steps * width if ended > slots else slots


def refill(template: PyTree, leaves: list[Any]) -> PyTree:
    """`template` with other leaves, in its order."""
    return jax.tree.unflatten(
        jax.tree.structure(template), [x if isinstance(x, float) else np.asarray(x) for x in leaves]
    )


def _like(flags: np.ndarray, x: np.ndarray) -> np.ndarray:
    return flags.reshape(-1, *[1] * (x.ndim - 1))


def _set(rows: PyTree, b: int, value: PyTree) -> None:
    if isinstance(value, int):
        jax.tree.map(lambda into: into.__setitem__(b, value), rows)
    else:
        jax.tree.map(lambda into, x: into.__setitem__(b, x), rows, value)
