"""Atari: the preprocessing against gymnasium's and by its rules, lives and whole games, saved games, names."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import sys
import time
import tracemalloc
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

from jaxrl import trees
from jaxrl.algorithms.dqn import DQNTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.envs import EPISODE_CONTINUES, AtariOptions, DeepMindAtari, EnvContext, make_env_creator, make_vector_env
from jaxrl.rollout import RolloutWorker, make_worker_env
from jaxrl.trainers.episodes import Player
from jaxrl.types import DEFAULT_POLICY_ID, ConfigError

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")

PONG, BREAKOUT = "ALE/Pong-v5", "ALE/Breakout-v5"

# The emulator is what takes time here: a small network, and frames that cost nothing to convolve.
SMALL = {"conv_filters": [[4, 8, 8, "valid"]], "fcnet_hiddens": [8], "vf_share_layers": True}


def make(game: str = BREAKOUT, **options: Any) -> DeepMindAtari:
    env = make_env_creator(game)(EnvContext(options))
    assert isinstance(env, DeepMindAtari)
    return env


def emulator(env: gym.Env) -> Any:
    game: Any = env.unwrapped
    return game.ale


def actions(env: gym.Env) -> int:
    space: Any = env.action_space
    return int(space.n)


def play(env: gym.Env, steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Steps with random actions; `(obs, reward, terminated, truncated, info, first obs of the next episode | None)`."""
    rng = np.random.default_rng(seed)
    played = []
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(int(rng.integers(actions(env))))
        first = env.reset() if terminated or truncated else None
        played.append((obs, reward, terminated, truncated, info, first))
    return played


def same(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> bool:
    return all(
        np.array_equal(x[0], y[0])
        and x[1:5] == y[1:5]
        and (x[5] is None) == (y[5] is None)
        and (x[5] is None or np.array_equal(x[5][0], y[5][0]))
        for x, y in zip(a, b, strict=True)
    )


# ---- preprocessing


@pytest.mark.parametrize("game", ["PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"])
def test_frames_are_those_of_gymnasiums_preprocessing(game):
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    raw = gym.make(game, frameskip=1, disable_env_checker=True)
    want = FrameStackObservation(AtariPreprocessing(raw), 4)
    env = make(game, fire_reset=False, episodic_life=False)
    first = env.reset(seed=5)[0]
    np.testing.assert_array_equal(first, np.moveaxis(want.reset(seed=5)[0], 0, -1))
    rng = np.random.default_rng(1)
    for _ in range(300):
        action = int(rng.integers(actions(env)))
        obs, reward, terminated, truncated, _ = env.step(action)
        expected = want.step(action)
        assert (reward, terminated, truncated) == expected[1:4]
        if terminated or truncated:
            break  # what is seen at the very end, within a frame skip, is each library's own
        np.testing.assert_array_equal(obs, np.moveaxis(expected[0], 0, -1))
    want.close()


def test_stacks_follow_from_frames_and_the_starts_of_episodes():
    env = make()
    assert env.observation_space == gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    before, _ = env.reset(seed=1)
    assert (before == before[..., :1]).all() and before.any()
    starts = 0
    for obs, *_, first in play(env, 300):
        np.testing.assert_array_equal(obs[..., :3], before[..., 1:])  # the newest frame comes last
        before = obs
        if first is not None:
            starts += 1
            before = first[0]
            assert (before == before[..., :1]).all()
    assert starts >= 5
    kept = before.copy()
    env.step(0)
    np.testing.assert_array_equal(before, kept)  # an observation stays what it was


def test_a_lost_life_ends_the_episode_and_the_game_goes_on():
    env = make()
    env.reset(seed=2)
    assert emulator(env).lives() == 5
    played = play(env, 600)
    ends = [(info, first[1]) for *_, info, first in played if first is not None]
    games = 0
    for info, reset_info in ends:
        assert info.get(EPISODE_CONTINUES, False) == reset_info.get(EPISODE_CONTINUES, False) == (info["lives"] > 0)
        assert reset_info["lives"] == (info["lives"] or 5)
        games += info["lives"] == 0
    assert games >= 1 and len(ends) > 5
    assert all(terminated and not truncated for _, _, terminated, truncated, _, first in played if first is not None)


def test_without_episodic_life_only_games_end():
    env = make(episodic_life=False)
    env.reset(seed=2)
    ends = [info["lives"] for *_, info, first in play(env, 600) if first is not None]
    assert ends and set(ends) == {0}


def test_a_seed_or_a_reset_within_a_life_starts_a_new_game():
    env = make()
    env.reset(seed=0)
    while True:
        *_, terminated, _, info = env.step(3)
        if terminated:
            break
    assert info["lives"] == 4
    obs, info = env.reset(seed=7)
    assert info == {"lives": 5}
    other = make()
    np.testing.assert_array_equal(obs, other.reset(seed=7)[0])
    env.step(0)
    assert env.reset()[1] == {"lives": 5}


def test_noops_and_fire():
    pong, plain = make(PONG, noop_max=0, fire_reset=False), make(PONG, noop_max=0)

    def frames(env: DeepMindAtari) -> int:
        env.reset(seed=0)
        return emulator(env).getEpisodeFrameNumber()

    assert (frames(pong), frames(plain)) == (0, 8)
    noops = make(PONG, noop_max=5, fire_reset=False)
    noops.reset(seed=0)
    counts = set()
    for _ in range(40):
        noops.reset()
        counts.add(emulator(noops).getEpisodeFrameNumber())
    assert counts == {1, 2, 3, 4, 5}


def test_sticky_actions_repeat_the_last_frames_action():
    def actions_played(probability: float) -> tuple[list[Any], DeepMindAtari]:
        env = make(PONG, repeat_action_probability=probability, noop_max=0, fire_reset=False)
        env.reset(seed=0)
        env._ale = recorder = _RecordingEmulator(env._ale)
        for i in range(500):
            env.step(2 + i % 2)
        return recorder.actions, env

    plain, env = actions_played(0.0)
    right, left = env._actions[2:4]
    assert plain == ([right] * 4 + [left] * 4) * 250
    sticky, _ = actions_played(0.25)
    # Of the first frames of steps a quarter is the step's before, of the second ones a sixteenth.
    wrong = (np.array([a.value for a in sticky]) != np.array([a.value for a in plain])).reshape(-1, 4).mean(axis=0)
    np.testing.assert_allclose(wrong, [0.25, 0.0625, 0.0156, 0.0039], atol=0.05)
    assert wrong[0] > wrong[1] > wrong[2]


class _RecordingEmulator:
    """Keeps the actions that it is given."""

    def __init__(self, ale: Any) -> None:
        self._ale = ale
        self.actions: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ale, name)

    def act(self, action: Any) -> float:
        self.actions.append(action)
        return self._ale.act(action)


def test_frame_skip_and_size():
    env = make(PONG, frame_skip=2, frame_stack=1, screen_size=42, noop_max=0, fire_reset=False)
    assert env.reset(seed=0)[0].shape == (42, 42, 1)
    for _ in range(10):
        env.step(0)
    assert emulator(env).getEpisodeFrameNumber() == 20


def test_a_game_cut_by_its_frames_is_truncated_with_its_last_frame():
    env = make(BREAKOUT, max_num_frames_per_episode=100, noop_max=0)
    env.reset(seed=0)
    obs, _, terminated, truncated, info = env.step(0)
    frames = 12  # FIRE and what follows it, and this step
    while not truncated:
        obs, _, terminated, truncated, info = env.step(0)
        frames += 4
    assert not terminated and EPISODE_CONTINUES not in info
    assert frames == 100
    assert obs[..., -1].any()


def test_rewards_during_resets_come_with_the_next_step():
    env = make()
    env._ale = _PayingEmulator(env._ale)
    env.reset(seed=0)
    total, lives = 0.0, 0
    for _, reward, _, _, info, first in play(env, 400):
        total += reward
        if first is not None and not info.get(EPISODE_CONTINUES):
            break
        lives += first is not None
    assert lives == 4
    # Every frame of the game paid a point, those of resets too: no-ops, FIRE and what follows a lost life.
    assert total == env._ale.games[0]


class _PayingEmulator:
    """Gives one point for every frame."""

    def __init__(self, ale: Any) -> None:
        self._ale = ale
        self.games: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ale, name)

    def act(self, action: Any) -> float:
        self._ale.act(action)
        if self._ale.game_over():
            self.games.append(self._ale.getEpisodeFrameNumber())
        return 1.0


# ---- whole games in results


def make_worker(game: str = BREAKOUT, **options: Any) -> RolloutWorker:
    from jaxrl.algorithms.ppo import PPOPolicy

    config = PPOTrainer.resolve_config(
        {
            "env": game,
            "num_envs_per_worker": 2,
            "rollout_fragment_length": 40,
            "train_batch_size": 80,
            "sgd_minibatch_size": 0,
            "seed": 4,
            "model": SMALL,
            **options,
        }
    )
    env = make_worker_env(config, 0, 0)
    policy = PPOPolicy(env.observation_space, env.action_space, config)
    worker = RolloutWorker(config, {DEFAULT_POLICY_ID: policy}, env=env)
    worker.set_weights(1, {DEFAULT_POLICY_ID: policy.init(jax.random.key(1)).weights})
    return worker


@pytest.mark.parametrize("stepping", ["sync", "async"])
def test_results_count_whole_games_and_learning_counts_lives(stepping):
    worker = make_worker(env_stepping=stepping)
    batches = [worker.sampler.collect(worker.weights) for _ in range(12)]
    episodes = worker.pop_episodes()
    worker.stop()
    actions = np.concatenate([batch["actions"] for batch in batches])
    ends = np.concatenate([batch["terminateds"] for batch in batches])
    t = np.concatenate([batch["t"] for batch in batches])
    assert all(set(np.unique(batch["rewards"])) <= {-1.0, 0.0, 1.0} for batch in batches)
    want = []
    for b, seed in enumerate(np.random.SeedSequence([4, 0]).generate_state(2)):
        env = make()
        env.reset(seed=int(seed))
        length, total, life = 0, 0.0, 0
        for i, action in enumerate(actions[:, b]):
            assert t[i, b] == life
            _, reward, terminated, _, _ = env.step(int(action))
            assert terminated == ends[i, b]
            length, total, life = length + 1, total + reward, life + 1
            if terminated:
                life = 0
                if not env.reset()[1].get(EPISODE_CONTINUES):
                    want.append((i, b, length, total))
                    length, total = 0, 0.0
    assert [(record.length, record.reward) for record in episodes] == [(n, r) for _, _, n, r in sorted(want)]
    assert 1 <= len(want) < ends.sum() / 3


def test_rewards_are_signs_only_where_the_configuration_does_not_say():
    from jaxrl.rollout.actions import reward_rule

    def rule(**options: Any) -> Any:
        return reward_rule(PPOTrainer.resolve_config({"env": PONG, **options}))

    assert rule() is True
    assert rule(env="PongNoFrameskip-v4") is True
    assert rule(clip_rewards=False) is False
    assert rule(clip_rewards=2.0) == 2.0
    assert rule(env_config={"preprocessing": None}) is None
    assert rule(env="CartPole-v1") is None
    assert rule(env=lambda config: make()) is None


# ---- saved games


@pytest.mark.parametrize("game", [PONG, BREAKOUT, "SeaquestNoFrameskip-v4"])
@pytest.mark.parametrize("frame_skip", [1, 4])
def test_a_saved_game_goes_on_bit_for_bit(game, frame_skip):
    env = make(game, frame_skip=frame_skip)
    env.reset(seed=3)
    play(env, 200)
    structure, arrays = trees.encode({"env": env.get_state()})
    state = trees.decode(json.loads(json.dumps(structure)), arrays)["env"]
    rng = env.unwrapped.np_random.bit_generator.state
    want = play(env, 300, seed=1)
    other = make(game, frame_skip=frame_skip)
    other.reset(seed=9)
    play(other, 10)
    other.set_state(state)
    other.unwrapped.np_random.bit_generator.state = rng
    assert same(play(other, 300, seed=1), want)
    with pytest.raises(ValueError, match="expected frames"):
        make(game, frame_stack=2).set_state(state)


def test_a_vector_of_games_comes_back():
    vector = make_vector_env(BREAKOUT, 2)
    vector.reset([1, 2])
    rows, rewards, flags = np.zeros((2, 84, 84, 4), np.uint8), np.zeros(2), np.zeros((2, 2), bool)

    def steps(env: Any, count: int) -> list[Any]:
        rng, seen = np.random.default_rng(0), []
        for _ in range(count):
            env.step(rng.integers(4, size=2), rows, rewards, flags[0], flags[1])
            seen.append((rows.copy(), rewards.tolist(), flags.tolist(), list(env.reset_infos)))
        return seen

    steps(vector, 130)
    state = vector.get_state()
    want = steps(vector, 100)
    other = make_vector_env(BREAKOUT, 2)
    assert other.set_state(state) == [True, True]
    for a, b in zip(steps(other, 100), want, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:3] == b[1:3]


# ---- names and options


def test_every_spelling_of_an_id():
    for name in (PONG, f"ale_py:{PONG}", "PongNoFrameskip-v4", "Pong-v4", gym.spec(PONG)):
        creator = make_env_creator(name)
        env = creator({})
        assert isinstance(env, DeepMindAtari)
        game: Any = env.unwrapped
        assert game._frameskip == 1
        env.close()
    assert [make(name).options.repeat_action_probability for name in (PONG, "Pong-v4")] == [0.25, 0.0]
    assert make(PONG, repeat_action_probability=0.1).options.repeat_action_probability == 0.1
    with pytest.raises(ConfigError, match="unknown environment 'ALE/Pongg-v5'.*ALE/Pong-v5"):
        make_env_creator("ALE/Pongg-v5")


def test_raw_games():
    env = make_env_creator(PONG)({"preprocessing": None, "obs_type": "ram"})
    assert env.observation_space.shape == (128,)
    with pytest.raises(ConfigError, match=r"env_config.preprocessing: expected 'deepmind' or None, got 'rllib'"):
        make_env_creator(PONG)({"preprocessing": "rllib"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_skip": 0}, "frame_skip: expected a whole number >= 1, got 0"),
        ({"noop_max": 1.5}, "noop_max: expected a whole number >= 0, got 1.5"),
        ({"episodic_life": 1}, "episodic_life: expected true or false, got 1"),
        ({"frameskip": 4}, "frameskip: ALE/Pong-v5 is preprocessed; set frame_skip"),
        ({"obs_type": "ram"}, "obs_type: .*preprocessing to None"),
        ({"repeat_action_probability": 1}, "repeat_action_probability: expected a probability below 1, got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=f"env_config.{message}"):
        make_env_creator(PONG)(options)


def test_defaults_are_those_of_deepmind():
    assert AtariOptions() == AtariOptions(
        frame_skip=4, noop_max=30, episodic_life=True, fire_reset=True, screen_size=84, frame_stack=4
    )


@pytest.mark.parametrize("missing", ["ale_py", "cv2"])
@pytest.mark.parametrize("name", [PONG, "PongNoFrameskip-v4"])
def test_a_missing_extra_is_named(monkeypatch, missing, name):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrl\[atari\]'"):
        make_env_creator(name)


def test_the_emulators_own_vector_env_is_no_substitute():
    with pytest.raises(ConfigError, match="env_stepping='native'"):
        make_vector_env(PONG, 2, stepping="native")


# ---- trainers


CONFIG: dict[str, Any] = {
    "num_envs_per_worker": 2,
    "rollout_fragment_length": 32,
    "train_batch_size": 64,
    "sgd_minibatch_size": 32,
    "num_sgd_iter": 1,
    "seed": 0,
    "model": SMALL,
}


def test_a_trainer_saved_within_games_goes_on_bit_for_bit(tmp_path):
    with PPOTrainer(config={"env": BREAKOUT, **CONFIG}) as trainer:
        for _ in range(3):
            trainer.train()
        path = trainer.save(tmp_path)
        want = [trainer.train() for _ in range(4)]
        weights = trainer.get_weights()
    with PPOTrainer(config={"env": BREAKOUT, **CONFIG}) as other:
        other.restore(path)
        got = [other.train() for _ in range(4)]
        trees_equal = trees.to_numpy(other.get_weights()), trees.to_numpy(weights)
    for a, b in zip(got, want, strict=True):
        assert a["hist_stats"] == b["hist_stats"]
        assert a["info"]["learner"] == b["info"]["learner"]
    jax.tree.map(np.testing.assert_array_equal, *trees_equal)


def test_the_preprocessing_costs_little_beside_the_emulator():
    env = make(PONG, repeat_action_probability=0.0)
    env.reset(seed=0)
    cv2, ale, screen = sys.modules["cv2"], emulator(env), np.zeros((210, 160), np.uint8)

    def bare() -> None:
        for _ in range(4):
            ale.act(0)
        for _ in range(2):
            ale.getScreenGrayscale(screen)
        cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)

    def seconds(step: Any) -> float:
        started = time.perf_counter()
        for _ in range(20):
            step()
        return time.perf_counter() - started

    env.step(0)
    turns = [(seconds(lambda: env.step(0)), seconds(bare)) for _ in range(10)]
    assert min(full for full, _ in turns) < 2 * min(low for _, low in turns)


def test_training_keeps_no_frames():
    frames = 64 * 84 * 84 * 4

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] + sum(x.nbytes for x in jax.live_arrays())

    with PPOTrainer(config={"env": PONG, **CONFIG}) as trainer:
        trainer.train()
        tracemalloc.start()  # NumPy's arrays among others
        try:
            trainer.train()
            before = held()
            for _ in range(8):
                trainer.train()
            grown = held() - before
        finally:
            tracemalloc.stop()
    assert grown < frames


@pytest.mark.slow
@pytest.mark.parametrize(("game", "actions", "worst"), [(PONG, 6, -21), (BREAKOUT, 4, 0)])
def test_ppo_runs_with_the_nature_network(game, actions, worst):
    config = {**CONFIG, "env": game, "train_batch_size": 64, "model": {"vf_share_layers": True}}
    with PPOTrainer(config=config) as trainer:
        assert trainer.get_policy().spec.obs_space.shape == (84, 84, 4)
        assert trainer.get_policy().spec.action_space.n == actions
        result = trainer.train()
        assert result["timesteps_total"] == 64
        assert all(math.isfinite(value) for value in result["info"]["learner"][DEFAULT_POLICY_ID].values())
        worker: Any = trainer.workers.local
        batch = worker.sample()
        assert batch["obs"].shape == (32, 2, 84, 84, 4) and batch["obs"].dtype == np.uint8
        assert batch["final_obs"].nbytes <= batch["obs"].nbytes / 4  # successors are no second copy
        assert set(np.unique(batch["rewards"])) <= {-1.0, 0.0, 1.0}
        player = Player(trainer, explore=True)
        with contextlib.closing(player):
            episode = player.play(max_steps=1000)
            assert episode.reward >= worst
            if game == BREAKOUT:  # five lives, one game
                assert episode.complete and episode.length > 100


@pytest.mark.parametrize("game", [PONG, BREAKOUT])
def test_dqn_replays_the_stacks_that_were_seen_from_single_frames(game):
    seen = []

    def keep(*, worker: Any, samples: Any) -> None:
        seen.append(samples)

    config = {
        "env": game,
        "num_envs_per_worker": 2,
        "rollout_fragment_length": 8,
        "train_batch_size": 16,
        "timesteps_per_iteration": 160,
        "learning_starts": 144,
        "buffer_size": 2000,
        "n_step": 2,
        "seed": 0,
        "callbacks": Callbacks(on_sample_end=keep),
    }
    with DQNTrainer(config=config) as trainer:
        result = trainer.train()
        memory: Any = trainer.context.memory
        (state,) = memory.states.values()
        batch = memory.sample(np.random.default_rng(0), 64, 1.0)[DEFAULT_POLICY_ID]
    assert result["timesteps_total"] >= 160
    assert all(math.isfinite(value) for value in result["info"]["learner"][DEFAULT_POLICY_ID].values())
    assert batch["obs"].shape == batch["new_obs"].shape == (64, 84, 84, 4)
    assert state.obs[0].shape == (2000, 84, 84)
    # The rest are rows beside the ring for ends and links between rows: few, and no frames of a stack.
    assert result["info"]["replay_buffer"][DEFAULT_POLICY_ID]["size_bytes"] < 1.2 * 2000 * 84 * 84
    stacks = {obs.tobytes() for samples in seen for obs in samples["obs"].reshape(-1, 84, 84, 4)}
    finals = {obs.tobytes() for samples in seen for obs in np.concatenate([samples["final_obs"], samples["last_obs"]])}
    assert all(obs.tobytes() in stacks for obs in np.asarray(batch["obs"]))
    assert all(obs.tobytes() in stacks | finals for obs in np.asarray(batch["new_obs"]))
