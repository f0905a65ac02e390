"""MultiAgentSampler: fragments of experience from several policies and a list of multi-agent environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl.callbacks import Callbacks, Episode
from jaxrl.data import MultiAgentBatch, SampleBatch
from jaxrl.envs import MultiAgentRunner, restore_runners
from jaxrl.metrics import EpisodeRecord
from jaxrl.policies import Policy
from jaxrl.rollout.acting import fold_in
from jaxrl.rollout.actions import action_transform
from jaxrl.rollout.agent_rows import AgentRows, Slot
from jaxrl.rollout.ends import WholeEpisodes
from jaxrl.rollout.filters import Filter, make_filter
from jaxrl.rollout.fragment import bytes_of, padded_length
from jaxrl.rollout.live_episodes import load_episode, save_episode, written
from jaxrl.rollout.perf import SamplerPerf
from jaxrl.tracebacks import raised
from jaxrl.types import DEFAULT_POLICY_ID, AgentID, ConfigError, PolicyID, PyTree, Weights

AgentMapping = Callable[..., PolicyID] | Mapping[AgentID, PolicyID] | None


def policy_for(agent: AgentID, policies: Mapping[PolicyID, Any], mapping: AgentMapping) -> PolicyID:
    """The policy of an agent.

    Args:
        agent: the agent's id.
        policies: the policies by id.
        mapping: function or mapping of agent id to policy id; None: the default policy, or the only one.

    Raises:
        ConfigError: the agent maps to no policy that exists.
    """
    if mapping is None:
        pid = next(iter(policies)) if len(policies) == 1 else DEFAULT_POLICY_ID
    else:
        try:
            pid = mapping.get(agent) if isinstance(mapping, Mapping) else mapping(agent)
        except Exception as error:
            raise ConfigError(f"multiagent.policy_mapping_fn: for agent {agent!r} it raised {raised(error)}") from error
    if not isinstance(pid, str) or pid not in policies:
        raise ConfigError(
            f"multiagent.policy_mapping_fn: agent {agent!r} maps to {pid!r}, but the policies are {sorted(policies)}; "
            "add it to multiagent.policies or map the agent to one of those."
        )
    return pid


def map_agents(
    runner: MultiAgentRunner, policies: Mapping[PolicyID, Any], mapping: AgentMapping
) -> dict[PolicyID, list[AgentID]]:
    """The agents of each policy, in the order of `possible_agents`; arguments as of `policy_for`."""
    agents: dict[PolicyID, list[AgentID]] = {}
    for agent in runner.possible_agents:
        agents.setdefault(policy_for(agent, policies, mapping), []).append(agent)
    return agents


class MultiAgentSampler:
    """Samples MultiAgentBatches; each policy's batch has a column for each of its agents in each environment.

    Args:
        runners: the worker's environments.
        policies: the policies by id.
        config: a RolloutConfig with the policies' options.
        key: PRNG key of this worker.
        callbacks: hooks, or None.
        worker: given to the hooks.
        worker_index, num_workers: number episodes apart.
    """

    def __init__(
        self,
        runners: Sequence[MultiAgentRunner],
        policies: Mapping[PolicyID, Policy],
        config: Any,
        key: Any,
        *,
        callbacks: Callbacks | None = None,
        worker: Any = None,
        worker_index: int = 0,
        num_workers: int = 0,
    ):
        self.runners, self.policies, self.config, self.key = list(runners), dict(policies), config, key
        self.callbacks = callbacks or Callbacks()
        self.worker, self.worker_index, self.num_workers = worker, worker_index, num_workers
        self.complete = config.batch_mode == "complete_episodes"
        self.explore, self.update_filter = config.explore, True
        agents_of = map_agents(runners[0], policies, config.multiagent.policy_mapping_fn)
        self.policy_of = {agent: pid for pid, agents in agents_of.items() for agent in agents}
        self.rows = {
            pid: AgentRows(
                policies[pid],
                [Slot(e, agent) for e in range(len(self.runners)) for agent in agents],
                make_filter(config.observation_filter, policies[pid].spec.obs_space),
                worker_index=worker_index,
                num_workers=num_workers,
            )
            for pid, agents in agents_of.items()
        }
        self._transforms = {
            agent: action_transform(space, normalize=config.normalize_actions, clip=config.clip_actions)
            for agent, space in runners[0].action_spaces.items()
        }
        self.perf = SamplerPerf()
        self.restart()

    def restart(self, number: int | None = None) -> None:
        """Begins anew; see `VectorSampler.restart`."""
        salt = () if number is None else (number,)
        self._key = self.key if number is None else jax.random.fold_in(self.key, number)
        # A key for each policy, whose numbers are beyond those of vector steps.
        self._keys = {pid: jax.random.fold_in(self._key, 2**30 + i) for i, pid in enumerate(self.rows)}
        seeds = np.random.SeedSequence([self.config.seed or 0, self.worker_index, *salt]).generate_state(
            len(self.runners)
        )
        self._step = self._unroll = self._episode_count = 0
        self.episodes: list[EpisodeRecord] = []
        self._seen: dict[int, set[AgentID]] = {}
        self._live: list[Episode] = [Episode(episode_id=-1) for _ in self.runners]
        for rows in self.rows.values():
            rows.restart()
        for e, seed in enumerate(seeds):
            self._reset(e, int(seed))

    def _reset(self, e: int, seed: int | None = None) -> None:
        self.runners[e].reset(seed)
        self._seen[e] = set()
        self._begin(e)
        self._observe(e)

    def _go_on(self, e: int) -> None:
        """Begins an episode of environment `e` at a soft horizon, without a reset."""
        self._begin(e)
        for rows in self.rows.values():
            for b, slot in enumerate(rows.slots):
                if slot.env_index == e:
                    rows.cut(b, self._live[e].episode_id)
        self._observe(e)

    def _begin(self, e: int) -> None:
        number = self._episode_count * (self.num_workers + 1) + self.worker_index
        self._episode_count += 1
        self._live[e] = Episode(episode_id=number, worker_index=self.worker_index, env_index=e)
        if self.callbacks.on_episode_start is not None:
            self.callbacks.on_episode_start(worker=self.worker, env_index=e, episode=self._live[e])

    def _observe(self, e: int) -> None:
        runner, seen = self.runners[e], self._seen[e]
        for agent in runner.active:
            rows = self.rows[self.policy_of[agent]]
            b = rows.column[Slot(e, agent)]
            rows.observe(b, runner.obs[agent], first=agent not in seen, eps_id=self._live[e].episode_id)
            seen.add(agent)

    # ---- sampling

    def sample(self, weights: Mapping[PolicyID, Weights]) -> MultiAgentBatch:
        """One fragment of every environment, postprocessed, by policy."""
        fragments, env_steps = self._collect(weights)
        batches = {}
        for pid, fragment in fragments.items():
            batch, policy = fragment, self.policies[pid]
            if policy.spec.postprocesses:
                others = {other: batch for other, batch in fragments.items() if other != pid}
                key = fold_in(self._keys[pid], np.uint32(2**31 + self._unroll))  # beyond the numbers of vector steps
                batch = policy.postprocess(weights[pid], fragment, others, key).to_numpy()
            hook = self.callbacks.on_postprocess_trajectory
            if hook is not None:
                replaced = hook(worker=self.worker, policy_id=pid, batch=batch, original_batch=fragment)
                batch = batch if replaced is None else replaced
            batches[pid] = batch
        return MultiAgentBatch(batches, env_steps)

    def collect(self, weights: Mapping[PolicyID, Weights]) -> None:
        """One fragment for its episodes' statistics alone."""
        self._collect(weights)

    def _collect(self, weights: Mapping[PolicyID, Weights]) -> tuple[dict[PolicyID, SampleBatch], int]:
        steps, num_envs = self.config.rollout_fragment_length, len(self.runners)
        for rows in self.rows.values():
            rows.begin(steps)
        salt = np.uint32(2**31 + 2**30 + self._unroll)  # apart from steps and postprocessing
        acting = {
            pid: rows.perturbed(weights[pid], self._keys[pid], salt) if self.explore else weights[pid]
            for pid, rows in self.rows.items()
        }
        running = np.ones(num_envs, bool)
        limit = self.config.max_whole_episode_steps
        whole = WholeEpisodes(steps, self.runners[0].place, num_envs, limit) if self.complete else None
        clock, began, inference, stepping = time.perf_counter, time.perf_counter(), 0.0, 0.0
        i = 0
        while running.any() if self.complete else i < steps:
            for rows in self.rows.values():
                rows.reserve(i + 1)
            asked = clock()
            actions = self._act(acting, running)
            acted = clock()
            ended, failed = [], []
            for e in np.flatnonzero(running):
                over, broke = self._step_env(i, int(e), actions)
                if over:
                    ended.append((int(e), None))
                if broke:
                    failed.append(int(e))
            if whole is not None:
                moved = running.copy()
                moved[failed] = False
                whole.step(moved, ended, failed)
                running = whole.active
            inference, stepping = inference + acted - asked, stepping + clock() - acted
            self._step += 1
            i += 1
        fragments = self._fragments(i)
        for pid, fragment in fragments.items():
            self.rows[pid].end_perturbed(weights[pid], acting[pid], fragment)
        self.perf.add(i, stepping, inference, clock() - began)
        # A step that failed took its time too; counted, it keeps train batches at their size.
        return fragments, i * num_envs if whole is None else whole.rows

    def _act(self, weights: Mapping[PolicyID, Weights], running: np.ndarray) -> dict[PolicyID, PyTree]:
        actions = {}
        for pid, rows in self.rows.items():
            waiting = rows.active & ~running[[slot.env_index for slot in rows.slots]]
            rows.active &= ~waiting
            if rows.active.any():
                actions[pid] = rows.act(weights[pid], self._step, self._keys[pid], self.explore)
            rows.active |= waiting
        return actions

    def _step_env(self, i: int, e: int, actions: Mapping[PolicyID, PyTree]) -> tuple[bool, bool]:
        """Steps environment `e`; returns whether its episode is over, and whether that is because it failed."""
        runner, episode = self.runners[e], self._live[e]
        chosen = {}
        for agent in runner.active:
            pid = self.policy_of[agent]
            b = self.rows[pid].column[Slot(e, agent)]
            transform = self._transforms[agent]
            action = jax.tree.map(lambda x, b=b: x[b], actions[pid])
            chosen[agent] = action if transform is None else transform(action)
        step = runner.step(chosen)
        if step.failed:
            self._break_off(e)
            return True, True
        episode.length += 1
        for agent, reward in step.rewards.items():
            rows = self.rows[self.policy_of[agent]]
            rows.reward(rows.column[Slot(e, agent)], float(reward))
            episode.total_reward += float(reward)
            episode.agent_rewards[agent] = episode.agent_rewards.get(agent, 0.0) + float(reward)
        if self.callbacks.on_episode_step is not None:
            self.callbacks.on_episode_step(worker=self.worker, env_index=e, episode=episode)
        horizon = self.config.horizon is not None and episode.length >= self.config.horizon
        over = step.terminated or step.truncated or horizon
        self._complete(i, e, step, over=over, truncated=not step.terminated)
        if over:
            self._finish(e)
            if self.config.soft_horizon and not (step.terminated or step.truncated):
                self._go_on(e)
            else:
                self._reset(e)
        else:
            self._observe(e)
        return over, False

    def _break_off(self, e: int) -> None:
        """Environment `e` failed: its episode has no end and no record, and another one begins."""
        for rows in self.rows.values():
            for b, slot in enumerate(rows.slots):
                if slot.env_index != e:
                    continue
                if self.complete:
                    rows.leave_out(b, self._live[e].episode_id)
                else:
                    rows.break_off(b)
        self._reset(e)

    def _complete(self, i: int, e: int, step: Any, *, over: bool, truncated: bool) -> None:
        """Closes the transitions of the agents that were observed or ended."""
        for agent in self.runners[e].possible_agents:
            rows = self.rows[self.policy_of[agent]]
            b = rows.column[Slot(e, agent)]
            if not rows.open[b]:
                continue
            agent_terminated = step.terminateds.get(agent, False)
            agent_truncated = step.truncateds.get(agent, False)
            if over and not agent_terminated and not agent_truncated:
                agent_terminated, agent_truncated = not truncated, truncated
            ended = agent_terminated or agent_truncated
            if ended or agent in step.obs:
                final = step.obs.get(agent) if ended else None
                rows.complete(
                    i,
                    b,
                    terminated=agent_terminated,
                    truncated=agent_truncated,
                    final_obs=final,
                    clip=self.config.clip_rewards,
                )

    def _finish(self, e: int) -> None:
        episode = self._live[e]
        if self.callbacks.on_episode_end is not None:
            self.callbacks.on_episode_end(worker=self.worker, env_index=e, episode=episode)
        rewards = {(agent, self.policy_of[agent]): reward for agent, reward in episode.agent_rewards.items()}
        self.episodes.append(EpisodeRecord(episode.length, episode.total_reward, rewards, **written(episode)))

    def _fragments(self, steps: int) -> dict[PolicyID, SampleBatch]:
        if self.complete:
            row_bytes = sum(bytes_of(rows.obs) for rows in self.rows.values())
            steps = padded_length(steps, self.config.rollout_fragment_length, self.config.horizon, row_bytes)
        fragments = {}
        for pid, rows in self.rows.items():
            rows.reserve(steps)
            columns = rows.fragment(
                steps,
                self._unroll,
                self.config.clip_rewards,
                self.runners[0].place,
                update_filter=self.update_filter,
            )
            fragments[pid] = SampleBatch._make(columns, True)
        self._unroll += 1
        return fragments

    # ---- what the worker asks for

    def pop_episodes(self) -> list[EpisodeRecord]:
        """The episodes that ended since the last call."""
        episodes, self.episodes = self.episodes, []
        return episodes

    @property
    def filters(self) -> dict[PolicyID, Filter]:
        """The observation filters by policy."""
        return {pid: rows.filter for pid, rows in self.rows.items()}

    @property
    def filter_states(self) -> dict[PolicyID, PyTree]:
        """The filters' statistics by policy."""
        return {pid: rows.filter_state for pid, rows in self.rows.items()}

    @filter_states.setter
    def filter_states(self, states: Mapping[PolicyID, PyTree]) -> None:
        for pid, rows in self.rows.items():
            rows.filter_state = states[pid]

    def pop_filter_deltas(self) -> dict[PolicyID, PyTree]:
        """Statistics gathered since the last call, by policy."""
        deltas = {}
        for pid, rows in self.rows.items():
            deltas[pid], rows.filter_delta = rows.filter_delta, rows.filter.init()
        return deltas

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """Where the sampler stands: environments, agents, carries, filters, episodes in progress."""
        return {
            "envs": [runner.get_state() for runner in self.runners],
            "rows": {pid: rows.get_state() for pid, rows in self.rows.items()},
            "counts": [self._step, self._unroll, self._episode_count],
            "live": [save_episode(episode) for episode in self._live],
            "seen": [
                [agent for agent in r.possible_agents if agent in self._seen[e]] for e, r in enumerate(self.runners)
            ],
            "episodes": self.episodes,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned.

        Environments that do not come back exactly start a fresh episode.
        """
        restored = restore_runners(self.runners, state["envs"])
        for pid, rows in self.rows.items():
            rows.set_state(state["rows"][pid])
        self._step, self._unroll, self._episode_count = (int(n) for n in state["counts"])
        self._live = [load_episode(saved) for saved in state["live"]]
        self._seen = {e: set(agents) for e, agents in enumerate(state["seen"])}
        self.episodes = list(state["episodes"])
        for e, same in enumerate(restored):
            if not same:
                for rows in self.rows.values():
                    own = np.array([slot.env_index == e for slot in rows.slots])
                    rows.active &= ~own
                    rows.open &= ~own
                self._reset(e)
