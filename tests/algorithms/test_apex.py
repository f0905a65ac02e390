"""Ape-X: runs on Ray from end to end, several agents, checkpoints, lost workers and shards, bad input."""

import os
import signal
import time
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ray

from jaxrl.algorithms.apex_ddpg import ApexDDPGPolicy, ApexDDPGTrainer
from jaxrl.algorithms.apex_dqn import ApexDQNPolicy, ApexDQNTrainer
from jaxrl.trainers.apex import steps_between_targets
from jaxrl.types import CheckpointError, ConfigError, NonFiniteError, WorkerError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

COMMON: dict[str, Any] = {
    "num_workers": 1,
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 10,
    "train_batch_size": 16,
    "training_intensity": 4,
    "learning_starts": 100,
    "buffer_size": 1000,
    "timesteps_per_iteration": 300,
    "max_weight_sync_delay": 40,
    "seed": 0,
}
DQN = {
    **COMMON,
    "env": "CartPole-v1",
    "target_network_update_freq": 160,
    "hiddens": [8],
    "model": {"fcnet_hiddens": [8]},
}
DDPG = {**COMMON, "env": "Pendulum-v1", "actor_hiddens": [8], "critic_hiddens": [8]}
TWO_POLICIES: dict[str, Any] = {
    "env": "MultiAgentCartPole",
    "env_config": {"num_agents": 2},
    "multiagent": {"policies": {"a": None, "b": None}, "policy_mapping_fn": {0: "a", 1: "b"}},
}
PID = "default_policy"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


def dqn(**options):
    return ApexDQNTrainer(config={**DQN, **options})


def shards_of(trainer):
    shards = trainer.context.shards
    assert shards is not None
    return shards


def rows_held(result, pid=PID):
    """Rows in each shard that has said what it holds."""
    info = {name: value for name, value in result["info"].items() if name.startswith("replay_shard_")}
    return [held[pid]["size"] if pid in held else 0 for _, held in sorted(info.items())]


def train_until(trainer, done, seconds=120.0):
    """Results until `done(result)`; fails when it takes too long."""
    results, deadline = [], time.monotonic() + seconds
    while not results or not done(results[-1]):
        assert time.monotonic() < deadline, f"not in {seconds} s: {results[-1:]}"
        results.append(trainer.train())
    return results


def params_of(trainer, pid=PID):
    with trainer.context.paused():
        return jax.tree.map(np.asarray, trainer.learners[pid].state.params)


# ---------------------------------------------------------------- runs


def test_ape_x_dqn_samples_stores_learns_and_reports():
    with dqn(num_workers=2) as trainer:
        before, asked = params_of(trainer), []
        pop = trainer.workers.pop_episodes

        def recorded(timeout_s=None, of_workers=None):
            asked.append(of_workers)
            return pop(timeout_s, of_workers=of_workers)

        trainer.workers.pop_episodes = recorded
        trainer.train()
        result = trainer.train()
        assert [list(chosen) for chosen in asked] == [[2], [2]]  # of the worker that explores least
        info = result["info"]
        sampled, trained = info["num_steps_sampled"], info["num_steps_trained"]
        assert result["timesteps_total"] == sampled >= 600 and sampled % 20 == 0
        # Four rows for each step since learning began, but for what waits.
        assert 4 * (sampled - 400) <= trained <= 4 * sampled
        assert info["num_target_updates"] == trained // 160
        assert info["num_weight_syncs"] == pytest.approx(sampled / 40, abs=2)
        assert len(rows_held(result)) == 2 and sampled - 100 <= sum(rows_held(result)) <= sampled
        assert info["replay_shard_0"][PID]["size_bytes"] > 0
        epsilons = [worker[PID]["epsilon"] for worker in info["exploration_infos"]]
        np.testing.assert_allclose(epsilons, [0.4, 0.4**8])
        assert {"mean_q", "mean_td_error"} <= info["learner"][PID].keys()
        assert info["learner_queue"]["num_updates"] >= trained / 16
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, before, params_of(trainer))))
        (weights,) = ray.get([trainer.workers.actors[1].call.remote("get_weights")])
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, before, weights[PID].params)))
        assert np.isfinite(trainer.evaluate()["episode_reward_mean"])


def test_ape_x_ddpg_samples_stores_and_learns():
    with ApexDDPGTrainer(config=DDPG) as trainer:
        before = params_of(trainer)
        result = trainer.train()
        assert result["info"]["num_steps_trained"] > 0
        assert result["info"]["exploration_infos"] == [{PID: {"exploration_scale": 0.4, "random_actions": 1.0}}]
        after = params_of(trainer)
        for group in ("policy", "q"):
            assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, before[group], after[group])))


def test_two_policies_learn_each_from_rows_of_its_own():
    with dqn(**TWO_POLICIES) as trainer:
        before = {pid: params_of(trainer, pid) for pid in "ab"}
        result = trainer.train()
        for pid in "ab":
            assert sum(rows_held(result, pid)) > 0
            assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, before[pid], params_of(trainer, pid))))
        assert set(result["info"]["learner"]) == {"a", "b"}


def test_rows_may_be_drawn_evenly_and_both_sides_go_as_fast_as_they_can():
    with dqn(num_replay_buffer_shards=1, training_intensity=None, prioritized_replay=False) as trainer:
        assert trainer.train()["info"]["num_steps_trained"] > 0


# ---------------------------------------------------------------- target networks


def test_targets_follow_each_so_many_rows_within_learning():
    config = {
        "target_network_update_freq": 40,
        "sgd_minibatch_size": 16,
        "tau": 0.5,
        **{k: DQN[k] for k in ("hiddens", "model")},
    }
    policy = ApexDQNPolicy(gym.spaces.Box(-1.0, 1.0, (3,), np.float32), gym.spaces.Discrete(2), config)
    assert steps_between_targets(policy.spec.config) == 2  # 40 rows are two and a half steps of 16
    state = policy.init(jax.random.key(0))
    grads = jax.tree.map(jnp.ones_like, state.params)
    first = policy.apply_gradients(state, grads)
    jax.tree.map(np.testing.assert_array_equal, first.target_params, state.params)
    second = policy.apply_gradients(first, grads)
    jax.tree.map(
        lambda target, params, old: np.testing.assert_allclose(target, 0.5 * params + 0.5 * old, rtol=1e-6, atol=1e-7),
        second.target_params,
        second.params,
        first.target_params,
    )


def test_ddpgs_targets_may_follow_every_step():
    config = {"target_network_update_freq": 0, "tau": 0.25, "actor_hiddens": [8], "critic_hiddens": [8]}
    box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy = ApexDDPGPolicy(box, box, config)
    state = policy.init(jax.random.key(0))
    moved = policy.apply_gradients(state, jax.tree.map(jnp.ones_like, state.params))
    jax.tree.map(
        lambda target, params, old: np.testing.assert_allclose(
            target, 0.25 * params + 0.75 * old, rtol=1e-5, atol=1e-6
        ),
        moved.target_params,
        moved.params,
        state.params,
    )


# ---------------------------------------------------------------- checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("stored", [True, False])
def test_a_run_goes_on_from_a_checkpoint(stored, tmp_path):
    with dqn(store_buffer_in_checkpoints=stored) as first:
        first.train()
        path = first.save(str(tmp_path / "there"))
        counters = first.context.counters.save()
        held = sum(stats.rows for stats in ray.get([actor.stats.remote() for actor in shards_of(first).actors]))
        with first.context.paused():
            state = first.learners[PID].state
    with ApexDQNTrainer.from_checkpoint(path) as second:
        restored = second.learners[PID].state
        assert int(restored.step) > 0 and int(restored.step) <= int(state.step)
        again = second.context.counters.save()
        assert again["num_steps_sampled"] == counters["num_steps_sampled"]
        assert shards_of(second).draws > 0
        rows = [stats.rows for stats in shards_of(second).stats().values()]
        assert sum(rows) == (held if stored else 0) and (not stored or held >= 200)
        steps = int(restored.step)
        result = second.train()
        assert result["timesteps_total"] >= counters["num_steps_sampled"] + 300
        assert int(second.learners[PID].state.step) > steps
        # In place: what is held now gives way.
        second.restore(path)
        assert sum(stats.rows for stats in shards_of(second).stats().values()) == (held if stored else 0)
        second.train()


def test_contents_of_other_shards_are_refused_and_change_nothing(tmp_path):
    with dqn(store_buffer_in_checkpoints=True) as first:
        first.train()
        path = first.save(str(tmp_path / "there"))
    with dqn(num_replay_buffer_shards=1, store_buffer_in_checkpoints=True) as other:
        before = params_of(other)
        with pytest.raises(CheckpointError, match=r"this run has 1 replay shards.*num_replay_buffer_shards=2"):
            other.restore(path)
        jax.tree.map(np.testing.assert_array_equal, before, params_of(other))


# ---------------------------------------------------------------- faults


def pid_of(actor) -> Any:
    return ray.get(actor.ping.remote())


def lost_and_back(result):
    """One shard has been rebuilt, and holds rows to draw again."""
    return result["info"].get("num_replay_shard_restarts") == 1 and min(rows_held(result)) >= 50


@pytest.mark.slow
def test_killed_and_hung_shards_are_rebuilt_and_the_run_goes_on():
    with dqn(sample_timeout_s=20.0) as trainer:
        trainer.train()
        lost = rows_held(trainer.train())[0]
        actors = shards_of(trainer).actors
        os.kill(pid_of(actors[0]), signal.SIGKILL)
        result = train_until(trainer, lost_and_back)[-1]
        assert shards_of(trainer).actors[1] is actors[1]
        assert lost <= result["info"]["num_replay_rows_lost"] <= lost + 600  # what came since, and was on its way
        assert result["num_worker_restarts"] == 0
        for actor in shards_of(trainer).actors:  # all at once: there is nothing to learn from for a while
            os.kill(pid_of(actor), signal.SIGKILL)
        result = train_until(trainer, lambda result: result["info"].get("num_replay_shard_restarts") == 3)[-1]
        trained = result["info"]["num_steps_trained"]
        train_until(trainer, lambda result: result["info"]["num_steps_trained"] > trained + 400)
        os.kill(pid_of(shards_of(trainer).actors[1]), signal.SIGSTOP)
        train_until(trainer, lambda result: result["info"].get("num_replay_shard_restarts") == 4)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_without_recovery_a_lost_shard_ends_the_run(fault):
    with dqn(sample_timeout_s=20.0, recreate_failed_workers=False) as trainer:
        trainer.train()
        os.kill(pid_of(shards_of(trainer).actors[1]), fault)
        with pytest.raises(WorkerError, match="replay shard 1 failed"):
            train_until(trainer, lambda result: False, 100.0)


@pytest.mark.slow
def test_a_lost_shard_is_left_out_if_asked():
    with dqn(recreate_failed_workers=False, ignore_worker_failures=True) as trainer:
        trainer.train()
        os.kill(pid_of(shards_of(trainer).actors[0]), signal.SIGKILL)
        train_until(trainer, lambda result: len(rows_held(result)) == 1)
        os.kill(pid_of(shards_of(trainer).actors[0]), signal.SIGKILL)
        with pytest.raises(WorkerError, match="replay shard 1 failed"):
            train_until(trainer, lambda result: False, 100.0)


@pytest.mark.slow
def test_shards_that_keep_dying_end_the_run_by_the_budget():
    with dqn(max_worker_restarts=1, num_replay_buffer_shards=1) as trainer:
        trainer.train()
        os.kill(pid_of(shards_of(trainer).actors[0]), signal.SIGKILL)
        train_until(trainer, lambda result: result["info"].get("num_replay_shard_restarts") == 1)
        os.kill(pid_of(shards_of(trainer).actors[0]), signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"replay shard 0 failed, and max_worker_restarts=1 is spent"):
            train_until(trainer, lambda result: False, 100.0)


class LargeEnv(gym.Env):
    """Observations of which a fragment goes through the object store, and only a reference to it through the driver."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2048,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2048, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(2048, self.count / 10, np.float32), 1.0, self.count == 10, False, {}


@pytest.mark.slow
def test_fragments_on_their_way_from_a_worker_that_died_are_lost_alone():
    with dqn(env=LargeEnv) as trainer:
        stored: list[Any] = []
        shards = shards_of(trainer)
        add = shards.add

        def recorded(contents, rows):
            stored.append(contents)
            add(contents, rows)

        shards.add = recorded
        trainer.train()
        assert stored and all(isinstance(contents, ray.ObjectRef) for contents in stored)
        os.kill(pid_of(trainer.workers.actors[0]), signal.SIGKILL)
        train_until(trainer, lambda result: result["num_worker_restarts"] == 1)
        info = trainer.train()["info"]
        assert "num_replay_shard_restarts" not in info and info.get("num_replay_rows_lost", 0) <= 4 * 20


def test_what_the_learner_raises_ends_the_run_with_its_origin():
    with dqn(lr=1e38, max_weight_sync_delay=10**9, num_replay_buffer_shards=1) as trainer:
        with pytest.raises(NonFiniteError, match="default_policy") as caught:
            train_until(trainer, lambda result: False, 60.0)
        assert "16 rows of workers [1]" in caught.value.__notes__[0]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("trainer_class", [ApexDQNTrainer, ApexDDPGTrainer])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, r"num_workers=0.*use DQN or DDPG"),
        ({"optimizer": {"max_weight_sync_delay": 400, "debug": False}}, r"options are flat.*max_weight_sync_delay"),
        ({"num_replay_buffer_shards": 0}, "num_replay_buffer_shards"),
        ({"buffer_size": 24}, r"buffer_size=24 in num_replay_buffer_shards=2.*train_batch_size=16"),
        ({"learning_starts": 1001}, "learning_starts=1001 is beyond buffer_size=1000"),
        ({"training_intensity": -1.0}, "training_intensity should be positive"),
        ({"num_sgd_iter": 2}, "num_sgd_iter=2 .* no meaning with replay"),
        ({"num_replay_shards": 2}, "num_replay_buffer_shards"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(trainer_class, options, message):
    base = DQN if trainer_class is ApexDQNTrainer else DDPG
    actors = len(ray.util.list_named_actors())
    with pytest.raises(ConfigError, match=message):
        trainer_class(config={**base, **options})
    assert len(ray.util.list_named_actors()) == actors


def test_the_registered_names_are_rllibs():
    assert (ApexDQNTrainer.name_of(), ApexDDPGTrainer.name_of()) == ("APEX", "APEX_DDPG")
