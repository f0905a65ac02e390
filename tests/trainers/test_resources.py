"""Ray: actors sample what the own process would, CPUs that fit, Tune takes the class as it stands."""

from __future__ import annotations

import logging
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError

from jaxrl import ConfigError, registry
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.rollout import RolloutWorker, WorkerSet
from jaxrl.trainers import resources

pytestmark = pytest.mark.ray

TINY: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_workers": 2,
    "num_cpus_per_worker": 0.3,
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 10,
    "train_batch_size": 40,
    "sgd_minibatch_size": 20,
    "num_sgd_iter": 1,
    "model": {"fcnet_hiddens": [8]},
    "seed": 5,
    "compile_cache": False,
}


AUTO: dict[str, Any] = {"num_cpus_per_worker": "auto"}


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXRL_RESULTS_DIR", str(tmp_path_factory.mktemp("results")))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


class Named(gym.Wrapper):
    """CartPole with a name that only this process has registered."""

    def __init__(self, config: Any) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.worker_index = config.worker_index


# First: it wants all CPUs.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Tune's own
@pytest.mark.parametrize("num_workers", [0, 2])
def test_tune_takes_the_class(cluster: None, tmp_path: pathlib.Path, num_workers: int) -> None:
    registry.register_env("only-here", Named)
    config = {**TINY, "env": "only-here", "num_workers": num_workers, "rollout_fragment_length": "auto", **AUTO}
    analysis = tune.run(
        PPOTrainer,
        config=config,
        stop={"training_iteration": 2},
        checkpoint_at_end=True,
        storage_path=str(tmp_path),
        verbose=0,
    )
    (trial,) = analysis.trials
    assert trial.last_result["training_iteration"] == 2
    assert trial.last_result["timesteps_total"] == 80
    assert trial.checkpoint is not None
    with trial.checkpoint.as_directory() as directory:
        back = PPOTrainer.from_checkpoint(directory, {"num_workers": 0})
    assert back.iteration == 2
    assert back.train()["timesteps_total"] == 120
    back.stop()


@pytest.fixture(scope="module")
def trainer(cluster: None) -> Iterator[Any]:
    registry.register_env("only-here", Named)
    with PPOTrainer(config={**TINY, "env": "only-here", "observation_filter": "MeanStdFilter"}) as made:
        yield made


def test_fragments_of_an_actor_and_of_the_own_process_are_equal(trainer: Any) -> None:
    weights = {pid: learner.weights for pid, learner in trainer.learners.items()}
    for number, actor in enumerate(trainer.workers.actors, start=1):
        own = RolloutWorker(trainer.options, trainer.policies, worker_index=number, num_workers=2)
        own.set_weights(1, weights)
        remote = ray.get([actor.call.remote("sample") for _ in range(3)])
        for there in remote:
            here: Any = own.sample()
            assert list(here) == list(there)
            jax.tree.map(np.testing.assert_array_equal, dict(here), dict(there))
        own.stop()


def test_workers_may_filter_each_by_its_own_statistics(cluster: None) -> None:
    options = {"observation_filter": "MeanStdFilter", "synchronize_filters": False}
    with PPOTrainer(config={**TINY, **options}) as made:
        made.train()
        first, second = made.workers.foreach_worker("get_filters")
        both = made.workers.get_filters()["default_policy"]
    own = [filters["default_policy"].rows for filters in (first, second)]
    assert both.rows == sum(own) == 2 * own[0]
    means = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(f["default_policy"])]) for f in (first, second)]
    assert not np.array_equal(means[0], means[1])


def test_filters_of_all_workers_are_merged(trainer: Any) -> None:
    trainer.train()
    # 3 fragments of the test before, and those of the iteration, from each of 2 workers.
    state = trainer.workers.get_filters()["default_policy"]
    rows = state.rows
    assert rows % 40 == 0 and rows >= 40
    for remote in trainer.workers.foreach_worker("get_filters"):
        jax.tree.map(np.testing.assert_array_equal, remote["default_policy"], state)


def test_the_plan_is_the_same(trainer: Any) -> None:
    result = trainer.train()
    assert result["num_healthy_workers"] == 2
    assert result["timesteps_this_iter"] == 40
    assert set(result["sampler_perf"]) == {"mean_env_wait_ms", "mean_inference_ms", "mean_processing_ms"}
    assert trainer.workers.foreach_worker("foreach_env", _worker_index) == [[1, 1], [2, 2]]


def _worker_index(env: Any) -> int:
    return env.unwrapped.spec is not None and env.get_wrapper_attr("worker_index")


def test_what_cannot_travel(cluster: None) -> None:
    import threading

    lock = threading.Lock()

    def make(context: Any) -> gym.Env:
        with lock:
            return gym.make("CartPole-v1")

    with pytest.raises(ConfigError, match="cannot be sent to a rollout worker"):
        PPOTrainer(config={**TINY, "env": make})


def config_of(**options: Any) -> Any:
    return PPOTrainer.resolve_config({**TINY, **options})


@pytest.mark.parametrize(
    ("options", "available", "want"),
    [
        (AUTO, 8, (1, 1)),
        (AUTO, 3, (1, 1)),
        (AUTO, 2, (0.66, 0.66)),
        ({"num_cpus_for_driver": 1, **AUTO}, 2, (1, 0.5)),
        ({"num_cpus_per_worker": 0.5}, 2, (1, 0.5)),
        ({"num_cpus_per_worker": 4, "num_cpus_for_driver": 2}, 2, (2, 4)),
        ({"num_workers": 0, "rollout_fragment_length": 20, **AUTO}, 2, (1, 1)),
    ],
)
def test_cpus_that_fit(options: dict[str, Any], available: float, want: tuple[float, float]) -> None:
    assert resources.cpus_each(config_of(**options), available) == pytest.approx(want)


def test_cpus_that_cannot_fit(cluster: None) -> None:
    with pytest.raises(ConfigError, match=r"asks for 5 CPUs .*driver 1, 2 workers of 2.*cluster has 2"):
        PPOTrainer.default_resource_request({**TINY, "num_cpus_per_worker": 2, "num_cpus_for_driver": 1})
    with pytest.raises(ConfigError, match=r"1 GPU \(it has 0\)"):
        PPOTrainer.default_resource_request({**TINY, "num_gpus": 1})
    with pytest.raises(ConfigError, match="num_cpus_per_worker=2.0 x 2 workers asks for 4 CPUs; Ray has 2"):
        PPOTrainer(config={**TINY, "num_cpus_per_worker": 2})
    request = PPOTrainer.default_resource_request({**TINY, **AUTO})
    assert len(request.bundles) == 3 and sum(bundle["CPU"] for bundle in request.bundles) <= 2


def test_cpus_that_others_hold(trainer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(resources, "FREE_CPUS_WITHIN_S", 0.5)
    with pytest.raises(ConfigError, match="ask for 2 CPUs, and 1.4 of Ray's are free"):
        PPOTrainer(config={**TINY, **AUTO})


def test_an_actor_that_cannot_start(cluster: None) -> None:
    class Broken(gym.Wrapper):
        def __init__(self, config: Any) -> None:
            if config.worker_index == 2:
                raise OSError("no display")
            super().__init__(gym.make("CartPole-v1"))

    with pytest.raises(Exception, match="no display"):
        PPOTrainer(config={**TINY, "env": Broken})


def test_worker_sets_end_their_actors(trainer: Any) -> None:
    workers = WorkerSet(trainer.options, trainer.policies, trainer.recipes)
    actor = workers.actors[0]
    workers.stop()

    def call_until_it_is_gone() -> None:
        # Killing takes a moment, in which a call may still be answered.
        for _ in range(100):
            ray.get(actor.ping.remote(), timeout=60)
            time.sleep(0.1)

    with pytest.raises(RayActorError):
        call_until_it_is_gone()


def test_an_address_where_nothing_answers_is_told_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else listens there, and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            start = time.monotonic()
            with pytest.raises(ConfigError, match=rf"{address}.*nothing answers.*ray start --head"):
                resources.check_reachable(given)
            assert time.monotonic() - start < 5
        taken.listen()
        resources.check_reachable(address)
    for found_by_ray in (None, "auto", "local"):
        resources.check_reachable(found_by_ray)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_gpus_per_worker": 1}, r"2 GPU \(it has 0\)"),
        ({"custom_resources_per_worker": {"mujoco": 2}}, r"4 mujoco \(it has 0\)"),
    ],
)
def test_what_the_cluster_lacks_is_told_before_anything_starts(options, told):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=told):
        PPOTrainer(config={**TINY, **options})
    with pytest.raises(ConfigError, match=told):
        PPOTrainer.default_resource_request({**TINY, **options})
    assert time.monotonic() - start < 10


def test_a_handler_of_sigterm_outlives_ray():
    code = (
        "import signal\n"
        "from jaxrl.trainers import resources\n"
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.append(None))\n"
        "resources.ensure_ray()\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "resources.shutdown_ray()\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "print(len(told))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)
