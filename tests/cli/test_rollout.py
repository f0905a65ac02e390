"""jaxrl rollout and plot, on what jaxrl train left."""

from __future__ import annotations

import json
import shutil

import pytest
import ray

from jaxrl.trainers.episodes import Player

RECURRENT = ["--set", "model.use_lstm=true", "--set", "model.lstm_cell_size=4"]


@pytest.fixture
def checkpoint(train, tmp_path):
    train("--stop", "training_iteration=1", "--checkpoint-at-end")
    (found,) = tmp_path.glob("results/default/*/checkpoint_000001")
    return found


def test_episodes_are_played_and_written(jaxrl, checkpoint, tmp_path):
    out = tmp_path / "episodes.jsonl"
    result = jaxrl("rollout", checkpoint, "--episodes", 3, "--out", out, "--seed", 5)
    assert not ray.is_initialized()
    episodes = [json.loads(line) for line in out.read_text().splitlines()]
    assert [episode["episode"] for episode in episodes] == [1, 2, 3]
    for episode in episodes:
        assert episode["reward"] == episode["length"] == len(episode["steps"])
        assert episode["steps"][-1]["terminated"] and not episode["steps"][0]["terminated"]
        assert len(episode["final_obs"]) == 4 and episode["steps"][0]["action"] in (0, 1)
    mean = sum(episode["reward"] for episode in episodes) / 3
    assert f"Mean reward of 3 episodes: {mean:.2f}" in result.output
    assert result.output.count("Episode ") == 3
    again = jaxrl("rollout", checkpoint, "--episodes", 3, "--seed", 5)
    assert again.output.splitlines()[:4] == result.output.splitlines()[:4]


def test_nothing_is_written_unasked(jaxrl, checkpoint, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    jaxrl("rollout", checkpoint)
    assert sorted(tmp_path.rglob("*")) == before


def test_steps_cut_the_last_episode(jaxrl, checkpoint):
    assert "reward 5.00, 5 steps  (cut)" in jaxrl("rollout", checkpoint, "--steps", 5).output


def test_a_directory_means_its_newest_checkpoint(jaxrl, train, checkpoint, tmp_path):
    train("--stop", "training_iteration=2", "--checkpoint-freq", 1)
    result = jaxrl("rollout", tmp_path / "results", "--steps", 3)
    assert "Using " in result.output and "checkpoint_000002" in result.output


def test_what_was_trained_compiled_plays_in_gymnasium(jaxrl, train, tmp_path):
    train(
        "--env", "jax/CartPole-v1", "--set", "engine=compiled", "--stop", "training_iteration=1", "--checkpoint-at-end"
    )
    (found,) = tmp_path.glob("results/default/*/checkpoint_000001")
    for env in ("CartPole-v1", "jax/CartPole-v1"):
        assert "Episode 2" in jaxrl("rollout", found, "--env", env, "--episodes", 2, "--no-render").output


def test_videos(jaxrl, checkpoint, tmp_path):
    jaxrl("rollout", checkpoint, "--episodes", 2, "--video-dir", tmp_path / "videos")
    videos = sorted((tmp_path / "videos").iterdir())
    assert [video.name for video in videos] == ["episode_0001.mp4", "episode_0002.mp4"]
    assert all(video.read_bytes()[4:8] == b"ftyp" for video in videos)


def test_a_recurrent_policy_keeps_its_state(jaxrl, train, tmp_path):
    train("--stop", "training_iteration=1", "--checkpoint-at-end", *RECURRENT)
    assert "Mean reward" in jaxrl("rollout", tmp_path / "results", "--no-explore").output


def test_several_agents(jaxrl, tmp_path):
    jaxrl(
        *("train", "--run", "PG", "--env", "MultiAgentCartPole", "--set", "env_config.num_agents=2"),
        *("--set", "train_batch_size=32", "--set", "model.fcnet_hiddens=[8]", "--stop", "training_iteration=1"),
        "--checkpoint-at-end",
    )
    out = tmp_path / "episodes.jsonl"
    result = jaxrl("rollout", tmp_path / "results", "--out", out)
    episode = json.loads(out.read_text())
    assert len(episode["agent_rewards"]) == 2
    assert episode["reward"] == sum(episode["agent_rewards"].values())
    assert "  0: " in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--render", "--video-dir", "videos"], "choose one"),
        (["--env", "Acrobot-v1"], "obs_space"),
        (["--config", "lrr=1"], "did you mean 'lr'"),
        (["--out", "no/such/directory/file"], "--out: "),
    ],
)
def test_bad_input(jaxrl, checkpoint, words, message):
    result = jaxrl("rollout", checkpoint, *words, code=2)
    assert message in result.output and "Traceback" not in result.output


def test_an_environment_without_images(jaxrl, tmp_path):
    jaxrl(
        *("train", "--run", "PG", "--env", "RepeatAfterMe", "--stop", "training_iteration=1", "--checkpoint-at-end"),
        *("--set", "model.fcnet_hiddens=[8]"),
    )
    result = jaxrl("rollout", tmp_path / "results", "--video-dir", tmp_path / "videos", code=2)
    assert "render" in result.output


@pytest.mark.parametrize("name", ["metadata.json", "arrays.safetensors"])
def test_damaged_checkpoints(jaxrl, checkpoint, tmp_path, name):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / name).write_bytes((broken / name).read_bytes()[:-9])
    assert str(broken) in jaxrl("rollout", broken, code=2).output


def test_directories_without_a_checkpoint(jaxrl, train, tmp_path):
    train("--stop", "training_iteration=1", "--no-checkpoint-at-end")
    assert "there is no checkpoint in it" in jaxrl("rollout", tmp_path / "results", code=2).output
    assert "does not exist" in jaxrl("rollout", tmp_path / "missing", code=2).output
    (tmp_path / "rllib").mkdir()
    (tmp_path / "rllib" / "checkpoint-10").write_bytes(b"\x80\x04.")
    assert "never reads those" in jaxrl("rollout", tmp_path / "rllib", code=2).output


def test_curves_of_seeds_and_variants(jaxrl, train, tmp_path):
    train("--stop", "training_iteration=3")
    train("--stop", "training_iteration=3", "--seed", 9)
    train("--stop", "training_iteration=3", "--set", "lr=0.5")
    result = jaxrl("plot", tmp_path / "results", "--smooth", 2)
    assert "PG, CartPole-v1 lr=0.0004: 2 runs" in result.output and "PG, CartPole-v1 lr=0.5: 1 run" in result.output
    assert (tmp_path / "results" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    jaxrl("plot", tmp_path / "results", "--y", "episode_len_mean", "--x", "time_total_s", "--out", tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert "did you mean" in jaxrl("plot", tmp_path / "results", "--y", "episode_len", code=2).output
    assert "--out: " in jaxrl("plot", tmp_path / "results", "--out", tmp_path / "a.xyz", code=2).output


def test_plots_of_nothing(jaxrl, tmp_path):
    assert "no results there" in jaxrl("plot", tmp_path, code=2).output


def test_a_player_stops_at_the_horizon():
    from jaxrl.algorithms.pg import PGTrainer

    config = {"env": "CartPole-v1", "horizon": 4, "train_batch_size": 16, "model": {"fcnet_hiddens": [8]}}
    with PGTrainer(config=config) as trainer:
        player = Player(trainer, keep_steps=True)
        episode = player.play()
        player.close()
    assert episode.length == 4 and episode.complete and len(episode.steps) == 4


def test_an_episode_without_an_end_is_an_error():
    from jaxrl.algorithms.pg import PGTrainer
    from jaxrl.types import EnvError

    config = {
        "env": "CartPole-v1",
        "env_config": {"max_episode_steps": 10**6},
        "max_whole_episode_steps": 3,
        "train_batch_size": 16,
        "model": {"fcnet_hiddens": [8]},
    }
    with PGTrainer(config=config) as trainer:
        player = Player(trainer)
        with pytest.raises(EnvError, match=r"CartPole-v1 .*taken 3 steps and has not ended; set horizon"):
            player.play()
        assert player.play(max_steps=2).length == 2
        player.close()
