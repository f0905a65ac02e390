"""Losses and optimisers by group of parameters, optimisers by name, clipping, target networks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import LearnOutput, build_policy, losses
from jaxrl.policies import every
from jaxrl.types import ConfigError, LossError


def policy_loss(params, batch, ctx):
    out = ctx.forward(params, batch)
    # The value net takes part, but this loss must not move it.
    return -batch.mean(out.dist.log_prob(batch["actions"]) * out.value), LearnOutput({"spread": out.value.std()})


def value_loss(params, batch, ctx):
    return batch.mean(jnp.square(ctx.forward(params, batch).value - batch["value_targets"]))


@pytest.fixture(scope="module")
def build(kit):
    def build(loss_fn, config=None, **parts):
        factory = build_policy("P", loss_fn=loss_fn, **{"make_model": kit.model, **parts})
        return factory(kit.obs, kit.actions, {"lr": 0.1, "optimizer": "sgd", **(config or {})})

    return build


@pytest.fixture(scope="module")
def batch(kit):
    return kit.train_batch()


def moved(policy, batch, steps=1):
    state = policy.init(jax.random.key(0))
    states = [state]
    for _ in range(steps):
        states.append(policy.learn(states[-1], batch)[0])
    return [
        {name for name in state.params if (np.asarray(a.params[name]) != np.asarray(b.params[name])).any()}
        for a, b in itertools.pairwise(states)
    ]


class TestGroups:
    def test_each_group_follows_its_own_loss(self, build, batch, kit):
        policy = build({"policy": policy_loss, "value": value_loss})
        state = policy.init(jax.random.key(0))
        ctx = policy.context(state)
        expected = {
            "policy": jax.grad(lambda p: policy_loss({**state.params, "policy": p}, batch, ctx)[0])(
                state.params["policy"]
            ),
            "value": jax.grad(lambda p: value_loss({**state.params, "value": p}, batch, ctx))(state.params["value"]),
        }
        grads, out = policy.gradients(state, batch)
        kit.equal(grads, expected, 1e-6)
        assert set(out.metrics) == {"policy/total_loss", "policy/spread", "value/total_loss", "grad_gnorm"}
        after, _ = policy.learn(state, batch)
        kit.equal(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, expected), 1e-6)

    def test_a_key_of_several_groups_equals_one_loss(self, build, batch, kit):
        together, one = build({("policy", "value"): kit.pg_loss}), build(kit.pg_loss)
        states = [p.learn(p.init(jax.random.key(0)), batch) for p in (together, one)]
        kit.equal(states[0][0].params, states[1][0].params, 1e-6)
        assert "policy+value/total_loss" in states[0][1].metrics

    def test_none_freezes(self, build, batch):
        policy = build({"policy": policy_loss, "value": None}, {"optimizer": "adamw"})  # weight decay must not touch it
        assert moved(policy, batch) == [{"policy"}]

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            ({"policy": policy_loss}, r"groups \['value'\] have no loss.*None to freeze"),
            ({"policy": policy_loss, "critic": value_loss}, r"group 'critic'.*\['policy', 'value'\]"),
            ({"policy": policy_loss, ("policy", "value"): value_loss}, r"groups \['policy'\] have two losses"),
        ],
    )
    def test_wrong_groups(self, build, groups, message):
        with pytest.raises(LossError, match=f"policy 'P': .*{message}"):
            build(groups)

    def test_rows_of_one_name(self, build, batch):
        def with_rows(params, batch, ctx):
            return batch.mean(ctx.forward(params, batch).value), LearnOutput({}, {"td_error": batch["rewards"]})

        policy = build({"policy": with_rows, "value": with_rows})
        with pytest.raises(LossError, match=r"rows \['td_error'\] are returned by two groups; rename"):
            policy.learn(policy.init(jax.random.key(0)), batch)

    def test_coeffs_of_groups(self, build):
        two = {"policy": losses.clipped_surrogate(clip_param=0.1), "value": losses.clipped_value_error()}
        assert build(two).spec.coeffs == pytest.approx({"lr": 0.1, "clip_param": 0.1, "vf_clip_param": 10.0})
        with pytest.raises(LossError, match="coeff 'clip_param' has two defaults, 0.1 and 0.2"):
            build({**two, "value": losses.clipped_surrogate(clip_param=0.2)})


class TestOptimizers:
    GROUPS = {"policy": policy_loss, "value": value_loss}

    def test_a_mapping_of_optimizers_and_every(self, build, batch):
        def optimizer_fn(config, coeffs):
            return {"value": optax.sgd(coeffs["lr"]), "policy": every(2, optax.adam(coeffs["lr"]))}

        policy = build(self.GROUPS, optimizer_fn=optimizer_fn)
        assert moved(policy, batch, 4) == [{"value"}, {"value", "policy"}] * 2
        state = policy.init(jax.random.key(0))
        for _ in range(4):
            state, _ = policy.learn(state, batch)
        assert [int(leaf) for leaf in jax.tree.leaves(state.opt_state["policy"]) if leaf.dtype == jnp.int32] == [2]

    def test_a_group_that_does_not_exist(self, build):
        with pytest.raises(ConfigError, match=r"optimizer_fn: .*'critic'.*\['policy', 'value'\]"):
            build(self.GROUPS, optimizer_fn=lambda config, coeffs: {"critic": optax.sgd(coeffs["lr"])})
        with pytest.raises(ConfigError, match="every: expected a number of steps >= 1, got 0"):
            every(0, optax.sgd(0.1))

    @pytest.mark.parametrize(
        ("option", "transform"),
        [
            ("adam", optax.adam(0.1)),
            ({"type": "rmsprop", "decay": 0.5, "momentum": 0.9}, optax.rmsprop(0.1, decay=0.5, momentum=0.9)),
            ({"type": "adamw", "weight_decay": 0.1}, optax.adamw(0.1, weight_decay=0.1)),
            ("lamb", optax.lamb(0.1)),
        ],
    )
    def test_by_name_equals_optax(self, build, batch, kit, option, transform):
        policy = build(kit.pg_loss, {"optimizer": option})
        state = policy.init(jax.random.key(0))
        params, opt_state = state.params, transform.init(state.params)
        for _ in range(2):
            grads = policy.gradients(state, batch)[0]
            updates, opt_state = transform.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            state, _ = policy.learn(state, batch)
        kit.equal(state.params, params, 1e-5)

    def test_a_function(self, build, batch, kit):
        policy = build(kit.pg_loss, optimizer_fn=lambda config, coeffs: optax.sgd(10 * coeffs["lr"]))
        kit.equal(
            policy.learn(policy.init(jax.random.key(0)), batch)[0].params,
            build(kit.pg_loss, {"lr": 1.0})
            .learn(policy.init(jax.random.key(0)).replace(coeffs={"lr": 1.0}), batch)[0]
            .params,
            1e-6,
        )

    def test_grad_clip(self, build, batch, kit):
        policy, free = build(kit.pg_loss, {"grad_clip": 0.01}), build(kit.pg_loss)
        state = policy.init(jax.random.key(0))
        after, out = policy.learn(state, batch)
        grads, _ = free.gradients(free.init(jax.random.key(0)), batch)
        norm = float(out.metrics["grad_gnorm"])
        assert norm > 0.01  # the norm before clipping is what is reported
        kit.equal(after.params, jax.tree.map(lambda p, g: p - 0.1 * 0.01 / norm * g, state.params, grads), 1e-6)


class TestTargets:
    def test_polyak(self, build, batch, kit):
        def loss(params, batch, ctx):
            target = ctx.forward(ctx.target_params, batch).value
            return batch.mean(jnp.square(ctx.forward(params, batch).value - 0.9 * target - batch["rewards"]))

        policy = build(
            loss, target_fn=lambda state, config: optax.incremental_update(state.params, state.target_params, 0.25)
        )
        state = policy.init(jax.random.key(0))
        kit.equal(state.target_params, state.params)
        after, _ = policy.learn(state, batch)
        kit.equal(after.target_params["value"], 0.25 * after.params["value"] + 0.75 * state.params["value"], 1e-6)
        assert (np.asarray(after.params["value"]) != np.asarray(state.params["value"])).any()

    def test_none_without_target_fn(self, build, kit):
        assert build(kit.pg_loss).init(jax.random.key(0)).target_params is None
