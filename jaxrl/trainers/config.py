"""CommonConfig: the options that every algorithm has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxrl.config import option
from jaxrl.policies import PolicyConfig
from jaxrl.rollout import RolloutConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class CommonConfig(RolloutConfig, PolicyConfig):
    """Options of a trainer: those of sampling and of policies, and how a run is cut, evaluated and placed."""

    rollout_fragment_length: int | Literal["auto"] = option(
        "auto", "Steps of each environment per fragment; 'auto': about 200, such that fragments fill train batches."
    )

    engine: Literal["auto", "workers", "compiled"] = option(
        "auto",
        "workers: environments step in-process or on Ray actors; compiled: acting, stepping and learning are one "
        "program, for JAX-native environments; auto: compiled where environment, plan and options allow it.",
    )
    train_batch_size: int = option(200, "Env steps of a train batch.", low=1)
    timesteps_per_iteration: int = option(0, "Env steps of an iteration at least; 0: one train batch.", low=0)
    min_iter_time_s: float = option(0.0, "Seconds of an iteration at least.", low=0)
    metrics_smoothing_episodes: int = option(100, "Episode statistics are over the last so many episodes.", low=1)
    evaluation_interval: int | None = option(None, "Evaluate every so many iterations; None: never.", low=1)
    evaluation_num_episodes: int = option(10, "Episodes of one evaluation at least.", low=1)
    evaluation_num_workers: int = option(0, "Rollout workers on Ray actors for evaluation; 0: in-process.", low=0)
    evaluation_config: Mapping[str, Any] = option({}, "Options that differ in evaluation, e.g. {'explore': False}.")
    custom_eval_function: Callable[..., Mapping[str, Any]] | None = option(
        None, "Replaces evaluation: function of (trainer, evaluation workers) to a dict of results."
    )
    num_cpus_per_worker: float | Literal["auto"] = option(
        "auto", "CPUs of a worker; 'auto': 1 where they fit, else an equal share of the cluster's."
    )
    num_cpus_for_driver: float | Literal["auto"] = option(
        "auto", "CPUs of the trainer under Tune; 'auto' as for workers."
    )
    num_gpus_per_worker: float = option(0.0, "GPUs of a worker.", low=0)
    custom_resources_per_worker: Mapping[str, float] = option({}, "Ray's custom resources of a worker.")
    num_gpus: float = option(0.0, "GPUs that the trainer asks of Tune.", low=0)
    num_learner_devices: int = option(1, "Devices that share each train batch.", low=1)
    keep_checkpoints_num: int | None = option(None, "Checkpoints kept in a directory, the newest; None: all.", low=1)
    keep_best: str | None = option(
        None,
        "Keep the best checkpoint by this number of results, e.g. 'episode_reward_mean' or "
        "'evaluation/episode_reward_mean'; in checkpoint_best.",
    )
    on_full_disk: Literal["end", "wait"] = option(
        "end",
        "Results or a checkpoint find no room: end: an error, with what was saved before intact; wait: try again until "
        "there is room.",
    )
    compile_cache: bool | str = option(
        True,
        "Keep compiled programs on disk for the next run: True: in the user's cache directory; a path; False: not.",
        path=True,
    )
