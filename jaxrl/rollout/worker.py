"""RolloutWorker: environments, policies and a sampler; the same class in-process and inside a Ray actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.callbacks import named
from jaxrl.data import MultiAgentBatch, SampleBatch
from jaxrl.envs import EnvContext, MultiAgentRunner, make_environments
from jaxrl.execution.shards import Shard
from jaxrl.metrics import EpisodeRecord
from jaxrl.policies import Policy
from jaxrl.rollout.filters import Filter, make_filter
from jaxrl.rollout.multi_agent_sampler import MultiAgentSampler
from jaxrl.rollout.sampler import VectorSampler
from jaxrl.types import DEFAULT_POLICY_ID, PolicyID, Weights


class PolicyRecipe(NamedTuple):
    """How a worker builds a policy.

    Attributes:
        factory: the PolicyFactory.
        obs_space, action_space: the policy's spaces.
        config: its options.
        env_action_space: action space of its environments, where that differs by normalisation.
    """

    factory: Any
    obs_space: Any
    action_space: Any
    config: Any
    env_action_space: Any

    def build(self) -> Policy:
        """Builds the policy."""
        return self.factory(self.obs_space, self.action_space, self.config)


class RolloutWorker:
    """Samples batches from environments; a shard of a parallel iterator.

    Args:
        config: a RolloutConfig with the policies' options.
        policies: the policies by id, built or as recipes.
        worker_index: 0 in the trainer's process, 1.. on actors.
        num_workers: how many there are beside the trainer's.
        num_envs: environments; None: as the config says.
        env: environments made already (the trainer's process has looked at their spaces), or None.
    """

    def __init__(
        self,
        config: Any,
        policies: Mapping[PolicyID, Policy | PolicyRecipe],
        *,
        worker_index: int = 0,
        num_workers: int = 0,
        num_envs: int | None = None,
        env: Any = None,
    ):
        self.config, self.worker_index, self.num_workers = config, worker_index, num_workers
        self.policies = {pid: p if isinstance(p, Policy) else p.build() for pid, p in policies.items()}
        self.callbacks = named(config.callbacks)
        self.env = make_worker_env(config, worker_index, num_workers, num_envs) if env is None else env
        self._restarts = 0
        self._weights: dict[PolicyID, Weights] = {}
        self._sent: Mapping[PolicyID, Weights] = {}
        self.weights_version = -1
        self._cpu = jax.local_devices(backend="cpu")[0]
        key = jax.random.fold_in(jax.random.key(0 if config.seed is None else config.seed), worker_index)
        self._key = jax.device_put(key, self._cpu)
        self.sampler = self._make_sampler()
        self._shard = Shard(self._batches, name="sample", worker=self)

    def _make_sampler(self) -> Any:
        common = {
            "callbacks": self.callbacks,
            "worker": self,
            "worker_index": self.worker_index,
            "num_workers": self.num_workers,
        }
        with jax.default_device(self._cpu):
            if is_multi_agent(self.env):
                return MultiAgentSampler(self.env, self.policies, self.config, self._key, **common)
            policy = self.policies[DEFAULT_POLICY_ID]
            filter = make_filter(self.config.observation_filter, self.env.observation_space)
            return VectorSampler(self.env, policy, self.config, filter, self._key, **common)

    # ---- sampling

    def sample(self) -> SampleBatch | MultiAgentBatch:
        """One batch: a fragment of every environment, postprocessed, as host arrays."""
        with jax.default_device(self._cpu):
            samples = self.sampler.sample(self.weights)
        if self.callbacks is not None and self.callbacks.on_sample_end is not None:
            replaced = self.callbacks.on_sample_end(worker=self, samples=samples)
            samples = samples if replaced is None else replaced
        return samples

    def sample_episodes(self) -> None:
        """Runs whole episodes for their statistics alone."""
        with jax.default_device(self._cpu):
            self.sampler.collect(self.weights)

    def restart(self, number: int) -> None:
        """Begins anew with seeds that follow from the worker's and `number`: environments, carries, episode numbers."""
        with jax.default_device(self._cpu):
            self.sampler.restart(number)

    def freeze_filters(self) -> None:
        """Observation filters are applied, but learn nothing more."""
        self.sampler.update_filter = False

    def _batches(self) -> Iterator[SampleBatch | MultiAgentBatch]:
        while True:
            yield self.sample()

    def pop_episodes(self) -> list[EpisodeRecord]:
        """The episodes that ended since the last call."""
        return self.sampler.pop_episodes()

    def pop_metrics(self) -> tuple[list[EpisodeRecord], tuple[int, float, float, float], int]:
        """Of the time since the last call: episodes that ended, where time went, environments created anew."""
        restarts = sum(env.num_restarts for env in (self.env if isinstance(self.env, list) else [self.env]))
        new, self._restarts = restarts - self._restarts, restarts
        return self.sampler.pop_episodes(), self.sampler.perf.pop(), new

    # ---- weights and filters

    def set_weights(self, version: int, weights: Mapping[PolicyID, Weights]) -> None:
        """Takes new weights; they stand for all fragments from the next one on."""
        self._weights, self._sent, self.weights_version = {}, weights, version

    @property
    def weights(self) -> dict[PolicyID, Weights]:
        """The weights in use, by policy, handed to JAX when they are first needed: some are replaced before that."""
        if self._sent:
            self._weights, self._sent = {pid: self._placed(w) for pid, w in self._sent.items()}, {}
        return self._weights

    def _placed(self, weights: Weights) -> Weights:
        leaf = jax.tree.leaves(weights)[0]
        if isinstance(leaf, jax.Array) and leaf.devices() == {self._cpu}:
            return weights  # a learner's own, in this process: moving them would cost more than an act call
        return jax.device_put(weights, self._cpu)

    def get_weights(self) -> dict[PolicyID, Weights]:
        """The weights in use, as host arrays."""
        return jax.tree.map(np.asarray, self.weights)

    def set_explore(self, explore: bool) -> None:
        """Whether policies explore from now on."""
        self.sampler.explore = explore

    def get_filter_deltas(self) -> dict[PolicyID, Any]:
        """Statistics gathered since the last call, which forgets them."""
        return self.sampler.pop_filter_deltas()

    def get_filters(self) -> dict[PolicyID, Any]:
        """The observation filters' statistics by policy."""
        return dict(self.sampler.filter_states)

    def set_filters(self, states: Mapping[PolicyID, Any]) -> None:
        """Replaces the observation filters' statistics."""
        self.sampler.filter_states = dict(states)

    @property
    def filters(self) -> Mapping[PolicyID, Filter]:
        """The observation filters by policy."""
        return self.sampler.filters

    # ---- inspection

    def foreach_env(self, fn: Callable[[Any], Any]) -> list[Any]:
        """`fn(env)` for each environment of this process.

        Raises:
            ValueError: the environments live elsewhere (native or async vector environments).
        """
        envs = [runner.env for runner in self.env] if is_multi_agent(self.env) else self.env.envs
        if envs is None:
            raise ValueError(
                f"foreach_env: worker {self.worker_index}'s environments are no objects of this process; "
                "set env_stepping='sync'."
            )
        return [fn(env) for env in envs]

    def apply(self, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(worker, *args)`."""
        return fn(self, *args)

    # ---- shard of a parallel iterator

    def par_iter_init(self, transforms: Sequence[Callable[..., Any]]) -> None:
        """See `jaxrl.execution.shards.Shard`."""
        self._shard.par_iter_init(transforms)

    def par_iter_next(self) -> Any:
        """See `jaxrl.execution.shards.Shard`."""
        return self._shard.par_iter_next()

    def par_iter_next_batch(self, max_items: int, batch_ms: float) -> list[Any]:
        """See `jaxrl.execution.shards.Shard`."""
        return self._shard.par_iter_next_batch(max_items, batch_ms)

    def par_iter_slice(self, step: int, start: int) -> Any:
        """See `jaxrl.execution.shards.Shard`."""
        return self._shard.par_iter_slice(step, start)

    def par_iter_slice_batch(self, step: int, start: int, batch_ms: float) -> list[Any]:
        """See `jaxrl.execution.shards.Shard`."""
        return self._shard.par_iter_slice_batch(step, start, batch_ms)

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """Where the worker stands: environments, carries, filters, episodes in progress."""
        return {"sampler": self.sampler.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `get_state` returned."""
        with jax.default_device(self._cpu):
            self.sampler.set_state(state["sampler"])

    def stop(self) -> None:
        """Closes the environments."""
        for env in self.env if isinstance(self.env, list) else [self.env]:
            env.close()


def is_multi_agent(env: Any) -> bool:
    """Whether `env` holds multi-agent environments."""
    return isinstance(env, list) and bool(env) and isinstance(env[0], MultiAgentRunner)


def make_worker_env(config: Any, worker_index: int, num_workers: int, num_envs: int | None = None) -> Any:
    """A worker's environments: a `VectorEnv`, or a list of `MultiAgentRunner`s for multi-agent environments."""
    context = EnvContext(config.env_config, worker_index=worker_index, num_workers=num_workers)
    count = config.num_envs_per_worker if num_envs is None else num_envs
    stepping = config.env_stepping
    if config.batch_mode == "complete_episodes" and stepping == "auto":
        stepping = "sync"  # columns that have their share wait, which native vector environments cannot
    restart = config.restart_failed_sub_environments
    return make_environments(config.env, count, context, stepping=stepping, restart=restart)
