"""Where a run's table is drawn over: in terminals, not in pipes and pages."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.trainers import compilation
from jaxrl.trainers import display as displays
from jaxrl.trainers.curves import draw_panels
from jaxrl.trainers.history import History
from jaxrl.trainers.video import Video


@pytest.mark.parametrize(("terminal", "kernel"), [(True, False), (True, True), (False, False)])
def test_only_a_terminal_outside_a_kernel_redraws(monkeypatch, terminal, kernel):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    if kernel:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert displays.redraws() is (terminal and not kernel)


def test_a_video_below_the_working_directory_is_named_from_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert repr(Video(tmp_path / "videos" / "episode.mp4")) == "Video('videos/episode.mp4')"
    assert repr(Video(tmp_path.parent / "episode.mp4")) == f"Video({str(tmp_path.parent / 'episode.mp4')!r})"


def test_a_long_iteration_says_for_how_long_it_has_run(monkeypatch):
    said = []
    shown = displays.Display(lambda history: None, said.append, lambda history: None)
    monkeypatch.setattr(displays, "FIRST_PAUSE_S", 0.01)
    with displays.waiting(shown, 4):
        time.sleep(0.2)
    assert said and all(line.startswith("Iteration 4: 0 s so far") for line in said)


def test_a_program_that_compiles_long_is_named(monkeypatch):
    monkeypatch.setattr(compilation, "LONG_S", 0.0)
    told = []

    def a_program_of_this_test(x):
        return jnp.cumsum(jnp.sin(x @ x.T))

    with compilation.watched(told.append):
        jax.jit(a_program_of_this_test)(np.ones((3, 4), np.float32))
        wait_for(lambda: "a_program_of_this_test" in told)
    told.clear()
    jax.jit(lambda x: x - 3.0)(np.ones(5, np.float32))
    assert not told


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_panels_of_environments_have_titles_and_legends():
    histories = {
        env: {f"PPO, {env}": History([{"timesteps_total": n, "episode_reward_mean": float(n)} for n in (1, 2)])}
        for env in ("A-v0", "B-v0", "C-v0")
    }
    figure = draw_panels(histories)
    assert [axes.get_title("left") for axes in figure.axes] == ["A-v0", "B-v0", "C-v0"]
    assert all(axes.get_legend() is not None for axes in figure.axes)
    assert figure.get_suptitle() == "mean episode reward over env steps"
    single = draw_panels({"A-v0": histories["A-v0"]}, title="mine")
    legend = single.axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["PPO, A-v0"]
    assert single.get_suptitle() == "mine"


def test_a_run_goes_on_where_progress_cannot_be_shown_any_more(capsys):
    shown = []

    def show(what):
        shown.append(what)
        raise OSError(5, "Input/output error")

    display = displays.enduring(displays.Display(show, show, show))
    for _ in range(2):
        display.update(History([{"training_iteration": 1}]))
        display.note("note")
    display.close(History())
    assert len(shown) == 1
    assert capsys.readouterr().err == "Progress cannot be shown any more: Input/output error; the run goes on.\n"
