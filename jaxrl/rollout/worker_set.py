"""WorkerSet: the trainer's own worker and those on Ray actors, behind one interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl.config_json import encode
from jaxrl.execution.shards import ShardFailure
from jaxrl.metrics import EpisodeRecord
from jaxrl.policies import Policy
from jaxrl.rollout.agent_rows import refill
from jaxrl.rollout.failures import FailureBudget, describe, logger
from jaxrl.rollout.filters import make_filter
from jaxrl.rollout.perf import sampler_perf
from jaxrl.rollout.starting import actor_starter, start_workers
from jaxrl.rollout.worker import PolicyRecipe, RolloutWorker
from jaxrl.types import JaxrlError, PolicyID, Weights, WorkerError


@dataclasses.dataclass(eq=False)
class _Place:
    """Where a worker stands: the actor that is it now, how often it was started anew, and what it still owes."""

    index: int
    actor: Any
    starts: int = 0
    weights_call: Any = None
    owed: dict[str, Any] = dataclasses.field(default_factory=dict)


class WorkerSet:
    """All rollout workers of a run.

    A worker on an actor that dies, hangs or raises is replaced by a fresh one with the same index, the current weights
    and filters, and seeds of its own, within a budget (`max_worker_restarts`, `max_worker_restarts_per_minute`);
    `on_failure` does it, called by whatever gathers the workers' items.

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
        self.version = 0
        self.sampler_perf: dict[str, float] = {}
        self.num_env_restarts = 0  # environments created anew, as of the last `pop_episodes`
        self.filters = {
            pid: make_filter(config.observation_filter, policy.spec.obs_space) for pid, policy in policies.items()
        }
        self.budget = FailureBudget(config.max_worker_restarts, _per_minute(config))
        self._filter_states = {pid: filter.init() for pid, filter in self.filters.items()}
        self._weights_put: Mapping[PolicyID, Weights] | None = None
        self._weights_ref: Any = None
        self._places: list[_Place] = []
        self._former: dict[Any, int] = {}  # ids of actors that were replaced, and their worker's index
        if config.num_workers == 0:
            self.local = RolloutWorker(config, policies, env=env)
        else:
            self._start_actor = actor_starter(config, recipes)
            actors = start_workers(self._start_actor, config, self.budget)
            self._places = [_Place(i, actor) for i, actor in enumerate(actors, start=1)]

    # ---- workers

    @property
    def actors(self) -> list[Any]:
        """The actors that are workers now, by index."""
        return [place.actor for place in self._places]

    @property
    def num_restarts(self) -> int:
        """Workers that were replaced so far."""
        return self.budget.worker_restarts

    @property
    def shards(self) -> list[Any]:
        """The workers that sample: actor handles, or the local worker alone."""
        return self.actors if self.local is None else [self.local]

    def foreach_worker(self, method: str, *args: Any) -> list[Any]:
        """A method of every sampling worker, with its results in the order of worker indices.

        Args:
            method: name of a RolloutWorker method.
            args: its arguments; large ones are sent to the object store once.

        Raises:
            WorkerError: a worker died, or owes its answer for longer than `sample_timeout_s`.
        """
        if self.local is not None:
            return [getattr(self.local, method)(*args)]
        calls = self._call(self._places, method, *args)
        answers, missing = self._answers(calls)
        if missing:
            place, error = missing[0]
            raise WorkerError(f"rollout worker {place.index}: {method}: {describe(error)}") from error
        return [answer for _, answer in answers]

    def _call(self, places: list[_Place], method: str, *args: Any) -> list[tuple[_Place, Any]]:
        import ray

        refs = [ray.put(arg) for arg in args]
        return [(place, place.actor.call.remote(method, *refs)) for place in places]

    def _answers(
        self, calls: list[tuple[_Place, Any]], timeout_s: float | None = None
    ) -> tuple[list[tuple[_Place, Any]], list[tuple[_Place, BaseException]]]:
        """Answers of the workers that are well, and what became of the others.

        What a method itself raises is raised here.
        """
        import ray
        from ray.exceptions import RayActorError

        timeout_s = self.config.sample_timeout_s if timeout_s is None else timeout_s
        refs = [ref for _, ref in calls]
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=timeout_s)[0]) if refs else set()
        answers: list[tuple[_Place, Any]] = []
        missing: list[tuple[_Place, BaseException]] = []
        for place, ref in calls:
            if ref not in ready:
                missing.append((place, TimeoutError(f"no answer for {timeout_s:g} s")))
                continue
            try:
                answers.append((place, ray.get(ref)))
            except RayActorError as error:
                missing.append((place, error))
        return answers, missing

    def _collect(self, method: str, timeout_s: float | None) -> list[tuple[_Place, Any]]:
        """What workers that are well have gathered; those that are late are asked no second time until they answer."""
        for place in self._places:
            if method not in place.owed:
                place.owed[method] = place.actor.call.remote(method)
        answers, missing = self._answers([(place, place.owed[method]) for place in self._places], timeout_s)
        late = [place for place, error in missing if isinstance(error, TimeoutError)]
        for place in self._places:
            if place not in late:
                del place.owed[method]
        return answers

    def apply(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """`fn(worker, *args)` on every sampling worker."""
        return self.foreach_worker("apply", fn, *args)

    def weights_taken(self, actors: Sequence[Any]) -> list[Any]:
        """References that are ready once these actors have the weights last sent to them.

        For whoever else is to ask them for experience: Ray keeps the order of one caller's calls, not of several's.
        """
        calls = [place.weights_call for place in self._places if any(place.actor is actor for actor in actors)]
        return [call for call in calls if call is not None]

    # ---- faults

    def on_failure(self, failure: ShardFailure) -> Any:
        """The actor that takes the place of one that failed; None where it is left out (`ignore_worker_failures`).

        Kills the old one. A worker that raises before it has given anything is not tried again: its code or the
        environment's is wrong, and would be the next time.

        Raises:
            WorkerError: failures are not to be survived, or the budget is spent.
            JaxrlError: what the worker raised, where that is one of jaxrl's own errors.
        """
        place = self._place_of(failure.shard)
        if place is None:
            return None
        if place.actor is not failure.shard and place.actor._actor_id != failure.shard._actor_id:
            return place.actor  # another gather has seen to it
        import ray
        from ray.exceptions import RayActorError

        error = failure.error
        ray.kill(failure.shard)
        raised = not isinstance(error, RayActorError | TimeoutError)
        if (raised and not failure.answers) or not (
            self.config.recreate_failed_workers or self.config.ignore_worker_failures
        ):
            cause = getattr(error, "cause", None)
            if isinstance(cause, JaxrlError):
                raise cause from error
            if isinstance(error, JaxrlError):
                raise error
            raise WorkerError(f"rollout worker {place.index} failed: {describe(error)}.") from error
        if not self.config.recreate_failed_workers:
            return self._leave_out(place, error)
        self.budget.spend(place.index, error, answered=failure.answers > 0)
        logger.warning("rollout worker %d is started anew: %s", place.index, describe(error))
        return self._start_anew(place)

    def _place_of(self, actor: Any) -> _Place | None:
        index = self._former.get(actor._actor_id)
        for place in self._places:
            if place.actor._actor_id == actor._actor_id or place.index == index:
                return place
        return None

    def _leave_out(self, place: _Place, error: BaseException) -> None:
        if len(self._places) == 1:
            raise WorkerError(f"rollout worker {place.index}, the last one, failed: {describe(error)}.") from error
        logger.warning("rollout worker %d is left out from now on: %s", place.index, describe(error))
        self._places.remove(place)

    def _start_anew(self, place: _Place) -> Any:
        import ray

        self._former[place.actor._actor_id] = place.index
        place.starts += 1
        place.actor = actor = self._start_actor(place.index)
        # In this order, before whatever is asked of it next. Seeds follow from the number of the start: with those of
        # the first one it would play the same episodes again.
        actor.call.remote("restart", ray.put(place.starts))
        if self.config.observation_filter != "NoFilter":
            actor.call.remote("set_filters", ray.put(self._filter_states))
        place.weights_call, place.owed = None, {}
        if self._weights_ref is not None:
            place.weights_call = actor.set_weights.remote(self.version, self._weights_ref)
        return actor

    # ---- weights and filters

    def sync_weights(self, weights: Mapping[PolicyID, Weights]) -> None:
        """Broadcasts weights to every sampling worker, as one object."""
        self.version += 1
        if self.local is not None:
            self.local.set_weights(self.version, weights)
            return
        self._put(weights)
        # Not waited for: an actor runs its calls in order, so the next fragment sees them.
        for place in self._places:
            self._send_weights(place)

    def offer_weights(self, weights: Mapping[PolicyID, Weights], version: int) -> None:
        """Broadcasts weights to the workers that have taken the last ones already; the others get the next.

        For plans that do not wait for their workers: however slow these are, no more than one object waits for each.

        Args:
            weights: by policy.
            version: number of updates behind them.
        """
        import ray

        self.version = max(self.version, version)
        calls = [place.weights_call for place in self._places if place.weights_call is not None]
        late = set(ray.wait(calls, num_returns=len(calls), timeout=0)[1]) if calls else set()
        taking = [place for place in self._places if place.weights_call not in late]
        self._put(weights)
        for place in taking:
            self._send_weights(place)

    def send_weights(self, actor: Any, weights: Mapping[PolicyID, Weights], version: int | None = None) -> None:
        """Sends weights to one worker, with `version` updates behind them (None: one more than those sent before)."""
        self.version = self.version + 1 if version is None else max(self.version, version)
        if self.local is not None:
            self.local.set_weights(self.version, weights)
            return
        place = self._place_of(actor)
        if place is not None:
            self._put(weights)
            self._send_weights(place)

    def _put(self, weights: Mapping[PolicyID, Weights]) -> None:
        import ray

        if weights is not self._weights_put:
            self._weights_put, self._weights_ref = weights, ray.put(jax.tree.map(np.asarray, dict(weights)))

    def _send_weights(self, place: _Place) -> None:
        place.weights_call = place.actor.set_weights.remote(self.version, self._weights_ref)

    def sync_filters(self, timeout_s: float | None = None) -> None:
        """Merges the statistics that workers have gathered since the last call and sends all of them everything.

        Args:
            timeout_s: how long to wait for workers that are busy; theirs are merged by a later call. None:
                `sample_timeout_s`.
        """
        if self.config.observation_filter == "NoFilter" or self.local is not None:
            return
        merged = self._filter_states
        answers = self._collect("get_filter_deltas", timeout_s)
        for _, deltas in answers:
            merged = {pid: self.filters[pid].merge(merged[pid], delta) for pid, delta in deltas.items()}
        self._filter_states = dict(merged)
        if self.config.synchronize_filters:
            self._call([place for place, _ in answers], "set_filters", self._filter_states)

    def get_filters(self) -> dict[PolicyID, Any]:
        """The observation filters' statistics by policy, as of the last synchronisation."""
        return dict(self._filter_states) if self.local is None else self.local.get_filters()

    def set_filters(self, states: Mapping[PolicyID, Any]) -> None:
        """Replaces the observation filters' statistics on every worker."""
        self._filter_states = dict(states)
        self.foreach_worker("set_filters", self._filter_states)

    # ---- metrics

    def pop_episodes(
        self, timeout_s: float | None = None, of_workers: Collection[int] | None = None
    ) -> list[EpisodeRecord]:
        """Episodes that ended since the last call, worker by worker; `sampler_perf` is of the same time.

        Args:
            timeout_s: how long to wait for workers that are busy; what they owe comes with a later call. None:
                `sample_timeout_s`. Episodes of a worker that died are lost.
            of_workers: indices of the workers on actors whose episodes count; None: all.
        """
        if self.local is not None:
            popped = [self.local.pop_metrics()]
        else:
            chosen = range(1, self.config.num_workers + 1) if of_workers is None else of_workers
            answers = self._collect("pop_metrics", timeout_s)
            popped = [(records if place.index in chosen else [], *more) for place, (records, *more) in answers]
        self.sampler_perf = sampler_perf([perf for _, perf, _ in popped])
        self.num_env_restarts += sum(restarts for _, _, restarts in popped)
        return [record for records, _, _ in popped for record in records]

    # ---- state

    def get_state(self) -> dict[str, Any]:
        """Where every sampling worker stands; None for one that does not answer."""
        filters = {pid: jax.tree.leaves(state) for pid, state in self.get_filters().items()}
        if self.local is not None:
            workers: list[Any] = [self.local.get_state()]
        else:
            answers, _ = self._answers(self._call(self._places, "get_state"))
            by_index = {place.index: state for place, state in answers}
            workers = [by_index.get(i) for i in range(1, self.config.num_workers + 1)]
        return {"layout": self._layout(), "carries": self._carries(), "workers": workers, "filters": filters}

    def _layout(self) -> list[Any]:
        config = self.config
        return [config.num_workers, config.num_envs_per_worker, config.env_stepping, config.batch_mode]

    def _carries(self) -> dict[PolicyID, Any]:
        """What policies and filters carry: their shapes, and the options of an exploration that has a state."""
        carries = {pid: (policy.initial_carry(1), self.filters[pid].init()) for pid, policy in self.policies.items()}
        return {
            pid: [
                [list(np.shape(leaf)) for leaf in jax.tree.leaves(carry)],
                encode(self.policies[pid].spec.config.exploration_config) if jax.tree.leaves(carry[0][1]) else None,
            ]
            for pid, carry in carries.items()
        }

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether `state` is of workers laid out as these, whose policies have the same carries."""
        own = self._carries()
        return state["layout"] == self._layout() and state.get("carries", own) == own

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `get_state` returned.

        Workers that are laid out in another way (more of them, say) take the filters alone, and begin fresh episodes;
        filters begin anew where there were none.
        """
        own, saved = self.get_filters(), state["filters"]
        kept = {pid: f for pid, f in own.items() if len(jax.tree.leaves(f)) == len(saved[pid])}
        self.set_filters({**own, **{pid: refill(template, saved[pid]) for pid, template in kept.items()}})
        if not self.fits(state):
            return
        workers = state["workers"]
        if self.local is not None:
            self.local.set_state(workers[0])
            return
        import ray

        known = [(place, workers[place.index - 1]) for place in self._places if workers[place.index - 1] is not None]
        ray.get([place.actor.call.remote("set_state", s) for place, s in known], timeout=self.config.sample_timeout_s)

    def stop(self) -> None:
        """Closes environments and ends the actors that this set started."""
        if self.local is not None:
            self.local.stop()
        if self._places:
            import ray

            for place in self._places:
                ray.kill(place.actor)
            self._places = []


def _per_minute(config: Any) -> int:
    limit = config.max_worker_restarts_per_minute
    return 5 * max(1, config.num_workers) if limit == "auto" else limit
