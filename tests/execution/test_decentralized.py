"""Workers that learn together, in threads of this process: equal bits, what travels, lost rounds."""

import dataclasses
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import build_policy, losses
from jaxrl.algorithms.ddppo import DDPPOTrainer
from jaxrl.data import concat_batches
from jaxrl.envs.probes import TASKS, ProbeEnv
from jaxrl.execution.context import PlanContext
from jaxrl.execution.decentralized import GroupLearner, PackedState, Report, group_learner, learn_together
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner import Learner
from jaxrl.execution.rollout_ops import StandardizeFields
from jaxrl.execution.worker_group import FollowWorkers, WorkerGroup, check_equal
from jaxrl.rollout import RolloutWorker, is_multi_agent, make_worker_env
from jaxrl.trainers.compilation import compile_seconds
from jaxrl.trainers.setup import make_recipes
from jaxrl.types import ConfigError, ModelInputs, NonFiniteError, WorkerError

# Few terms, a plain optimiser: each worker compiles its own learn step.
TINY = build_policy(
    "TinyPolicy",
    loss_fn=losses.weighted_sum(
        policy_loss=(1.0, losses.advantage_policy_gradient()), vf_loss=(0.5, losses.value_error())
    ),
)
TinyTrainer = DDPPOTrainer.with_updates(default_policy=TINY)
SMALL: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_workers": 2,
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 16,
    "sgd_minibatch_size": 8,
    "num_sgd_iter": 2,
    "optimizer": "sgd",
    "lr": 0.01,
    "seed": 0,
    "sample_timeout_s": 30.0,
    "model": {"fcnet_hiddens": [8]},
}
LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4, "fcnet_hiddens": [8]}
TWO_POLICIES: dict[str, Any] = {
    "env": "MultiAgentCartPole",
    "env_config": {"num_agents": 2},
    "multiagent": {"policies": {"a": None, "b": None}, "policy_mapping_fn": {0: "a", 1: "b"}},
}


class ThreadedWorkers:
    """Stands for a WorkerSet whose actors are threads."""

    def __init__(self, workers):
        self.workers, self.num_restarts, self.failing = workers, 0, None

    def apply(self, fn, *args):
        if self.failing is not None and fn.__name__ == self.failing:
            raise WorkerError("rollout worker 2: it died")
        return self.each(lambda worker: fn(worker, *args))

    def each(self, fn):
        results: dict[int, Any] = {}

        def run(worker):
            try:
                results[worker.worker_index] = fn(worker)
            except Exception as error:
                results[worker.worker_index] = error

        threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a worker hangs"
        for result in results.values():
            if isinstance(result, Exception):
                raise result
        return [results[worker.worker_index] for worker in self.workers]


class Run:
    """A driver and its workers, as the trainer makes them."""

    def __init__(self, trainer_class: Any = TinyTrainer, **options: Any):
        config = trainer_class.resolve_config({**SMALL, **options})
        env = make_worker_env(config, 0, config.num_workers, 1)
        recipes = make_recipes(config, trainer_class.policy_factory, env)
        for one in env if is_multi_agent(env) else [env]:
            one.close()
        self.policies = {pid: recipe.build() for pid, recipe in recipes.items()}
        n = config.num_workers
        workers = [RolloutWorker(config, self.policies, worker_index=i, num_workers=n) for i in range(1, n + 1)]
        self.workers = ThreadedWorkers(workers)
        self.config = config
        self.reset()

    def reset(self):
        """A new driver, which knows nothing of the workers' ring."""
        learners = {
            pid: Learner(policy, jax.random.key(i), policy_id=pid)
            for i, (pid, policy) in enumerate(self.policies.items())
        }
        stand_in: Any = self.workers
        self.ctx = PlanContext(self.config, stand_in, learners)
        self.workers.failing, self.workers.num_restarts = None, 0
        weights = {pid: learner.weights for pid, learner in learners.items()}
        for worker in self.workers.workers:
            worker.config = self.config
            worker.set_weights(1, weights)
        self.group = WorkerGroup(self.ctx)
        self.batches: list[Any] = []

    def sample(self, worker):
        standardize = StandardizeFields(["advantages"])
        return standardize.apply((), worker.sample())[1]

    def reports(self, change=lambda worker, batch: batch) -> list[Report]:
        """What the workers report of a round."""
        self.batches = [change(worker, self.sample(worker)) for worker in self.workers.workers]
        by_index = {
            worker.worker_index: batch for worker, batch in zip(self.workers.workers, self.batches, strict=True)
        }
        return self.workers.each(
            lambda worker: learn_together(worker, group_learner(worker), by_index[worker.worker_index])[1]
        )

    def round(self, **options):
        self.group.prepare()
        return self.group.follow(self.reports(**options))

    def learner(self, number: int) -> GroupLearner:
        return group_learner(self.workers.workers[number])

    def close(self):
        for worker in self.workers.workers:
            group_learner(worker).leave("the test is over")
            worker.stop()


@pytest.fixture
def start():
    runs = []

    def start(*args, **options):
        runs.append(Run(*args, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.fixture(scope="module")
def shared():
    run = Run()
    yield run
    run.close()


@pytest.fixture
def run(shared):
    shared.reset()
    return shared


def digest(state):
    return PackedState.of(state).digest()


def digests(run):
    """Of the driver's copy, then of each worker's states."""
    owners = [run.ctx.learners, *(group_learner(worker).learners for worker in run.workers.workers)]
    return [{pid: digest(owner[pid].state) for pid in run.ctx.policies_to_train} for owner in owners]


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 3, "optimizer": "adam"},
        {"num_workers": 1, "sgd_minibatch_size": 0},
        {"model": LSTM},
        TWO_POLICIES,
        {"sgd_minibatch_size": 12},  # the last of each epoch is short
    ],
    ids=["three", "one", "lstm", "two policies", "short minibatch"],
)
def test_all_hold_the_same_bits_after_every_round(start, options):
    run = start(**options)
    seen = [digests(run)[0]]
    for number in range(1, 4):
        (info,) = run.round()
        after = digests(run)
        assert all(other == after[0] for other in after)
        assert after[0] not in seen
        seen.append(after[0])
        for worker in run.workers.workers:  # and acts with them
            for pid, learner in run.ctx.learners.items():
                jax.tree.map(np.testing.assert_array_equal, worker.weights[pid].params, learner.state.params)
        steps = 32 * run.ctx.config.num_workers
        assert run.ctx.counters["num_steps_sampled"] == run.ctx.counters["num_steps_trained"] == number * steps
        assert set(info) == set(run.policies)
        assert run.ctx.learner_info == info
    assert run.ctx.timers["all_reduce"].count == 3


def test_one_minibatch_is_that_of_a_single_learner_on_the_joined_data(start):
    run = start(sgd_minibatch_size=0, num_sgd_iter=1)
    run.group.prepare()
    before = run.ctx.learners["default_policy"].state
    (info,) = run.group.follow(run.reports())
    joined: Any = concat_batches(
        [batch.select([n for n in batch if not n.startswith("final")]) for batch in run.batches]
    )
    alone = Learner(run.policies["default_policy"], jax.random.key(9))
    alone.state = before
    metrics = alone.learn(joined)
    assert set(info["default_policy"]) == set(metrics)
    assert info["default_policy"]["total_loss"] == pytest.approx(metrics["total_loss"], rel=1e-5)
    assert info["default_policy"]["grad_gnorm"] == pytest.approx(metrics["grad_gnorm"], rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        run.ctx.learners["default_policy"].state.params,
        alone.state.params,
    )


def test_the_kl_coefficient_follows_all_workers(start):
    run = start(DDPPOTrainer, kl_coeff=0.2, kl_target=1e-9, num_sgd_iter=1)
    coeffs = []
    for _ in range(2):
        run.round()
        coeffs.append(float(run.ctx.learners["default_policy"].state.coeffs["kl_coeff"]))
        for number in range(2):
            assert float(run.learner(number).learners["default_policy"].state.coeffs["kl_coeff"]) == coeffs[-1]
    assert coeffs == pytest.approx([0.3, 0.45])


def test_schedules_and_changes_by_hand_reach_the_workers(start, monkeypatch):
    run = start(lr=[[0, 0.01], [128, 0.0]])
    sent = []
    install = GroupLearner.install
    monkeypatch.setattr(GroupLearner, "install", lambda self, states: (sent.append(states), install(self, states)))
    run.round()
    assert all(isinstance(states["default_policy"], PackedState) for states in sent)
    sent.clear()
    run.round()
    assert [set(states["default_policy"]) for states in sent] == [{"lr"}] * 2  # coeffs that changed, nothing else
    rates = [float(run.learner(i).learners["default_policy"].state.coeffs["lr"]) for i in range(2)]
    assert rates == pytest.approx([0.005, 0.005])
    learner = run.ctx.learners["default_policy"]
    learner.set_coeffs({"vf_loss_coeff": 0.75})
    learner.state = learner.state.replace(params=jax.tree.map(lambda x: x * 0, learner.state.params))
    run.group.prepare()
    for number in range(2):
        state = run.learner(number).learners["default_policy"].state
        assert float(state.coeffs["vf_loss_coeff"]) == 0.75
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.params))
        assert not any(
            np.any(leaf) for leaf in jax.tree.leaves(run.workers.workers[number].weights["default_policy"].params)
        )
    run.group.follow(run.reports())


def test_only_policies_to_train_learn(start):
    options = {**TWO_POLICIES, "multiagent": {**TWO_POLICIES["multiagent"], "policies_to_train": ["b"]}}
    run = start(**options)
    before = {pid: digest(learner.state) for pid, learner in run.ctx.learners.items()}
    (info,) = run.round(change=lambda _, batch: batch.select(["b"]))
    assert list(info) == ["b"]
    assert digest(run.ctx.learners["a"].state) == before["a"]
    assert digest(run.ctx.learners["b"].state) != before["b"]
    assert run.ctx.counters["num_agent_steps_trained"] == run.ctx.counters["num_agent_steps_sampled"] == 64


def with_mask(rows):
    def change(worker, batch):
        mask = np.zeros(batch.shape, bool)
        mask.reshape(-1)[: rows[worker.worker_index - 1]] = True
        return batch.with_columns(mask=mask)

    return change


@pytest.mark.parametrize("rows", [(32, 1), (5, 32), (9, 0), (0, 32)])
def test_workers_with_fewer_rows_take_as_many_steps(run, rows):
    (info,) = run.round(change=with_mask(rows))
    after = digests(run)
    assert after[0] == after[1] == after[2]
    state = run.ctx.learners["default_policy"].state
    assert int(state.step) == 2 * -(-max(rows) // 8)
    assert np.isfinite(list(info["default_policy"].values())).all()
    assert run.ctx.counters["num_agent_steps_trained"] == sum(rows)


def test_nobody_has_rows_for_a_policy(run):
    before = digests(run)[0]
    assert run.round(change=with_mask((0, 0))) == [{}]
    assert all(after == before for after in digests(run))


def test_batches_of_two_shapes_are_refused(run):
    with pytest.raises(ConfigError, match=r"one shape, got \(T, B\) = \[\(16, 2\), \(8, 2\)\]"):
        run.round(change=lambda worker, batch: batch if worker.worker_index == 1 else batch.slice(0, 8))


def test_a_metric_that_is_not_finite_is_an_error_and_changes_nothing(run):
    run.round()
    before = digests(run)

    def poison(worker, batch):
        return batch.with_columns(advantages=batch["advantages"] * (np.nan if worker.worker_index == 2 else 1.0))

    with pytest.raises(NonFiniteError, match="expected finite"):
        run.round(change=poison)
    assert digests(run) == before
    assert run.round()  # goes on


def test_a_lost_round_counts_as_sampled_and_the_next_begins_from_the_drivers_copy(run):
    run.round()
    before = digests(run)[0]
    run.group.prepare()
    run.learner(1).leave("its process died")  # as a worker that was replaced: no ring, no state of the run
    other = Learner(run.policies["default_policy"], jax.random.key(123))
    run.learner(1).learners["default_policy"].state = other.state
    reports = run.reports()
    assert reports[1].broken == "its process died"
    assert "lost a neighbour" in str(reports[0].broken)
    assert run.group.follow(reports) == []
    assert digests(run)[0] == before
    assert run.ctx.counters["num_steps_sampled"] == 128
    assert run.ctx.counters["num_steps_trained"] == 64
    assert run.round()
    after = digests(run)
    assert after[0] == after[1] == after[2] != before
    assert int(run.ctx.learners["default_policy"].state.step) == 16


@pytest.mark.parametrize("call", ["listen_for_neighbour", "join_ring", "install"])
def test_a_worker_that_dies_while_the_ring_is_formed_costs_the_round(run, call):
    run.workers.failing = call
    run.group.prepare()
    run.workers.failing = None
    assert run.group.follow(run.reports()) == []
    assert run.round()
    assert len({tuple(each.values()) for each in digests(run)}) == 1


def test_losing_round_after_round_without_a_failure_ends_the_run(run):
    run.workers.failing = "join_ring"
    with pytest.raises(WorkerError, match=r"could not learn together 3 times in a row.*worker 1: .*worker 2: "):
        for _ in range(4):
            run.round()
    run.workers.failing = None
    assert run.round()


def test_however_many_workers_fail_it_does_not_go_on_for_ever(run):
    run.workers.failing = "join_ring"
    with pytest.raises(WorkerError, match=r"10 times in a row, since one or another failed.*sample_timeout_s"):
        for _ in range(20):
            run.workers.num_restarts += 1
            assert run.round() == []
    assert run.workers.num_restarts == 10


def test_a_new_worker_compiles_while_nobody_waits_for_it(start):
    run = start(num_sgd_iter=1, sgd_minibatch_size=0)
    run.workers.failing = "join_ring"
    seconds = [compile_seconds()]
    run.round()
    seconds.append(compile_seconds())
    run.workers.failing = None
    assert run.round()
    seconds.append(compile_seconds())
    assert seconds[2] - seconds[1] < 0.3 * (seconds[1] - seconds[0])


def test_weights_that_differ_are_an_error_that_names_the_workers():
    reports = [Report(i, 1, 1, digests={"a": "x", "b": "y" if i == 2 else "z"}) for i in (1, 2, 3)]
    with pytest.raises(WorkerError, match=r"policy 'b'.*workers \[1, 3\] hold z, workers \[2\] hold y"):
        check_equal(reports)
    check_equal([report._replace(digests={"a": "x"}) for report in reports])


def test_a_worker_that_went_its_own_way_is_found_out(run):
    run.round()
    learner = run.learner(1).learners["default_policy"]
    learner.state = learner.state.replace(params=jax.tree.map(lambda x: x * 1.0001, learner.state.params))
    with pytest.raises(WorkerError, match="should be equal on all workers"):
        run.round()


def test_the_driver_can_follow_less_closely(run):
    for worker in run.workers.workers:
        worker.config = dataclasses.replace(run.config, keep_local_weights_in_sync=False)
    before = digests(run)[0]
    for _ in range(2):
        run.round()
    after = digests(run)
    assert after[0] == before != after[1] == after[2]
    run.group.download()
    assert digests(run)[0] == after[1]
    assert run.round()


def test_packed_states_keep_every_bit_and_the_key(run):
    policy = run.policies["default_policy"]
    state = policy.init(jax.random.key(3, impl="rbg"))
    again = PackedState.of(state).unpack()
    assert digest(again) == digest(state)
    assert jax.random.key_impl(again.key) == jax.random.key_impl(state.key)
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_the_operator_leaves_lost_rounds_out(run):
    rounds = LocalIterator.from_items([0, 1, 2]).for_each(lambda number: run.reports() if number != 1 else lost(run))
    got = list(rounds.combine(FollowWorkers(run.group)))
    assert len(got) == 2
    assert run.ctx.counters["num_steps_trained"] == 128


def lost(run):
    run.learner(0).leave("gone")
    return run.reports()


@pytest.mark.slow
@pytest.mark.parametrize("probe", list(TASKS))
def test_probe_is_solved(start, probe):
    run = start(
        DDPPOTrainer,
        env=probe,
        num_envs_per_worker=4,
        rollout_fragment_length=8,
        sgd_minibatch_size=32,
        num_sgd_iter=5,
        optimizer="adam",
        lr=0.003,
        gamma=0.5,
        kl_coeff=0.0,
        vf_clip_param=float("inf"),
        model={"fcnet_hiddens": [16]},
    )
    for _ in range(120):
        run.round()
    policy, weights = run.policies["default_policy"], run.ctx.learners["default_policy"].weights
    for answer in ProbeEnv(probe, {}).answers(0.5):
        obs = jnp.asarray(answer.obs)[None]
        if answer.action is not None:
            assert (
                int(policy.spec.dist_class(policy.spec.model.apply(weights[0], ModelInputs(obs)).dist_inputs).mode()[0])
                == answer.action
            )
        # A policy that explores earns a little less than the best one where its actions matter.
        slack = 0.1 if answer.action is None else 0.35
        assert float(policy.value(weights, obs, ())[0]) == pytest.approx(answer.value, abs=slack)


def test_defaults_are_those_of_rllib():
    config = DDPPOTrainer.resolve_config({"env": "CartPole-v1"})
    assert (config.num_workers, config.num_envs_per_worker, config.rollout_fragment_length) == (2, 5, 100)
    assert (config.sgd_minibatch_size, config.num_sgd_iter, config.lr, config.clip_param) == (50, 10, 5e-5, 0.3)
    assert (config.kl_coeff, config.kl_target, config.vf_clip_param, config.vf_loss_coeff) == (0.2, 0.01, 10.0, 1.0)
    assert config.keep_local_weights_in_sync is True
    assert config.num_gpus_per_worker == 0
    assert config.workers_learn
    assert not config.model.vf_share_layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers=0: in DD-PPO the workers are the learners"),
        ({"batch_mode": "complete_episodes"}, "batch_mode='complete_episodes'"),
        ({"num_gpus": 1}, "set num_gpus_per_worker"),
        ({"num_learner_devices": 2}, "num_learner_devices=2"),
        ({"train_batch_size": 4000}, r"make 1000; leave train_batch_size out"),
        ({"sgd_minibatch_size": 501}, "sgd_minibatch_size=501 is larger than a worker's 500 steps"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DDPPOTrainer.resolve_config({"env": "CartPole-v1", **options})


def test_options_that_fit():
    resolve = DDPPOTrainer.resolve_config
    assert resolve({"env": "CartPole-v1", "train_batch_size": 1000}).train_batch_size == 1000
    assert resolve({"env": "CartPole-v1", "vf_share_layers": True}).model.vf_share_layers
