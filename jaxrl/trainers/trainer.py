"""Trainer: the shell around workers, learners and a plan; a Tune trainable as it stands."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from jaxrl import config as config_lib
from jaxrl import registry
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.policies import Policy, PolicyFactory
from jaxrl.rollout import WorkerSet
from jaxrl.tracebacks import users_frames
from jaxrl.trainers import best, checkpoint, compilation, evaluation, iteration, policy_options, resolving, resources
from jaxrl.trainers.appending import storing, when_there_is_room
from jaxrl.trainers.checkpoint import restore
from jaxrl.trainers.config import CommonConfig
from jaxrl.trainers.inference import ActionComputer
from jaxrl.trainers.parts import build_parts
from jaxrl.trainers.results import ResultWriter, check_writable, results_root
from jaxrl.trainers.stopping import check_keys_early, check_stop
from jaxrl.types import DEFAULT_POLICY_ID, ConfigError, PolicyID


class Trainer(tune.Trainable):
    """Trains policies; made by `build_trainer`, which sets the class attributes.

    Args:
        config: options by their flat names; never changed.
        storage: given by Tune.
        env: shorthand for `config["env"]`.
        results_dir: where results go, made with the first one and this trainer's alone; None: a new one under
            `~/ray_results/default`.
        check_policies: is given the policies before memory is taken for what they learn; it may raise.

    Raises:
        ConfigError: an unknown or mistyped option, or ones that do not fit together; before any actor starts.

    Example:
        >>> trainer = PPOTrainer(config={"env": "CartPole-v1"})
        >>> trainer.train()["episode_reward_mean"]
        >>> path = trainer.save()
        >>> PPOTrainer.from_checkpoint(path).train()
    """

    config_class: ClassVar[type] = CommonConfig
    policy_factory: ClassVar[PolicyFactory]
    execution_plan: ClassVar[Callable[[PlanContext], LocalIterator]]
    validate_config: ClassVar[Callable[[Any], Any]]
    progress_keys: ClassVar[Mapping[str, str]]
    with_updates: ClassVar[Callable[..., type[Trainer]]]

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        storage: Any = None,
        *,
        env: Any = None,
        results_dir: str | pathlib.Path | None = None,
        check_policies: Callable[[Mapping[PolicyID, Policy]], None] = lambda _: None,
    ):
        tunes, given = resolving.split_given(type(self).__name__, config, storage, env)
        self._given = given
        self._results_dir, self._check_policies = results_dir, check_policies
        with resources.quiet_tune() if storage is None else contextlib.nullcontext():
            super().__init__(tunes, storage)

    # ---- Tune's hooks

    def setup(self, config: Mapping[str, Any]) -> None:
        """Builds everything; called once by the constructor."""
        del config
        compilation.compile_seconds()
        self.asked = self.parse_config(self._given)
        self.options = self.complete(self.asked)
        self.config = config_lib.to_dict(self.options)
        compilation.enable_compile_cache(self.options.compile_cache)
        self._stopped = False
        self._best = best.Best(self.options.keep_best, type(self), self.options)
        self._evaluation_workers: WorkerSet | None = None
        if not self._storage:
            check_writable(results_root(self._results_dir), "results_dir")
        with users_frames(), contextlib.ExitStack() as undo:  # what a failure below has to end
            parts = build_parts(type(self), self.asked, self.options, undo, self._check_policies)
            undo.pop_all()
        self.options, self.recipes, self.policies, self.multi_agent = parts[:4]
        self.context, self.plan, self.compiled, self._started_ray = parts[4:]
        self.workers, self.learners = self.context.workers, self.context.learners
        self._writer = None if self._storage else ResultWriter(self._results_dir, self.name, self.options)
        self.inference = ActionComputer(self)

    @classmethod
    def resolve_config(cls, config: Mapping[str, Any]) -> Any:
        """The complete, checked options that a flat config dict stands for.

        Raises:
            ConfigError: an unknown or mistyped option, or options that do not fit together.
        """
        return cls.complete(cls.parse_config(config))

    @classmethod
    def complete(cls, options: Any) -> Any:
        """What `parse_config` gave, complete and checked: 'auto' is a number."""
        return resolving.resolve(cls, options)

    @classmethod
    def parse_config(cls, config: Mapping[str, Any]) -> Any:
        """The options as they were asked for, with a seed ('auto' stays 'auto'): what checkpoints hold."""
        return resolving.parse(cls, config)

    @classmethod
    def policy_options(cls, asked: Any, pid: PolicyID, given: Mapping[str, Any], chosen: PolicyFactory | None) -> Any:
        """The options of one policy of several; see `policy_options.policy_options`."""
        return policy_options.policy_options(cls, pid, given, asked, chosen)

    def step(self) -> dict[str, Any]:
        """One iteration; `train()` calls it."""
        self._check_running("train")
        if self._writer is not None:
            self._writer.check(self._iteration)
        with users_frames():
            result = iteration.iterate(self)
        if self._storage and self._best.improves(result):
            result[SHOULD_CHECKPOINT] = True
        return result

    def log_result(self, result: dict[str, Any]) -> None:
        """Writes a result to the results directory, outside Tune, and the checkpoint that `keep_best` asks for."""
        if self._writer is not None:
            self._writer.write(result)
            if self._best.improves(result):
                self.save(str(self._writer.directory / checkpoint.BEST))

    def _check_running(self, what: str) -> None:
        if self._stopped:
            told = f"{type(self).__name__}.{what}: the trainer was stopped, and its workers have ended"
            raise ConfigError(f"{told}; make another one, or go on with from_checkpoint(path).")

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Builds everything anew for other options, as Tune asks where trials share an actor (`reuse_actors`)."""
        self.cleanup()
        self._results_dir = None  # outside Tune the results of other options have a new directory
        self._given = {key: value for key, value in new_config.items() if not key.startswith("__")}
        self.setup({})
        return True

    def _export_model(self, export_formats: list[str], export_dir: str) -> dict[str, str]:
        raise ConfigError(
            f"export_model: jaxrl exports no {', '.join(map(repr, export_formats))} into {export_dir!r}; save() writes "
            "the parameters as arrays.safetensors, and get_policy().act is a pure function that jax.export takes."
        )

    @property
    def logdir(self) -> str | None:
        """Where results go."""
        return self._logdir if self._storage else str(self.results_dir)

    def cleanup(self) -> None:
        """Ends workers, closes files; `stop()` calls it."""
        if self._stopped:
            return
        self._stopped = True
        self.plan.close()
        self.context.stop()
        self.workers.stop()
        if self._evaluation_workers is not None:
            self._evaluation_workers.stop()
        if self._writer is not None:
            self._writer.close()
        if self._started_ray:
            resources.shutdown_ray()

    def _setup_logdir(self) -> None:
        # Outside Tune nothing is made before the first result.
        if self._storage:
            super()._setup_logdir()

    @classmethod
    def default_resource_request(cls, config: Mapping[str, Any]) -> Any:
        """What a trial asks of Tune: the driver and its workers.

        Raises:
            ConfigError: the cluster cannot hold it; with what was asked and what there is.
        """
        return resources.placement(cls.resolve_config({k: v for k, v in config.items() if not k.startswith("__")}))

    # ---- evaluation and actions

    def evaluate(self) -> dict[str, Any]:
        """Runs `evaluation_num_episodes` episodes with the current weights in environments of their own.

        Returns:
            Episode statistics under the same keys as training results.
        """
        self._check_running("evaluate")
        with users_frames():
            return evaluation.evaluate(self)

    def compute_action(
        self,
        observation: Any,
        state: Any = None,
        prev_action: Any = None,
        prev_reward: Any = None,
        *,
        policy_id: PolicyID = DEFAULT_POLICY_ID,
        explore: bool | None = None,
    ) -> Any:
        """The action for one observation, by the steps that training takes: filter, act, unsquash, clip.

        Args:
            observation: one observation as the environment gives it, without batch axes.
            state: model state; `get_initial_state()` to begin with. If given, the next state is returned too.
            prev_action, prev_reward: what the environment took and gave since; None: as `state` remembers it, and 0.
            policy_id: the policy that acts.
            explore: sample (True) or take the mode (False); None: as `config["explore"]`.

        Returns:
            The action, or `(action, state)` where a state was given.
        """
        return self.inference.one(observation, state, prev_action, prev_reward, policy_id, explore)

    def compute_actions(
        self, observations: Any, state: Any = None, prev_action: Any = None, prev_reward: Any = None, **options: Any
    ) -> Any:
        """As `compute_action` for several observations by key, in one call: `{key: action}`, states beside it."""
        return self.inference.many(observations, state, prev_action, prev_reward, **options)

    def get_initial_state(self, policy_id: PolicyID = DEFAULT_POLICY_ID) -> Any:
        """What `compute_action` takes as `state` at an episode's first step; `()` where a policy has no memory."""
        return self.inference.initial_state(policy_id)

    def get_policy(self, policy_id: PolicyID = DEFAULT_POLICY_ID) -> Policy:
        """The policy called `policy_id`."""
        try:
            return self.policies[policy_id]
        except KeyError:
            raise ConfigError(f"no policy {policy_id!r}; there are {sorted(self.policies)}.") from None

    def get_weights(self) -> dict[PolicyID, Any]:
        """Parameters by policy, as host arrays."""
        return {pid: jax.tree.map(np.asarray, learner.weights.params) for pid, learner in self.learners.items()}

    def set_weights(self, weights: Mapping[PolicyID, Any]) -> None:
        """Replaces the parameters of the policies given, on learner and workers."""
        with self.context.paused():
            for pid, params in weights.items():
                learner = self.learners[pid]
                learner.state = learner.state.replace(
                    params=checkpoint.like(learner.state.params, params, f"policy {pid!r}")
                )
            self.context.sync_weights()

    def set_coeffs(self, policy_id: PolicyID = DEFAULT_POLICY_ID, **coeffs: float) -> None:
        """Changes coeffs (lr, clip_param, ...) of a policy; nothing recompiles."""
        with self.context.paused():
            self.learners[policy_id].set_coeffs(coeffs)
            self.context.sync_weights()

    # ---- checkpoints

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Writes a checkpoint, atomically.

        Args:
            checkpoint_dir: where; None: `checkpoint_<iteration>` under the results directory.

        Returns:
            Its path (under Tune, what Tune expects).
        """
        self._check_running("save")
        if self._storage:
            return super().save(checkpoint_dir)
        if checkpoint_dir is None:
            assert self._writer is not None
            checkpoint_dir = str(self._writer.directory / f"checkpoint_{self._iteration:06d}")
        wait = self.options.on_full_disk == "wait"
        with storing(checkpoint_dir):
            return when_there_is_room(lambda: checkpoint.save(self, checkpoint_dir), wait=wait)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint into a directory that Tune made."""
        checkpoint.write(self, pathlib.Path(checkpoint_dir))

    def restore(self, checkpoint_path: Any) -> None:
        """Continues from a checkpoint of the same algorithm, bit for bit where the environments allow it.

        The trainer's own options count: where one differs from what the checkpoint was trained with (lr, clip_param, a
        schedule, ...) it acts from the next update on. What adapts by itself or was set by `set_coeffs` goes on.

        Args:
            checkpoint_path: what `save` returned, or a Tune checkpoint.

        Raises:
            CheckpointError: damaged, of another algorithm, format or shape; the trainer stays as it was.
        """
        self._check_running("restore")
        found = getattr(checkpoint_path, "checkpoint", checkpoint_path)
        if hasattr(found, "as_directory"):
            with found.as_directory() as directory:
                self.load_checkpoint(directory)
        else:
            self.load_checkpoint(found)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `restore`."""
        restore(self, checkpoint)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | pathlib.Path,
        config: Mapping[str, Any] | None = None,
        *,
        trust_imports: bool = False,
        **options: Any,
    ) -> Trainer:
        """A trainer that continues from a checkpoint, with the config saved in it.

        Args:
            path: a checkpoint's directory.
            config: options that differ; functions and classes that the checkpoint could not hold.
            trust_imports: import the functions and classes that the checkpoint names, which runs their modules.
            options: further arguments of the constructor.

        Raises:
            CheckpointError: not a checkpoint of this algorithm, or damaged.
        """
        saved = checkpoint.read(path, cls.name_of())
        trainer = checkpoint.build(cls, saved, config or {}, trust_imports, options)
        try:
            checkpoint.load(trainer, saved)
        except BaseException:
            trainer.stop()
            raise
        return trainer

    def evaluation_workers(self) -> WorkerSet:
        """The workers of evaluation, made on first use."""
        if self._evaluation_workers is None:
            self._evaluation_workers = evaluation.make_evaluation_workers(self)
        return self._evaluation_workers

    def progress(self) -> dict[str, Any]:
        """What `train()` counts beside the plan: iteration and totals."""
        return {
            "iteration": self._iteration,
            "time_total": self._time_total,
            "episodes_total": self._episodes_total,
            "inference_calls": self.inference.calls,
            "best": self._best.value,
        }

    def set_progress(self, progress: Mapping[str, Any]) -> None:
        """Continues counting from what `progress` returned."""
        self._iteration, self._time_total = int(progress["iteration"]), float(progress["time_total"])
        self._episodes_total = progress["episodes_total"]
        self.inference.calls = int(progress["inference_calls"])
        self._best.value = progress.get("best")
        self._iterations_since_restore, self._time_since_restore, self._timesteps_since_restore = 0, 0.0, 0

    # ---- about

    @classmethod
    def name_of(cls) -> str:
        """The algorithm's name, as in checkpoints and `--run`: the registered one, or the class's without 'Trainer'."""
        return registry.name_of("algorithm", cls) or cls.__name__.removesuffix("Trainer")

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.name_of()

    @property
    def results_dir(self) -> pathlib.Path | None:
        """Where results and checkpoints go; None under Tune."""
        return None if self._writer is None else self._writer.directory

    @classmethod
    def config_help(cls) -> Any:
        """Every option with type, default and meaning: a table in a notebook, text when printed."""
        from jaxrl.trainers.config_table import ConfigTable

        return ConfigTable(cls.name_of(), config_lib.describe(cls.config_class))

    def fit(self, iterations: int, **options: Any) -> Any:
        """Trains for a number of iterations, with a live curve in a notebook or a live table in a terminal.

        Args:
            iterations: at most so many.
            options: see `jaxrl.trainers.fit.fit`.

        Returns:
            A History: `.plot()`, `.to_pandas()`, `[-1]` the last result.
        """
        from jaxrl.trainers.fit import fit

        check_keys_early(check_stop(options.get("stop")), type(self), self.options)
        return fit(self, iterations, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        about = vars(self)  # of one whose constructor fails, too: Ray prints its actor then
        env = about.get("_given", {}).get("env")
        name = env if isinstance(env, str) else type(env).__name__
        policies = sorted(about.get("policies", ()))
        return f"{type(self).__name__}(env={name!r}, iteration={about.get('_iteration')}, policies={policies})"
