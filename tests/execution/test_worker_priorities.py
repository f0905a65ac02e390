"""Priorities on workers: the TD errors of the transitions that a shard makes of the same fragment."""

import jax
import numpy as np
import pytest

from jaxrl import build_policy, build_trainer
from jaxrl.algorithms.apex_ddpg import ApexDDPGTrainer
from jaxrl.algorithms.apex_dqn import ApexDQNConfig, ApexDQNTrainer
from jaxrl.algorithms.dqn import dqn_loss, make_model
from jaxrl.execution.worker_priorities import PRIORITIZE, Contents
from jaxrl.replay import prioritized_replay
from jaxrl.rollout.worker import RolloutWorker
from jaxrl.trainers import setup
from jaxrl.trainers.apex import execution_plan, target_update, validate_config
from jaxrl.trainers.compilation import compile_seconds
from jaxrl.types import LossError, NonFiniteError

SMALL = {"num_envs_per_worker": 2, "rollout_fragment_length": 12, "seed": 0}
DQN = {"env": "CartPole-v1", "hiddens": [8], "model": {"fcnet_hiddens": [8]}}
DDPG = {"env": "Pendulum-v1", "actor_hiddens": [8], "critic_hiddens": [8]}
TWO_POLICIES = {
    "env": "MultiAgentCartPole",
    "env_config": {"num_agents": 2},
    "multiagent": {"policies": {"a": None, "b": None}, "policy_mapping_fn": {0: "a", 1: "b"}},
}


def worker_of(trainer_class=ApexDQNTrainer, **options):
    own = DDPG if trainer_class is ApexDDPGTrainer else DQN
    config = trainer_class.resolve_config({**SMALL, **own, **options})
    env = setup.probe_env(config)
    recipes = setup.make_recipes(config, trainer_class.policy_factory, env)
    setup.close_env(env)
    worker = RolloutWorker(config, recipes, worker_index=1, num_workers=2)
    keys = jax.random.split(jax.random.key(0), len(worker.policies))
    worker.set_weights(
        4, {pid: p.init(key).weights for key, (pid, p) in zip(keys, worker.policies.items(), strict=True)}
    )
    return worker


def fragments(worker, count=2):
    operator = PRIORITIZE.bound_to(worker)
    state = operator.init()
    for _ in range(count):
        state, fragment = operator.apply(state, worker.sample())
        yield fragment


def expected(worker, pid, batch, n_step):
    """Priorities of a fragment's rows, as a learner with the worker's weights would give them."""
    policy, weights = worker.policies[pid], worker.weights[pid]
    buffer = prioritized_replay(batch.num_rows, n_step=n_step, gamma=worker.config.gamma)
    state = buffer.add(buffer.init(batch), batch)
    rows = buffer.take(state, np.arange(buffer.size(state)))
    train = policy.init(jax.random.key(9)).replace(params=weights.params, target_params=weights.params)
    return np.abs(policy.gradients(train, rows)[1].rows["td_error"])


@pytest.mark.parametrize(
    ("trainer_class", "options"),
    [(ApexDQNTrainer, {}), (ApexDDPGTrainer, {}), (ApexDQNTrainer, TWO_POLICIES)],
    ids=["DQN", "DDPG", "multi-agent"],
)
def test_priorities_are_the_td_errors_of_the_shards_transitions(trainer_class, options):
    worker = worker_of(trainer_class, **options)
    for fragment in fragments(worker, 3):
        assert isinstance(fragment.contents, Contents)
        assert (fragment.worker_index, fragment.version) == (1, 4)
        assert fragment.env_steps == 24
        batch, priorities = fragment.contents
        assert fragment.rows == fragment.agent_steps == sum(len(each) for each in priorities.values())
        for pid, given in priorities.items():
            assert len(given) == batch[pid].count
            np.testing.assert_allclose(given, expected(worker, pid, batch[pid], 3) + 1e-6, rtol=1e-4, atol=1e-6)


def test_only_what_learns_travels():
    multiagent = {**TWO_POLICIES["multiagent"], "policies_to_train": ["b"]}
    worker = worker_of(**{**TWO_POLICIES, "multiagent": multiagent})
    (fragment,) = fragments(worker, 1)
    assert set(fragment.contents.batch) == set(fragment.contents.priorities) == {"b"}
    assert fragment.rows < fragment.agent_steps


@pytest.mark.parametrize("options", [{"worker_side_prioritization": False}, {"prioritized_replay": False}])
def test_workers_give_none_where_none_are_asked_for(options):
    (fragment,) = fragments(worker_of(**options), 1)
    assert fragment.contents.priorities == {} and fragment.rows == 24


def test_one_program_serves_fragments_of_any_number_of_rows():
    worker = worker_of(**TWO_POLICIES)
    operator = PRIORITIZE.bound_to(worker)
    state = operator.init()
    counts, compiled = [], []
    for _ in range(12):
        batch = worker.sample()
        before = compile_seconds()
        state, _ = operator.apply(state, batch)
        counts.append(batch["a"].count)
        compiled.append(compile_seconds() - before)
    assert len(set(counts[1:])) > 1, "the test needs fragments of several sizes"
    assert compiled[0] > 0 and sum(compiled[1:]) == 0


def test_errors_that_are_not_finite_are_told():
    worker = worker_of()
    batch, operator = worker.sample(), PRIORITIZE.bound_to(worker)
    worker.set_weights(5, jax.tree.map(lambda x: x * np.float32(np.inf), worker.weights))
    with pytest.raises(NonFiniteError, match=r"policy 'default_policy' on worker 1: expected finite TD errors"):
        operator.apply(operator.init(), batch)


def silent_loss(params, batch, ctx):
    return dqn_loss(params, batch, ctx)[0]


def test_a_loss_without_td_errors_is_named():
    policy = build_policy(
        "Silent", loss_fn=silent_loss, make_model=make_model, target_fn=target_update, default_config=ApexDQNConfig
    )
    trainer_class = build_trainer(
        "Silent",
        default_policy=policy,
        default_config=ApexDQNConfig,
        execution_plan=execution_plan,
        validate_config=validate_config,
    )
    with pytest.raises(LossError, match=r"'default_policy' on worker 1.*'td_error'.*worker_side_prioritization"):
        list(fragments(worker_of(trainer_class), 1))
