"""Results on disk: what is written, when, and that other programs read it."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from jaxrl.trainers.result_table import flatten
from jaxrl.trainers.results import ResultWriter, new_run_directory, results_root, to_plain

OPTIONS = {"env": "CartPole-v1", "lr": 0.1, "callbacks": math.sqrt}


def result(iteration: int, **more) -> dict:
    return {
        "training_iteration": iteration,
        "timesteps_total": 100 * iteration,
        "episode_reward_mean": 1.5 * iteration,
        "info": {"learner": {"default_policy": {"policy_loss": np.float32(0.25)}}},
        "hist_stats": {"episode_reward": [1.0, 2.0]},
        "config": {"env": "CartPole-v1", "fn": math.sqrt},
        "done": False,
        **more,
    }


def lines(path) -> list[dict]:
    def refuse(text):
        raise AssertionError(f"not strict JSON: {text}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_nothing_is_made_before_the_first_result(tmp_path):
    writer = ResultWriter(tmp_path / "run", "PPO", OPTIONS)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_the_default_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRL_RESULTS_DIR", str(tmp_path))
    writer = ResultWriter(None, "PPO", SimpleNamespace(env="ALE/Pong-v5"))
    assert writer.directory.parent == tmp_path / "default"
    assert writer.directory.name.startswith("PPO_ALE-Pong-v5_2")
    assert new_run_directory(tmp_path, "PPO", dict) != new_run_directory(tmp_path, "PPO", dict)
    assert new_run_directory(tmp_path, "PPO", dict).name.startswith("PPO_dict_")
    monkeypatch.delenv("JAXRL_RESULTS_DIR")
    assert results_root().name == "ray_results"
    assert results_root(tmp_path / "x") == tmp_path / "x"


def test_every_file_is_written_and_read_back(tmp_path):
    writer = ResultWriter(tmp_path, "PPO", OPTIONS)
    writer.write(result(1))
    writer.write(result(2, episode_reward_mean=math.nan))
    writer.close()
    assert json.loads((tmp_path / "params.json").read_text()) == {
        "env": "CartPole-v1",
        "lr": 0.1,
        "callbacks": {"$ref": "math:sqrt"},
    }
    written = lines(tmp_path / "result.json")
    assert [line["training_iteration"] for line in written] == [1, 2]
    assert written[1]["episode_reward_mean"] is None
    assert written[0]["config"]["fn"] == {"$ref": "math:sqrt"}
    frame = pandas.read_json(tmp_path / "result.json", lines=True)
    assert frame["episode_reward_mean"].isna().tolist() == [False, True]
    table = pandas.read_csv(tmp_path / "progress.csv")
    assert table["info/learner/default_policy/policy_loss"].tolist() == [0.25, 0.25]
    assert math.isnan(table["episode_reward_mean"].tolist()[1])
    assert not [name for name in table.columns if name.startswith(("config", "hist_stats"))]


def test_a_line_is_whole_as_soon_as_it_is_written(tmp_path):
    writer = ResultWriter(tmp_path, "PPO", OPTIONS)
    for i in range(1, 4):
        writer.write(result(i))
        assert len(lines(tmp_path / "result.json")) == i
        assert len(pandas.read_csv(tmp_path / "progress.csv")) == i
    writer.close()


def test_a_later_key_widens_the_table(tmp_path):
    writer = ResultWriter(tmp_path, "PPO", OPTIONS)
    writer.write(result(1))
    writer.write(result(2, evaluation={"episode_reward_mean": 7.0}, comment='a "quoted", text'))
    writer.write(result(3))
    writer.close()
    table = pandas.read_csv(tmp_path / "progress.csv")
    assert table["training_iteration"].tolist() == [1, 2, 3]
    assert table["evaluation/episode_reward_mean"].fillna(-1).tolist() == [-1, 7, -1]
    assert table["comment"].tolist()[1] == 'a "quoted", text'


def test_a_directory_is_continued_after_a_cut_line(tmp_path):
    first = ResultWriter(tmp_path, "PPO", OPTIONS)
    first.write(result(1))
    first.close()
    for name in ("result.json", "progress.csv"):
        with open(tmp_path / name, "a") as file:
            file.write('{"training_iter')
    second = ResultWriter(tmp_path, "PPO", OPTIONS)
    second.write(result(2, new=5))
    second.close()
    assert [line["training_iteration"] for line in lines(tmp_path / "result.json")] == [1, 2]
    table = pandas.read_csv(tmp_path / "progress.csv")
    assert table["training_iteration"].tolist() == [1, 2]
    assert table["new"].fillna(0).tolist() == [0, 5]


def test_events_for_tensorboard(tmp_path):
    writer = ResultWriter(tmp_path, "PPO", OPTIONS)
    writer.write(result(1, note="text", ready=True))
    writer.close()
    scalars, histograms = read_events(tmp_path)
    assert scalars["episode_reward_mean"] == (100, 1.5)
    assert scalars["info/learner/default_policy/policy_loss"] == (100, 0.25)
    assert histograms == {"hist_stats/episode_reward"}
    assert not {"note", "ready", "config/env", "training_iteration"} & set(scalars)


def read_events(directory) -> tuple[dict[str, tuple[int, float]], set[str]]:
    """Reads event files as TensorBoard does: length, checksum, message, checksum."""
    import importlib
    import struct

    event_type = importlib.import_module("tensorboardX.proto.event_pb2").Event
    scalars, histograms = {}, set()
    for file in directory.glob("events.out.tfevents.*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_type.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("histo"):
                    histograms.add(value.tag)
                else:
                    scalars[value.tag] = (event.step, value.simple_value)
    return scalars, histograms


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (np.float32(math.inf), None),
        ({1: (2, math.nan)}, {"1": [2, None]}),
        (None, None),
    ],
)
def test_plain_data(value, expected):
    assert to_plain(value) == expected


def test_jax_numbers_are_plain_too():
    import jax.numpy as jnp

    assert to_plain({"x": jnp.float32(0.5), "y": jnp.arange(2)}) == {"x": 0.5, "y": [0, 1]}


def test_flatten_joins_keys():
    assert dict(flatten({"a": {"b": {"c/d": 1}}, "e": [2]})) == {"a/b/c/d": 1, "e": [2]}
