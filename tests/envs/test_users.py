"""An environment object has one user at a time; whoever else wants it is told to make one of their own."""

from __future__ import annotations

import gc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray

from jaxrl.algorithms.pg import PGTrainer
from jaxrl.envs import make_environments, make_multi_agent
from jaxrl.envs.examples.simple import SimpleCorridor
from jaxrl.trainers.episodes import Player
from jaxrl.types import ConfigError

IN_USE = "object is in use already.*lambda env_config"


class Counted(SimpleCorridor):
    """Counts what is done to it."""

    def __init__(self, env_config: dict[str, Any] | None = None) -> None:
        SimpleCorridor.__init__(self, {"corridor_length": 3})
        self.resets = self.closes = 0

    def reset(self, **arguments: Any) -> Any:
        self.resets += 1
        return SimpleCorridor.reset(self, **arguments)

    def close(self) -> None:
        self.closes += 1


def vector_env() -> Any:
    return gym.vector.SyncVectorEnv([Counted, Counted])


KINDS: dict[str, tuple[Any, int]] = {
    "an environment": (Counted(), 1),
    "a list": ([Counted(), Counted()], 2),
    "a creator that returns one object": ((lambda made: lambda env_config: made)(Counted()), 1),
    "a creator of new wrappers around one object": (
        (lambda made: lambda env_config: gym.wrappers.TimeLimit(made, 5))(Counted()),
        1,
    ),
    "a vector environment": (vector_env(), 2),
    "several agents": (make_multi_agent(Counted)({"num_agents": 2}), 1),
}


def close(made: Any) -> None:
    for one in made if isinstance(made, list) else [made]:
        one.close()


@pytest.mark.parametrize("kind", KINDS)
def test_one_user_at_a_time(kind: str) -> None:
    env, count = KINDS[kind]
    first = make_environments(env, count)
    with pytest.raises(ConfigError, match=IN_USE):
        make_environments(env, count)
    close(first)
    second = make_environments(env, count)
    del first, second  # dropped without being closed
    gc.collect()
    close(make_environments(env, count))


def test_one_object_is_no_two_environments() -> None:
    one = Counted()
    for env in ([one, one], lambda env_config: one, [gym.wrappers.TimeLimit(one, 5), gym.wrappers.TimeLimit(one, 6)]):
        with pytest.raises(ConfigError, match="env 1.*in use already"):
            make_environments(env, 2)
    with pytest.raises(ConfigError, match="in use already"):
        make_multi_agent(lambda env_config: one)({"num_agents": 2})
    two = make_environments([Counted(), Counted()], 2)
    close(two)


TINY: dict[str, Any] = {
    "train_batch_size": 8,
    "rollout_fragment_length": 8,
    "batch_mode": "truncate_episodes",
    "model": {"fcnet_hiddens": [4]},
    "compile_cache": False,
    "seed": 0,
    "evaluation_num_episodes": 1,
}


def test_training_keeps_its_environment(tmp_path: Any) -> None:
    env, other = Counted(), Counted()
    with PGTrainer(config={**TINY, "env": env}, results_dir=tmp_path) as trainer:
        trainer.train()
        assert trainer.workers.local is not None
        vector = trainer.workers.local.env
        before = env.resets, np.array(vector.observations())
        for use in (trainer.evaluate, lambda: Player(trainer)):
            with pytest.raises(ConfigError, match=IN_USE):
                use()
        assert (env.resets, env.closes) == (before[0], 0)
        np.testing.assert_array_equal(vector.observations(), before[1])
        trainer.train()
    assert env.closes == 1
    with PGTrainer(
        config={**TINY, "env": env, "evaluation_config": {"env": other}}, results_dir=tmp_path / "2"
    ) as trainer:
        trainer.train()
        before = env.resets
        assert trainer.evaluate()["episodes_this_iter"] == 1 and other.resets > 0 and env.resets == before
        with pytest.raises(ConfigError, match=IN_USE):
            Player(trainer)  # that of evaluation


def test_what_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="evaluation_interval is set.*lambda env_config"):
        PGTrainer(config={**TINY, "env": Counted(), "evaluation_interval": 1})
    for env in (Counted(), [Counted()]):
        with pytest.raises(ConfigError, match=r"num_workers=2.*lambda env_config"):
            PGTrainer(config={**TINY, "env": env, "num_workers": 2, "train_batch_size": 16})
    assert not ray.is_initialized()
