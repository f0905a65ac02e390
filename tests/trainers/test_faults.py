"""Faults in real runs on Ray actors: killed, hung and raising workers, storms, a learner that raises. Never a hang.

Each fault is also run with its recovery switched off, and then ends the run: what survives it is the recovery.
"""

import os
import pathlib
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
import ray

from jaxrl import build_trainer
from jaxrl.algorithms.a2c import A2CConfig, A2CPolicy
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.execution.aggregation import AggregatedRollouts
from jaxrl.execution.async_ops import learn_in_thread
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts
from jaxrl.types import EnvError, NonFiniteError, WorkerError

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::RuntimeWarning:subprocess")]


class FaultyEnv(gym.Env):
    """Counts to ten, over and over; does what its config says on worker 1 once it has taken `at` steps.

    With `once`, a path, it does so a single time: whoever comes first leaves a file there. With `orders`, a directory,
    it does each fault whose name is a file there, and takes the file away.
    """

    observation_space = gym.spaces.Box(0.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config):
        self.fault, self.at = config.get("fault"), config.get("at", 0)
        self.once = pathlib.Path(config["once"]) if "once" in config else None
        self.orders = pathlib.Path(config["orders"]) if "orders" in config else None
        self.mine = config.worker_index == 1
        self.steps = 0
        if self.fault == "killed while it starts":
            self.strike()
        if self.fault == "constructor" and ("gone" not in config or pathlib.Path(config["gone"]).exists()):
            self.strike()

    def strike(self):
        if not self.mine or self.steps < self.at:
            return
        if self.once is not None:
            if self.once.exists():
                return
            self.once.write_text("struck")
        if self.fault == "hang":
            time.sleep(600)
        elif self.fault == "killed while it starts":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "exit":
            os._exit(1)
        elif self.fault is not None:
            raise ValueError(f"the engine broke in {self.fault}")

    def obey(self, *faults):
        for order in () if self.orders is None or not self.mine else self.orders.iterdir():
            if order.name in faults:
                order.unlink()
                self.fault = order.name
                self.strike()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obey("reset")
        if self.fault == "reset":
            self.strike()
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.obey("step", "exit")
        if self.fault not in ("reset", "constructor", "killed while it starts"):
            self.strike()
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == 10, False, {}


def async_plan(ctx):
    batches = ParallelRollouts(ctx, mode="async", num_async=2).combine(ConcatBatches(ctx.config.train_batch_size))
    return StandardMetricsReporting(ctx, learn_in_thread(ctx, batches))


def tree_plan(ctx):
    batches = AggregatedRollouts(ctx, [ConcatBatches(ctx.config.train_batch_size)], num_aggregators=2)
    return StandardMetricsReporting(ctx, learn_in_thread(ctx, batches))


TreeTrainer = build_trainer("TreeTrainer", default_policy=A2CPolicy, default_config=A2CConfig, execution_plan=tree_plan)
AsyncTrainer = build_trainer(
    "AsyncTrainer", default_policy=A2CPolicy, default_config=A2CConfig, execution_plan=async_plan
)
SYNC = {"train_batch_size": 40, "rollout_fragment_length": 20, "sgd_minibatch_size": 0, "num_sgd_iter": 1}
ASYNC = {"train_batch_size": 40, "rollout_fragment_length": 20, "timesteps_per_iteration": 200}
COMMON = {"env": FaultyEnv, "num_workers": 2, "num_envs_per_worker": 1, "model": {"fcnet_hiddens": [8]}, "seed": 0}
KINDS = {"sync": (PPOTrainer, SYNC), "async": (AsyncTrainer, ASYNC), "tree": (TreeTrainer, ASYNC)}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


def make(kind, fault=None, **options):
    trainer, own = KINDS[kind]
    env_config = fault or {}
    return trainer(config={**COMMON, **own, "env_config": env_config, **options})


def pids(trainer):
    return ray.get([actor.ping.remote() for actor in trainer.workers.actors])


def train_until(trainer, done, seconds=120.0):
    """Results until `done(result)`; fails when it takes too long."""
    results, deadline = [], time.monotonic() + seconds
    while not results or not done(results[-1]):
        assert time.monotonic() < deadline, f"not in {seconds} s: {results[-1:]}"
        results.append(trainer.train())
    return results


@pytest.fixture(
    scope="module", params=["sync", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "sync")]
)
def surviving(request, tmp_path_factory):
    """A trainer of each kind that goes on through the faults of several tests, and the directory of its orders."""
    orders = tmp_path_factory.mktemp("orders")
    with make(request.param, {"orders": str(orders)}, max_worker_restarts_per_minute=60) as trainer:
        trainer.train()
        yield request.param, trainer, orders


def test_killed_workers_come_back_and_no_step_is_lost_or_counted_twice(surviving):
    kind, trainer, _ = surviving
    before, restarts = pids(trainer), trainer.workers.num_restarts
    os.kill(before[0], signal.SIGKILL)
    train_until(trainer, lambda result: result["num_worker_restarts"] == restarts + 1)
    for pid in pids(trainer):  # all at once
        os.kill(pid, signal.SIGKILL)
    results = train_until(trainer, lambda result: result["num_worker_restarts"] == restarts + 3)
    results.append(trainer.train())
    assert not set(pids(trainer)) & set(before)
    last = results[-1]
    assert last["num_healthy_workers"] == 2
    sampled, trained = (last["info"][f"num_steps_{what}"] for what in ("sampled", "trained"))
    assert sampled % 20 == 0 and 0 <= sampled - trained <= 40 * 18
    if kind == "sync":
        assert sampled == trained == 40 * trainer.iteration


@pytest.mark.parametrize("fault", ["step", "reset", "exit"])
def test_a_fault_on_the_way_is_survived(surviving, fault):
    _, trainer, orders = surviving
    restarts = trainer.workers.num_restarts
    (orders / fault).write_text("")
    train_until(trainer, lambda result: result["num_worker_restarts"] == restarts + 1)
    assert trainer.train()["num_healthy_workers"] == 2
    assert not (orders / fault).exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_hangs_is_replaced(kind, tmp_path):
    once = {"fault": "hang", "at": 65, "once": str(tmp_path / "struck")}
    with make(kind, once, sample_timeout_s=5.0) as trainer:
        train_until(trainer, lambda result: result["num_worker_restarts"] == 1)
        assert trainer.train()["num_healthy_workers"] == 2
    assert (tmp_path / "struck").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_without_recovery_a_killed_worker_ends_the_run(kind):
    with make(kind, recreate_failed_workers=False) as trainer:
        trainer.train()
        os.kill(pids(trainer)[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match="rollout worker 2 failed"):
            train_until(trainer, lambda result: False, 60.0)


@pytest.mark.slow
def test_a_failed_worker_is_left_out_if_asked():
    with make("async", recreate_failed_workers=False, ignore_worker_failures=True) as trainer:
        trainer.train()
        os.kill(pids(trainer)[0], signal.SIGKILL)
        train_until(trainer, lambda result: result["num_healthy_workers"] == 1)
        trainer.train()
        os.kill(pids(trainer)[0], signal.SIGKILL)
        with pytest.raises(WorkerError, match="the last one"):
            train_until(trainer, lambda result: False, 60.0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["step", "exit", "hang"])
def test_without_recovery_the_same_fault_ends_the_run(fault, tmp_path):
    once = {"fault": fault, "at": 65, "once": str(tmp_path / "struck")}
    error, said = {"step": (EnvError, "step"), "exit": (WorkerError, "worker 1"), "hang": (WorkerError, "no answer")}[
        fault
    ]
    with (
        make("async", once, sample_timeout_s=5.0, recreate_failed_workers=False) as trainer,
        pytest.raises(error, match=said),
    ):
        train_until(trainer, lambda result: False, 60.0)


@pytest.mark.slow
def test_a_worker_killed_while_it_starts_is_started_anew(tmp_path):
    fault = {"fault": "killed while it starts", "once": str(tmp_path / "once")}
    with make("sync", fault) as trainer:
        assert trainer.train()["num_worker_restarts"] == 1
        assert trainer.train()["num_healthy_workers"] == 2
    fault = {**fault, "once": str(tmp_path / "again")}
    with pytest.raises(WorkerError, match="could not start"):
        make("sync", fault, recreate_failed_workers=False)


@pytest.mark.slow
def test_what_is_wrong_from_the_first_step_on_is_told_at_once():
    start = time.monotonic()
    with (
        make("sync", {"fault": "step"}) as trainer,
        pytest.raises(EnvError, match=r"worker 1.*step.*the engine broke in step"),
    ):
        trainer.train()
    with pytest.raises(WorkerError, match=r"could not start.*the engine broke in constructor"):
        make("sync", {"fault": "constructor"})
    assert time.monotonic() - start < 120


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_storm_of_failures_ends_by_the_budget(kind):
    with (
        make(kind, {"fault": "step", "at": 45}, max_worker_restarts_per_minute=1) as trainer,
        pytest.raises(
            WorkerError, match=r"rollout worker 1 failed.*1 workers were restarted within a minute.*EnvError"
        ),
    ):
        train_until(trainer, lambda result: False)
    assert trainer.workers.num_restarts == 1


@pytest.mark.slow
def test_a_worker_that_cannot_come_back_is_given_up(tmp_path):
    """What the environment needs is gone: the worker dies, and so does each one that is to take its place."""
    with make("sync", {"fault": "constructor", "gone": str(tmp_path / "gone")}) as trainer:
        trainer.train()
        (tmp_path / "gone").write_text("")
        os.kill(pids(trainer)[0], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"rollout worker 1 failed.*in a row before it gave a batch"):
            train_until(trainer, lambda result: False)


def aggregators(trainer):
    gathers = [node for node in trainer.plan.nodes() if node.kind == "gather_async"]
    return [member.shard for member in gathers[0].members]


@pytest.mark.slow
def test_aggregators_join_what_workers_sample_and_are_replaced():
    with make("tree") as trainer:
        first = trainer.train()
        assert first["timesteps_total"] % 40 == 0 and first["info"]["num_steps_trained"] <= first["timesteps_total"]
        ray.kill(aggregators(trainer)[1])
        train_until(trainer, lambda result: trainer.workers.budget.restarts == 1)
        assert trainer.train()["num_worker_restarts"] == 0
    with make("tree", recreate_failed_workers=False) as trainer:
        trainer.train()
        ray.kill(aggregators(trainer)[0])
        with pytest.raises(WorkerError, match="aggregator 0 failed"):
            train_until(trainer, lambda result: False, 60.0)


def test_what_the_learner_raises_is_raised_by_train_with_its_origin():
    with make("async", lr=1e38) as trainer:
        with pytest.raises(NonFiniteError, match=r"default_policy.*total_loss|grad_gnorm|got") as caught:
            train_until(trainer, lambda result: False, 60.0)
        assert "workers [" in caught.value.__notes__[0]
        with pytest.raises(NonFiniteError):
            trainer.train()
