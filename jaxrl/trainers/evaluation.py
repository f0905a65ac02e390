"""Evaluation: whole episodes with the current weights, on workers and environments of their own."""

from __future__ import annotations

from typing import Any

from jaxrl import config as config_lib
from jaxrl.envs import make_env_creator
from jaxrl.metrics import EpisodeRecord, summarize_episodes
from jaxrl.rollout import WorkerSet
from jaxrl.types import ConfigError


def evaluation_options(options: Any) -> Any:
    """The options of evaluation workers: whole episodes, `evaluation_config` merged in, another seed.

    Args:
        options: the trainer's.

    Raises:
        ConfigError: `evaluation_config` has an unknown or mistyped option, cuts episodes, changes what the policy acts
            in, or has no environment of its own.
    """
    defaults = {
        "batch_mode": "complete_episodes",
        "rollout_fragment_length": 1,
        "num_workers": options.evaluation_num_workers,
        "seed": (options.seed + 1_000_003) % 2**31,
    }
    merged = config_lib.parse(
        type(options), {**defaults, **options.evaluation_config}, base=options, where="evaluation_config"
    )
    if merged.batch_mode != "complete_episodes":
        raise ConfigError(
            "evaluation_config: batch_mode should stay complete_episodes; evaluation counts whole episodes."
        )
    for name in ("normalize_actions", "observation_filter"):
        if getattr(merged, name) != getattr(options, name):
            raise ConfigError(
                f"evaluation_config: {name} should stay {getattr(options, name)!r}, which the policy is trained with, "
                f"got {getattr(merged, name)!r}."
            )
    shared = merged.env is options.env and options.evaluation_interval is not None
    if shared and make_env_creator(options.env).instances is not None:
        raise ConfigError(
            "config: evaluation_interval is set, and env is an environment that training itself uses; give what makes "
            "environments as env (the class, a registered name, or a function such as lambda env_config: MyEnv()), or "
            "another one in evaluation_config={'env': ...}."
        )
    return merged


def make_evaluation_workers(trainer: Any) -> WorkerSet:
    """Workers with environments of their own, for the policies of a trainer."""
    options = evaluation_options(trainer.options)
    recipes = {
        pid: recipe._replace(config=evaluation_options(recipe.config)) for pid, recipe in trainer.recipes.items()
    }
    workers = WorkerSet(options, trainer.policies, recipes)
    workers.foreach_worker("freeze_filters")
    return workers


def evaluate(trainer: Any) -> dict[str, Any]:
    """See `Trainer.evaluate`."""
    workers = trainer.evaluation_workers()
    workers.sync_weights({pid: learner.weights for pid, learner in trainer.learners.items()})
    if trainer.options.observation_filter != "NoFilter":
        workers.set_filters(trainer.workers.get_filters())
    # Seeds follow from the iteration: an evaluation is the same whether or not the run was interrupted before it.
    workers.foreach_worker("restart", trainer.iteration)
    custom = trainer.options.custom_eval_function
    if custom is not None:
        return dict(custom(trainer, workers))
    episodes: list[EpisodeRecord] = []
    while len(episodes) < trainer.options.evaluation_num_episodes:
        workers.foreach_worker("sample_episodes")
        episodes.extend(workers.pop_episodes())
    return summarize_episodes(episodes, episodes)
