"""A plan as one compiled program: the same update as in-process, the same files, and what it refuses."""

import json
import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import build_policy, build_trainer
from jaxrl.algorithms.a2c import A2CTrainer
from jaxrl.algorithms.ddpg import DDPGTrainer
from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.impala import IMPALATrainer
from jaxrl.algorithms.iqn import IQNTrainer
from jaxrl.algorithms.pg import PGTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.algorithms.r2d2 import R2D2Trainer
from jaxrl.algorithms.sac import SACTrainer
from jaxrl.algorithms.simple_q import SimpleQTrainer
from jaxrl.algorithms.td3 import TD3Trainer
from jaxrl.callbacks import Callbacks
from jaxrl.data import SampleBatch
from jaxrl.data.columns import is_tracer
from jaxrl.execution.compiled_form import CompiledForm
from jaxrl.execution.compiled_rounds import CompiledRounds
from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.execution.metric_ops import StandardMetricsReporting
from jaxrl.execution.nodes import Source
from jaxrl.execution.rollout_ops import ConcatBatches, ParallelRollouts
from jaxrl.execution.train_ops import TrainOneStep
from jaxrl.types import ConfigError, EnvError, NonFiniteError

PPO = {
    "env": "jax/CartPole-v1",
    "engine": "compiled",
    "num_envs_per_worker": 4,
    "train_batch_size": 64,
    "sgd_minibatch_size": 16,
    "num_sgd_iter": 2,
    "lr": 1e-2,
    "seed": 0,
    "model": {"fcnet_hiddens": [8]},
    "timesteps_per_iteration": 128,
}
DQN = {
    "env": "jax/CartPole-v1",
    "engine": "compiled",
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 4,
    "train_batch_size": 8,
    "buffer_size": 400,
    "learning_starts": 32,
    "timesteps_per_iteration": 40,
    "target_network_update_freq": 64,
    "seed": 0,
    "model": {"fcnet_hiddens": [8]},
    "hiddens": [8],
}
CONTINUOUS = {**DQN, "env": "jax/Pendulum-v1", "hiddens": None, "actor_hiddens": [8], "critic_hiddens": [8]}


def params_of(trainer):
    return jax.tree.map(np.asarray, trainer.learners["default_policy"].state.params)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_update_is_that_of_the_same_batch_in_process(tmp_path):
    with PPOTrainer(config={**PPO, "timesteps_per_iteration": 0}, results_dir=tmp_path) as trainer:
        engine, before = trainer.compiled, trainer.learners["default_policy"].state
        assert engine is not None and engine.rounds == 1
        world = jax.jit(engine.init)(jax.random.key(0), before)
        turns, _ = engine.turns(0, 0, 0)
        told = []
        learner = trainer.learners["default_policy"]
        policy = learner.policy

        def telling(state, batch):
            jax.debug.callback(told.append, dict(batch))
            return policy.learn(state, batch)

        learner.policy = policy._replace(learn=telling)
        after, _ = jax.jit(engine.plan.run)(world, turns)
        jax.effects_barrier()
        batch = SampleBatch({name: np.asarray(value) for name, value in told[0].items()})
    with PPOTrainer(config={**PPO, "env": "CartPole-v1", "engine": "workers"}, results_dir=tmp_path) as trainer:
        learner = trainer.learners["default_policy"]
        assert_equal(jax.tree.map(np.asarray, learner.state.params), jax.tree.map(np.asarray, before.params))
        assert batch.shape == (16, 4) and abs(float(batch["advantages"].mean())) < 1e-6
        learner.learn(batch)
        assert_equal(jax.tree.map(np.asarray, learner.state.params), jax.tree.map(np.asarray, after.train.params))
        assert_equal(jax.tree.map(np.asarray, learner.state.opt_state), jax.tree.map(np.asarray, after.train.opt_state))


def test_results_counters_and_costs(tmp_path):
    with PPOTrainer(config={**PPO, "lr": [[0, 1.0], [640, 0.0]]}, results_dir=tmp_path) as trainer:
        results = [trainer.train() for _ in range(3)]
    assert [result["timesteps_total"] for result in results] == [128, 256, 384]
    last = results[-1]
    assert last["engine"] == "compiled" and last["num_healthy_workers"] == 0
    assert last["info"]["num_steps_trained"] == 384 and last["info"]["num_agent_steps_sampled"] == 384
    assert last["episodes_this_iter"] > 0 and 8 < last["episode_reward_mean"] < 100
    assert last["episode_len_mean"] == last["episode_reward_mean"]
    # The schedule is evaluated for each round: the last began with 320 env steps behind it.
    assert last["info"]["learner"]["default_policy"]["cur_lr"] == pytest.approx(0.5)
    assert set(last["programs"]) == {"init", "iteration"}
    cost = last["programs"]["iteration"]
    assert cost["compile_s"] > 0 and cost["memory_bytes"] > 10_000
    assert all(result["programs"] == last["programs"] for result in results)  # nothing was compiled again
    assert json.loads((tmp_path / "result.json").read_text().splitlines()[-1])["engine"] == "compiled"


def test_a_restored_run_goes_on_bit_for_bit(tmp_path):
    for cls, config in ((PPOTrainer, PPO), (DQNTrainer, {**DQN, "store_buffer_in_checkpoints": True})):
        with cls(config=config, results_dir=tmp_path / cls.__name__) as trainer:
            trainer.train()
            path = trainer.save()
            expected = [trainer.train() for _ in range(2)]
            final = params_of(trainer)
        with cls.from_checkpoint(path, results_dir=tmp_path / f"{cls.__name__}, restored") as trainer:
            found = [trainer.train() for _ in range(2)]
            assert_equal(params_of(trainer), final)
        for one, other in zip(expected, found, strict=True):
            assert one["hist_stats"] == other["hist_stats"] and one["timesteps_total"] == other["timesteps_total"]
            assert one["info"]["learner"] == other["info"]["learner"]


def test_a_replay_memory_that_is_not_stored_is_filled_anew(tmp_path):
    with DQNTrainer(config=DQN, results_dir=tmp_path / "a") as trainer:
        trainer.train()
        trainer.train()
        trained = trainer.context.counters["num_steps_trained"]
        path = trainer.save()
    with DQNTrainer.from_checkpoint(path, results_dir=tmp_path / "b") as trainer:
        before = params_of(trainer)
        trainer.train()
        # Of five rounds of 8 steps the first three only fill the memory.
        assert trainer.context.counters["num_steps_trained"] == trained + 2 * 8
        with pytest.raises(AssertionError):
            assert_equal(before, params_of(trainer))


def test_a_checkpoint_goes_from_engine_to_engine(tmp_path):
    with PPOTrainer(config=PPO, results_dir=tmp_path / "a") as trainer:
        trainer.train()
        path, trained = trainer.save(), params_of(trainer)
    workers = {"env": "CartPole-v1", "engine": "workers"}
    with PPOTrainer.from_checkpoint(path, workers, results_dir=tmp_path / "b") as trainer:
        assert_equal(params_of(trainer), trained)
        assert trainer.compiled is None and trainer.evaluate()["episodes_this_iter"] >= 10
        result = trainer.train()
        assert result["timesteps_total"] == 256 and result["training_iteration"] == 2
        path, trained = trainer.save(), params_of(trainer)
    compiled = {"env": "jax/CartPole-v1", "engine": "compiled"}
    with PPOTrainer.from_checkpoint(path, compiled, results_dir=tmp_path / "c") as trainer:
        assert_equal(params_of(trainer), trained)
        assert trainer.train()["timesteps_total"] == 384


def test_replay_learns_once_the_memory_is_filled(tmp_path):
    with DQNTrainer(config=DQN, results_dir=tmp_path) as trainer:
        first = params_of(trainer)
        state = trainer.learners["default_policy"].state
        result = trainer.train()
        # Rounds of 8 steps: the fourth makes 32, and two of five learn from 8 rows each.
        assert result["info"]["num_steps_trained"] == 16
        assert int(trainer.learners["default_policy"].state.step) == 2
        assert result["info"]["replay_buffer"]["default_policy"]["size"] == 40
        with pytest.raises(AssertionError):
            assert_equal(first, params_of(trainer))
        assert_equal(state.target_params, trainer.learners["default_policy"].state.target_params)
        # 64 steps are reached in the eighth round: the target takes the network as it was then.
        result = trainer.train()
        assert int(trainer.learners["default_policy"].state.step) == 7
        with pytest.raises(AssertionError):
            assert_equal(state.target_params, trainer.learners["default_policy"].state.target_params)
        assert result["info"]["learner"]["default_policy"]["cur_epsilon"] < 1.0
        for _ in range(12):
            result = trainer.train()
        assert result["info"]["replay_buffer"]["default_policy"]["size"] == 400


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (DQNTrainer, {**DQN, "prioritized_replay": True, "n_step": 3, "training_intensity": 16}),
        (DQNTrainer, {**DQN, "training_intensity": 1.5}),
        (DQNTrainer, {**DQN, "training_intensity": 0.25, "rollout_fragment_length": 1}),
        (SimpleQTrainer, {**DQN, "hiddens": None}),
        (IQNTrainer, {**DQN}),
        (SACTrainer, CONTINUOUS),
        (DDPGTrainer, CONTINUOUS),
        (TD3Trainer, {**CONTINUOUS, "target_network_update_freq": None}),
        (A2CTrainer, {**PPO, "rollout_fragment_length": 8, "num_sgd_iter": None, "sgd_minibatch_size": None}),
        (
            PGTrainer,
            {
                **PPO,
                "batch_mode": "truncate_episodes",
                "rollout_fragment_length": 16,
                "num_sgd_iter": None,
                "sgd_minibatch_size": None,
            },
        ),
        (PPOTrainer, {**PPO, "rollout_fragment_length": 4}),
        (PPOTrainer, {**PPO, "env": "jax/StatelessCartPole", "model": {"use_lstm": True, "max_seq_len": 4}}),
        (PPOTrainer, {**PPO, "env": "jax/Pendulum-v1", "horizon": 20, "normalize_actions": True}),
        (PPOTrainer, {**PPO, "env": "jax/RepeatAfterMe"}),
    ],
)
def test_what_compiles(tmp_path, cls, config):
    given = {name: value for name, value in config.items() if value is not None}
    with cls(config=given, results_dir=tmp_path) as trainer:
        assert trainer.compiled is not None
        before = params_of(trainer)
        result = [trainer.train() for _ in range(3)][-1]
        assert all(map(math.isfinite, result["info"]["learner"]["default_policy"].values()))
        with pytest.raises(AssertionError):
            assert_equal(before, params_of(trainer))
        intensity = config.get("training_intensity")
        if intensity is not None:
            learned_on = result["timesteps_total"] - 32
            assert result["info"]["num_steps_trained"] == pytest.approx(learned_on * intensity, rel=0.25)


def test_fragments_that_fill_a_batch_together_are_sampled_in_turn(tmp_path):
    config = {**PPO, "rollout_fragment_length": 4, "timesteps_per_iteration": 0}
    with PPOTrainer(config=config, results_dir=tmp_path) as trainer:
        engine = trainer.compiled
        assert engine is not None and engine.plan.schedule.fragments == 4 and engine.steps_per_round == 64
        assert trainer.train()["timesteps_total"] == 64
        assert int(trainer.learners["default_policy"].state.step) == 8  # 2 epochs of 4 minibatches


def plan_with(*, before=None, after=None):
    def execution_plan(ctx):
        batches = ParallelRollouts(ctx, mode="bulk_sync").combine(ConcatBatches(ctx.config.train_batch_size))
        batches = batches if before is None else batches.for_each(before)
        train_op = batches.for_each(TrainOneStep(ctx))
        return StandardMetricsReporting(ctx, train_op if after is None else train_op.for_each(after))

    return PPOTrainer.with_updates(execution_plan=execution_plan)


def numbers(form=None):
    return LocalIterator(Source(Operator("Numbers", lambda n, _: (n + 1, n), init=lambda: 0, compiled=form)))


def test_the_plan_shows_what_is_compiled(tmp_path):
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        assert "CompiledRounds(2) [ParallelRollouts" in str(trainer.plan)
        for name in ("ConcatBatches", "StandardizeFields", "TrainOneStep"):
            assert name in str(trainer.plan)


def test_each_pull_of_a_memory_draws_anew(tmp_path):
    """Of several updates in a round each takes rows of its own, and so do those of rounds far apart."""
    drawn = []
    with DQNTrainer(config={**DQN, "training_intensity": 2.5}, results_dir=tmp_path) as trainer:
        trainer.train()
        engine, memory = trainer.compiled, trainer.context.memory
        assert engine is not None and memory is not None
        learn = engine.policy.learn

        def telling(state, batch):
            jax.debug.callback(lambda obs: drawn.append(obs.tobytes()), batch["obs"])
            return learn(state, batch)

        trainer.learners["default_policy"].policy = engine.policy._replace(learn=telling)
        (source,) = (node for node in trainer.plan.nodes() if isinstance(node, CompiledRounds))
        turns, _ = engine.turns(100, 800, 0)
        world = jax.tree.unflatten(jax.tree.structure(engine.shapes), source.state["world"])
        world = world._replace(train=trainer.learners["default_policy"].state, memory=memory.on_device)
        # The same memory over and over: only the draws differ.
        for number in (100, 101, 100 + 2**22):
            turn = jax.tree.map(lambda x: x[0], turns)._replace(number=np.uint32(number))
            jax.block_until_ready(jax.jit(engine.plan.one_round)(world, turn))
        jax.effects_barrier()
    assert int(turns.pulls[0]) >= 2 and len(drawn) == 3 * int(turns.pulls[0])
    assert len(set(drawn)) == len(drawn)


def test_pure_operators_of_ones_own_are_traced_and_host_only_ones_refused(tmp_path):
    seen = []

    def scaled(batch):
        seen.append(is_tracer(batch["rewards"]))
        return batch.with_columns(advantages=batch["advantages"] * 2.0)

    with plan_with(before=scaled)(config=PPO, results_dir=tmp_path) as trainer:
        trainer.train()
    assert seen and all(seen)
    logged = Operator("LogToDisk", lambda state, item: (state, item), host_only=True)
    with pytest.raises(ConfigError, match=r"'LogToDisk' \(for_each\) works on the host"):
        plan_with(after=logged)(config=PPO)
    with pytest.raises(ConfigError, match="'Numbers' .*works on the host"):
        PPOTrainer.with_updates(execution_plan=lambda ctx: StandardMetricsReporting(ctx, numbers()))(config=PPO)
    form = CompiledForm(lambda turn, world, n, item, key: (world, n + 1, n), init=lambda: jnp.zeros((), jnp.int32))
    with pytest.raises(ConfigError, match="'Numbers' gathers no rollouts.*Begin it with ParallelRollouts"):
        PPOTrainer.with_updates(execution_plan=lambda ctx: StandardMetricsReporting(ctx, numbers(form)))(config=PPO)
    counting = Operator("Counting", lambda n, item: (n + 1, item), init=lambda: 0)
    with pytest.raises(ConfigError, match="'Counting' keeps a state from one round to the next"):
        plan_with(before=counting)(config=PPO).train()
    # With a compiled form it counts.
    form = CompiledForm(lambda turn, world, n, item, key: (world, n + 1, item), init=lambda: jnp.zeros((), jnp.int32))
    with plan_with(before=counting._replace(compiled=form))(config=PPO, results_dir=tmp_path / "counted") as trainer:
        trainer.train()
        (state,) = [n.get_state()["op"] for n in trainer.plan.nodes() if n.name.startswith("CompiledRounds")]
        assert 2 in [int(x) for x in state["world"] if x.shape == () and x.dtype == jnp.int32]


def test_what_cannot_be_compiled_says_why(caplog):
    with pytest.raises(
        ConfigError, match="env 'CartPole-v1' is stepped in Python.*its JAX twin is \"jax/CartPole-v1\""
    ):
        PPOTrainer(config={**PPO, "env": "CartPole-v1"})
    with pytest.raises(ConfigError, match="'ParallelRollouts.gather_async' .* works on the host"):
        IMPALATrainer(config={"env": "jax/CartPole-v1", "engine": "compiled", "num_workers": 0})
    with pytest.raises(ConfigError, match="num_workers=2 samples on Ray actors"):
        PPOTrainer(config={**PPO, "num_workers": 2, "train_batch_size": 128})
    with pytest.raises(ConfigError, match="holds sequences"):
        R2D2Trainer(config={"env": "jax/CartPole-v1", "engine": "compiled"})
    with pytest.raises(ConfigError, match="callbacks on_sample_end run on the host"):
        PPOTrainer(config={**PPO, "callbacks": Callbacks(on_sample_end=lambda **_: None)})
    # Left to itself, a trainer takes the engine that can, and says so.
    with PPOTrainer(config={**PPO, "engine": "auto", "observation_filter": "MeanStdFilter"}) as trainer:
        assert trainer.compiled is None
    assert "observation_filter" in caplog.text and "stepped by a worker" in caplog.text
    with PPOTrainer(config={**PPO, "engine": "auto"}) as trainer:
        assert trainer.compiled is not None


def test_memory_is_predicted_and_refused_before_anything_runs(monkeypatch, tmp_path):
    import jaxrl.execution.device_memory as module

    monkeypatch.setattr(module, "available_bytes", lambda: 200_000)
    with DQNTrainer(config={**DQN, "buffer_size": 100_000}, results_dir=tmp_path) as trainer:
        with pytest.raises(ConfigError, match=r"replay memory and the learner of this run needs 4\.\d+ MiB"):
            trainer.train()
        assert trainer.compiled is not None and "init" not in trainer.compiled.costs
    monkeypatch.undo()
    # What the program is given lies in memory already: asked is for the rest.
    with PPOTrainer(config=PPO, results_dir=tmp_path) as trainer:
        total = trainer.train()["programs"]["iteration"]["memory_bytes"]
        assert trainer.compiled is not None
        given = trainer.compiled.world_bytes
    left = iter([10**9, 10**9, total - given - 500])
    monkeypatch.setattr(module, "available_bytes", lambda: next(left))
    trainer = PPOTrainer(config=PPO, results_dir=tmp_path / "again")
    with trainer, pytest.raises(ConfigError, match="the program 'iteration', beside what it is given, needs"):
        trainer.train()
    assert trainer.context.counters["num_steps_sampled"] == 0


def test_numbers_that_are_not_finite_end_the_run_and_leave_the_learner(tmp_path):
    with PPOTrainer(config={**PPO, "lr": 1e30, "grad_clip": None}, results_dir=tmp_path) as trainer:
        before = params_of(trainer)
        with pytest.raises(NonFiniteError, match="expected finite metrics"):
            for _ in range(5):
                before = params_of(trainer)
                trainer.train()
        assert_equal(before, params_of(trainer))
        trainer.set_coeffs(lr=1e-3)


def test_shapes_that_change_in_step_are_named(tmp_path):
    from jaxrl.envs.jax_native import cart_pole

    env = cart_pole()

    def step(key, state, action):
        out = env.step(key, state, action)
        return out._replace(obs=jnp.concatenate([out.obs, out.obs]))

    with pytest.raises(EnvError, match=r"step: obs.*\[8\]|step: .*\(8,\)"):
        PPOTrainer(config={**PPO, "env": env._replace(step=step)})


@pytest.mark.slow
def test_several_devices_share_the_environments():
    script = """
        import jax, numpy as np, tempfile
        from jaxrl.algorithms.ppo import PPOTrainer
        from jaxrl.types import ConfigError
        config = {"env": "jax/CartPole-v1", "num_envs_per_worker": 8, "train_batch_size": 256, "num_sgd_iter": 2,
            "sgd_minibatch_size": 64, "seed": 0, "lr": 1e-3, "model": {"fcnet_hiddens": [16]}}
        def trained(devices):
            given = {**config, "num_learner_devices": devices}
            with PPOTrainer(config=given, results_dir=tempfile.mkdtemp()) as trainer:
                for _ in range(2):
                    result = trainer.train()
                leaves = [x for n in trainer.plan.nodes() if n.name.startswith("Compiled") for x in n.state["world"]]
                spread = [x for x in leaves if x.shape[:1] == (8,)]
                assert spread and all(len(x.sharding.device_set) == devices for x in spread)
                assert devices == 1 or not any(x.is_fully_replicated for x in spread)
                return trainer.get_weights()["default_policy"], result["episode_reward_mean"]
        one, four = trained(1), trained(4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one[0], four[0])
        assert one[1] == four[1]
        try:
            PPOTrainer(config={**config, "num_envs_per_worker": 2, "num_learner_devices": 4}).train()
        except ConfigError as error:
            assert "2 environments do not divide" in str(error), error
        print("equal")
    """
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.strip() == "equal", done.stderr


def test_a_policy_of_ones_own_loss_compiles_unchanged(tmp_path):
    def loss(params, batch, ctx):
        out = ctx.forward(params, batch)
        return -batch.mean(out.dist.log_prob(batch["actions"]) * batch["advantages"])

    cls = build_trainer("Mine", default_policy=build_policy("Mine", loss_fn=loss))
    config = {"env": "jax/CartPole-v1", "num_envs_per_worker": 10, "rollout_fragment_length": 20, "seed": 0}
    with cls(config=config, results_dir=tmp_path) as trainer:
        before = params_of(trainer)
        assert trainer.train()["engine"] == "compiled"
        with pytest.raises(AssertionError):
            assert_equal(before, params_of(trainer))
