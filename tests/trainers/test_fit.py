"""fit: stop criteria, interruptions and displays, on a trainer that only counts."""

from __future__ import annotations

import io
import json
import math
import signal
from types import SimpleNamespace
from typing import ClassVar

import pytest
from rich.console import Console

from jaxrl.trainers import display as displays
from jaxrl.trainers.config_table import ConfigTable
from jaxrl.trainers.fit import fit, train_until
from jaxrl.trainers.history import History
from jaxrl.trainers.interruption import Interruption
from jaxrl.trainers.stopping import check_stop, criterion_met
from jaxrl.types import ConfigError


class CountingTrainer:
    """Each iteration is 100 steps, its reward the iteration's number; `hook(iteration)` runs within it."""

    name = "PPO"
    options = SimpleNamespace(env="CartPole-v1")
    progress_keys: ClassVar[dict[str, str]] = {"reward x 2": "twice/*/reward"}

    def __init__(self, hook=None):
        self.iteration = 0
        self.hook = hook or (lambda iteration: None)

    def train(self):
        self.hook(self.iteration + 1)
        self.iteration += 1
        return {
            "training_iteration": self.iteration,
            "timesteps_total": 100 * self.iteration,
            "episode_reward_mean": math.nan if self.iteration == 1 else float(self.iteration),
            "hist_stats": {},
        }


def test_it_trains_for_so_many_iterations(capsys):
    history = fit(CountingTrainer(), 3)
    assert [result["training_iteration"] for result in history] == [1, 2, 3]
    assert history.name == "PPO on CartPole-v1" and history.note == ""
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("iter 1  env steps 100") and out[-1].startswith("iter 3  env steps 300")


def test_more_iterations_follow():
    trainer = CountingTrainer()
    fit(trainer, 2, verbose=False)
    assert [result["training_iteration"] for result in fit(trainer, 2, verbose=False)] == [3, 4]


def test_it_is_silent_on_request(capsys):
    fit(CountingTrainer(), 2, verbose=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("stop", "iterations"),
    [
        ({"episode_reward_mean": 3}, 3),
        ({"timesteps_total": 350}, 4),
        ({"training_iteration": 1}, 1),
        ({}, 9),
        (None, 9),
    ],
)
def test_stop_criteria(stop, iterations):
    history = fit(CountingTrainer(), 9, stop=stop, verbose=False)
    assert len(history) == iterations
    assert bool(history.note) == (iterations < 9)


def test_a_criterion_that_no_result_has():
    trainer = CountingTrainer()
    with pytest.raises(ConfigError, match="no 'episode_reward_maen'; did you mean 'episode_reward_mean'"):
        fit(trainer, 9, stop={"episode_reward_maen": 1}, verbose=False)
    assert trainer.iteration == 1
    assert len(fit(CountingTrainer(), 2, stop={"evaluation/episode_reward_mean": 1}, verbose=False)) == 2


@pytest.mark.parametrize(
    ("iterations", "stop", "message"),
    [
        (0, None, "at least 1"),
        (2.5, None, "whole number"),
        (True, None, "whole number"),
        (1, [1], "expected a dict"),
        (1, {"timesteps_total": "many"}, "should be a number"),
        (1, {"timesteps_total": math.nan}, "should be a number"),
    ],
)
def test_what_makes_no_sense(iterations, stop, message):
    with pytest.raises(ConfigError, match=message):
        fit(CountingTrainer(), iterations, stop=stop)


def test_nested_criteria_are_flattened():
    assert check_stop({"evaluation": {"episode_reward_mean": 3}}) == {"evaluation/episode_reward_mean": 3.0}
    assert criterion_met({"a/b": 2.0}, {"a": {"b": 2}}) == "a/b"
    assert criterion_met({"a/b": 2.0}, {"a": {"b": math.nan}}) is None


def test_an_interrupt_ends_after_the_iteration(capsys):
    before = signal.getsignal(signal.SIGINT)
    history = fit(CountingTrainer(lambda i: signal.raise_signal(signal.SIGINT) if i == 2 else None), 9)
    assert len(history) == 2
    assert history.note == "Interrupted after 2 iterations."
    assert "Ending after this iteration" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_at_once():
    def twice(iteration):
        if iteration == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    history = fit(CountingTrainer(twice), 9, verbose=False)
    assert len(history) == 1
    assert "within an iteration" in history.note


def test_interruptions_of_other_signals():
    calls = []
    with Interruption((signal.SIGTERM,), on_first=calls.append, on_second=lambda n: calls.append(-n)) as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert calls == [signal.SIGTERM, -signal.SIGTERM]
    assert interruption.requested == signal.SIGTERM


def test_an_interruption_in_a_thread_leaves_signals_alone():
    import threading

    found = []

    def work():
        with Interruption() as interruption:
            found.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_an_error_closes_the_display():
    closed = []

    def fail(iteration):
        if iteration == 2:
            raise ValueError("no")

    display = displays.Display(lambda history: None, lambda text: None, lambda history: closed.append(len(history)))
    with pytest.raises(ValueError, match="no"):
        train_until(CountingTrainer(fail), {}, display=display)
    assert closed == [1]


def test_each_result_is_handed_on():
    seen = []
    display = displays.open_display(False)
    train_until(
        CountingTrainer(), {"training_iteration": 2}, display=display, after=lambda r: seen.append(r["timesteps_total"])
    )
    assert seen == [100, 200]


def result(iteration: int) -> dict:
    return {"training_iteration": iteration, "timesteps_total": 1000 * iteration, "episode_reward_mean": 1.25}


def test_lines_come_at_most_every_second_but_the_last_one_always(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(displays.time, "monotonic", lambda: clock[0])
    written: list[str] = []
    display, history = displays.line_display(written.append), History()
    for i, now in enumerate((0.0, 0.4, 0.9, 1.1, 1.2), 1):
        clock[0] = now
        history.results.append(result(i))
        display.update(history)
    display.close(history)
    assert [line.split()[1] for line in written] == ["1", "4", "5"]
    assert written[0] == "iter 1  env steps 1,000  reward 1.2"


def test_a_terminal_gets_a_table():
    text = io.StringIO()
    display = displays.table_display(Console(file=text, force_terminal=True, width=120), "PPO on CartPole-v1")
    history = History([result(i) for i in range(1, 30)])
    display.update(history)
    display.note("a note")
    display.close(history)
    page = text.getvalue()
    assert "PPO on CartPole-v1" in page and "reward" in page and "29,000" in page and "a note" in page
    assert " 2,000" not in page


def test_an_empty_table_shows_nothing():
    text = io.StringIO()
    displays.table_display(Console(file=text, force_terminal=True)).close(History())
    assert "iteration" not in text.getvalue()


def test_a_notebook_updates_one_output(monkeypatch):
    import IPython.display

    shown, updated = [], []

    def show(page, display_id):
        assert display_id is True
        shown.append(page.data)
        return SimpleNamespace(update=lambda page: updated.append(page.data))

    monkeypatch.setattr(IPython.display, "display", show)
    monkeypatch.setattr(displays, "in_notebook", lambda: True)
    history = fit(CountingTrainer(), 4, stop={"training_iteration": 3})
    assert len(history) == 3
    assert len(shown) == 1 and len(updated) == 1
    assert "data:image/png;base64" in updated[0]


def test_this_is_no_notebook():
    assert not displays.in_notebook()


def test_the_table_of_options():
    from jaxrl.config import OptionDoc

    table = ConfigTable(
        "PPO",
        [
            OptionDoc("lr", "float", 0.1, "Step <size>.", None, True),
            OptionDoc("model.dim", "int", 84, "Side of images.", (42, 84), False),
            OptionDoc("fn", "function", math.sqrt, "A function.", None, False),
        ],
    )
    lines = repr(table).splitlines()
    assert lines[2].split() == ["option", "type", "default", "meaning"]
    assert lines[3].startswith("lr*") and "One of 42, 84." in repr(table) and "sqrt" in lines[5]
    assert len({line.index(word) for line, word in zip(lines[2:5], ("default", "0.1", "84"), strict=True)}) == 1
    assert "Step &lt;size&gt;." in table._repr_html_()
    assert [doc.key for doc in table.search("images")] == ["model.dim"] and len(table) == 3
    assert json.loads(table.to_json()) == {"lr": 0.1, "model": {"dim": 84}, "fn": {"$ref": "math:sqrt"}}
