"""What `jaxrl train` leaves behind and says of it, and what it refuses before anything starts."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from jaxrl import registry, tune
from jaxrl.cli import tuned
from jaxrl.cli.experiments import find_trainer
from jaxrl.cli.options import read_mapping
from jaxrl.cli.runs import checkpoints_below, find_checkpoint
from jaxrl.tune import TrialView
from jaxrl.types import ConfigError


def runs_of(tmp_path):
    return list((tmp_path / "results" / "default").iterdir())


def test_the_last_iteration_is_saved_and_the_command_that_plays_it_printed(train, tmp_path):
    said = train("--stop", "training_iteration=2").output
    (run,) = runs_of(tmp_path)
    assert [path.name for path in checkpoints_below(run)] == ["checkpoint_000002"]
    assert f"jaxrl rollout {run / 'checkpoint_000002'}" in said


def test_a_checkpoint_that_is_not_of_the_last_iteration_is_never_shown_as_the_result(train, tmp_path):
    said = train("--stop", "training_iteration=3", "--checkpoint-freq", 2, "--no-checkpoint-at-end").output
    assert "checkpoint_000002 (of iteration 2, not of the last)" in said
    (run,) = runs_of(tmp_path)
    assert [path.name for path in checkpoints_below(run)] == ["checkpoint_000002"]


def test_a_resumed_run_ends_with_a_checkpoint_of_its_own(train, jaxrl, tmp_path):
    train("--stop", "training_iteration=1")
    (run,) = runs_of(tmp_path)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    said = jaxrl("train", "--resume", "--stop", "training_iteration=3").output
    assert f"Checkpoint: {run / 'checkpoint_000003'}\n" in said


def test_a_run_without_a_checkpoint_is_resumed_from_the_start_with_each_iteration_once(train, jaxrl, tmp_path):
    train("--stop", "training_iteration=2", "--no-checkpoint-at-end")
    (run,) = runs_of(tmp_path)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    jaxrl("train", "--resume")
    lines = [json.loads(line) for line in (run / "result.json").read_text().splitlines()]
    assert [line["training_iteration"] for line in lines] == [1, 2]
    assert (run / "progress.csv").read_text().count("\n") == 3


def test_the_best_checkpoint_by_a_number_of_results_is_kept(train, tmp_path):
    said = train("--stop", "training_iteration=2", "--keep-best", "timesteps_total", "--keep-checkpoints-num", 1).output
    (run,) = runs_of(tmp_path)
    assert {path.name for path in checkpoints_below(run)} == {"checkpoint_000002", "checkpoint_best"}
    assert f"Best:       {run / 'checkpoint_best'} (iteration 2)" in said


def test_an_evaluation_shows_in_lines_and_summary(train):
    said = train(
        "--stop", "training_iteration=2", "--set", "evaluation_interval=2", "--set", "evaluation_num_episodes=1"
    )
    (line,) = [line for line in said.output.splitlines() if "  evaluation " in line]
    assert line.startswith("iter 2") and "policy loss" in line
    assert "Mean evaluation reward:" in said.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--stop", "episode_reward=100"], "'episode_reward'; did you mean 'episode_reward_mean'?"),
        (["--stop", "timestep_total=100"], "'timestep_total'; did you mean 'timesteps_total'?"),
        (["--keep-best", "reward"], "keep_best: results have no 'reward'; did you mean 'episode_reward_mean'?"),
        (["--config", '{"lr": 0.1, "gamma" 1}'], "not valid JSON: Expecting ':' delimiter at line 1, column 21"),
        (["--import", "no_such_module"], "there is no module 'no_such_module'"),
    ],
)
def test_it_is_refused_before_anything_starts(train, tmp_path, words, expected):
    said = train("--stop", "training_iteration=1", *words, code=2).output
    assert expected in said and len(said) < 400
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("samples", [1, 2])
def test_a_storage_path_that_cannot_be_written_is_one_line(train, tmp_path, samples):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"
    said = train("--stop", "training_iteration=1", "--storage-path", place, "--num-samples", samples, code=2).output
    assert said.startswith(f"Error: --storage-path: {place} cannot be written: ") and said.count("\n") == 1


def test_a_checkpoint_of_another_algorithm_names_its_own(train, jaxrl, tmp_path):
    train("--stop", "training_iteration=1")
    (run,) = runs_of(tmp_path)
    said = jaxrl("train", "--run", "A2C", "--restore", run / "checkpoint_000001", code=2).output
    assert "is of PG, not of A2C; give --run PG" in said


@pytest.mark.parametrize("name", ["ppo", "PPO", "Ppo", "PPOTrainer", "ppotrainer"])
def test_an_algorithms_name_is_taken_in_any_case(name):
    assert find_trainer(name) is registry.resolve("algorithm", "PPO")
    assert find_trainer("simpleq") is registry.resolve("algorithm", "SimpleQ")


def test_yaml_in_braces_is_still_read():
    assert read_mapping(["{lr: 0.1, model: {use_lstm: true}}"], "--config") == {"lr": 0.1, "model": {"use_lstm": True}}
    with pytest.raises(ConfigError, match=r"--stop: not valid JSON: .* at line 1, column 2"):
        read_mapping(["{1: [}"], "--stop")


def test_a_directory_of_runs_means_the_best_runs_newest_checkpoint(tmp_path):
    for run, rewards in (("a", [1.0, 30.0]), ("b", [50.0, 20.0])):
        for number, reward in enumerate(rewards, 1):
            directory = tmp_path / run / f"checkpoint_{number:06d}"
            directory.mkdir(parents=True)
            (directory / "metadata.json").write_text('{"sha256": {}}')
            with open(tmp_path / run / "result.json", "a") as file:
                file.write(json.dumps({"training_iteration": number, "episode_reward_mean": reward}) + "\n")
    assert find_checkpoint(tmp_path) == tmp_path / "a" / "checkpoint_000002"
    assert find_checkpoint(tmp_path / "b") == tmp_path / "b" / "checkpoint_000002"


def test_an_environment_that_a_module_registers_is_known_through_import(jaxrl, train, tmp_path, monkeypatch):
    (tmp_path / "registers_mine.py").write_text(
        "import gymnasium\nfrom jaxrl import register_env\n"
        "register_env('mine-v0', lambda context: gymnasium.make('CartPole-v1'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry._tables, "env", dict(registry._tables["env"]))
    train("--env", "mine-v0", "--import", "registers_mine", "--stop", "training_iteration=1")
    (run,) = runs_of(tmp_path)
    registry._tables["env"].pop("mine-v0")
    sys.modules.pop("registers_mine")
    said = jaxrl("rollout", run, code=2).output
    assert "unknown environment 'mine-v0'" in said and "--import" in said and "--env pkg.mod:Class" in said
    assert "Mean reward of 1 episode" in jaxrl("rollout", run, "--import", "registers_mine").output


def test_trials_are_listed_once_with_their_checkpoints_and_the_best_ones_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    trials = []
    for number, reward in enumerate([3.0, 7.0, 5.0]):
        directory = tmp_path / f"trial_{number}" / "checkpoint_000000"
        directory.mkdir(parents=True)
        (directory / "metadata.json").write_text('{"sha256": {}}')
        result = {"training_iteration": 2, "episode_reward_mean": reward}
        trials.append(TrialView(f"PG_{number}", f"lr={number}", "RUNNING", result, str(directory.parent), ""))
    progress = tuned._Progress({})
    progress.show(trials)
    ended = [trial._replace(status="TERMINATED") for trial in trials]
    progress.show(ended)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["PG_0", "PG_1", "PG_2"]
    assert tuned._report(tmp_path, ended, None) == 0
    said = capsys.readouterr().out
    assert all(f"PG_{n} lr={n}: {tmp_path}/trial_{n}/checkpoint_000000" in said for n in range(3))
    assert "Best mean episode reward at last: 7.0, PG_1 lr=1" in said
    assert f"jaxrl rollout {tmp_path}/trial_1/checkpoint_000000" in said


def test_a_trials_directory_is_where_its_results_are_and_not_where_tune_stages_them():
    storage = {"path": "/results/trial_1", "local_path": "/tmp/ray/session/trial_1"}
    trial = SimpleNamespace(experiment_tag="1_lr=0.1", status="TERMINATED", last_result={}, error_file=None, **storage)
    assert tune._view(trial).directory == "/results/trial_1"
