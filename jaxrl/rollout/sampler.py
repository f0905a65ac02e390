"""VectorSampler: fragments of experience from one policy and a vector of environments.

The loop does the least per vector step: one act call, one environment step, a few writes into preallocated rows. All
that can wait until the fragment is complete (numbers of rows, returns, values, log-probabilities, advantages) is done
there, once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl.callbacks import Callbacks
from jaxrl.data import SampleBatch
from jaxrl.envs import VectorEnv, check_finals, check_fragment, empty_rows, step_at
from jaxrl.metrics import EpisodeRecord
from jaxrl.policies import Policy
from jaxrl.rollout.acting import LeanAct, fold_in
from jaxrl.rollout.actions import action_transform, clip_rewards, make_mask_check, reward_rule
from jaxrl.rollout.agent_rows import final_slots, refill
from jaxrl.rollout.ends import Final, FragmentEnds, WholeEpisodes, final_rows
from jaxrl.rollout.episodes import EpisodeTracker
from jaxrl.rollout.filters import Filter
from jaxrl.rollout.fragment import Before, FragmentRows, bytes_of, padded_length, shifted, zeroed
from jaxrl.rollout.horizon import Horizon
from jaxrl.rollout.live_episodes import LiveEpisodes
from jaxrl.rollout.perf import SamplerPerf
from jaxrl.rollout.perturbation import make_perturbation
from jaxrl.types import DEFAULT_POLICY_ID, ActInputs, EnvError, PolicyID, PyTree, Weights


class VectorSampler:
    """Samples fragments `[T, B]` with one policy.

    Args:
        env: the worker's environments.
        policy: the policy.
        config: a RolloutConfig with the policy's options (horizon, batch_mode, explore, ...).
        filter: observation filter.
        key: PRNG key of this worker; each vector step folds its number in.
        callbacks: hooks, or None.
        worker: given to the hooks.
        worker_index, num_workers: number episodes apart.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Policy,
        config: Any,
        filter: Filter,
        key: Any,
        *,
        callbacks: Callbacks | None = None,
        worker: Any = None,
        worker_index: int = 0,
        num_workers: int = 0,
    ):
        self.env, self.policy, self.config, self.filter = env, policy, config, filter
        self.callbacks, self.worker = callbacks, worker
        self.complete = config.batch_mode == "complete_episodes"
        # A row that is no transition, or a column that has finished its share, must be told apart: then, and only then,
        # a mask. From the first fragment on, so that nothing compiles anew when an environment fails.
        restarts = config.restart_failed_sub_environments
        self.masked = self.complete or env.filler_rows or restarts
        self._everyone = np.ones(env.num_envs, bool) if restarts else None
        self._filter_state, self._filter_delta = filter.init(), filter.init()
        self.explore = config.explore
        self.update_filter = not filter.identity
        self._transform = action_transform(
            env.action_space, normalize=config.normalize_actions, clip=config.clip_actions
        )
        self._lean_act, self._check_masks = LeanAct(policy), make_mask_check(policy.spec)
        self._keeps = policy.spec.keep_outputs and not self.masked  # rows may move, where there is a mask
        self._perturbation = make_perturbation(policy)
        spec = getattr((env.envs or [None])[0], "spec", None)
        limits = [config.horizon, getattr(spec, "max_episode_steps", None)]
        self._longest_episode = min((limit for limit in limits if limit is not None), default=None)
        self._reward_rule = reward_rule(config)
        self._reads = policy.spec.act_reads
        self._reads_previous = bool(self._reads & {"prev_actions", "prev_rewards"})
        self._recurrent = policy.spec.recurrent
        self.worker_index, self.num_workers = worker_index, num_workers
        live = callbacks is not None and any(
            getattr(callbacks, f"on_episode_{hook}") for hook in ("start", "step", "end")
        )
        self._live = LiveEpisodes(callbacks, worker, worker_index, env) if live and callbacks else None
        self.key = key
        self.perf = SamplerPerf()
        self.restart()

    def restart(self, number: int | None = None) -> None:
        """Begins anew: environments reset, carries and numbers at their start.

        Args:
            number: makes seeds and keys differ from those of other numbers; None: those of the run's beginning.
        """
        env, salt = self.env, () if number is None else (number,)
        self._key = self.key if number is None else jax.random.fold_in(self.key, number)
        seeds = np.random.SeedSequence([self.config.seed or 0, self.worker_index, *salt]).generate_state(env.num_envs)
        self._obs = env.reset([int(seed) for seed in seeds])
        self._carry = self.policy.initial_carry(env.num_envs, self.worker_index, self.num_workers)
        self._step = self._unroll = self._final_slots = 0
        self._start = np.ones(env.num_envs, bool)
        self._prev_actions: PyTree = empty_rows(self.policy.spec.action_space, env.num_envs)
        self._prev_rewards = np.zeros(env.num_envs, np.float32)
        self._tracker = EpisodeTracker(env.num_envs, self.worker_index, self.num_workers)
        self.episodes: list[EpisodeRecord] = []
        if self._live is not None:
            self._live.restart()

    # ---- sampling

    def sample(self, weights: Mapping[PolicyID, Weights]) -> SampleBatch:
        """One fragment, postprocessed: `[T, B]` in truncate_episodes mode, else whole episodes, padded and masked."""
        batch = fragment = self.collect(weights)
        if self.policy.spec.postprocesses:
            key = fold_in(self._key, np.uint32(2**31 + self._unroll))  # beyond the numbers of vector steps
            batch = self.policy.postprocess(weights[DEFAULT_POLICY_ID], fragment, None, key).to_numpy()
        hook = None if self.callbacks is None else self.callbacks.on_postprocess_trajectory
        if hook is not None:
            replaced = hook(worker=self.worker, policy_id=DEFAULT_POLICY_ID, batch=batch, original_batch=fragment)
            batch = batch if replaced is None else replaced
        return batch

    def collect(self, weights: Mapping[PolicyID, Weights]) -> SampleBatch:
        """One raw fragment: what the environments gave and the policy did, before postprocessing."""
        own = weights[DEFAULT_POLICY_ID]
        acting = own
        if self._perturbation is not None and self.explore:
            salt = fold_in(self._key, np.uint32(2**31 + 2**30 + self._unroll))  # apart from steps and postprocessing
            acting = self._perturbation.perturb(own, self._carry, salt)
        if self._live is not None:
            self._live.begin()
        fragment = self._collect(acting)
        if self._perturbation is not None and acting is not own:
            self._carry = self._perturbation.update(own, acting, fragment, self._carry)
        return fragment

    def _collect(self, acting: Weights) -> SampleBatch:
        steps, num_envs = self.config.rollout_fragment_length, self.env.num_envs
        rows = FragmentRows(self.env, self.policy.spec.action_space, steps, filtered=not self.filter.identity)
        rows.put_raw(0, self._obs)
        if not self.filter.identity:
            rows.put_obs(0, self._filtered(self._obs))
        before = Before(self._carry[0], self._prev_actions, self._prev_rewards)
        rows.starts[0] = self._start
        ends = FragmentEnds(self.env)
        valid: list[np.ndarray] = []
        logps: list[Any] = []
        self._kept: list[tuple[Any, Any]] = []
        limit = self.config.max_whole_episode_steps
        whole = WholeEpisodes(steps, self.env.place, num_envs, limit) if self.complete else None
        active = None if whole is None else whole.active
        horizon = None
        if self.config.horizon is not None:
            horizon = Horizon(self.config, self.env, self._tracker.length, self._live, goes_on=self._recurrent)
        env, clock, began = self.env, time.perf_counter, time.perf_counter()
        inference = env_wait = 0.0
        actions, i = self._prev_actions, 0
        while i < steps if active is None else active.any():
            rows.reserve(i + 1)
            asked = clock()
            actions, logp = self._act(acting, rows.obs_row(i), rows.starts[i])
            acted = clock()
            if logp is not None:
                logps.append(np.asarray(logp))
            rows.put_actions(i, actions)
            env_actions = actions if self._transform is None else self._transform(actions)
            raw = rows.raw_row(i + 1)
            stepping = clock()
            try:
                env_ended = env.step(env_actions, raw, rows.rewards[i], rows.terminateds[i], rows.truncateds[i], active)
            except EnvError:
                self._check(rows, i)  # what came before may be why: actions on a NaN are NaN
                raise
            env_wait += clock() - stepping
            inference += acted - asked
            self._step += 1
            failed = ends.look(i, env_ended) if env_ended else ()
            moved = self._moved(active, failed)
            if moved is not None:
                valid.append(moved)
            if horizon is not None:
                env_ended = horizon.cut(i, rows, env_ended, moved, ends)
            if not self.filter.identity:
                rows.put_obs(i + 1, self._filtered(raw))
            if env_ended:
                ends.add(i, env_ended)
            if env_ended or moved is not None:
                self._mark_starts(i, rows, env_ended, moved, ends)
            if self._live is not None:
                self._live.step(rows.rewards[i], *ends.games(i, env_ended), moved)
            if self._reads_previous:
                self._set_previous(actions, rows.rewards[i], rows.starts[i + 1])
            if whole is not None and moved is not None:
                whole.step(moved, env_ended, failed)
                active = whole.active
            i += 1
        if not self._reads_previous:
            self._set_previous(actions, rows.rewards[i - 1], rows.starts[i])
        fragment = self._fragment(rows, i, ends, valid, logps, before)
        self.perf.add(i, env_wait, inference, clock() - began)
        return fragment

    def _act(self, weights: Weights, obs: PyTree, start: np.ndarray) -> tuple[PyTree, Any]:
        reads = self._reads
        inputs: tuple = (obs, self._step)
        if reads:
            inputs = ActInputs(
                obs,
                self._step,
                self._prev_actions if "prev_actions" in reads else None,
                self._prev_rewards if "prev_rewards" in reads else None,
                start if self._recurrent else None,
            )
        actions, self._carry, logp, kept = self._lean_act(weights, inputs, self._carry, self._key, self.explore)
        if self._keeps:
            self._kept.append((np.asarray(kept[0]), np.asarray(kept[1])))
        actions = np.asarray(actions) if isinstance(actions, jax.Array) else jax.tree.map(np.asarray, actions)
        return actions, logp

    def _moved(self, active: np.ndarray | None, failed: Sequence[int]) -> np.ndarray | None:
        """`[B]`, the environments whose step gave a transition; None where that is all of them in every step."""
        moved = ~self.env.filler_mask if self.env.filler_rows else self._everyone if active is None else active
        if failed and moved is not None:
            moved = moved.copy()
            moved[list(failed)] = False
        return moved

    def _filtered(self, raw: PyTree) -> PyTree:
        return raw if self.filter.identity else self.filter.apply(self._filter_state, raw)

    def _mark_starts(self, i: int, rows: FragmentRows, env_ended: Any, moved: Any, ends: FragmentEnds) -> None:
        """Marks in row `i + 1` where an episode starts with it."""
        start = rows.starts[i + 1]
        if self.env.filler_rows and moved is not None:
            start |= ~moved  # NEXT_STEP: the row after an end is a filler, and the one after that starts the episode
            return
        for b, _ in env_ended:
            start[b] = (i, b) not in ends.soft
        if moved is not None:
            start |= rows.starts[i] & ~moved  # a column that waits still stands before its next episode

    def _set_previous(self, actions: PyTree, rewards: np.ndarray, start: np.ndarray) -> None:
        self._prev_actions, self._prev_rewards = actions, clip_rewards(rewards, self._reward_rule)
        if start.any():
            self._prev_actions = jax.tree.map(lambda a: zeroed(a, start), actions)
            self._prev_rewards[start] = 0.0

    # ---- the fragment

    def _fragment(
        self,
        rows: FragmentRows,
        steps: int,
        ends: FragmentEnds,
        valid_rows: list[np.ndarray],
        logps: list[Any],
        before: Before,
    ) -> SampleBatch:
        self._check(rows, steps)
        last_raw, last_obs = rows.raw_row(steps), rows.obs_row(steps)
        played, moved = rows.rewards[:steps], np.stack(valid_rows) if self.masked else None
        self._check_masks(rows.raw(steps), moved, self.env.place.describe)
        valid, given, finals = ends.settle(rows, moved, np.stack(logps) if logps else None, whole=self.complete)
        if valid is not None:
            steps, valid = self._pad(rows, valid)
        final_obs, final_index = self._finals(finals, rows, steps)
        starts = rows.starts[: steps + 1]
        if valid is not None:
            starts[:-1] &= valid
        index = self._tracker.index(starts, rows.cuts[: steps + 1])
        records = self._tracker.finish(played, ends.places(), moved, ends.going_on, ends.broken_off, ends.soft)
        self.episodes.extend(records if self._live is None else self._live.complete(records))
        columns: dict[str, Any] = {
            "obs": rows.obs(steps),
            "actions": rows.actions(steps),
            "rewards": clip_rewards(rows.rewards[:steps], self._reward_rule),
            "terminateds": rows.terminateds[:steps],
            "truncateds": rows.truncateds[:steps],
            "t": index.t,
            "eps_id": index.eps_id,
            "agent_index": np.zeros_like(index.t),
            "unroll_id": np.full_like(index.t, self._unroll),
            "last_obs": last_obs,
            "final_obs": final_obs,
            "final_index": final_index,
        }
        for i, b in () if self.complete else ends.failed:
            index.t[i, b] = -1  # no step of an episode; its slot counts, so that batches keep their size
        if valid is not None:
            columns["mask"] = valid
        if self._recurrent:
            columns["state_in"] = jax.tree.map(np.asarray, before.state)
        if given is not None:
            columns["action_logp"] = np.zeros(index.t.shape, np.float32)
            columns["action_logp"][: len(given)] = given
        if self._keeps:
            columns["action_dist_inputs"], columns["vf_preds"] = map(np.stack, zip(*self._kept, strict=True))
        reads = self.policy.spec.reads | self._reads
        if "prev_actions" in reads:
            columns["prev_actions"] = jax.tree.map(
                lambda x, p: shifted(x, p, starts), columns["actions"], before.actions
            )
        if "prev_rewards" in reads:
            columns["prev_rewards"] = shifted(columns["rewards"], before.rewards, starts)
        if self.update_filter:
            seen = rows.raw(steps)
            seen = jax.tree.map(lambda x: x[valid] if valid is not None else x.reshape(-1, *x.shape[2:]), seen)
            self._filter_state = self.filter.update(self._filter_state, seen)
            self._filter_delta = self.filter.update(self._filter_delta, seen)
        self._obs = last_raw
        self._start = starts[-1]
        self._unroll += 1
        self.env.end_fragment()
        return SampleBatch._make(columns, True)

    def _pad(self, rows: FragmentRows, valid: np.ndarray) -> tuple[int, np.ndarray]:
        """Pads a fragment of whole episodes, so that few lengths are ever compiled."""
        total = steps = len(valid)
        if self.complete:
            fragment = self.config.rollout_fragment_length
            total = padded_length(steps, fragment, self._longest_episode, bytes_of(self._obs))
        rows.reserve(total)
        rows.starts[steps + 1 : total + 1] = rows.starts[steps]
        return total, np.concatenate([valid, np.zeros((total - steps, valid.shape[1]), bool)])

    def _finals(self, ended: list[Final], rows: FragmentRows, steps: int) -> tuple[PyTree, np.ndarray]:
        space, when = self.env.observation_space, self._when(rows)
        terminated = np.array([rows.terminateds[i, b] for i, b, _ in ended], bool)

        def where(k: int) -> str:
            return step_at(self.env.place, *ended[k][:2], **when)

        def checked(stacked: PyTree) -> PyTree:
            return self._filtered(check_finals(space, stacked, terminated, where))

        slots = self._final_slots = final_slots(self._final_slots, len(ended), steps, self.env.num_envs)
        return final_rows(ended, empty_rows(space, slots), slots, checked)

    def _check(self, rows: FragmentRows, steps: int) -> None:
        """Looks at the numbers that the environments gave in the first `steps` rows."""
        space, raw = self.env.observation_space, rows.raw(steps + 1)
        check_fragment(space, raw, rows.rewards[:steps], self.env.place, **self._when(rows))

    def _when(self, rows: FragmentRows) -> dict[str, np.ndarray]:
        return {"first_t": self._tracker.length + self._tracker.before_cut, "starts": rows.starts}

    # ---- what the worker asks for

    def pop_episodes(self) -> list[EpisodeRecord]:
        """The episodes that ended since the last call."""
        episodes, self.episodes = self.episodes, []
        return episodes

    @property
    def filters(self) -> dict[PolicyID, Filter]:
        """The observation filter, by policy."""
        return {DEFAULT_POLICY_ID: self.filter}

    @property
    def filter_states(self) -> dict[PolicyID, PyTree]:
        """The filter's statistics, by policy."""
        return {DEFAULT_POLICY_ID: self._filter_state}

    @filter_states.setter
    def filter_states(self, states: Mapping[PolicyID, PyTree]) -> None:
        self._filter_state = states[DEFAULT_POLICY_ID]

    def pop_filter_deltas(self) -> dict[PolicyID, PyTree]:
        """Statistics gathered since the last call, by policy."""
        delta, self._filter_delta = self._filter_delta, self.filter.init()
        return {DEFAULT_POLICY_ID: delta}

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """Where the sampler stands: environments, carry, filter statistics, episodes in progress."""
        return {
            "envs": self.env.get_state(),
            "carry": jax.tree.leaves(jax.tree.map(np.asarray, self._carry)),
            "step": self._step,
            "unroll": self._unroll,
            "start": self._start,
            "prev_actions": jax.tree.leaves(self._prev_actions),
            "prev_rewards": self._prev_rewards,
            "final_slots": self._final_slots,
            "tracker": self._tracker.get_state(),
            "filter": jax.tree.leaves(self._filter_state),
            "filter_delta": jax.tree.leaves(self._filter_delta),
            "episodes": self.episodes,
            "live": None if self._live is None else self._live.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned.

        Environments that do not come back exactly start a fresh episode.
        """
        restored = self.env.set_state(state["envs"])
        fresh = ~np.asarray(restored, bool)
        self._obs = self.env.observations()
        self._carry = refill(self._carry, state["carry"])
        self._step, self._unroll = int(state["step"]), int(state["unroll"])
        self._start = np.asarray(state["start"], bool) | fresh
        self._prev_actions = refill(self._prev_actions, state["prev_actions"])
        self._prev_rewards = np.asarray(state["prev_rewards"], np.float32)
        self._set_previous(self._prev_actions, self._prev_rewards, self._start)
        self._final_slots = int(state["final_slots"])
        self._tracker.set_state(state["tracker"], restored)
        self._filter_state = refill(self._filter_state, state["filter"])
        self._filter_delta = refill(self._filter_delta, state["filter_delta"])
        self.episodes = list(state["episodes"])
        if self._live is not None and state["live"] is not None:
            self._live.set_state(state["live"], restored)
