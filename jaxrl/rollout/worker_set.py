"""WorkerSet: the trainer's own worker and those on Ray actors, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np

from jaxrl import registry
from jaxrl.metrics import EpisodeRecord
from jaxrl.policies import Policy
from jaxrl.rollout.agent_rows import refill
from jaxrl.rollout.filters import make_filter
from jaxrl.rollout.perf import sampler_perf
from jaxrl.rollout.worker import PolicyRecipe, RolloutWorker
from jaxrl.types import ConfigError, PolicyID, Weights, WorkerError


class WorkerSet:
    """All rollout workers of a run.

    Args:
        config: a RolloutConfig with the policies' options and the resources per worker.
        policies: built policies by id, for the local worker.
        recipes: how actors build theirs.
        env: environments of the local worker, made already; None: made when needed.
    """

    def __init__(
        self,
        config: Any,
        policies: Mapping[PolicyID, Policy],
        recipes: Mapping[PolicyID, PolicyRecipe],
        *,
        env: Any = None,
    ):
        self.config, self.policies = config, dict(policies)
        self.local: RolloutWorker | None = None
        self.actors: list[Any] = []
        self.version = 0
        self.sampler_perf: dict[str, float] = {}
        self.filters = {
            pid: make_filter(config.observation_filter, policy.spec.obs_space) for pid, policy in policies.items()
        }
        self._filter_states = {pid: filter.init() for pid, filter in self.filters.items()}
        if config.num_workers == 0:
            self.local = RolloutWorker(config, policies, env=env)
        else:
            self.actors = self._start_actors(recipes)

    def _start_actors(self, recipes: Mapping[PolicyID, PolicyRecipe]) -> list[Any]:
        import ray
        from ray.exceptions import RayError

        from jaxrl.rollout.rollout_actor import RolloutActor

        config, n = self.config, self.config.num_workers
        remote = cast("Any", ray.remote(RolloutActor)).options(
            num_cpus=config.num_cpus_per_worker,
            num_gpus=config.num_gpus_per_worker,
            resources=dict(config.custom_resources_per_worker) or None,
        )
        try:
            shipped = ray.put((config, recipes)), ray.put(registry.snapshot())
        except TypeError as error:
            raise ConfigError(
                f"num_workers={n}: the config or a registered object cannot be sent to a rollout worker: {error}. Give "
                "environments as names, classes or creator functions, and keep open files, locks and the like out of "
                "them."
            ) from error
        actors = [remote.remote({"worker_index": i, "num_workers": n}, *shipped) for i in range(1, n + 1)]
        try:
            ray.get([actor.ping.remote() for actor in actors])
        except RayError as error:
            for actor in actors:
                ray.kill(actor)
            cause = getattr(error, "cause", None) or error
            raise WorkerError(f"a rollout worker could not start: {type(cause).__name__}: {cause}") from error
        return actors

    @property
    def shards(self) -> list[Any]:
        """The workers that sample: actor handles, or the local worker alone."""
        return list(self.actors) if self.local is None else [self.local]

    def foreach_worker(self, method: str, *args: Any) -> list[Any]:
        """A method of every sampling worker, with its results in the order of worker indices.

        Args:
            method: name of a RolloutWorker method.
            args: its arguments; large ones are sent to the object store once.
        """
        if self.local is not None:
            return [getattr(self.local, method)(*args)]
        import ray

        refs = [ray.put(arg) for arg in args]
        return ray.get([actor.call.remote(method, *refs) for actor in self.actors])

    def apply(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """`fn(worker, *args)` on every sampling worker."""
        return self.foreach_worker("apply", fn, *args)

    def sync_weights(self, weights: Mapping[PolicyID, Weights]) -> None:
        """Broadcasts weights to every sampling worker, as one object."""
        self.version += 1
        if self.local is not None:
            self.local.set_weights(self.version, weights)
            return
        import ray

        ref = ray.put(jax.tree.map(np.asarray, dict(weights)))
        # Not waited for: an actor runs its calls in order, so the next fragment sees them.
        for actor in self.actors:
            actor.set_weights.remote(self.version, ref)

    def sync_filters(self) -> None:
        """Merges the statistics that workers have gathered since the last call and sends all of them everything."""
        if self.config.observation_filter == "NoFilter" or self.local is not None:
            return
        merged = self._filter_states
        for deltas in self.foreach_worker("get_filter_deltas"):
            merged = {pid: self.filters[pid].merge(merged[pid], delta) for pid, delta in deltas.items()}
        self.set_filters(merged)

    def get_filters(self) -> dict[PolicyID, Any]:
        """The observation filters' statistics by policy, as of the last synchronisation."""
        return dict(self._filter_states) if self.local is None else self.local.get_filters()

    def set_filters(self, states: Mapping[PolicyID, Any]) -> None:
        """Replaces the observation filters' statistics on every worker."""
        self._filter_states = dict(states)
        self.foreach_worker("set_filters", self._filter_states)

    def pop_episodes(self) -> list[EpisodeRecord]:
        """Episodes that ended since the last call, worker by worker; `sampler_perf` is of the same time."""
        popped = self.foreach_worker("pop_metrics")
        self.sampler_perf = sampler_perf([perf for _, perf in popped])
        return [record for records, _ in popped for record in records]

    def get_state(self) -> dict[str, Any]:
        """Where every sampling worker stands."""
        filters = {pid: jax.tree.leaves(state) for pid, state in self.get_filters().items()}
        return {"layout": self._layout(), "workers": self.foreach_worker("get_state"), "filters": filters}

    def _layout(self) -> list[Any]:
        config = self.config
        return [config.num_workers, config.num_envs_per_worker, config.env_stepping, config.batch_mode]

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether `state` is of workers laid out as these."""
        return state["layout"] == self._layout()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `get_state` returned.

        Workers that are laid out in another way (more of them, say) take the filters alone, and begin fresh episodes.
        """
        filters = self.get_filters()
        self.set_filters({pid: refill(template, state["filters"][pid]) for pid, template in filters.items()})
        if not self.fits(state):
            return
        saved = state["workers"]
        if self.local is not None:
            self.local.set_state(saved[0])
            return
        import ray

        ray.get([actor.call.remote("set_state", s) for actor, s in zip(self.actors, saved, strict=True)])

    def stop(self) -> None:
        """Closes environments and ends the actors that this set started."""
        if self.local is not None:
            self.local.stop()
        if self.actors:
            import ray

            for actor in self.actors:
                ray.kill(actor)
            self.actors = []
