"""RolloutConfig: the options of sampling, read by samplers, workers and the worker set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from jaxrl.callbacks import Callbacks
from jaxrl.config import option


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiAgentConfig:
    """Options of multi-agent training: which policies there are, and which agents they act for."""

    policies: Mapping[str, Any] | None = option(
        None,
        "Policies by id: None (the default policy), or (policy, obs_space, action_space, config), each part may be "
        "None.",
    )
    policy_mapping_fn: Callable[..., str] | Mapping[Any, str] | None = option(
        None, "Function of an agent's id to the id of its policy, or a mapping of the one to the other."
    )
    policies_to_train: list[str] | None = option(None, "Ids of the policies that learn; None: all of them.")


class AutoFragment(NamedTuple):
    """How long a fragment is where `rollout_fragment_length` is "auto".

    Attributes:
        near: its length is the divisor nearest to this of the steps that fill a batch; None: all of them.
        of: what a whole number of fragments fills: the fragments of all workers ("round"), or of one ("worker"); None:
            nothing, so that its length is `near`.
        sizes: options that say the size of a batch; the first that is set counts.
    """

    near: int | None
    of: Literal["round", "worker"] | None = "round"
    sizes: tuple[str, ...] = ("train_batch_size",)


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutConfig:
    """Options of sampling.

    Attributes:
        of_run: options of policies that an algorithm has one value of for the whole run, with the reason.
        auto_fragment: what `rollout_fragment_length="auto"` stands for.
        without_meaning: options that an algorithm refuses, with the reason.
        workers_learn: set by algorithms whose workers compute gradients, on a GPU where they are given one.
    """

    workers_learn: ClassVar[bool] = False
    auto_fragment: ClassVar[AutoFragment] = AutoFragment(200)
    without_meaning: ClassVar[Mapping[str, str]] = {}
    of_run: ClassVar[Mapping[str, str]] = {"explore": "workers explore with all policies or with none"}

    env: Any = option(
        None, "Gymnasium id, registered name, class, 'module:Class', creator function, or list of environments."
    )
    env_config: Mapping[str, Any] = option({}, "Passed to the environment's creator (EnvContext).")
    num_workers: int = option(0, "Rollout workers on Ray actors; 0: sample in-process, without Ray.", low=0)
    num_envs_per_worker: int = option(1, "Environments that each worker steps together.", low=1)
    rollout_fragment_length: int | Literal["auto"] = option(
        200, "Steps of each environment per fragment; 'auto': such that fragments fill train batches."
    )
    batch_mode: str = option(
        "truncate_episodes",
        "truncate_episodes: fragments of fixed length; complete_episodes: whole episodes only.",
        choices=("truncate_episodes", "complete_episodes"),
    )
    env_stepping: str = option(
        "auto",
        "How a worker's environments are stepped: one loop (sync), a process each (async), their own vector env "
        "(native).",
        choices=("auto", "sync", "async", "native"),
    )
    horizon: int | None = option(None, "Cut episodes after this many steps, as truncations.", low=1)
    soft_horizon: bool = option(
        False,
        "At the horizon the episode ends and another begins, without resetting the environment or a recurrent model's "
        "state.",
    )
    max_whole_episode_steps: int | None = option(
        1_000_000,
        "Where whole episodes are sampled (evaluation, complete_episodes): one that has not ended after so many steps "
        "is an error, with a warning at a tenth of them; None: never. See horizon.",
        low=1,
    )
    clip_rewards: bool | float | tuple[float, float] | None = option(
        None,
        "Rewards that learning sees: True: their sign; a number c: clipped to [-c, c]; (low, high); False: as they "
        "are; None: their sign for Atari ids, else as they are.",
    )
    clip_actions: bool = option(True, "Clip Box actions to the space before they reach the environment.")
    normalize_actions: bool = option(False, "Policies act in [-1, 1], mapped to the bounds of the Box action space.")
    observation_filter: str = option(
        "NoFilter",
        "NoFilter, or MeanStdFilter: observations to mean 0 and deviation 1, clipped to 10 deviations.",
        choices=("NoFilter", "MeanStdFilter"),
    )
    synchronize_filters: bool = option(
        True,
        "Send the merged filter statistics to all workers after each iteration; False: each filters by its own, and "
        "evaluation by all.",
    )
    callbacks: Callbacks | None = option(None, "Functions called at every hook of sampling and training.")
    seed: int | None = option(
        None,
        "Makes the run repeatable; None: drawn once, shown in results and checkpoints.",
        low=0,
        high=2**63 - 1,
    )
    recreate_failed_workers: bool = option(
        True, "A worker on an actor that dies, hangs or raises is replaced by a fresh one; else the run ends."
    )
    ignore_worker_failures: bool = option(
        False, "With recreate_failed_workers false: a failed worker is left out, and the run goes on with the others."
    )
    restart_failed_sub_environments: bool = option(
        False,
        "An environment that raises in step or reset is created anew, and its worker goes on: the step that failed is "
        "left out, the one before it is a truncation; with complete_episodes the whole episode is left out. Else the "
        "worker fails.",
    )
    max_worker_restarts: int = option(1000, "Workers and replay shards replaced in the whole run at most.", low=0)
    max_worker_restarts_per_minute: int | Literal["auto"] = option(
        "auto", "Workers replaced within a minute at most; 'auto': five for each worker."
    )
    sample_timeout_s: float | None = option(
        600.0, "A worker or replay shard that owes an answer for so many seconds counts as hung; None: never.", low=0
    )
    multiagent: MultiAgentConfig = option(
        MultiAgentConfig(), "Policies, mapping of agents to policies, policies to train."
    )
