"""EpisodeTracker: numbers of rows, and games of several episodes that results count as one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

from jaxrl.algorithms.ppo import PPOPolicy, PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.envs import EPISODE_CONTINUES
from jaxrl.rollout import RolloutWorker, make_worker_env
from jaxrl.rollout.episodes import EpisodeTracker
from jaxrl.types import DEFAULT_POLICY_ID


def starts(*rows: int, steps: int = 5) -> np.ndarray:
    column = np.zeros((steps + 1, 1), bool)
    column[list(rows)] = True
    return column


def test_rows_are_numbered_across_fragments():
    tracker = EpisodeTracker(1, 0, 0)
    assert tracker.index(starts(0, 4)).t[:, 0].tolist() == [0, 1, 2, 3, 0]
    tracker.finish(np.zeros((5, 1)), [(3, 0)], None)
    # An episode of one row so far, and another end in this fragment.
    index = tracker.index(starts(2))
    assert index.t[:, 0].tolist() == [1, 2, 0, 1, 2]
    assert index.eps_id[:, 0].tolist() == [1, 1, 2, 2, 2]


def test_a_game_of_several_episodes_is_one_record():
    tracker = EpisodeTracker(1, 0, 0)
    rewards = np.arange(5.0)[:, None]
    assert tracker.finish(rewards, [(1, 0), (3, 0)], None, {(1, 0), (3, 0)}) == []
    assert tracker.length.tolist() == [1]  # of the episode that learning sees
    other = EpisodeTracker(1, 0, 0)
    other.set_state(tracker.get_state(), [True])
    for each in (tracker, other):
        ((length, reward, *_),) = each.finish(rewards, [(2, 0)], None)
        assert (length, reward) == (8, 10 + 3)
    other.set_state(tracker.get_state(), [False])
    assert other.finish(rewards, [(0, 0)], None)[0].length == 1


class Lives(gym.Env):
    """A life is three steps, a game three lives; each step pays 2."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.steps = self.lives = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        going_on = seed is None and self.steps == 3 and self.lives > 1
        self.steps, self.lives = 0, self.lives - 1 if going_on else 3
        return np.zeros(1, np.float32), {EPISODE_CONTINUES: True} if going_on else {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        info = {EPISODE_CONTINUES: True} if self.steps == 3 and self.lives > 1 else {}
        return np.full(1, self.steps, np.float32), 2.0, self.steps == 3, False, info


@pytest.mark.parametrize(("options", "lengths"), [({}, [9, 9]), ({"horizon": 2}, [2, 2]), ({"horizon": 100}, [9, 9])])
def test_samplers_and_callbacks_count_games(options, lengths):
    seen = []

    def end(*, episode: Any, **_: Any) -> None:
        seen.append((episode.length, episode.total_reward))
        episode.custom_metrics["length"] = episode.length

    config = PPOTrainer.resolve_config(
        {
            "env": Lives,
            "rollout_fragment_length": 7,
            "train_batch_size": 7,
            "sgd_minibatch_size": 7,
            "seed": 0,
            "callbacks": Callbacks(on_episode_end=end),
            "model": {"fcnet_hiddens": [4]},
            **options,
        }
    )
    env = make_worker_env(config, 0, 0)
    policy = PPOPolicy(env.observation_space, env.action_space, config)
    worker = RolloutWorker(config, {DEFAULT_POLICY_ID: policy}, env=env)
    worker.set_weights(1, {DEFAULT_POLICY_ID: policy.init(jax.random.key(0)).weights})
    batches = [worker.sampler.collect(worker.weights) for _ in range(3)]
    records = worker.pop_episodes()
    assert [record.length for record in records[:2]] == lengths
    assert [(record.length, record.reward) for record in records] == seen
    assert all(record.reward == 2 * record.length for record in records)
    assert all(record.custom_metrics == {"length": record.length} for record in records)
    life = min(3, options.get("horizon", 3))
    assert np.concatenate([batch["t"][:, 0] for batch in batches]).tolist() == [i % life for i in range(21)]
