"""The Learner: metrics, coeffs, failures that lose nothing, and learning on several devices."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import LearnOutput, build_policy, losses
from jaxrl.data import SampleBatch
from jaxrl.execution.learner import Learner
from jaxrl.types import ConfigError, NonFiniteError

OBS, ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(2)
CONFIG = {"model": {"fcnet_hiddens": [4]}, "lr": 0.01, "lr_schedule": [[0, 0.01], [100, 0.0]], "sgd_minibatch_size": 4}


def loss_fn(params, batch, ctx):
    value = ctx.forward(params, batch).value
    error = value - batch["rewards"]
    cause = batch.mean(jnp.sqrt(batch["rewards"]))  # NaN for a negative reward
    scale = losses.coeff(ctx, "scale")
    return scale * batch.mean(jnp.square(error)), LearnOutput({"root": cause}, {"td_error": error})


def make_batch(seed=0, steps=3, columns=3):
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(steps, columns, 3)).astype(np.float32)
    return SampleBatch({"obs": obs, "rewards": rng.random((steps, columns)).astype(np.float32)})


@pytest.fixture(scope="module")
def policy():
    return build_policy("P", loss_fn=losses.term(loss_fn, scale=1.0))(OBS, ACTIONS, CONFIG)


@pytest.fixture
def learner(policy):
    return Learner(policy, jax.random.key(0), policy_id="hunter")


def test_metrics_are_floats_with_the_coeffs_that_were_used(learner):
    learner.set_coeffs({"scale": 0.5})
    metrics = learner.learn(make_batch())
    assert set(metrics) == {"total_loss", "root", "grad_gnorm", "cur_lr", "cur_scale"}
    assert all(type(value) is float for value in metrics.values())
    assert metrics["cur_scale"] == 0.5
    assert learner.rows["td_error"].shape == (9,)
    assert int(learner.state.step) == 3


def test_learning_lowers_the_loss(learner):
    batch = make_batch()
    first = learner.learn(batch)["total_loss"]
    for _ in range(50):
        learner.learn(batch)
    assert learner.learn(batch)["total_loss"] < 0.5 * first


def test_nothing_recompiles(learner, policy):
    policy.learn.clear_cache()
    learner.learn(make_batch())
    learner.learn(make_batch(1))
    assert policy.learn._cache_size() == 1
    learner.set_coeffs({"lr": 0.5, "scale": 3})
    learner.learn(make_batch(2))
    learner.update_schedules(50)
    assert learner.learn(make_batch(3))["cur_lr"] == pytest.approx(0.005)
    assert policy.learn._cache_size() == 1


def test_unknown_coeff(learner):
    with pytest.raises(ConfigError, match=r"policy 'hunter' has no coeffs \['clip'\]; it has \['lr', 'scale'\]"):
        learner.set_coeffs({"clip": 0.1})


def test_non_finite_metrics_name_the_cause_and_change_nothing(learner):
    learner.learn(make_batch())
    before, rows = learner.state, learner.rows
    batch = make_batch()
    rewards = np.array(batch["rewards"])
    rewards[0, 0] = -1.0
    with pytest.raises(
        NonFiniteError, match=r"policy 'hunter'.*gradient step 3: expected finite metrics, got root=nan"
    ):
        learner.learn(batch.with_columns(rewards=rewards))
    rewards[0, 0] = np.inf
    with pytest.raises(NonFiniteError, match="column rewards is not finite either.*parameters stay as they were"):
        learner.learn(batch.with_columns(rewards=rewards))
    with pytest.raises(NonFiniteError):
        learner.gradients(batch.with_columns(rewards=rewards))
    assert learner.state is before
    assert learner.rows is rows
    assert np.isfinite(learner.learn(make_batch())["total_loss"])


def test_gradients_then_apply_equals_a_step(policy):
    whole = build_policy("P", loss_fn=policy.loss_fn)(OBS, ACTIONS, {**CONFIG, "sgd_minibatch_size": 0})
    one, two = Learner(whole, jax.random.key(0)), Learner(whole, jax.random.key(0))
    metrics = one.learn(make_batch())
    grads, same = two.gradients(make_batch())
    two.apply_gradients(grads)
    assert same == pytest.approx(metrics, rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.state.params), jax.tree.leaves(two.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_weights_are_snapshots(learner):
    weights = learner.weights
    before = [np.array(leaf) for leaf in jax.tree.leaves(weights)]
    learner.learn(make_batch())
    for kept, now in zip(before, jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_too_many_devices(policy):
    count = len(jax.devices())
    message = rf"num_learner_devices: {count + 1} asked for, {count} available \(cpu\).*device_count={count + 1}"
    with pytest.raises(ConfigError, match=message):
        Learner(policy, jax.random.key(0), num_devices=count + 1)


@pytest.mark.slow
def test_several_devices_equal_one():
    """In a process of its own: the number of CPU devices is fixed at JAX's start."""
    script = """
        import re
        import jax, numpy as np, pytest
        from gymnasium import spaces
        from jaxrl.algorithms.ppo import PPOPolicy
        from jaxrl.data import SampleBatch
        from jaxrl.execution.learner import Learner
        from jaxrl.types import ConfigError

        rng, width = np.random.default_rng(0), 17

        def make_batch(steps, columns):
            def floats(*shape):
                return rng.normal(size=(steps, columns, *shape)).astype(np.float32)

            return SampleBatch(
                {"obs": floats(3), "actions": rng.integers(0, 2, (steps, columns)).astype(np.int32), "advantages":
                floats(),
                 "action_logp": -abs(floats()), "vf_preds": floats(), "value_targets": floats(), "action_dist_inputs":
                 floats(2)})

        batch = make_batch(4, 8)
        for size in (0, 8):
            config = {"model": {"fcnet_hiddens": [width]}, "sgd_minibatch_size": size, "num_sgd_iter": 2, "lr": 0.01}
            policy = PPOPolicy(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), config)
            one, four = Learner(policy, jax.random.key(0)), Learner(policy, jax.random.key(0), num_devices=4)
            for _ in range(2):
                alone, together = one.learn(batch), four.learn(batch)
                assert together == pytest.approx(alone, rel=1e-5, abs=1e-5), (size, alone, together)
            for a, b in zip(jax.tree.leaves(one.state.params), jax.tree.leaves(four.state.params), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
            spread = four._place_batch(batch)
            assert {shard.data.shape for shard in spread["obs"].addressable_shards} == {(4, 2, 3)}
            with jax.set_mesh(four._mesh):
                program = policy.learn.lower(four.state, spread).compile().as_text()
            rows = (size or 32) // 4  # each device computes a quarter of the rows
            assert f"f32[{rows},{width}]" in program and f"f32[{rows * 4},{width}]" not in program, size
        with pytest.raises(ConfigError, match="num_learner_devices=4: a train batch of 6 columns does not divide"):
            four.learn(make_batch(4, 6))
        print("equal")
    """
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.strip() == "equal", done.stderr
