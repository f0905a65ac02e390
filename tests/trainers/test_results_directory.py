"""A trainer's results directory: it can be written, it is the trainer's own, and it keeps the best checkpoint."""

from __future__ import annotations

import csv
import json
import math

import pytest

from jaxrl import registry
from jaxrl.algorithms.pg import PGTrainer
from jaxrl.algorithms.ppo import PPOTrainer
from jaxrl.callbacks import Callbacks
from jaxrl.trainers.best import Best
from jaxrl.trainers.display import format_line
from jaxrl.trainers.result_table import keep_results
from jaxrl.trainers.results import ResultWriter
from jaxrl.types import ConfigError

TINY = {
    "env": "CartPole-v1",
    "train_batch_size": 32,
    "rollout_fragment_length": 32,
    "batch_mode": "truncate_episodes",
    "model": {"fcnet_hiddens": [4]},
    "seed": 1,
}

OPTIONS = PGTrainer.resolve_config(TINY)


def iterations(directory):
    lines = [json.loads(line)["training_iteration"] for line in (directory / "result.json").read_text().splitlines()]
    with open(directory / "progress.csv", newline="") as file:
        assert [int(row["training_iteration"]) for row in csv.DictReader(file)] == lines
    return lines


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_a_directory_that_cannot_be_written_is_refused_by_the_constructor(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"results_dir: .* cannot be written: .*file: Not a directory"):
        PGTrainer(TINY, results_dir=tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_is_one_trainers(tmp_path):
    first, second = PGTrainer(TINY, results_dir=tmp_path), PGTrainer(TINY, results_dir=tmp_path)
    try:
        first.train()
        with pytest.raises(ConfigError, match="holds results of another trainer, up to iteration 1; give each"):
            second.train()
        first.train()
        path = first.save()
        # One that goes on from a checkpoint takes the directory over.
        second.restore(path)
        second.train()
        with pytest.raises(ConfigError, match="holds results of another trainer, up to iteration 3"):
            first.train()
        second.restore(path)
        second.train()
    finally:
        first.stop()
        second.stop()
    assert iterations(tmp_path) == [1, 2, 3]
    with (
        pytest.raises(ConfigError, match="holds results of another trainer"),
        PGTrainer(TINY, results_dir=tmp_path) as third,
    ):
        third.train()


def test_results_after_the_checkpoint_are_made_again_once(tmp_path):
    for rewards, first in (([1.0, 2.0, 3.0], 1), ([20.0, 30.0], 2)):
        writer = ResultWriter(tmp_path, "PG", OPTIONS)
        for number, reward in enumerate(rewards, first):
            writer.write({"training_iteration": number, "episode_reward_mean": reward})
        writer.close()
    assert iterations(tmp_path) == [1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "result.json").read_text().splitlines()]
    assert [line["episode_reward_mean"] for line in lines] == [1.0, 20.0, 30.0]


def test_the_best_checkpoint_is_kept_and_what_was_best_restored(tmp_path):
    scores = iter([1.0, 5.0, 2.0, 5.0, 6.0])

    def score(*, trainer, result):
        result["score"] = next(scores)

    config = TINY | {"keep_best": "score", "callbacks": Callbacks(on_train_result=score)}
    best = tmp_path / "checkpoint_best" / "metadata.json"

    def of():
        return json.loads(best.read_text())["training_iteration"]

    with PGTrainer(config, results_dir=tmp_path) as trainer:
        kept = [trainer.train() and of() for _ in range(3)]
        path = trainer.save()
    with PGTrainer(config, results_dir=tmp_path) as trainer:
        trainer.restore(path)
        kept += [trainer.train() and of() for _ in range(2)]
    assert kept == [1, 2, 2, 2, 5]


def test_best_passes_over_what_is_absent_or_no_number():
    best = Best("evaluation/episode_reward_mean", PGTrainer, OPTIONS)
    results = [{}, {"evaluation": {"episode_reward_mean": -3.0}}, {"evaluation": {}}]
    assert [best.improves(result) for result in results] == [False, True, False]
    assert not best.improves({"evaluation": {"episode_reward_mean": math.nan}})
    with pytest.raises(ConfigError, match="keep_best: results have no 'score'"):
        Best("score", PGTrainer, OPTIONS)


@pytest.mark.parametrize("key", ["keep_best", "stop"])
def test_a_mistyped_number_is_refused_before_anything_is_built(key):
    def go():
        if key == "keep_best":
            PGTrainer(TINY | {"keep_best": "episode_reward"})
        else:
            with PGTrainer(TINY) as trainer:
                trainer.train = lambda: pytest.fail("it trains")
                trainer.fit(1, stop={"episode_reward": 1.0})

    with pytest.raises(
        ConfigError, match=rf"{key}: results have no 'episode_reward'; did you mean 'episode_reward_mean'"
    ):
        go()


@pytest.mark.parametrize("words", [("MlpPolicy", "CartPole-v1"), ("CartPole-v1",), (["CartPole-v1"],)])
def test_the_call_of_another_library_is_answered_with_ours(words):
    with pytest.raises(ConfigError, match=r"expected a dict .* write PPOTrainer\(\{'env': 'CartPole-v1'\}\)"):
        PPOTrainer(*words)


@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_every_algorithm_chooses_numbers_for_its_progress_lines(name):
    keys = registry.resolve("algorithm", name).progress_keys
    assert 1 <= len(keys) <= 3
    assert all(key.startswith(("info/learner/*/", "info/replay_buffer/*/")) for key in keys.values())


def test_a_progress_line_has_the_numbers_of_the_first_policy():
    info = {"learner": {"a": {"kl": 0.012, "entropy": 1.5}, "b": {"kl": 9.0}}}
    line = format_line(
        {"training_iteration": 3, "info": info, "evaluation": {"episode_reward_mean": 12.25}}, PPOTrainer.progress_keys
    )
    assert line == "iter 3  evaluation 12.2  kl 0.012  entropy 1.5"


def test_a_trainer_that_is_set_back_to_the_start_writes_a_whole_table(tmp_path):
    writer = ResultWriter(tmp_path, "PG", PGTrainer.resolve_config(TINY))
    for number in (1, 2, 1):
        writer.write({"training_iteration": number, "episode_reward_mean": 1.0})
    writer.close()
    assert iterations(tmp_path) == [1]
    with open(tmp_path / "progress.csv", "a") as file:
        file.write("2,1")  # the machine went down here
    with open(tmp_path / "result.json", "a") as file:
        file.write('{"training_it')
    keep_results(tmp_path, 1)
    assert iterations(tmp_path) == [1]
