"""Names that are markup, control characters, or long: shown as they are written, shortened, and harmless."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from jaxrl.cli import tuned
from jaxrl.cli.reporting import say
from jaxrl.terminal import printable, printable_name
from jaxrl.trainers.curves import draw_panels
from jaxrl.trainers.display import line_display, table_display
from jaxrl.trainers.history import History
from jaxrl.trainers.results import new_run_directory
from jaxrl.tune import TrialView

NAMES = [
    "e[/x]",
    "[bold]e[link=file:///etc]",
    "\x1b]0;title\x07\x1b[2J\x9b31m",
    "two\nlines\rback\ttab",
    "a/b/../../c",
    "..",
    ".hidden",
    "umgebung-ü-環境-🎲",
    "\u202eright to left",
    "half \udce4",
    "$unbalanced $math^{",
    "_first",
    "n" * 300,
    "ü" * 300,
    "",
]


def shown(draw) -> str:
    stream = io.StringIO()
    draw(Console(file=stream, force_terminal=True, width=400, color_system=None))
    return stream.getvalue()


def is_harmless(text: str) -> bool:
    # What rich itself writes: to hide and show the cursor, to go up, to erase lines.
    for code in ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K", "\x1b[1m", "\x1b[3m", "\x1b[0m", "\x1b[1;3m", "\r"):
        text = text.replace(code, "")
    return printable(text) == text and text.encode() is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_written(name, capsys):
    result = {"training_iteration": 1, "timesteps_total": 5, "episode_reward_mean": 1.0, "x": 3.0}
    history = History([result], name=name, progress={name or "title": "x"})

    def table(console):
        display = table_display(console, name)
        display.update(history)
        display.note(name)
        display.close(history)

    def trials(console):
        console.print(tuned._table([TrialView(name, name, "RUNNING", result, None, "")]))

    for draw in (table, trials):
        text = shown(draw)
        assert is_harmless(text) and printable_name(name) in text
    display = line_display()
    display.update(history)
    display.note(name)
    say(f"Error: {name}")
    captured = capsys.readouterr()
    assert is_harmless(captured.out) and is_harmless(captured.err)
    assert f"Error: {printable(name)}\n" == captured.err


@pytest.mark.parametrize("name", [NAMES[2], NAMES[3], *NAMES[9:14]])
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_a_plot_of_any_name(name, tmp_path):
    results = [{"timesteps_total": n, "episode_reward_mean": float(n)} for n in (1, 2)]
    figure = draw_panels({name: {name: History(results)}}, title=name or None)
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_of_any_name_is_one_of_the_experiments(name, tmp_path):
    first, second = (new_run_directory(tmp_path, name, name) for _ in range(2))
    assert first != second and first.parent == tmp_path and len(os.fsencode(first.name)) <= 255
    assert first.name.isascii() and first.name.isprintable() and not first.name.startswith(".")
    first.mkdir()
    (first / ".checkpoint_000001-12345678").mkdir()
