"""History: access, loading, curves and their bands."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxrl.trainers.curves import CurveFigure, align, draw, moving_mean, new_figure
from jaxrl.trainers.history import History, value_at
from jaxrl.trainers.run_groups import find_groups
from jaxrl.types import JaxrlError


def results(rewards, step: int = 100) -> list[dict]:
    return [
        {
            "training_iteration": i,
            "timesteps_total": step * i,
            "episode_reward_mean": reward,
            "info": {"learner": {"critic/loss": float(i)}},
            "config": {"lr": 0.1},
        }
        for i, reward in enumerate(rewards, 1)
    ]


def write_run(directory, rewards, **config):
    directory.mkdir(parents=True)
    text = "".join(json.dumps(result) + "\n" for result in results(rewards))
    (directory / "result.json").write_text(text)
    (directory / "params.json").write_text(json.dumps({"env": "CartPole-v1", "seed": 1, **config}))
    return directory


def test_it_is_a_list_of_results():
    history = History(results([1.0, 2.0]), name="PPO")
    assert len(history) == 2 and history
    assert history[-1]["episode_reward_mean"] == 2.0
    assert [r["training_iteration"] for r in history] == [1, 2]
    assert len(history[:1]) == 1
    assert not History()


def test_columns_and_keys():
    history = History(results([math.nan, 2.0]))
    assert math.isnan(history.column("episode_reward_mean")[0])
    assert history.column("info/learner/critic/loss") == [1.0, 2.0]
    assert "info/learner/critic/loss" in history.metrics()
    assert math.isnan(value_at({"a": "text"}, "a")) and math.isnan(value_at({}, "b"))


def test_pandas_has_one_row_a_result():
    frame = History(results([1.0, 2.0])).to_pandas()
    assert frame["info/learner/critic/loss"].tolist() == [1.0, 2.0]
    assert "config/lr" not in frame


def test_loading_a_directory_or_its_file(tmp_path):
    run = write_run(tmp_path / "PPO_x", [1.0, 2.0])
    assert [r["episode_reward_mean"] for r in History.load(run)] == [1.0, 2.0]
    assert History.load(run / "result.json").name == "PPO_x"


def test_null_is_read_as_a_missing_number(tmp_path):
    run = write_run(tmp_path / "PPO_x", [None, 2.0])
    assert math.isnan(History.load(run).column("episode_reward_mean")[0])


def test_iterations_repeated_after_a_restore_count_once(tmp_path):
    run = write_run(tmp_path / "PPO_x", [1.0, 2.0, 3.0])
    with open(run / "result.json", "a") as file:
        file.write(json.dumps({**results([0, 0])[1], "episode_reward_mean": 20.0}) + "\n")
    assert History.load(run).column("episode_reward_mean") == [1.0, 20.0]


def test_a_cut_last_line_is_left_out_and_a_damaged_one_is_an_error(tmp_path):
    run = write_run(tmp_path / "PPO_x", [1.0, 2.0])
    whole = (run / "result.json").read_text()
    (run / "result.json").write_text(whole + '{"training')
    assert len(History.load(run)) == 2
    (run / "result.json").write_text("garbage\n" + whole)
    with pytest.raises(JaxrlError, match=r"result\.json:1: is no JSON object"):
        History.load(run)


def test_nothing_to_load(tmp_path):
    with pytest.raises(JaxrlError, match="cannot be read"):
        History.load(tmp_path)
    (tmp_path / "result.json").write_text("")
    with pytest.raises(JaxrlError, match="no result yet"):
        History.load(tmp_path)


def test_a_curve_is_drawn_and_saved(tmp_path):
    history = History(results([1.0, 3.0, 5.0]), name="PPO")
    figure = history.plot()
    (line,) = figure.axes[0].get_lines()
    assert np.asarray(line.get_xdata()).tolist() == [100, 200, 300]
    assert np.asarray(line.get_ydata()).tolist() == [1, 3, 5]
    path = history.save_plot(tmp_path / "new" / "curve.png", smooth=2)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert isinstance(figure, CurveFigure) and figure._repr_png_().startswith(b"\x89PNG")


def test_it_draws_into_given_axes_and_pyplot_keeps_nothing():
    import matplotlib.pyplot as plt

    _, axes = new_figure()
    History(results([1.0, 2.0])).plot(ax=axes, x="training_iteration")
    assert axes.get_xlabel() == "training iteration"
    assert plt.get_fignums() == []


def test_an_unknown_key_names_the_nearest():
    history = History(results([1.0]), name="PPO")
    with pytest.raises(JaxrlError, match="did you mean 'episode_reward_mean'"):
        history.plot("episode_reward_maen")
    with pytest.raises(JaxrlError, match="no finite value"):
        History(results([math.nan])).plot()
    with pytest.raises(JaxrlError, match="smooth"):
        history.plot(smooth=0)


def test_joined_runs_make_a_band():
    joined = History(results([1.0, 3.0]), name="PPO").join(History(results([3.0, 5.0])), History(results([2.0, 4.0])))
    assert len(joined.runs) == 3 and len(joined) == 2
    _, axes = new_figure()
    draw(axes, {"PPO": joined})
    assert len(axes.collections) == 1
    assert axes.get_legend_handles_labels()[1] == ["PPO, 3 runs"]


def test_runs_are_interpolated_where_all_have_values():
    band = align(
        [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([5.0, 15.0]), np.array([1.0, 11.0]))],
    )
    assert band.x.tolist() == [5, 10]
    assert band.mean.tolist() == [3, 8]
    assert band.low.tolist() == [1, 6]
    assert band.high.tolist() == [5, 10]


def test_the_moving_mean_keeps_the_length():
    values = np.array([2.0, 4.0, 6.0, 8.0])
    assert moving_mean(values, 1).tolist() == values.tolist()
    assert moving_mean(values, 3).tolist() == [2, 3, 4, 6]
    assert moving_mean(values, 99).tolist() == [2, 3, 4, 5]


def test_texts():
    history = History(results([1.0, 2000.5]), name="PPO <x>", note="Stopped.")
    assert "PPO <x>: 2 results" in repr(history) and "Stopped." in repr(history)
    page = history._repr_html_()
    assert "data:image/png;base64" in page and "PPO &lt;x&gt;" in page
    assert "<img" not in History(results([math.nan]))._repr_html_()
    assert "0 results" in repr(History())


def test_runs_are_grouped_by_what_they_differ_in(tmp_path):
    write_run(tmp_path / "a" / "PPO_CartPole-v1_1", [1.0, 2.0], lr=0.1)
    write_run(tmp_path / "a" / "PPO_CartPole-v1_2", [2.0, 3.0], lr=0.1, seed=2)
    write_run(tmp_path / "a" / "PPOTrainer_CartPole-v1_3", [2.0, 3.0], lr=0.2)
    write_run(tmp_path / "b" / "PG_CartPole-v1_1", [2.0, 3.0])
    (tmp_path / "b" / "broken").mkdir()
    (tmp_path / "b" / "broken" / "result.json").write_text("")
    groups, notes = find_groups([tmp_path])
    assert {label: len(history.runs) for label, history in groups["CartPole-v1"].items()} == {
        "PPO, CartPole-v1 lr=0.1": 2,
        "PPO, CartPole-v1 lr=0.2": 1,
        "PG, CartPole-v1": 1,
    }
    assert len(notes) == 1 and "broken" in notes[0]


def test_directories_without_runs(tmp_path):
    with pytest.raises(JaxrlError, match="no results there or below"):
        find_groups([tmp_path])
    with pytest.raises(JaxrlError, match="does not exist"):
        find_groups([tmp_path / "missing"])
