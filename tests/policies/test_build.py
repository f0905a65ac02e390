"""build_policy: what a loss needs is found, options follow from its terms, and mistakes are named."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from jaxrl import LearnOutput, build_policy, losses
from jaxrl.exploration import Exploration
from jaxrl.policies import PolicyConfig
from jaxrl.types import ActInputs, ConfigError, LossError


def policy_gradient_loss(params, batch, ctx):
    out = ctx.forward(params, batch)
    return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])


@pytest.fixture(scope="module")
def build(kit):
    def build(loss_fn=policy_gradient_loss, config=None, **parts):
        factory = build_policy("P", loss_fn=loss_fn, **{"make_model": kit.model, **parts})
        return factory(kit.obs, kit.actions, config)

    return build


class TestSectionOne:
    """The design's first snippets, the policy's part."""

    def test_a_loss_makes_a_policy(self, kit):
        MyPolicy = build_policy("MyPolicy", loss_fn=policy_gradient_loss)
        policy = MyPolicy(kit.obs, kit.actions, {"model": {"fcnet_hiddens": [8]}})
        assert policy.spec.reads == {"obs", "actions", "advantages"}
        state = policy.init(jax.random.key(0))
        out = policy.act(
            state.weights, ActInputs(np.zeros((5, 4), np.float32)), policy.initial_carry(5), state.key, True
        )
        assert out.actions.shape == (5,)
        assert set(np.asarray(out.actions)) <= {0, 1}

    def test_terms_make_a_policy(self, kit):
        MyPPO = build_policy("MyPPO", loss_fn=losses.weighted_sum(
            surrogate=(1.0, losses.clipped_surrogate(clip_param=0.2)),
            vf_loss=(0.5, losses.value_error()), entropy=(0.01, losses.entropy_bonus())))  # fmt: skip
        policy = MyPPO.with_updates(make_model=kit.model)(kit.obs, kit.actions)
        expected = {"lr": 1e-4, "surrogate_coeff": 1.0, "vf_loss_coeff": 0.5, "entropy_coeff": 0.01, "clip_param": 0.2}
        assert policy.spec.coeffs == pytest.approx(expected)
        assert policy.spec.reads == {"obs", "actions", "advantages", "action_logp", "value_targets"}

    def test_gradients_outside_jaxrl(self, kit, build):
        policy, batch = build(), kit.train_batch()
        state = policy.init(jax.random.key(0))
        ctx = policy.context(state)
        grads = jax.grad(policy_gradient_loss)(state.params, batch, ctx)
        jitted = jax.jit(jax.grad(policy_gradient_loss))(state.params, batch, ctx)
        kit.equal(grads, jitted, 1e-6)
        kit.equal(grads, policy.gradients(state, batch)[0], 1e-6)


class TestReads:
    def test_hidden_reads_are_found(self, build):
        def loss(params, batch, ctx):
            wanted = "new_obs" if ctx.config.gamma == 0.5 else "rewards"
            return batch.mean(batch[wanted]) + batch.mean(ctx.forward(params, batch).value)

        assert build(loss).spec.reads == {"obs", "rewards"}
        assert build(loss, {"gamma": 0.5}).spec.reads == {"obs", "new_obs"}

    def test_unknown_column(self, build):
        with pytest.raises(LossError, match=r"no column 'advantage'.*did you mean 'advantages'.*action_dist_inputs"):
            build(lambda params, batch, ctx: batch.mean(batch["advantage"]))

    def test_unknown_coeff(self, build):
        with pytest.raises(LossError, match=r"'tau', which is not there.*ctx.coeffs has \['lr'\].*losses.term"):
            build(lambda params, batch, ctx: ctx.coeffs["tau"] * batch.mean(batch["rewards"]))

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (lambda batch: batch["rewards"], r"expected a scalar, got an array of shape \(3, 2\).*batch.mean"),
            (lambda batch: None, "expected a scalar.*got NoneType"),
            (lambda batch: (0.0, 3), r"got \(float, int\)"),
            (lambda batch: (0.0, LearnOutput({"m": batch["rewards"]})), "metric 'm' should be a scalar"),
            (lambda batch: (0.0, LearnOutput({}, {"td": jnp.zeros(3)})), r"row 'td'.*\[3, 2\].*\[3\]"),
        ],
    )
    def test_bad_results(self, build, result, message):
        with pytest.raises(LossError, match=message):
            build(lambda params, batch, ctx: result(batch))

    def test_a_dict_of_metrics_will_do(self, build, kit):
        policy = build(lambda params, batch, ctx: (batch.mean(ctx.forward(params, batch).value), {"m": 2.0}))
        _, out = policy.learn(policy.init(jax.random.key(0)), kit.train_batch())
        assert float(out.metrics["m"]) == 2.0

    def test_loss_that_is_no_function(self):
        with pytest.raises(LossError, match=r"build_policy\('P'\): loss_fn should be a function.*got int"):
            build_policy("P", loss_fn=3)

    def test_hook_columns_are_known_and_its_reads_too(self, build, kit):
        def hook(params, batch, ctx, others):
            return batch.with_columns(bonus=batch["rewards"] + batch["prev_rewards"], rewards=2 * batch["rewards"])

        def loss(params, batch, ctx):
            return batch.mean(batch["bonus"] * ctx.forward(params, batch).value * batch["rewards"])

        policy = build(loss, postprocess_fn=hook)
        assert policy.spec.reads == {"obs", "rewards", "prev_rewards", "bonus"}
        with pytest.raises(LossError, match="postprocess_fn should return a SampleBatch, got dict"):
            build(loss, postprocess_fn=lambda params, batch, ctx, others: {})

    def test_exploration_without_a_log_probability(self, build):
        def greedy(space, config):
            def sample(dist, state, key, t, coeffs, explore):
                return dist.mode(), None, state

            return Exploration(sample)

        with pytest.raises(ConfigError, match="reads action_logp.*exploration 'greedy' does not draw"):
            build(losses.clipped_surrogate(), exploration_fn=greedy)
        build(exploration_fn=greedy)  # a loss that does not read it
        build(losses.clipped_surrogate(), {"exploration_config": {"type": "Random"}})  # returns its own


class TestConfig:
    def test_coeffs_are_options(self, build):
        loss = losses.weighted_sum(pg=(1.0, losses.clipped_surrogate()), vf=(0.5, losses.value_error()))
        policy = build(loss, {"clip_param": 0.1, "vf_coeff": [[0, 1.0], [100, 0.0]], "lr": 0.3})
        assert policy.spec.coeffs == pytest.approx({"clip_param": 0.1, "pg_coeff": 1.0, "vf_coeff": 1.0, "lr": 0.3})
        assert policy.spec.schedules["vf_coeff"](50) == 0.5
        with pytest.raises(ConfigError, match="clip_parm.*did you mean 'clip_param'"):
            build(loss, {"clip_parm": 0.1})

    def test_schedule_option_wins(self, build):
        policy = build(config={"lr": 0.5, "lr_schedule": [[0, 0.1], [10, 0.2]]})
        assert policy.spec.coeffs["lr"] == pytest.approx(0.1)
        assert policy.spec.schedules["lr"](10) == pytest.approx(0.2)

    def test_coeffs_fn(self, build):
        def loss(params, batch, ctx):
            return ctx.coeffs["temperature"] * batch.mean(ctx.forward(params, batch).value)

        policy = build(loss, coeffs_fn=lambda config: {"temperature": 2 * config.gamma})
        assert policy.spec.coeffs["temperature"] == pytest.approx(1.98)

    def test_defaults_of_a_policy(self, kit):
        factory = build_policy("P", loss_fn=policy_gradient_loss, make_model=kit.model, default_config={"gamma": 0.5})
        assert factory(kit.obs, kit.actions).spec.config.gamma == 0.5
        assert factory(kit.obs, kit.actions, {"gamma": 0.6}).spec.config.gamma == 0.6

    def test_with_updates_leaves_the_original(self, kit):
        factory = build_policy("P", loss_fn=policy_gradient_loss, make_model=kit.model)
        other = factory.with_updates(name="Q", loss_fn=losses.value_error())
        assert factory(kit.obs, kit.actions).spec.reads == {"obs", "actions", "advantages"}
        assert other(kit.obs, kit.actions).spec.reads == {"obs", "value_targets"}
        assert other.name == "Q"
        with pytest.raises(TypeError, match="los_fn"):
            factory.with_updates(los_fn=None)

    def test_config_of_other_types(self, kit):
        factory = build_policy("P", loss_fn=policy_gradient_loss, make_model=kit.model)
        assert factory(kit.obs, kit.actions, PolicyConfig(gamma=0.7)).spec.config.gamma == 0.7

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"gamma": 1.5}, "gamma"),
            ({"num_sgd_iter": 0}, "num_sgd_iter"),
            ({"sgd_minibatch_size": -1}, "sgd_minibatch_size"),
            ({"grad_clip": -1.0}, "grad_clip"),
            ({"optimizer": "adamm"}, "optax has no 'adamm'; did you mean 'adam'"),
            ({"optimizer": {"type": "adam", "momentum": 1}}, "optax.adam refused.*momentum"),
        ],
    )
    def test_bad_options(self, build, config, message):
        with pytest.raises(ConfigError, match=message):
            build(config=config)


class TestForward:
    def test_context_goes_through_jit(self, build, kit):
        policy, batch = build(), kit.train_batch()
        state = policy.init(jax.random.key(0))
        value: Any = jax.jit(lambda params, batch, ctx: ctx.forward(params, batch).value)
        kit.equal(
            value(state.params, batch, policy.context(state)), batch["obs"] @ np.asarray(state.params["value"]), 1e-6
        )
        value(state.params, batch, policy.context(state.replace(step=state.step + 1)))
        assert value._cache_size() == 1

    def test_one_forward_pass_for_all_terms(self, kit):
        calls = []

        def counted(*spaces_and_config):
            model = kit.model(*spaces_and_config)
            return model._replace(apply=lambda *args: calls.append(1) or model.apply(*args))

        terms = losses.weighted_sum(
            pg=(1.0, losses.clipped_surrogate()), vf=(0.5, losses.value_error()), entropy=(0.01, losses.entropy_bonus())
        )
        policy = build_policy("P", loss_fn=terms, make_model=counted)(kit.obs, kit.actions)
        state = policy.init(jax.random.key(0))
        calls.clear()
        policy.learn(state, kit.train_batch())
        assert len(calls) == 1

    def test_other_params_or_batches_are_computed(self, build, kit):
        def loss(params, batch, ctx):
            doubled = jax.tree.map(lambda x: 2 * x, params)
            other = batch.with_columns(obs=3 * batch["obs"])
            out = [ctx.forward(*args).value for args in ((params, batch), (doubled, batch), (params, other))]
            return batch.mean(out[0]), LearnOutput({f"v{i}": batch.mean(value) for i, value in enumerate(out)})

        policy = build(loss)
        metrics = policy.learn(policy.init(jax.random.key(0)), kit.train_batch())[1].metrics
        assert float(metrics["v1"]) == pytest.approx(2 * float(metrics["v0"]), rel=1e-5)
        assert float(metrics["v2"]) == pytest.approx(3 * float(metrics["v0"]), rel=1e-5)

    @pytest.mark.parametrize("where", ["scan", "vmap", "cond", "checkpoint"])
    def test_no_tracer_escapes(self, build, kit, where):
        def inner(params, batch, ctx):
            value = batch.mean(ctx.forward(params, batch).value)
            if where == "scan":
                return jax.lax.scan(
                    lambda c, _: (c + batch.mean(ctx.forward(params, batch).value), None), value, length=2
                )[0]
            if where == "vmap":
                return jax.vmap(lambda i: i * batch.mean(ctx.forward(params, batch).value))(jnp.ones(2)).sum() + value
            if where == "cond":
                return (
                    jax.lax.cond(value > 0, lambda: batch.mean(ctx.forward(params, batch).value), lambda: value) + value
                )
            return jax.checkpoint(lambda p: batch.mean(ctx.forward(p, batch).value))(params) + value

        def loss(params, batch, ctx):  # inside first: what it computes there must not be reused outside
            first = jax.lax.scan(lambda c, _: (c, ctx.forward(params, batch).value.sum()), 0.0, length=1)[1].sum()
            return first + inner(params, batch, ctx) + batch.mean(ctx.forward(params, batch).value)

        policy, batch = build(loss), kit.train_batch()
        state = policy.init(jax.random.key(0))
        _, out = policy.learn(state, batch)
        value = np.asarray(batch["obs"] @ np.asarray(state.params["value"]))
        times = {"scan": 3, "vmap": 3, "cond": 2, "checkpoint": 2}[where] + 1
        assert float(out.metrics["total_loss"]) == pytest.approx(value.sum() + times * value.mean(), rel=1e-4)


class TestAct:
    def test_action_mask(self, kit):
        space = spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": spaces.Box(-1, 1, (2,), np.float32)})
        factory = build_policy("P", loss_fn=losses.clipped_surrogate())
        policy = factory(space, spaces.Discrete(3), {"model": {"fcnet_hiddens": [4]}})
        state = policy.init(jax.random.key(0))
        obs = {"action_mask": np.tile(np.array([0, 1, 0], np.int8), (64, 1)), "x": np.zeros((64, 2), np.float32)}
        out = policy.act(state.weights, ActInputs(obs), policy.initial_carry(64), state.key, True)
        assert set(np.asarray(out.actions)) == {1}

    def test_keys_follow_the_step_number(self, build):
        policy = build()
        state = policy.init(jax.random.key(0))
        obs = np.zeros((64, 4), np.float32)

        def actions(t, explore=True):
            inputs = ActInputs(obs, np.int32(t))
            return np.asarray(policy.act(state.weights, inputs, policy.initial_carry(64), state.key, explore).actions)

        assert (actions(3) == actions(3)).all()
        assert (actions(3) != actions(4)).any()
        assert (actions(3, False) == actions(4, False)).all()
        assert policy.act._cache_size() == 2  # explore or not
