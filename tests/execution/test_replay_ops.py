"""Operators with replay: storing, drawing, priorities, target networks, mixing; and memories in checkpoints."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxrl import build_policy, build_trainer
from jaxrl.algorithms.dqn import DQNPolicy, DQNTrainer, dqn_loss
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.replay_ops import MixInReplay, WaitUntilTimestepsElapsed, updates_in_turn
from jaxrl.types import CheckpointError, ConfigError, LossError

CONFIG = {
    "env": "CartPole-v1",
    "seed": 3,
    "model": {"fcnet_hiddens": [8]},
    "hiddens": [],
    "rollout_fragment_length": 4,
    "train_batch_size": 16,
    "learning_starts": 40,
    "buffer_size": 200,
    "timesteps_per_iteration": 60,
    "target_network_update_freq": 20,
}


def dqn(**options):
    return DQNTrainer(config={**CONFIG, **options})


def memory_of(trainer):
    memory = trainer.context.memory
    assert memory is not None
    return memory


def params_of(trainer):
    return jax.tree.map(np.asarray, trainer.learners["default_policy"].state.params)


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("updates", "expected"),
    [(1, (1, None)), (8, (8, None)), (0.25, (1, [4, 1])), (1.5, (1, [1, 1.5])), (0.3, (1, [1, 0.3]))],
)
def test_whole_numbers_of_updates_are_drawn_together(updates, expected):
    assert updates_in_turn(updates) == expected


def test_learning_waits_for_learning_starts_and_takes_the_steps_that_intensity_asks_for():
    with dqn(training_intensity=16.0) as trainer:  # one gradient step of 16 rows for each env step
        result = trainer.train()
        sampled, state = result["timesteps_total"], trainer.learners["default_policy"].state
        # Rounds of 4 steps; the first one with 40 rows stored learns, and so does each one after it.
        assert sampled == 60
        assert int(state.step) == sampled - 36
        assert result["info"]["num_steps_trained"] == 16 * int(state.step)
        assert result["info"]["num_target_updates"] == 1 + (60 - 40) // 20
        stats = result["info"]["replay_buffer"]["default_policy"]
        assert stats["size"] == 60
        assert stats["size_bytes"] > 60 * 16
        trainer.train()
        trainer.train()
        assert trainer.train()["info"]["replay_buffer"]["default_policy"]["size"] == 200


def test_fractional_intensity_is_met_on_average():
    with dqn(training_intensity=6.0, timesteps_per_iteration=2000) as trainer:  # 1.5 updates a round
        trainer.train()
        assert int(trainer.learners["default_policy"].state.step) == pytest.approx(1.5 * 1960 / 4, rel=0.1)


def test_target_network_moves_only_when_told():
    with dqn(target_network_update_freq=10_000, timesteps_per_iteration=40) as trainer:
        before = params_of(trainer)
        trainer.train()
        trainer.train()
        state = trainer.learners["default_policy"].state
        # The first update is due at once; the network that learns has gone on since.
        assert trainer.context.counters["num_target_updates"] <= 1
        moved = [
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(params_of(trainer)), strict=True)
        ]
        assert any(moved)
        learner = trainer.learners["default_policy"]
        learner.update_target(0.25)
        for new, old, target in zip(
            *map(jax.tree.leaves, (state.params, state.target_params, learner.state.target_params)), strict=True
        ):
            np.testing.assert_allclose(target, 0.25 * new + 0.75 * old, rtol=1e-6, atol=1e-7)
        learner.update_target()
        assert_equal_trees(learner.state.target_params, state.params)


def test_priorities_follow_the_td_errors():
    with dqn(training_intensity=16.0) as trainer:
        trainer.train()
        learner, memory = trainer.learners["default_policy"], memory_of(trainer)
        batch = memory.sample(np.random.default_rng(0), 64, 1.0)["default_policy"]
        assert batch["weights"].max() == pytest.approx(1.0, abs=1e-5) or batch["weights"].max() < 1.0
        learner.learn(batch)
        td_error = np.asarray(learner.rows["td_error"])
        priorities = np.abs(td_error) + 1.0
        memory.update("default_policy", batch, priorities)
        # alpha 0.6, beta 1: a row's weight is proportional to priority^-0.6, largest for the smallest priority.
        index, last = np.unique(batch["batch_indexes"][::-1], return_index=True)
        wanted = priorities[::-1][last] ** -0.6
        got = {int(i): float(w) for i, w in zip(*_rows(memory, 4000), strict=True)}
        pairs = [(got[int(i)], w) for i, w in zip(index, wanted, strict=True) if int(i) in got]
        ratios = np.array([g / w for g, w in pairs])
        assert len(ratios) > 10
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


def loss_without_rows(params, batch, ctx):
    return dqn_loss(params, batch, ctx)[0]


def test_priorities_without_td_errors_name_policy_and_row():
    silent = DQNTrainer.with_updates(name="Silent", default_policy=DQNPolicy.with_updates(loss_fn=loss_without_rows))
    with (
        silent(config={**CONFIG, "prioritized_replay": True}) as trainer,
        pytest.raises(LossError, match=r"default_policy.*td_error.*returns \[\].*prioritized_replay"),
    ):
        trainer.train()


def _rows(memory, n):
    batch = memory.sample(np.random.default_rng(1), n, 1.0)["default_policy"]
    return batch["batch_indexes"], batch["weights"]


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_run_saved_with_its_replay_memory_goes_on_bit_for_bit(tmp_path, prioritized):
    options = {"store_buffer_in_checkpoints": True, "prioritized_replay": prioritized, "n_step": 3}
    with dqn(**options) as first:
        first.train()
        first.train()
        path = first.save(str(tmp_path / "there"))
        first.train()
        expected = params_of(first)
    with DQNTrainer.from_checkpoint(path) as second:
        assert memory_of(second).stats()["default_policy"]["size"] == 120
        second.train()
        assert_equal_trees(params_of(second), expected)


def test_a_run_saved_without_it_gathers_rows_anew(tmp_path):
    with dqn() as trainer:
        trainer.train()
        path = trainer.save(str(tmp_path / "there"))
    assert not (tmp_path / "there" / "replay").exists()
    with DQNTrainer.from_checkpoint(path) as again:
        step = int(again.learners["default_policy"].state.step)
        assert memory_of(again).stats() == {}
        again.train()
        assert int(again.learners["default_policy"].state.step) > step


def test_replay_contents_that_do_not_fit_change_nothing(tmp_path):
    with dqn(store_buffer_in_checkpoints=True) as trainer:
        trainer.train()
        path = trainer.save(str(tmp_path / "there"))
    with dqn(buffer_size=100) as other:
        other.train()
        before, held = params_of(other), memory_of(other).stats()
        with pytest.raises(CheckpointError, match="capacity"):
            other.restore(path)
        assert_equal_trees(params_of(other), before)
        assert memory_of(other).stats() == held
    next((tmp_path / "there" / "replay").rglob("*.safetensors")).write_bytes(b"damaged")
    with dqn() as third, pytest.raises(CheckpointError, match="damaged"):
        third.restore(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_size": 8}, "buffer_size=8 is smaller than train_batch_size=16"),
        ({"learning_starts": 201}, "learning_starts=201 is beyond buffer_size=200"),
        ({"training_intensity": 0.0}, "training_intensity should be positive"),
        ({"num_sgd_iter": 2}, "num_sgd_iter=2 .* no meaning with replay"),
        ({"sgd_minibatch_size": 8}, "sgd_minibatch_size=8 have no meaning with replay"),
        ({"n_step": 0}, "n_step"),
        ({"exploration_config": {"type": "ParameterNoise"}}, "complete_episodes"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(options, message):
    with pytest.raises(ConfigError, match=message):
        dqn(**options)


def test_a_loss_that_reads_replayed_columns_needs_replay():
    def weighted(params, batch, ctx):
        out = ctx.forward(params, batch)
        return -batch.mean(batch["weights"] * out.dist.log_prob(batch["actions"]))

    trainer_class = build_trainer("T", default_policy=build_policy("P", loss_fn=weighted))
    config = {"env": "CartPole-v1", "rollout_fragment_length": 8, "train_batch_size": 8}
    with trainer_class(config=config) as trainer, pytest.raises(LossError, match="reads \\['weights'\\].*Replay"):
        trainer.train()


def test_two_runs_are_equal_and_n_step_may_be_longer_than_a_fragment():
    runs = []
    for _ in range(2):
        with dqn(n_step=6) as trainer:
            trainer.train()
            runs.append(params_of(trainer))
    assert_equal_trees(*runs)


def test_mix_in_replay_gives_old_batches_in_proportion():
    mixed = LocalIterator.from_items(list(range(400))).combine(MixInReplay(8, 1.5, seed=1))
    out = list(mixed)
    assert len(out) == pytest.approx(400 * 2.5, rel=0.05)
    fresh = -1
    for item in out:  # a replayed one is among the last 8
        assert item == fresh + 1 or fresh - 8 < item <= fresh
        fresh = max(fresh, item)
    assert list(LocalIterator.from_items([1, 2]).combine(MixInReplay(0, 0.0))) == [1, 2]
    with pytest.raises(ValueError, match="at least one slot"):
        MixInReplay(0, 1.0)


def test_mix_in_replay_goes_on_from_its_saved_state():
    def plan():
        return LocalIterator.from_items(list(range(20))).combine(MixInReplay(4, 0.5, seed=1))

    whole, first, second = list(plan()), plan(), plan()
    head = first.take(9)
    second.set_state(first.get_state())
    assert head + list(second) == whole


def test_wait_until_timesteps_elapsed():
    ctx: Any = SimpleNamespace(counters={"num_steps_sampled": 5})
    operator = WaitUntilTimestepsElapsed(ctx, 10)
    assert operator.apply((), None)[1] is False
    ctx.counters["num_steps_sampled"] = 10
    assert operator.apply((), None)[1] is True


TWO_POLICIES = {
    "multiagent": {"policies": {"first": None, "second": None}, "policy_mapping_fn": {0: "first", 1: "second"}},
    "prioritized_replay": False,
}


def test_lockstep_draws_the_same_time_steps_of_every_policy():
    config = {"env": "TwoStepGame", "replay_mode": "lockstep", **TWO_POLICIES}
    with dqn(**config) as trainer:
        trainer.train()
        batch = memory_of(trainer).sample(np.random.default_rng(0), 20, 0.0)
        first, second = batch["first"], batch["second"]
        for column in ("t", "eps_id", "batch_indexes"):
            np.testing.assert_array_equal(first[column], second[column])


def test_lockstep_refuses_agents_that_act_at_times_of_their_own():
    config = {"env": "MultiAgentCartPole", "env_config": {"num_agents": 2}, "replay_mode": "lockstep"}
    with (
        dqn(**config, **TWO_POLICIES, learning_starts=100) as trainer,
        pytest.raises(ConfigError, match="lockstep.*as many rows of every policy"),
    ):
        trainer.train()
        trainer.train()


def test_policies_that_do_not_learn_are_not_stored():
    multiagent = {**TWO_POLICIES["multiagent"], "policies_to_train": ["second"]}
    config = {"env": "MultiAgentCartPole", "env_config": {"num_agents": 2}, "multiagent": multiagent}
    with dqn(**config) as trainer:
        result = trainer.train()
        assert set(result["info"]["replay_buffer"]) == {"second"}
        assert set(result["info"]["learner"]) == {"second"}
