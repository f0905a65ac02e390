"""Operators that learn: counters, weights, averaged gradients."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import build_policy, losses
from jaxrl.algorithms.a2c import A2CPolicy
from jaxrl.data import MultiAgentBatch, SampleBatch
from jaxrl.execution.context import PlanContext
from jaxrl.execution.iterators import LocalIterator
from jaxrl.execution.learner import Learner
from jaxrl.execution.train_ops import ApplyGradients, AverageGradients, ComputeGradients, Gradients, TrainOneStep

CONFIG = {"model": {"fcnet_hiddens": [4]}, "lr": 0.05, "lr_schedule": [[0, 0.05], [100, 0.0]], "optimizer": "sgd"}


@pytest.fixture(scope="module")
def policy():
    return A2CPolicy(spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(2), CONFIG)


def make_batch(columns=2, *, seed=0, mask=None):
    rng = np.random.default_rng(seed)
    shape = (4, columns)
    made: dict[str, Any] = {name: rng.normal(size=shape).astype(np.float32) for name in ("advantages", "value_targets")}
    made["obs"] = rng.normal(size=(*shape, 3)).astype(np.float32)
    made["actions"] = rng.integers(0, 2, shape).astype(np.int32)
    return SampleBatch(made if mask is None else {**made, "mask": mask})


def make_context(policy, names=("default_policy",), to_train=None):
    sent = []
    learners = {name: Learner(policy, jax.random.key(i), policy_id=name) for i, name in enumerate(names)}
    config = SimpleNamespace(multiagent=SimpleNamespace(policies_to_train=to_train))
    workers: Any = SimpleNamespace(sync_weights=sent.append)
    return PlanContext(config, workers, learners), sent


def params_of(ctx, name="default_policy"):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(ctx.learners[name].state.params)]


class TestTrainOneStep:
    def test_learns_counts_and_broadcasts(self, policy):
        ctx, sent = make_context(policy)
        ctx.counters["num_steps_sampled"] = 50
        batch, info = next(LocalIterator.from_items([make_batch()]).for_each(TrainOneStep(ctx)))
        assert batch.env_steps == 8
        assert info["default_policy"]["cur_lr"] == pytest.approx(0.05)
        assert ctx.learner_info == info
        assert ctx.counters["num_steps_trained"] == ctx.counters["num_agent_steps_trained"] == 8
        assert ctx.timers["learn"].count == 1
        np.testing.assert_array_equal(jax.tree.leaves(sent[0]["default_policy"].params)[0], params_of(ctx)[0])
        assert float(sent[0]["default_policy"].coeffs["lr"]) == pytest.approx(0.025)  # the schedule at 50 steps

    def test_only_policies_to_train_that_have_rows(self, policy):
        ctx, sent = make_context(policy, ("a", "b", "c"), to_train=["a", "b"])
        before = {name: params_of(ctx, name) for name in "abc"}
        nobody = np.zeros((4, 2), bool)
        batch = MultiAgentBatch({"a": make_batch(), "b": make_batch(mask=nobody), "c": make_batch()}, env_steps=4)
        _, info = TrainOneStep(ctx)(batch)
        assert set(info) == {"a"}
        assert (params_of(ctx, "a")[0] != before["a"][0]).any()
        for name in "bc":
            np.testing.assert_array_equal(params_of(ctx, name)[0], before[name][0])
        assert ctx.counters.save()["num_steps_trained"] == 4
        assert ctx.counters["num_agent_steps_trained"] == 16
        assert set(sent[0]) == {"a", "b", "c"}

    def test_touches_the_host(self, policy):
        assert "host" in str(LocalIterator.from_items([1]).for_each(TrainOneStep(make_context(policy)[0])))


class TestMicrobatches:
    def test_mean_of_microbatches_is_the_gradient_of_the_batch(self, policy):
        parts = [make_batch(2, seed=1), make_batch(6, seed=2)]
        whole, _ = make_context(policy)
        _, info = TrainOneStep(whole)(SampleBatch.concat(parts))
        ctx, sent = make_context(policy)
        plan = (
            LocalIterator.from_items(parts)
            .for_each(ComputeGradients(ctx))
            .batch(2)
            .for_each(AverageGradients)
            .for_each(ApplyGradients(ctx))
        )
        assert not sent
        env_steps, averaged = next(plan)
        assert env_steps == 32
        for a, b in zip(params_of(ctx), params_of(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name in ("total_loss", "entropy", "vf_loss", "policy_loss", "grad_gnorm", "cur_lr"):
            assert averaged["default_policy"][name] == pytest.approx(info["default_policy"][name], rel=1e-4, abs=1e-6)
        assert ctx.counters.save() == {"num_steps_trained": 32, "num_agent_steps_trained": 32}
        assert {name: timer.count for name, timer in ctx.timers.items()} == {"compute_grads": 2, "apply_grad": 1}
        assert ctx.learner_info == averaged
        assert len(sent) == 1
        assert int(ctx.learners["default_policy"].state.step) == 1

    def test_policies_missing_in_some(self):
        def gradients(**rows):
            return Gradients(
                {n: {"w": np.array([r, 1], np.float32)} for n, r in rows.items()},
                rows,
                {n: {"m": float(r)} for n, r in rows.items()},
                10,
            )

        mean = AverageGradients([gradients(a=1), gradients(a=3, b=2)])
        np.testing.assert_allclose(mean.grads["a"]["w"], [2.5, 1.0])
        np.testing.assert_allclose(mean.grads["b"]["w"], [2.0, 1.0])
        assert mean.rows == {"a": 4, "b": 2}
        assert mean.env_steps == 20
        assert mean.info["a"]["m"] == 2.5
        assert mean.info["a"]["grad_gnorm"] == pytest.approx(np.hypot(2.5, 1.0))

    def test_nobody_to_train(self, policy):
        ctx, _ = make_context(policy, ("a",), to_train=[])
        gradients = ComputeGradients(ctx)(MultiAgentBatch({"a": make_batch()}, env_steps=8))
        assert gradients == Gradients({}, {}, {}, 8)
        assert ApplyGradients(ctx)(AverageGradients([gradients])) == (8, {})


def test_recurrent_batches_are_weighted_by_their_rows():
    """Sequences padded to different counts of valid rows."""
    model = {"fcnet_hiddens": [3], "use_gru": True, "lstm_cell_size": 3}
    factory = build_policy("P", loss_fn=losses.value_error())
    policy = factory(spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(2), {**CONFIG, "model": model})
    parts = []
    for seed, rows in ((1, 1), (2, 4)):
        mask = np.tile(np.arange(4)[:, None] < rows, (1, 2))
        state = jax.tree.map(np.asarray, policy.initial_carry(2)[0])
        part = make_batch(2, seed=seed, mask=mask)
        parts.append(part.with_columns(state_in=state, t=np.tile(np.arange(4, dtype=np.int32)[:, None], (1, 2))))
    ctx, _ = make_context(policy)
    compute = ComputeGradients(ctx)
    mean = AverageGradients([compute(part) for part in parts])
    whole = compute(SampleBatch.concat(parts))
    assert mean.rows == whole.rows == {"default_policy": 10}
    for a, b in zip(jax.tree.leaves(mean.grads), jax.tree.leaves(whole.grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
